//! What gpudeck knows of each inference engine: command lines, probes, metric names, limits.
//!
//! One adapter a file; an engine's name is matched nowhere else. Everything is pure: an adapter
//! says what to run and how to read what comes back, others run it and read it.

mod args;
pub mod command;
pub mod error;
pub mod histogram;
mod key;
pub mod limits;
pub mod llamacpp;
pub mod loaded;
pub mod memory;
pub mod metrics;
mod shapes;
mod template;
pub mod token;
pub mod vllm;

use std::collections::BTreeMap;

use crate::base::{Bytes, DeviceId, ReleaseNumber, ServiceName, text};
use crate::model::{Correction, Loaded, MemoryEstimate, ModelFacts, Setup};
use crate::spec::{DeviceKind, EngineSpec, ParallelShape, ServiceSpec};
use crate::wire::GPU_NUMBERS;

pub use error::EngineError;
pub use histogram::Histogram;
pub use metrics::EngineMetrics;
pub use shapes::{Shapes, shapes};
pub use token::{TokenAnswer, TokenRequest};

/// An inference engine.
pub trait Engine: Send + Sync {
    /// Its name, as in specs.
    fn name(&self) -> &'static str;

    /// The versions this adapter was checked with, for people.
    fn checked_with(&self) -> &'static str;

    /// Whether nothing can be started without knowing the model's files. An engine that fetches or
    /// invents its model does not need them.
    fn needs_model_files(&self) -> bool {
        true
    }

