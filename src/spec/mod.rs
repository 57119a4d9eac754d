//! What a person writes: `deck.toml` and `services/NAME.toml`, as types.
//!
//! Reading files is for `revision`; here text becomes types, and a mistake becomes a message with
//! its line and the nearest valid key.

pub mod analysis;
pub mod canary;
pub mod condition;
pub mod deck;
mod gates;
pub mod parallel;
pub mod parse;
pub mod require;
pub mod run;
pub mod service;
pub mod strategy;

pub use analysis::{
    CheckPlan, EngineAnalysis, EngineMetric, GoldenPrompt, GpuAnalysis, PrometheusCheck,
};
pub use canary::CanaryRule;
pub use condition::Condition;
pub use deck::{Become, DeckSpec, EndpointsSpec, GatewaySpec, GitSpec, HostSpec, Transport};
pub use parallel::{Parallel, ParallelShape};
pub use parse::{SpecError, parse_deck, parse_service};
pub use require::{RequireError, Requirement};
pub use run::RunSpec;
pub use service::{
    AnalysisSpec, CommandEngine, ConcurrencyPolicy, Count, DeviceKind, DockerRuntime, EngineSpec,
    Link, MetricNames, PlacementSpec, RolloutSpec, RuntimeSpec, ServiceSpec, Spread, StepSpec,
};
pub use strategy::Strategy;
