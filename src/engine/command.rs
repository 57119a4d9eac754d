//! Any engine with an OpenAI-compatible API, started by a command line of the user's.

use super::{
    Engine, EngineCommand, EngineError, RankContext, args, fixed_memory, key, limits, loaded,
    memory,
    shapes::{check_shapes, none_suits, shapes_where, whole_layers_only},
    template::{expand, no_context, no_key_file},
};
use crate::base::Bytes;
use crate::model::cache::CacheBits;
use crate::model::estimate::{Budget, Pool};
use crate::model::{
    Loaded, MemoryEstimate, ModelFacts, Overheads, Rules, Setup, WeightSplit, per_device,
};
use crate::spec::{
    CommandEngine, DeviceKind, MetricNames, ParallelShape, RuntimeSpec, ServiceSpec,
};

/// The adapter, with the user's command line.
#[derive(Debug)]
pub struct Command(pub CommandEngine);

impl Command {
    /// Whose metrics it has tells which engine it is.
    fn rules(&self) -> Option<Rules> {
        Some(match self.0.metrics? {
            MetricNames::Vllm => memory::VLLM,
            MetricNames::Sglang => memory::SGLANG,
            MetricNames::LlamaCpp => memory::LLAMA_CPP,
        })
    }

    /// It is one that wants its GPUs by number: `SGLang` goes without its own way of adding up over several GPUs where
    /// `CUDA_VISIBLE_DEVICES` holds anything else (`custom_all_reduce.py` makes integers of it), and vLLM fails.
    const fn counts_gpus(&self) -> bool {
        matches!(self.0.metrics, Some(MetricNames::Vllm | MetricNames::Sglang))
    }

    /// Whether the command says this of its shape.
    fn is_told(&self, placeholder: &str) -> bool {
        self.0.run.iter().any(|word| word.contains(placeholder))
    }

    /// Copies of attention among the ranks of tensor parallelism, which `SGLang` is asked for by its arguments.
    fn has_copies_inside(&self, spec: &ServiceSpec) -> bool {
        self.rules().is_some_and(|rules| rules.data_inside)
            && args::has(&self.words(spec), &["--enable-dp-attention"])
    }

    /// Why the engine cannot be divided so, or cannot be told to.
    fn cannot(&self, spec: &ServiceSpec, shape: ParallelShape) -> Option<EngineError> {
        if self.0.metrics == Some(MetricNames::LlamaCpp) {
            return whole_layers_only("command", shape);
        }
        if shape.data.get() > 1 && self.has_copies_inside(spec) {
            return Some(EngineError::Unsupported {
                engine: "command",
                what: format!("data = {} with --enable-dp-attention", shape.data),
                hint: "its copies are among the ranks of tensor parallelism: leave `data` out, and write for example \
                       \"--dp-size\", \"{tensor}\""
                    .to_owned(),
            });
        }
        let degrees =
            [("tensor", shape.tensor), ("pipeline", shape.pipeline), ("data", shape.data)];
        // One number of GPUs for tensor parallelism may stand in the command as it is.
        let several = spec.parallel.shapes().iter().any(|other| other.tensor != shape.tensor);
        let must = |(name, degree): &(&str, std::num::NonZeroU32)| {
            if *name == "tensor" { several } else { degree.get() > 1 }
        };
        let untold =
            |(name, _): &(&str, std::num::NonZeroU32)| !self.is_told(&format!("{{{name}}}"));
        let (name, degree) = degrees.into_iter().find(|d| must(d) && untold(d))?;
        Some(EngineError::Template {
            what: format!("{name} = {degree} is asked for, and nothing in `run` says so"),
            hint: format!("write {{{name}}} where the engine is told of it"),
        })
    }

    /// Its key is none of the spec's, and it hears of the one that it is to ask for.
    fn check_key(&self, spec: &ServiceSpec) -> Result<(), EngineError> {
        let words = self.words(spec);
        match self.0.metrics {
            // What is known of no engine may mean anything.
            None => return key::refuse_untold(&words, &spec.env, spec),
            Some(MetricNames::Sglang) => key::refuse_sglang(spec)?,
            Some(MetricNames::Vllm | MetricNames::LlamaCpp) => {}
        }
        key::refuse_locks("command", &words, &spec.env, spec)
    }

    /// The command that gives it its key, where the spec's does not do so.
    fn with_key(&self, spec: &ServiceSpec, mut argv: Vec<String>) -> Vec<String> {
        let Some(file) = &spec.api_key_file else { return argv };
        if key::refuse_untold(&self.words(spec), &spec.env, spec).is_ok() {
            return argv;
        }
        match self.0.metrics {
            Some(MetricNames::Vllm) => key::through_variable(key::VLLM_VARIABLE, file, argv),
            Some(MetricNames::LlamaCpp) => {
                argv.extend([key::LLAMA_CPP_OPTION.to_owned(), file.clone()]);
                argv
            }
            Some(MetricNames::Sglang) | None => argv,
        }
    }