    /// Whether this engine can serve the model as the spec says. With `facts` where known.
    fn check(&self, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Result<(), EngineError>;

    /// The shapes to try, in order: the spec's own, or the usual ones. [`shapes`] leaves out those that
    /// it refuses.
    fn shapes(&self, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Vec<ParallelShape>;

    /// What one rank takes on each of its devices.
    fn memory(
        &self,
        spec: &ServiceSpec,
        facts: &ModelFacts,
        shape: ParallelShape,
    ) -> MemoryEstimate;

    /// The question that [`Self::memory`] answers, where the model's files tell enough to ask it.
    fn setup(
        &self,
        _spec: &ServiceSpec,
        _facts: &ModelFacts,
        _shape: ParallelShape,
    ) -> Option<Setup> {
        None
    }

    /// Why it would not start with the model so divided, however much memory there is; none where
    /// nothing is known that speaks against it.
    fn refuses(
        &self,
        spec: &ServiceSpec,
        facts: &ModelFacts,
        shape: ParallelShape,
    ) -> Option<EngineError> {
        limits::cuts(facts, &self.setup(spec, facts, shape)?)
    }

    /// What a log says of the memory that the engine took once it had loaded, or why it refused to.
    fn read_loaded(&self, _spec: &ServiceSpec, log: &str) -> Loaded {
        loaded::any(log, None)
    }

    /// The share of each GPU's total memory that the engine takes whatever the model needs, 0 to 1.
    fn memory_share(&self, _spec: &ServiceSpec) -> Option<f64> {
        None
    }

    /// Why it cannot run on an instance of a GPU that MIG divides, where it cannot.
    fn needs_whole_gpus(&self, _spec: &ServiceSpec) -> Option<&'static str> {
        None
    }

    /// What to know of the spec before it is rolled out, though it may be meant so.
    fn warnings(&self, _spec: &ServiceSpec) -> Vec<String> {
        Vec::new()
    }

    /// The program that a plain process of it runs on the host; none: our own binary, or not known before its turn.
    fn program(&self, spec: &ServiceSpec) -> Option<String>;

    /// Whether `--version` of its program tells a version and does nothing else.
    fn tells_version(&self) -> bool {
        true
    }

    /// The command line of a rank.
    fn command(&self, rank: &RankContext<'_>) -> Result<EngineCommand, EngineError>;

    /// Requests that prove that the engine generates tokens, to be tried in this order.
    fn token_requests(&self, service: &ServiceName) -> Vec<TokenRequest> {
        token::openai_requests(service.as_str())
    }

    /// Requests that have it answer one prompt the same way each time, to be tried in this order.
    fn prompt_requests(
        &self,
        service: &ServiceName,
        prompt: &str,
        max_tokens: u32,
    ) -> Vec<TokenRequest> {
        token::openai_prompts(service.as_str(), prompt, max_tokens)
    }
}

/// The adapter of a spec's engine.
pub fn of(spec: &EngineSpec) -> Box<dyn Engine> {
    match spec {
        EngineSpec::Vllm => Box::new(vllm::Vllm),
        EngineSpec::LlamaCpp => Box::new(llamacpp::LlamaCpp),
        EngineSpec::Command(settings) => Box::new(command::Command(settings.clone())),
    }
}

/// What one rank takes on each of its devices, on a GPU of this name and memory if that is known, corrected by what was
/// measured before.
pub fn corrected_memory(
    engine: &dyn Engine,
    spec: &ServiceSpec,
    facts: &ModelFacts,
    shape: ParallelShape,
    gpu: Option<(&str, Bytes)>,
    correction: Correction,
) -> MemoryEstimate {
    match engine.setup(spec, facts, shape) {
        Some(setup) if spec.memory.is_none() => {
            let setup = match gpu {
                Some((name, total)) => setup.on_gpu(name, total.0),
                None => setup,
            };
            memory::heaviest(facts, &Setup { correction, ..setup })
        }
        _ => engine.memory(spec, facts, shape),
    }
}

/// That what is foreseen on a GPU of this name is not sure to fit into what the engine takes of it; none: it is sure, or
/// nothing is known of that.
pub fn unsure(memory: &MemoryEstimate, has: Bytes, name: &str) -> Option<String> {
    if memory.fits != Some(false) {
        return None;
    }
    let needs = if memory.high > has {
        format!("it needs {} to {}, and {has} is there for it", memory.total, memory.high)
    } else {
        format!("it needs about {} of {has}", memory.total)
    };
    Some(format!(
        "not sure to fit on {}: {needs} → lower `context`, divide it over more GPUs, or write `memory` if you know better",
        text::clean(name, 60)
    ))
}

/// The shapes to try, in order, each with what a rank takes on each device: what placing asks for.
pub fn needs(
    engine: &dyn Engine,
    spec: &ServiceSpec,
    facts: Option<&ModelFacts>,
) -> Result<Vec<(ParallelShape, MemoryEstimate)>, EngineError> {
    engine.check(spec, facts)?;
    let estimate = |shape| match (facts, spec.memory) {
        (_, Some(memory)) => Ok((shape, fixed_memory(memory))),
        (Some(facts), None) => Ok((shape, engine.memory(spec, facts, shape))),
        (None, None) => Err(EngineError::Template {
            what: "the memory it takes is not known (the model's files cannot be read)".to_owned(),
            hint: "set `memory`, for example memory = \"20GiB\"".to_owned(),
        }),
    };
    shapes(engine, spec, facts).good.into_iter().map(estimate).collect()
}

/// Which GPUs a CUDA program sees.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// By which order it counts them.
const ORDER: &str = "CUDA_DEVICE_ORDER";

/// The variables that a container is given for [`RankContext::order`] alone.
pub const OF_ORDER: [&str; 2] = [VISIBLE, ORDER];

/// What a command line is made from.
#[derive(Clone, Debug)]
pub struct RankContext<'a> {
    /// The service: also the name of the model in its API.
    pub service: &'a ServiceName,
    /// The service's spec: engine, program, context, args, env, device.
    pub spec: &'a ServiceSpec,
    /// What is known of the model; the command then gets its real path, not the spec's.
    pub facts: Option<&'a ModelFacts>,
    /// How the replica is divided.
    pub shape: ParallelShape,
    /// Address to listen on, usually `0.0.0.0`.
    pub address: &'a str,
    /// Port to listen on.
    pub port: u16,
    /// The rank's devices, in groups of `tensor` one after another.
    pub devices: &'a [DeviceId],
    /// The place of each of them among them as the host's driver counts, where that is known.
    pub order: Option<&'a [usize]>,
    /// The release.
    pub release: ReleaseNumber,
    /// The replica, from 0.
    pub replica: u32,
    /// The rank, from 0.
    pub rank: u32,
    /// Processor cores it may use; none: as many as the engine likes.
    pub cores: Option<u32>,
    /// It runs in a container of the engine's image.
    pub docker: bool,
}

/// A command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Files that must be on the host.
    pub files: Vec<String>,
}

