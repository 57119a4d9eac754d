//! The arithmetic of `max_unavailable`, `max_surge` and canary weights.