    /// All that it is run with.
    fn words(&self, spec: &ServiceSpec) -> Vec<String> {
        let words: Vec<String> = self.0.run.iter().chain(&spec.args).cloned().collect();
        match self.0.metrics {
            Some(MetricNames::Vllm | MetricNames::LlamaCpp) => args::dashed(&words),
            Some(MetricNames::Sglang) | None => words,
        }
    }
}

impl Engine for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn checked_with(&self) -> &'static str {
        "no version: the command line is the spec's"
    }

    fn needs_model_files(&self) -> bool {
        false
    }

    fn check(&self, spec: &ServiceSpec, facts: Option<&ModelFacts>) -> Result<(), EngineError> {
        check_shapes("command", spec, |shape| self.cannot(spec, shape))?;
        if facts.is_none() && spec.memory.is_none() {
            return Err(EngineError::Template {
                what: "the memory it takes is not known (the model's files cannot be read)"
                    .to_owned(),
                hint: "set `memory`, for example memory = \"20GiB\"".to_owned(),
            });
        }
        self.check_key(spec)?;
        // Whose metrics it has tells which engine it is.
        let known = match self.0.metrics {
            Some(MetricNames::Vllm) => Some("vllm"),
            Some(MetricNames::Sglang) => Some("sglang"),
            _ => None,
        };
        if let Some(error) = facts.zip(known).and_then(|(f, name)| limits::form(f, name)) {
            return Err(error);
        }
        if let Some(error) = facts.and_then(|facts| none_suits(self, spec, facts)) {
            return Err(error);
        }
        match self.0.run.first() {
            None => Err(EngineError::Template {
                what: "`run` is empty".to_owned(),
                hint: "give program and arguments: run = [\"my-engine\", \"--port\", \"{port}\"]"
                    .to_owned(),
            }),
            Some(_) => self.0.run.iter().try_for_each(|word| {
                expand(word, &|name| match name {
                    "context"
                        if spec.context.is_none() && facts.is_none_or(|f| f.context.is_none()) =>
                    {
                        Err(no_context())
                    }
                    "api_key_file" if spec.api_key_file.is_none() => Err(no_key_file()),
                    _ => Ok(String::new()),
                })
                .map(drop)
            }),
        }
    }

    fn shapes(&self, spec: &ServiceSpec, _facts: Option<&ModelFacts>) -> Vec<ParallelShape> {
        // Without {tensor} the command cannot be told how to divide itself.
        shapes_where(spec, |_| self.is_told("{tensor}"))
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
        let overheads = Overheads {
            split: WeightSplit::Tensors,
            fixed: Bytes::gib(2),
            parallel: Bytes::gib(2),
            batch_tokens: 0,
            cache_value_bytes: 2,
        };
        let tokens = super::context_of(spec, Some(facts)).unwrap_or(4_096);
        let mut estimate = per_device(facts, shape, tokens, &overheads);
        estimate
            .notes
            .push("what this engine takes besides is not known: 2 GiB are assumed".to_owned());
        estimate
    }

    fn setup(&self, spec: &ServiceSpec, facts: &ModelFacts, shape: ParallelShape) -> Option<Setup> {
        let rules = self.rules()?;
        if facts.tensors.is_empty() || facts.caches.is_empty() {
            return None;
        }
        let words = self.words(spec);
        let number = |names: &[&str]| args::value(&words, names).and_then(|v| v.parse().ok());
        let devices = u64::from(shape.tensor.get());
        let (tensor, pipeline) = match rules.split {
            WeightSplit::Layers => (1, devices),
            WeightSplit::Tensors => (devices, u64::from(shape.pipeline.get())),
        };
        // `SGLang`'s copies of attention among the ranks.
        let copies = ["--dp-size", "--dp", "--data-parallel-size"];
        let inside = args::ranks(&words, &copies, devices).filter(|_| self.has_copies_inside(spec));
        // Copies with GPUs of their own: vLLM spreads experts over them, `SGLang`'s have nothing in common.
        let beside = if rules.data_inside { 1 } else { u64::from(shape.data.get()) };
        let spread = tensor.saturating_mul(beside);
        Some(Setup {
            tensor,
            pipeline,
            data: inside.unwrap_or(beside),
            data_inside: inside.map(|_| true),
            expert: if spread > 1 { args::experts(&words, spread) } else { 1 },
            context: super::context_of(spec, Some(facts)),
            cache: match rules.pool {
                Pool::Cells => args::cells(&words),
                _ => args::value(&words, &["--kv-cache-dtype"]).and_then(CacheBits::named),
            },
            block: number(&["--block-size", "--page-size"]),
            batch: number(&["--max-num-batched-tokens", "--chunked-prefill-size", "-ub"]),
            requests: number(&["--max-num-seqs", "--max-running-requests", "-np", "--parallel"]),
            // llama-server shares one cache where it chooses the number of slots itself.
            unified: args::has(&words, &["-kvu", "--kv-unified"])
                || !args::has(&words, &["-np", "--parallel", "-no-kvu", "--no-kv-unified"]),
            utilisation: args::value(&words, share_options(&rules)).and_then(|v| v.parse().ok()),
            eager: args::has(&words, &["--enforce-eager", "--disable-cuda-graph"])
                || spec.device == DeviceKind::Cpu,
            ..Setup::new(rules)
        })
    }

    fn memory_share(&self, spec: &ServiceSpec) -> Option<f64> {
        let rules = self.rules().filter(|rules| rules.budget != Budget::Needed)?;
        let words = self.words(spec);
        let said = args::value(&words, share_options(&rules)).and_then(|v| v.parse::<f64>().ok());
        // What a person wrote about the memory is of an engine that may be told otherwise.
        let share = said.or_else(|| spec.memory.is_none().then_some(rules.utilisation))?;
        share.is_finite().then(|| share.clamp(0.0, 1.0))
    }

    fn read_loaded(&self, spec: &ServiceSpec, log: &str) -> Loaded {
        let words = self.words(spec);
        let block = args::value(&words, &["--block-size"]).and_then(|v| v.parse().ok());
        loaded::any(log, block)
    }

    fn needs_whole_gpus(&self, spec: &ServiceSpec) -> Option<&'static str> {
        // CUDA counts no more than the first instance of a GPU.
        match spec.runtime {
            RuntimeSpec::Process if self.counts_gpus() => {
                Some("outside containers vLLM and SGLang take GPUs by number, and those have none")
            }
            RuntimeSpec::Process | RuntimeSpec::Docker(_) => None,
        }
    }

    fn warnings(&self, spec: &ServiceSpec) -> Vec<String> {
        let rules = self.rules().filter(|_| spec.memory.is_none());
        let uncounted = rules.and_then(|rules| args::uncounted(&self.words(spec), &rules));
        let mut warnings: Vec<String> = uncounted.into_iter().collect();
        let in_run = self.0.run.iter().any(|word| word.contains("{port}"));
        if in_run {
            return warnings;
        }
        // Only `run` is filled in.
        let where_else = if spec.args.iter().any(|word| word.contains("{port}")) {
            "`args` is passed on as it is"
        } else {
            "nothing else tells it"
        };
        warnings.push(format!(
            "the command does not say on which port its engine is to listen: gpudeck gives each replica one of its \
             own, and {where_else} → write {{port}} into `run`, for example \"--port\", \"{{port}}\""
        ));
        warnings
    }

    fn program(&self, _spec: &ServiceSpec) -> Option<String> {
        self.0.run.first().filter(|program| !program.contains('{')).cloned()
    }

    fn tells_version(&self) -> bool {
        false
    }

    fn command(&self, rank: &RankContext<'_>) -> Result<EngineCommand, EngineError> {
        self.check(rank.spec, rank.facts)?;
        rank.check_devices()?;
        let value = |name: &str| {
            Ok(match name {
                "port" => rank.port.to_string(),
                "address" => rank.address.to_owned(),
                "model" => rank.model().to_owned(),
                "tensor" => rank.shape.tensor.to_string(),
                "pipeline" => rank.shape.pipeline.to_string(),
                "data" => rank.shape.data.to_string(),
                "context" => {
                    super::context_of(rank.spec, rank.facts).ok_or_else(no_context)?.to_string()
                }
                "rank" => rank.rank.to_string(),
                "replica" => rank.replica.to_string(),
                "release" => rank.release.to_string(),
                "service" => rank.service.to_string(),
                "api_key_file" => rank.spec.api_key_file.clone().ok_or_else(no_key_file)?,
                // The agent knows where its own binary lies.
                _ => "{gpudeck}".to_owned(),
            })
        };
        let mut argv =
            self.0.run.iter().map(|word| expand(word, &value)).collect::<Result<Vec<_>, _>>()?;
        argv.extend(rank.spec.args.iter().cloned());
        let argv = self.with_key(rank.spec, argv);
        let env = if self.counts_gpus() { rank.env_by_number()? } else { rank.env()? };
        Ok(EngineCommand { argv, env, files: rank.files() })
    }
}

/// What tells an engine with these rules its share of a GPU.
const fn share_options(rules: &Rules) -> &'static [&'static str] {
    match rules.budget {
        Budget::Share => &["--gpu-memory-utilization"],
        Budget::Static => &["--mem-fraction-static"],
        Budget::Needed => &[],
    }
}
