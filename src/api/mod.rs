//! The front desk: everything a door can see and ask, as HTTP/JSON over a Unix socket.
//!
//! [`view`] is what doors see, [`intent`] is what they ask, [`door`] is how they reach it. Doors use
//! nothing else of gpudeck.

pub mod client;
pub mod condition;
pub mod desk;
pub mod door;
pub mod hub;
pub mod intent;
pub mod lend;
pub mod maintenance;
mod models;
pub mod plan;
pub mod release;
pub mod secret;
pub mod server;
mod shared;
mod thinned;
pub mod view;
pub mod who;

pub use crate::base::{
    Attempt, Bytes, DeckId, DeviceId, DownCause, Hint, HostName, RankId, ReleaseId, ReleaseNumber,
    ReplicaId, ReplicaKey, Revision, ServiceName, Timestamp, text, time, wrap,
};
pub use crate::placement::global::answer::{
    Copy as WeightsCopy, Level, Move, RankAnswer, ReplicaAnswer, ServiceAnswer,
};
pub use crate::placement::global::file::{Rank, Running, WorldFile, WorldGpu, WorldHost};
pub use crate::placement::global::{Answer, read::check as check_world};
pub use crate::placement::what_if::{Hole, NewHosts, PlaceCheck, ReplicaTo, WhatIf, WhatIfView};
pub use crate::rollout::analysis::{AnalysisRun, VerdictResult, Window};
pub use crate::rollout::forecast::{Forecast, Stage, Verb};
pub use crate::rollout::group::{Group, GroupEntry, GroupState, GroupSteer, Steered};
pub use crate::rollout::{
    Condition, Direction, Gate, LimitRule, Outcome, Phase, QueuedRollout, Rollout, RolloutKind,
    RunEnd, SkippedGate, StepRun, Stop, Verdict, VerdictOf,
};
pub use crate::spec::ConcurrencyPolicy;
pub use crate::wire::{
    Checkup, ContainerEngine, Disk, DiskClass, FABRIC_READY, Gpu, GpuHealth, GpuPath, GpuProcess,
    GpuVendor, Gpus, HostFacts, HostSample, LogChunk, Logout, MemoryUse, MigInstance, Nic, NvLinks,
    PathKind, PcieLink, ProcessKind, ProgramFound, Reached, Xid, xid,
};
pub use client::{CONTROLLER_SILENT, Client};
pub use condition::{DeckCondition, DeckConditionKind};
pub use door::Door;
pub use intent::{Intent, IntentReply, ROLLOUT_CHANGED, SeenRollout};
pub use maintenance::{
    Cordon, CordonedGpu, Drain, DrainMove, DrainOut, DrainPlan, Maintenance, ServiceLow, Upgrade,
    UpgradeEntry, UpgradeHost, UpgradePlan, UpgradePlanHost, UpgradeQuestion, UpgradeSteer,
};
pub use models::models;
pub use plan::{
    Capacity, PlanBorrow, PlanMove, PlanPlace, PlanProgress, PlanStep, PlanTime, StepProgress,
    lowest_text, ready_text,
};
pub use secret::Secret;
pub use server::{CheckupRequest, PreviousLog, PreviousLogRequest};
pub use view::{
    ApiError, ClockView, DeckView, Delta, ErrorKind, EventLine, GatewayView, HostLinkState,
    HostView, Looking, MemoryView, PLAN_CHANGED, PlanBehind, PlanView, Question, QuestionKind,
    RankView, ReleaseView, ReplicaView, ServiceView, Severity, Snapshot, TrafficView, Unseen, age,
};
pub use who::Who;
