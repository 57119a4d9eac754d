//! What the rollout decider uses of the engines: their metrics.

#[path = "../../src/engine/histogram.rs"]
pub mod histogram;
#[path = "../../src/engine/metrics.rs"]
pub mod metrics;

pub use histogram::Histogram;
