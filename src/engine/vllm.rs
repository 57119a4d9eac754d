//! vLLM (`vllm serve`) on one host: tensor, pipeline and data parallelism.
//!
//! With `--data-parallel-size` requests to the one port are spread over an engine for each copy, by one process or (newer
//! versions, `--api-server-count`) by several that listen there together. On one host these talk over files
//! (`v1/engine/utils.py`, `launch_core_engines`); what the copies need besides for each other (the master's port for
//! `torch.distributed`) vLLM takes by itself of those that are free, so replicas beside each other are given none. Each copy
//! has the next GPUs of those that are visible, a cache of its own, and metrics with its number as `engine`.
//!
//! Limits are those of `vllm/config/model.py` (`verify_with_parallel_config`) and
//! `vllm/model_executor/models/llama.py`.

use super::{
    Engine, EngineCommand, EngineError, RankContext, args, context_of, fixed_memory, key, limits,
    loaded, memory,
    shapes::{check_shapes, none_suits, shapes_where},
};
use crate::base::Bytes;
use crate::model::cache::CacheBits;
use crate::model::estimate::ASSUMED_CONTEXT;
use crate::model::{
    Loaded, MemoryEstimate, ModelFacts, ModelFormat, Overheads, Setup, WeightSplit, per_device,
};
use crate::spec::{DeviceKind, ParallelShape, RuntimeSpec, ServiceSpec};

/// The adapter.
#[derive(Debug)]
pub struct Vllm;

/// `--gpu-memory-utilization` of vLLM 0.32; 0.9 before.
const DEFAULT_UTILISATION: f64 = 0.92;

/// Measured on H100 by others: peak activation 0.75 to 3.2 GiB and CUDA graphs 0.51 to 1.85 GiB
/// (here 1.5 and 1.0), memory outside of torch 0.27 GiB on one GPU and about 2.1 GiB on several.
const OVERHEADS: Overheads = Overheads {
    split: WeightSplit::Tensors,
    fixed: Bytes::mib(1536 + 1024 + 277),
    parallel: Bytes::mib(1874),
    batch_tokens: 0,
    cache_value_bytes: 2,
};

const ONE_HOST: &str = "a replica stays on one host for now";
const STAGES: &str = "set `parallel = { tensor = N, pipeline = N }`";
const COPIES: &str = "set `parallel = { tensor = N, data = N }`";
const OWN_BALANCE: &str = "a replica has one address, and spreads requests over its copies itself";

const OWNED: [(&str, &str); 37] = [
    ("--model", "set `model`"),
    ("--host", "gpudeck gives the address"),
    ("--port", "gpudeck gives the port"),
    ("--uds", "gpudeck and the gateway reach it by its port"),
    ("--config", "write what stands in the file into `args`"),
    ("--device-ids", "gpudeck gives each rank its GPUs"),
    ("--served-model-name", "the model is served under the service's name"),
    ("--tensor-parallel-size", "set `parallel = { tensor = N }`"),
    ("-tp", "set `parallel = { tensor = N }`"),
    ("--pipeline-parallel-size", STAGES),
    ("-pp", STAGES),
    ("--data-parallel-size", COPIES),
    ("-dp", COPIES),
    ("--data-parallel-size-local", ONE_HOST),
    ("-dpl", ONE_HOST),
    ("--data-parallel-rank", ONE_HOST),
    ("-dpn", ONE_HOST),
    ("--data-parallel-start-rank", ONE_HOST),
    ("-dpr", ONE_HOST),
    ("--data-parallel-address", ONE_HOST),
    ("-dpa", ONE_HOST),
    ("--data-parallel-rpc-port", ONE_HOST),
    ("-dpp", ONE_HOST),
    ("--data-parallel-backend", ONE_HOST),
    ("-dpb", ONE_HOST),
    ("--data-parallel-hybrid-lb", OWN_BALANCE),
    ("-dph", OWN_BALANCE),
    ("--data-parallel-external-lb", OWN_BALANCE),
    ("-dpe", OWN_BALANCE),
    ("--nnodes", ONE_HOST),
    ("-n", ONE_HOST),
    ("--node-rank", ONE_HOST),
    ("-r", ONE_HOST),
    ("--master-addr", ONE_HOST),
    ("--master-port", ONE_HOST),
    ("--headless", ONE_HOST),
    ("--max-model-len", "set `context`"),
];

