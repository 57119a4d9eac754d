//! llama.cpp (`llama-server`): GGUF models on the GPUs of one host, or on host memory.
//!
//! `parallel.tensor` is the number of GPUs; llama.cpp gives each whole layers (`-sm layer`).

use super::{
    Engine, EngineCommand, EngineError, RankContext, args, context_of, fixed_memory, key, loaded,
    memory,
    shapes::{check_shapes, none_suits, shapes_where, whole_layers_only},
};
use crate::base::Bytes;
use crate::model::{
    Bar, Loaded, MemoryEstimate, ModelFacts, ModelFormat, Overheads, Rules, Setup, WeightSplit,
    per_device,
};
use crate::spec::{DeviceKind, ParallelShape, ServiceSpec};

/// The adapter.
#[derive(Debug)]
pub struct LlamaCpp;

/// Requests served at a time, unless `args` say otherwise. llama-server's own default, with one
/// cache shared by all of them (`--kv-unified`), so that each may use the whole context.
const SLOTS: &str = "4";

/// CUDA context and buffers of a GPU rank; of a process on host memory just its own. The logits
/// of a physical batch (512 tokens) come on top: command-r's 672 MiB (vocabulary 256,000) are
/// 500 MiB of them.
const GPU_FIXED: Bytes = Bytes::mib(768);
const CPU_FIXED: Bytes = Bytes::mib(128);
const BATCH: u32 = 512;

/// How much it logs: `4` is "trace", one more than its default, without the texts of requests.
const VERBOSITY: &str = "LLAMA_ARG_LOG_VERBOSITY";
const TRACE: &str = "4";

const OWNED: [(&str, &str); 8] = [
    ("-m", "set `model`"),
    ("--model", "set `model`"),
    ("--host", "gpudeck gives the address"),
    ("--port", "gpudeck gives the port"),
    ("-a", "the model is served under the service's name"),
    ("--alias", "the model is served under the service's name"),
    ("-c", "set `context`"),
    ("--ctx-size", "set `context`"),
];

