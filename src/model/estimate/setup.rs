//! The question: a model, how it is divided, and the engine's rules. Values come with their error bars.

use serde::{Deserialize, Serialize};

use crate::model::cache::CacheBits;
use crate::model::calibration::Correction;
use crate::model::facts::ModelFacts;
use crate::model::memory::WeightSplit;
use crate::model::tensors::mul_div;

/// A value with its error bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// The best guess.
    pub value: u64,
    /// Hardly less.
    pub low: u64,
    /// Hardly more.
    pub high: u64,
}

impl Bar {
    /// Known to the byte.
    pub const fn exact(value: u64) -> Self {
        Self { value, low: value, high: value }
    }

    /// `value` and so many per mille to either side.
    pub fn around(value: u64, per_mille: u64) -> Self {
        let off = mul_div(value, per_mille, 1_000);
        Self { value, low: value.saturating_sub(off), high: value.saturating_add(off) }
    }

    /// Less or more by so many per mille.
    #[must_use]
    pub fn spread(self, (less, more): (u64, u64)) -> Self {
        Self {
            low: self.low.saturating_sub(mul_div(self.low, less, 1_000)),
            high: self.high.saturating_add(mul_div(self.high, more, 1_000)),
            ..self
        }
    }

    /// MiB: best, least, most.
    pub const fn mib(value: u64, low: u64, high: u64) -> Self {
        Self { value: value << 20, low: low << 20, high: high << 20 }
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            value: self.value.saturating_add(other.value),
            low: self.low.saturating_add(other.low),
            high: self.high.saturating_add(other.high),
        }
    }

    /// What is left of it.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            value: self.value.saturating_sub(other.value),
            low: self.low.saturating_sub(other.high),
            high: self.high.saturating_sub(other.low),
        }
    }
}

/// Which stages get the layers that do not divide evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remainder {
    /// One each from the last but one backwards (vLLM `distributed/utils.py::get_pp_indices`).
    BeforeLast,
    /// One each to the last stages (`SGLang`).
    Last,
    /// By the output layer as one more, each device so many in a row (llama.cpp).
    WithOutput,
}

/// How an engine keeps its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Blocks, shared by groups of layers (vLLM).
    Groups,
    /// Tokens, with pages of so many (`SGLang`).
    Tokens,
    /// Cells, in multiples of 256 (llama.cpp).
    Cells,
}

/// How an engine finds its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// A share of each GPU's total for everything.
    Share,
    /// A share of what is free for weights and cache alone; the rest is outside of it.
    Static,
    /// Just what it needs.
    Needed,
}

/// How an engine divides a model and what it takes besides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// The engine's name.
    pub engine: &'static str,
    /// How weights are divided.
    pub split: WeightSplit,
    /// Data parallelism divides the ranks of tensor parallelism instead of multiplying them, for models
    /// with latent attention or experts (`SGLang`'s DP attention).
    pub data_inside: bool,
    /// Pipeline stages.
    pub remainder: Remainder,
    /// The cache.
    pub pool: Pool,
    /// The budget.
    pub budget: Budget,
    /// Vocabularies are padded to a multiple of this.
    pub vocabulary: u64,
    /// Tokens of a block, unless asked for otherwise.
    pub block: u64,
    /// Share of a GPU, unless asked for otherwise.
    pub utilisation: f64,
    /// The least that this default was in any version.
    pub utilisation_low: f64,
    /// Tokens of one step on a large GPU, and where nothing is known of it.
    pub batch: u64,
    /// Tokens of one step on a GPU below 70 GiB.
    pub batch_small: u64,
    /// Requests at a time on a GPU below 70 GiB, and where nothing is known of it.
    pub requests: u64,
    /// Requests at a time on a large GPU.
    pub requests_large: u64,
    /// Memory outside of the engine's own pool: contexts, libraries.
    pub context: Bar,
    /// Communication buffers, with more than one rank.
    pub communication: Bar,
    /// Graphs.
    pub graphs: Bar,
    /// What loading takes besides the weights themselves, and is counted with them.
    pub loading: Bar,
}

/// A question: this model, so divided.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The engine.
    pub rules: Rules,
    /// Tensor parallelism.
    pub tensor: u64,
    /// Pipeline parallelism.
    pub pipeline: u64,
    /// Data parallelism: copies of attention; experts are divided over all.
    pub data: u64,
    /// Whether those copies are among the ranks of `tensor`; none: as the engine has it for such a model.
    pub data_inside: Option<bool>,
    /// Ranks that whole experts are divided over; 1: no expert parallelism.
    pub expert: u64,
    /// Longest sequence; none: the model's.
    pub context: Option<u64>,
    /// Type of cached values; none: as the model says.
    pub cache: Option<CacheBits>,
    /// Tokens of a block; none: the engine's default.
    pub block: Option<u64>,
    /// Memory of a GPU.
    pub gpu: Option<u64>,
    /// Share of it; none: the engine's default.
    pub utilisation: Option<f64>,
    /// Memory for the cache of a rank, where the engine said it (`SGLang`: of keys and values, without its
    /// pool of states); none: it follows from the GPU's.
    pub cache_available: Option<u64>,
    /// Tokens of one step; none: the engine's default.
    pub batch: Option<u64>,
    /// Requests at a time; none: the engine's default.
    pub requests: Option<u64>,
    /// All requests of llama.cpp share one cache; else each slot has one of its own.
    pub unified: bool,
    /// No graphs are captured.
    pub eager: bool,
    /// Every rank has all of a tower for images (vLLM `--mm-encoder-tp-mode data`).
    pub whole_towers: bool,
    /// What was measured of this model with this engine on this GPU.
    pub correction: Correction,
}