impl Engine for Vllm {
    fn name(&self) -> &'static str {
        "vllm"
    }

    fn checked_with(&self) -> &'static str {
        "vLLM 0.20 and 0.32"
    }

    fn check(&self, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Result<(), EngineError> {
        if spec.device == DeviceKind::Cpu {
            return Err(EngineError::Unsupported {
                engine: "vllm",
                what: "device = \"cpu\"".to_owned(),
                hint: "use engine = \"llamacpp\" for ranks on host memory".to_owned(),
            });
        }
        check_shapes("vllm", spec, |_| None)?;
        let given = args::dashed(&spec.args);
        args::refuse_owned(&given, &OWNED)?;
        key::refuse_locks("vllm", &given, &spec.env, spec)?;
        args::cache_types_taken(&given, &memory::VLLM)?;
        let Some(facts) = facts else { return Ok(()) };
        if facts.format == ModelFormat::Gguf {
            return Err(EngineError::Format {
                engine: "vllm",
                what: format!("{} is a GGUF file", facts.entry),
                hint: "use engine = \"llamacpp\", or give a directory with safetensors".to_owned(),
            });
        }
        if let Some(error) = limits::form(facts, "vllm") {
            return Err(error);
        }
        if !args::has(&given, &["--hf-overrides", "--rope-scaling"])
            && let Some(error) = limits::context(facts, spec.context)
        {
            return Err(error);
        }
        none_suits(self, spec, facts).map_or(Ok(()), Err)
    }

    fn shapes(&self, spec: &ServiceSpec, _facts: Option<&ModelFacts>) -> Vec<ParallelShape> {
        shapes_where(spec, |_| true)
    }

    fn refuses(
        &self,
        spec: &ServiceSpec,
        facts: &ModelFacts,
        shape: ParallelShape,
    ) -> Option<EngineError> {
        match self.setup(spec, facts, shape) {
            Some(setup) => limits::cuts(facts, &setup),
            // Of a model whose tensors are not known.
            None => limits::heads(facts, shape.tensor.get().into())
                .or_else(|| limits::stages(facts, shape.pipeline.get().into())),
        }
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
        let tokens = tokens(spec, facts);
        let given = args::dashed(&spec.args);
        let cache = args::value(&given, &["--kv-cache-dtype"]);
        let mut overheads = OVERHEADS;
        if cache.is_some_and(|v| v.starts_with("fp8")) {
            overheads.cache_value_bytes = 1;
        }
        per_device(facts, shape, tokens, &overheads)
    }

    fn setup(&self, spec: &ServiceSpec, facts: &ModelFacts, shape: ParallelShape) -> Option<Setup> {
        if facts.tensors.is_empty() || facts.caches.is_empty() {
            return None;
        }
        let given = args::dashed(&spec.args);
        let number = |names: &[&str]| args::value(&given, names).and_then(|v| v.parse().ok());
        let cache = args::value(&given, &["--kv-cache-dtype"]);
        let (tensor, data) = (u64::from(shape.tensor.get()), u64::from(shape.data.get()));
        Some(Setup {
            tensor,
            pipeline: shape.pipeline.get().into(),
            data,
            // Experts are spread over the ranks of all copies, each stage its own.
            expert: args::experts(&given, tensor.saturating_mul(data)),
            context: context_of(spec, Some(facts)),
            cache: cache.and_then(CacheBits::named),
            block: number(&["--block-size"]),
            batch: number(&["--max-num-batched-tokens"]),
            requests: number(&["--max-num-seqs"]),
            eager: args::has(&given, &["--enforce-eager"]),
            whole_towers: args::value(&given, &["--mm-encoder-tp-mode"]) == Some("data"),
            utilisation: args::value(&given, &["--gpu-memory-utilization"])
                .and_then(|v| v.parse().ok()),
            ..Setup::new(memory::VLLM)
        })
    }

    fn read_loaded(&self, spec: &ServiceSpec, log: &str) -> Loaded {
        let given = args::dashed(&spec.args);
        let block = args::value(&given, &["--block-size"]).and_then(|v| v.parse().ok());
        loaded::vllm_in_blocks(log, block)
    }

    fn memory_share(&self, spec: &ServiceSpec) -> Option<f64> {
        let given = args::dashed(&spec.args);
        let share = args::value(&given, &["--gpu-memory-utilization"]);
        let share = share.and_then(|v| v.parse::<f64>().ok()).unwrap_or(DEFAULT_UTILISATION);
        share.is_finite().then(|| share.clamp(0.0, 1.0))
    }

    fn needs_whole_gpus(&self, spec: &ServiceSpec) -> Option<&'static str> {
        // vLLM 0.20 fails on anything but numbers in CUDA_VISIBLE_DEVICES (vllm issue 41848), and
        // CUDA counts no more than the first instance of a GPU. In a container it is given nothing else.
        match spec.runtime {
            RuntimeSpec::Docker(_) => None,
            RuntimeSpec::Process => {
                Some("outside containers vLLM takes GPUs by number, and those have none")
            }
        }
    }

    fn warnings(&self, spec: &ServiceSpec) -> Vec<String> {
        let given = args::dashed(&spec.args);
        args::uncounted(&given, &memory::VLLM)
            .filter(|_| spec.memory.is_none())
            .into_iter()
            .collect()
    }

    fn program(&self, spec: &ServiceSpec) -> Option<String> {
        Some(spec.program.clone().unwrap_or_else(|| "vllm".to_owned()))
    }

    fn command(&self, rank: &RankContext<'_>) -> Result<EngineCommand, EngineError> {
        self.check(rank.spec, rank.facts)?;
        rank.check_devices()?;
        let mut argv: Vec<String> = self.program(rank.spec).into_iter().collect();
        argv.extend(["serve".to_owned(), rank.model().to_owned()]);
        let mut option = |name: &str, value: String| argv.extend([name.to_owned(), value]);
        option("--served-model-name", rank.service.to_string());
        option("--host", rank.address.to_owned());
        option("--port", rank.port.to_string());
        option("--tensor-parallel-size", rank.shape.tensor.to_string());
        if rank.shape.pipeline.get() > 1 {
            option("--pipeline-parallel-size", rank.shape.pipeline.to_string());
        }
        if rank.shape.data.get() > 1 {
            option("--data-parallel-size", rank.shape.data.to_string());
        }
        if let Some(context) = rank.spec.context {
            option("--max-model-len", context.to_string());
        }
        argv.extend(rank.spec.args.iter().cloned());
        if let Some(file) = &rank.spec.api_key_file {
            argv = key::through_variable(key::VLLM_VARIABLE, file, argv);
        }
        // Until some version between 0.20 and 0.32 it read UUIDs as numbers, and failed.
        Ok(EngineCommand { argv, env: rank.env_by_number()?, files: rank.files() })
    }
}

/// At least one sequence of full length must fit, or vLLM refuses to start.
fn tokens(spec: &ServiceSpec, facts: &ModelFacts) -> u64 {
    context_of(spec, Some(facts)).unwrap_or(ASSUMED_CONTEXT)
}
