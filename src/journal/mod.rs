//! What was decided and done, crash-safe.