impl Setup {
    /// One rank of an engine, with its defaults.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            tensor: 1,
            pipeline: 1,
            data: 1,
            data_inside: None,
            expert: 1,
            context: None,
            cache: None,
            block: None,
            gpu: None,
            utilisation: None,
            cache_available: None,
            batch: None,
            requests: None,
            unified: true,
            eager: false,
            whole_towers: false,
            correction: Correction::default(),
        }
    }

    /// Ranks that divide a copy of attention, its cache and the embedding.
    pub fn attention(&self, facts: &ModelFacts) -> u64 {
        if self.is_inside(facts) { self.tensor / self.data.max(1) } else { self.tensor }
    }

    /// GPUs of one replica.
    pub fn gpus(&self, facts: &ModelFacts) -> u64 {
        let copies = if self.is_inside(facts) { 1 } else { self.data };
        self.tensor.saturating_mul(self.pipeline).saturating_mul(copies)
    }

    /// Copies of attention are among the ranks of tensor parallelism, which `SGLang` asks to be a
    /// multiple of them (`--enable-dp-attention`, `server_args.py::_handle_data_parallelism`).
    pub(super) fn is_inside(&self, facts: &ModelFacts) -> bool {
        let usual = || self.rules.data_inside && (facts.layout.latent || facts.experts.is_some());
        self.data > 1
            && self.tensor.is_multiple_of(self.data)
            && self.data_inside.unwrap_or_else(usual)
    }

    /// The memory that the engine takes of a GPU, where that is given.
    pub(in crate::model) fn budget(&self) -> Option<Bar> {
        let total = self.gpu?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u64
        let of = |share: f64| (total as f64 * share.clamp(0.0, 1.0)) as u64;
        Some(match (self.rules.budget, self.utilisation) {
            (Budget::Needed, _) => Bar::exact(total),
            (_, Some(share)) => Bar::exact(of(share)),
            (Budget::Static, None) => {
                let value = total.saturating_sub(self.static_reserve(total));
                // With a vision tower a twentieth less (`adjust_mem_fraction_for_vlm`).
                Bar { value, low: value - value / 20, high: value }
            }
            // The default has changed between versions.
            (_, None) => Bar {
                value: of(self.rules.utilisation),
                low: of(self.rules.utilisation_low),
                high: of(self.rules.utilisation),
            },
        })
    }

    /// What `SGLang` leaves outside of its static share of a GPU
    /// (`server_args.py::_handle_gpu_memory_settings`).
    fn static_reserve(&self, total: u64) -> u64 {
        let wide = self.tensor >= 4;
        let (chunk, graphs) = match total >> 30 {
            0..20 => (2_048, 8),
            20..35 => (2_048, if wide { 80 } else { 24 }),
            35..60 => (4_096, if wide { 160 } else { 32 }),
            60..160 => (8_192, if wide { 512 } else { 256 }),
            _ => (16_384, 512),
        };
        let chunk = self.batch.unwrap_or(chunk).max(2_048);
        let graphs = if self.eager { 0 } else { graphs };
        let ranks = self.tensor.saturating_mul(self.pipeline);
        let mut mib = 512 + chunk.saturating_mul(3) / 2 + 2 * graphs + ranks * 1_024 / 8;
        if self.data_inside == Some(true) {
            let each = if graphs > 300 { 9 } else { 6 };
            mib += graphs * self.data * each / 2;
        }
        let least = if total > 60 << 30 { 10 << 10 } else { 0 };
        mib.max(least) << 20
    }

    /// The share of a GPU that the engine may take, where it has one.
    pub(in crate::model) fn share_per_mille(&self) -> Option<u32> {
        if self.rules.budget == Budget::Needed {
            return None;
        }
        let share = self.utilisation.unwrap_or(self.rules.utilisation).clamp(0.0, 1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1000
        Some((share * 1_000.0).round() as u32)
    }
}

/// From here on vLLM takes larger steps by default (`vllm/engine/arg_utils.py`, `get_batch_defaults`).
const LARGE_GPU: u64 = 70 << 30;

impl Setup {
    /// Tokens of one step.
    pub(super) fn batch(&self) -> u64 {
        let small = self.gpu.is_some_and(|gpu| gpu < LARGE_GPU);
        self.batch.unwrap_or(if small { self.rules.batch_small } else { self.rules.batch })
    }

    /// Requests at a time.
    pub(super) fn requests(&self) -> u64 {
        let large = self.gpu.is_some_and(|gpu| gpu >= LARGE_GPU);
        let usual = if large { self.rules.requests_large } else { self.rules.requests };
        self.requests.unwrap_or(usual).min(1_024)
    }

    /// The same with numbers that no sum overflows with.
    pub(super) fn bounded(&self) -> Self {
        let few = |n: u64| n.clamp(1, 1 << 12);
        Self {
            tensor: few(self.tensor),
            pipeline: few(self.pipeline).min(1 << 10),
            data: few(self.data),
            expert: few(self.expert),
            context: self.context.map(|n| n.min(1 << 40)),
            block: self.block.map(|n| n.clamp(1, 1 << 20)),
            batch: self.batch.map(|n| n.min(1 << 24)),
            requests: self.requests.map(|n| n.min(1 << 20)),
            ..self.clone()
        }
    }

    /// Ranks are on GPUs: a process on host memory keeps everything in one place.
    pub(super) fn gpu_like(&self) -> bool {
        self.rules.budget != Budget::Needed || !self.eager
    }
}
