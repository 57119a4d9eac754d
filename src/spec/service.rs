//! `services/NAME.toml`: what is to be served, and how a new revision of it may be rolled out.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::parallel::Parallel;
use crate::base::{Bytes, ServiceName, time};

/// A whole service spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The model: a path on the hosts. (Other sources belong to `weights`.)
    pub model: String,
    /// The inference engine.
    pub engine: EngineSpec,
    /// The engine's program, where it is not found by its usual name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// How engine processes are run.
    #[serde(default)]
    pub runtime: RuntimeSpec,
    /// Complete copies of the model to serve.
    #[serde(default = "one")]
    pub replicas: NonZeroU32,
    /// Longest sequence in tokens; default: what the model says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<u64>,
    /// How one replica is divided over devices.
    #[serde(default)]
    pub parallel: Parallel,
    /// GPUs, or host memory and cores.
    #[serde(default, skip_serializing_if = "DeviceKind::is_gpu")]
    pub device: DeviceKind,
    /// Memory that each device of a rank must have free; default: estimated from the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Further arguments for the engine, passed as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment of the engine. Not for secrets: this file is in Git.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where the key lies on the hosts without which its engines do not answer: an absolute path. Its
    /// first line is the key. Only its name is ever sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,
    /// The gateway of the deck to use; default: the only one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<ServiceName>,
    /// Several gateways of the deck that are kept equal, instead of `gateway`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<ServiceName>,
    /// Where clients reach it, for showing; default: what the gateway says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The gateway's backend; default: the service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Where replicas may go.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// How a new release replaces the old one.
    #[serde(default)]
    pub rollout: RolloutSpec,
    /// The analyses that steps name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub analysis: BTreeMap<String, AnalysisSpec>,
}

const fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// The inference engine of a service. Names of engines are matched in `engine/` only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineSpec {
    /// vLLM (`vllm serve`).
    Vllm,
    /// llama.cpp (`llama-server`).
    LlamaCpp,
    /// Anything else with an OpenAI-compatible API.
    Command(CommandEngine),
}

/// An engine started by a command line of the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandEngine {
    /// Program and arguments. Filled in: `{port}`, `{address}`, `{model}`, `{tensor}`, `{pipeline}`, `{data}`,
    /// `{context}`, `{rank}`, `{replica}`, `{release}`, `{service}`, `{api_key_file}`, and `{gpudeck}` (this binary
    /// on the host).
    pub run: Vec<String>,
    /// Whose metric names its `/metrics` uses, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricNames>,
}

/// Whose metric names an engine's `/metrics` uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricNames {
    /// `vllm:…`
    Vllm,
    /// `sglang:…`
    Sglang,
    /// `llamacpp:…`
    LlamaCpp,
}

/// How engine processes are run on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeSpec {
    /// A plain process under gpudeck's own supervisor.
    #[default]
    Process,
    /// A container of the host's Docker Engine.
    Docker(DockerRuntime),
}

/// Settings of the docker runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerRuntime {
    /// The image, present on the host or to be pulled by its engine.
    pub image: String,
    /// The engine's socket; default `/var/run/docker.sock`.
    #[serde(default = "docker_socket")]
    pub socket: String,
    /// Host paths mounted into the container under the same path, besides the model's folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
}

impl DockerRuntime {
    /// Where Docker listens unless it is told otherwise.
    pub fn default_socket() -> String {
        docker_socket()
    }
}

fn docker_socket() -> String {
    "/var/run/docker.sock".to_owned()
}

/// What kind of device ranks are placed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// GPUs.
    #[default]
    Gpu,
    /// Host memory and cores.
    Cpu,
}

impl DeviceKind {
    fn is_gpu(&self) -> bool {
        *self == Self::Gpu
    }
}

