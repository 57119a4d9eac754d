//! Model files, wherever they are.