impl Engine for LlamaCpp {
    fn name(&self) -> &'static str {
        "llamacpp"
    }

    fn checked_with(&self) -> &'static str {
        "llama.cpp 0c1e570 (llama-cpp-python 0.3.36)"
    }

    fn check(&self, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Result<(), EngineError> {
        check_shapes("llamacpp", spec, |shape| whole_layers_only("llamacpp", shape))?;
        let given = args::dashed(&spec.args);
        args::refuse_owned(&given, &OWNED)?;
        if args::has(&given, &[key::LLAMA_CPP_OPTION]) && spec.api_key_file.is_some() {
            return Err(EngineError::OwnedSetting {
                setting: key::LLAMA_CPP_OPTION.to_owned(),
                hint: "remove it from `args`: the service's `api_key_file` is given to it"
                    .to_owned(),
            });
        }
        key::refuse_locks("llamacpp", &given, &spec.env, spec)?;
        args::cache_types_taken(&given, &memory::LLAMA_CPP)?;
        let Some(facts) = facts else { return Ok(()) };
        if facts.format != ModelFormat::Gguf {
            return Err(EngineError::Format {
                engine: "llamacpp",
                what: format!("{} holds {}", facts.entry, facts.format.name()),
                hint: "give the path of a .gguf file, or use engine = \"vllm\"".to_owned(),
            });
        }
        none_suits(self, spec, facts).map_or(Ok(()), Err)
    }

    fn refuses(
        &self,
        _spec: &ServiceSpec,
        facts: &ModelFacts,
        shape: ParallelShape,
    ) -> Option<EngineError> {
        let layers = facts.layers.filter(|layers| shape.tensor.get() > (*layers).max(1))?;
        Some(EngineError::Indivisible {
            what: format!("{layers} layers cannot be divided over {} GPUs", shape.tensor),
            hint: format!("use tensor = {layers} or less"),
        })
    }

    fn shapes(&self, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Vec<ParallelShape> {
        let layers = facts.and_then(|f| f.layers);
        shapes_where(spec, |n| layers.is_none_or(|l| n <= l))
    }

    fn memory(
        &self,
        spec: &ServiceSpec,
        facts: &ModelFacts,
        shape: ParallelShape,
    ) -> MemoryEstimate {
        if let Some(memory) = spec.memory {
            return fixed_memory(memory);
        }
        if let Some(setup) = self.setup(spec, facts, shape) {
            return memory::heaviest(facts, &setup);
        }
        let fixed = if spec.device == DeviceKind::Cpu { CPU_FIXED } else { GPU_FIXED };
        let overheads = Overheads {
            split: WeightSplit::Layers,
            fixed,
            parallel: Bytes::mib(256),
            batch_tokens: BATCH,
            cache_value_bytes: 2,
        };
        per_device(facts, shape, tokens(spec, facts), &overheads)
    }

    fn setup(&self, spec: &ServiceSpec, facts: &ModelFacts, shape: ParallelShape) -> Option<Setup> {
        if facts.tensors.is_empty() || facts.caches.is_empty() {
            return None;
        }
        let given = args::dashed(&spec.args);
        let number = |names: &[&str]| args::value(&given, names).and_then(|v| v.parse().ok());
        let cpu = spec.device == DeviceKind::Cpu;
        let context = if cpu { Bar::mib(128, 20, 256) } else { memory::LLAMA_CPP.context };
        Some(Setup {
            // Each GPU is a stage with layers of its own.
            pipeline: shape.tensor.get().into(),
            context: Some(tokens(spec, facts)),
            cache: args::cells(&given),
            batch: number(&["-ub", "--ubatch-size"]),
            requests: number(&["-np", "--parallel"]),
            unified: !args::has(&given, &["-no-kvu", "--no-kv-unified"]),
            // On host memory there are no devices to keep apart.
            eager: cpu,
            ..Setup::new(Rules { context, ..memory::LLAMA_CPP })
        })
    }

    fn read_loaded(&self, _spec: &ServiceSpec, log: &str) -> Loaded {
        loaded::llama_cpp(log)
    }

    fn warnings(&self, spec: &ServiceSpec) -> Vec<String> {
        let given = args::dashed(&spec.args);
        args::uncounted(&given, &memory::LLAMA_CPP)
            .filter(|_| spec.memory.is_none())
            .into_iter()
            .collect()
    }

    fn program(&self, spec: &ServiceSpec) -> Option<String> {
        Some(spec.program.clone().unwrap_or_else(|| "llama-server".to_owned()))
    }

    fn command(&self, rank: &RankContext<'_>) -> Result<EngineCommand, EngineError> {
        self.check(rank.spec, rank.facts)?;
        rank.check_devices()?;
        let given = &args::dashed(&rank.spec.args);
        // The image has its program in /app and no other path to it.
        let of_image = rank.docker.then(|| "/app/llama-server".to_owned());
        let own = rank.spec.program.clone().or(of_image);
        let mut argv: Vec<String> = own.or_else(|| self.program(rank.spec)).into_iter().collect();
        let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        option("-m", rank.model().to_owned());
        option("--alias", rank.service.to_string());
        option("--host", rank.address.to_owned());
        option("--port", rank.port.to_string());
        // 0 is the model's own.
        let context = context_of(rank.spec, rank.facts).unwrap_or(0);
        option("-c", context.to_string());
        if !args::has(given, &["-np", "--parallel"]) {
            option("-np", SLOTS.to_owned());
        }
        match rank.spec.device {
            DeviceKind::Gpu => {
                if !args::has(given, &["-ngl", "--gpu-layers", "--n-gpu-layers"]) {
                    // More than any model has; 99 would leave layers of the largest ones on the host.
                    option("-ngl", "999".to_owned());
                }
                option("-sm", "layer".to_owned());
            }
            DeviceKind::Cpu => {
                option("-ngl", "0".to_owned());
                option("--device", "none".to_owned());
            }
        }
        if let Some(cores) = rank.cores
            && !args::has(given, &["-t", "--threads"])
        {
            option("-t", cores.to_string());
        }
        if !args::has(given, &["-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"]) {
            argv.push("--kv-unified".to_owned());
        }
        argv.push("--metrics".to_owned());
        if let Some(file) = &rank.spec.api_key_file {
            argv.extend([key::LLAMA_CPP_OPTION.to_owned(), file.clone()]);
        }
        argv.extend(rank.spec.args.iter().cloned());
        let mut env = rank.env()?;
        // Since 2026 it says which buffers it makes only when asked for more words; a version that
        // does not know the variable says it anyway.
        if !args::has(given, &["-lv", "--verbosity", "--log-verbosity", "-v", "--verbose"]) {
            env.entry(VERBOSITY.to_owned()).or_insert_with(|| TRACE.to_owned());
        }
        Ok(EngineCommand { argv, env, files: rank.files() })
    }
}

/// llama.cpp takes a longer context than the model's as well, and 4096 where none is known.
fn tokens(spec: &ServiceSpec, facts: &ModelFacts) -> u64 {
    context_of(spec, Some(facts)).unwrap_or(4_096)
}