/// Where replicas may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementSpec {
    /// Only on these hosts; default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<crate::base::HostName>,
    /// Only on hosts with these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Replicas apart from each other, or close together.
    #[serde(default)]
    pub spread: Spread,
    /// What host and GPU must be, in the requirement language (`docs/placement.md`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<String>,
    /// Who goes first where there is not room for all: higher before lower.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// What the GPUs of a replica are to be joined by at least.
    #[serde(default, skip_serializing_if = "is_any_link")]
    pub link: Link,
    /// A better placement of the deck may move replicas that run. Their own rollouts and drains do so either way.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub movable: bool,
}

impl Default for PlacementSpec {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            labels: BTreeMap::new(),
            spread: Spread::default(),
            require: None,
            priority: 0,
            link: Link::default(),
            movable: true,
        }
    }
}

const fn yes() -> bool {
    true
}

const fn is_yes(is: &bool) -> bool {
    *is
}

fn is_any_link(link: &Link) -> bool {
    *link == Link::Any
}

/// What the GPUs of a replica are joined by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Whatever there is, the nearer the better.
    #[default]
    Any,
    /// One NUMA node, one `PCIe` switch or `NVLink`.
    Numa,
    /// One `PCIe` switch, or `NVLink`.
    PcieSwitch,
    /// `NVLink`.
    Nvlink,
}

const fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// How replicas are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// On as many hosts as there are.
    #[default]
    Host,
    /// Over as many racks (the label `rack`) as there are, then over hosts.
    Rack,
    /// Over as many zones (the label `zone`) as there are, then over hosts.
    Zone,
    /// On as few hosts as possible.
    Pack,
}

/// A number of replicas, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many.
    Number(u32),
    /// So many percent of the replicas.
    Percent(u32),
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => write!(f, "{n}"),
            Self::Percent(p) => write!(f, "{p}%"),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(n) => serializer.serialize_u32(*n),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

/// Largest share that is read. Kubernetes bounds only `maxUnavailable`, at 100 %; a surge may be more.
const MAX_PERCENT: u32 = 1_000;

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of replicas or a share such as \"25%\"")]
        enum Form {
            Number(u32),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(n) => Ok(Self::Number(n)),
            Form::Text(t) => t
                .strip_suffix('%')
                .and_then(|p| p.parse().ok())
                .filter(|p| *p <= MAX_PERCENT)
                .map(Self::Percent)
                .ok_or_else(|| {
                    serde::de::Error::custom(
                        "expected a number of replicas or a share such as \"25%\"",
                    )
                }),
        }
    }
}

/// How a new release replaces the old one. The words and the arithmetic are Kubernetes'; the
/// defaults are `LeaderWorkerSet`'s, as right for hosts whose GPUs are all in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutSpec {
    /// How a new release replaces the old one; default: canary where there are steps, else rolling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<super::Strategy>,
    /// Of blue-green: how long the old set stays after the switch; default 30 s.
    #[serde(with = "time::text_option", skip_serializing_if = "Option::is_none")]
    pub scale_down_delay: Option<Duration>,
    /// How far the ready replicas may fall below `replicas`; percentages round down.
    pub max_unavailable: Count,
    /// How many replicas may exist above `replicas`; percentages round up.
    pub max_surge: Count,
    /// A service of lower priority whose replicas may stop for the time of the rollout, where that
    /// gives it room; they come back afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub borrow: Option<ServiceName>,
    /// The stages of a canary, in order, or the gates before the switch of blue-green.
    pub steps: Vec<StepSpec>,
    /// When several services are applied together: only after these have been rolled out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<crate::base::ServiceName>,
    /// What applying this does while another rollout of the service is under way.
    pub concurrency_policy: ConcurrencyPolicy,
    /// Return to the stable release by itself when the new one fails.
    pub auto_rollback: bool,
    /// How long a new replica must be ready without interruption to count as available.
    #[serde(with = "time::text")]
    pub min_healthy_time: Duration,
    /// How long one replica may take from its start to its first token.
    #[serde(with = "time::text")]
    pub healthy_deadline: Duration,
    /// How long the whole rollout may go without progress; must exceed `healthy_deadline`. 0: for
    /// ever.
    #[serde(with = "time::text")]
    pub progress_deadline: Duration,
    /// How long requests in flight may take to finish before a replica is stopped.
    #[serde(with = "time::text")]
    pub drain_deadline: Duration,
    /// How long an engine may take from SIGTERM to its end before SIGKILL.
    #[serde(with = "time::text")]
    pub stop_grace: Duration,
    /// Requests with this header go to the canary whatever its weight: `x-canary: 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary_header: Option<String>,
    /// Requests with this cookie go to the canary whatever its weight: `canary=always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary_cookie: Option<String>,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            strategy: None,
            scale_down_delay: None,
            borrow: None,
            max_unavailable: Count::Number(1),
            max_surge: Count::Number(0),
            steps: Vec::new(),
            after: Vec::new(),
            concurrency_policy: ConcurrencyPolicy::Forbid,
            auto_rollback: true,
            min_healthy_time: Duration::from_secs(0),
            healthy_deadline: Duration::from_mins(20),
            progress_deadline: Duration::from_mins(30),
            drain_deadline: Duration::from_mins(5),
            stop_grace: Duration::from_secs(30),
            canary_header: None,
            canary_cookie: None,
        }
    }
}