impl RankContext<'_> {
    /// The model's path for the engine.
    fn model(&self) -> &str {
        self.facts.map_or(self.spec.model.as_str(), |f| f.entry.as_str())
    }

    fn files(&self) -> Vec<String> {
        self.facts.map(|f| f.files.clone()).unwrap_or_default()
    }

    /// The spec's environment, and which GPUs the process sees: its own and no other, by the
    /// names that stay theirs whatever the driver counts.
    fn env(&self) -> Result<BTreeMap<String, String>, EngineError> {
        let mut env = self.own_env()?;
        let uuids: Vec<&str> = self.gpus().collect();
        // Empty for a rank on host memory: it must not find a GPU that belongs to another.
        env.insert(VISIBLE.to_owned(), uuids.join(","));
        Ok(env)
    }

    /// The same for an engine that takes nothing but numbers. The host's agent fills them in when
    /// it starts the rank: what a GPU is called by number can change with a reboot.
    fn env_by_number(&self) -> Result<BTreeMap<String, String>, EngineError> {
        let mut env = self.own_env()?;
        if self.gpus().next().is_none() {
            env.insert(VISIBLE.to_owned(), String::new());
        } else if !self.docker {
            env.insert(VISIBLE.to_owned(), GPU_NUMBERS.to_owned());
            // As the driver counts. By default CUDA begins with the fastest.
            env.insert(ORDER.to_owned(), "PCI_BUS_ID".to_owned());
        }
        // A container gets its GPUs from the Docker Engine, sees no others, and counts from 0 as the driver does: where its
        // groups are others it is told their order.
        let order = self.order.filter(|order| self.docker && !order.is_sorted());
        if let Some(order) = order {
            let numbers: Vec<String> = order.iter().map(ToString::to_string).collect();
            env.insert(VISIBLE.to_owned(), numbers.join(","));
            env.insert(ORDER.to_owned(), "PCI_BUS_ID".to_owned());
        }
        Ok(env)
    }

    fn gpus(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().filter_map(|d| match d {
            DeviceId::Gpu(uuid) => Some(uuid.as_str()),
            DeviceId::Cpu => None,
        })
    }

    fn own_env(&self) -> Result<BTreeMap<String, String>, EngineError> {
        if self.spec.env.contains_key(VISIBLE) {
            return Err(EngineError::OwnedSetting {
                setting: VISIBLE.to_owned(),
                hint: "remove it from `env`: gpudeck gives each rank its GPUs".to_owned(),
            });
        }
        Ok(self.spec.env.clone())
    }

    fn check_devices(&self) -> Result<(), EngineError> {
        let gpus = self.devices.iter().filter(|d| **d != DeviceId::Cpu).count();
        let wanted = match self.spec.device {
            DeviceKind::Gpu => usize::try_from(self.shape.devices()).unwrap_or(usize::MAX),
            DeviceKind::Cpu => 0,
        };
        if gpus == wanted { Ok(()) } else { Err(EngineError::Devices { wanted, given: gpus }) }
    }
}

/// The longest sequence that is served: the spec's, else the model's.
fn context_of(spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Option<u64> {
    spec.context.or_else(|| facts.and_then(|f| f.context))
}

/// The spec's own figure instead of an estimate.
fn fixed_memory(memory: Bytes) -> MemoryEstimate {
    MemoryEstimate {
        total: memory,
        notes: vec![format!("memory = {memory} as the spec says")],
        ..MemoryEstimate::default()
    }
}

#[cfg(test)]
mod tests;
