//! Where replicas go: pure, with reasons.