/// One stage of a canary: a change of capacity and weight, or a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSpec {
    /// This share (percent) of the traffic to the new release, with ⌈share × replicas⌉ replicas.
    Weight(u32),
    /// So many replicas of the new release (Argo's `setCanaryScale`), whatever its weight, until
    /// the next such step; percentages round up.
    Scale(Count),
    /// A gate: wait this long.
    Bake(#[serde(with = "time::text")] Duration),
    /// A gate: the named analysis must pass.
    Analyse(String),
    /// A gate: a person approves.
    Approve(bool),
    /// A gate: a command of the user's must end with exit code 0.
    Run(super::RunSpec),
}

/// What a new apply does while a rollout of the service is under way. The name is Kubernetes'
/// (`CronJob`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConcurrencyPolicy {
    /// It is refused.
    #[default]
    Forbid,
    /// It waits for the end of the present one.
    Queue,
    /// The present one is taken back first.
    Replace,
}

/// What an analysis measures and what it tolerates. The numbers come from the gateway; the
/// engine's own metrics are the second source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnalysisSpec {
    /// How long to measure.
    #[serde(with = "time::text")]
    pub duration: Duration,
    /// Fewest requests to the canary for a verdict; fewer is inconclusive.
    pub min_requests: u64,
    /// Highest share of failed requests of the canary, 0 to 1.
    pub max_error_rate: f64,
    /// How many times stable's a latency of the canary may be: fails by the rank test of `engine.compare`. The
    /// gateway's mean response above it asks a person, where no ranks could be compared.
    pub max_latency_ratio: f64,
    /// Highest mean response time of the canary.
    #[serde(with = "time::text_option", skip_serializing_if = "Option::is_none")]
    pub max_latency: Option<Duration>,
    /// What the engines' own metrics may look like.
    pub engine: super::EngineAnalysis,
    /// What the canary's GPUs may do.
    pub gpu: super::GpuAnalysis,
    /// Prompts whose answers are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<super::GoldenPrompt>,
    /// Queries to a Prometheus.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::analysis::one_or_many"
    )]
    pub prometheus: Vec<super::PrometheusCheck>,
    /// A golden prompt or query fails when more measurements than this failed (Argo); -1: never.
    pub failure_limit: i64,
    /// It is inconclusive when more measurements than this were; -1: never.
    pub inconclusive_limit: i64,
    /// It ends in an error when more measurements in a row than this did; -1: never.
    pub consecutive_error_limit: i64,
}

impl Default for AnalysisSpec {
    fn default() -> Self {
        Self {
            duration: Duration::from_mins(1),
            min_requests: 10,
            max_error_rate: 0.02,
            max_latency_ratio: 2.0,
            max_latency: None,
            engine: super::EngineAnalysis::default(),
            gpu: super::GpuAnalysis::default(),
            golden: Vec::new(),
            prometheus: Vec::new(),
            failure_limit: 0,
            inconclusive_limit: 0,
            consecutive_error_limit: 4,
        }
    }
}
