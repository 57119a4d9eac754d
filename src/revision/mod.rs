//! The deck's Git repository.
