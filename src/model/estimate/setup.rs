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
    /// Tokens of one step on a GPU below 70 GiB, and on those that are slow for their memory.
    pub batch_small: u64,
    /// Tokens of one step on a GPU of 160 GiB or more.
    pub batch_largest: u64,
    /// Requests at a time on such a small GPU, and where nothing is known of it.
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
    /// Its name, as the driver or a person says it; none: not known.
    pub gpu_name: Option<String>,
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
            gpu_name: None,
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

    /// The same on a GPU of this name and memory.
    #[must_use]
    pub fn on_gpu(self, name: &str, total: u64) -> Self {
        Self { gpu: Some(total), gpu_name: Some(name.to_owned()), ..self }
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
    pub fn budget(&self) -> Option<Bar> {
        let total = self.gpu?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u64
        let of = |share: f64| (total as f64 * share.clamp(0.0, 1.0)) as u64;
        Some(match (self.rules.budget, self.utilisation) {
            (Budget::Needed, _) => Bar::exact(total),
            (_, Some(share)) => Bar::exact(of(share)),
            (Budget::Static, None) => {
                let Bar { value, low, high } = Bar::exact(total).minus(self.static_reserve(total));
                // With a vision tower a twentieth less (`adjust_mem_fraction_for_vlm`).
                Bar { value, low: low - low / 20, high }
            }
            // The default has changed between versions.
            (_, None) => Bar {
                value: of(self.rules.utilisation),
                low: of(self.rules.utilisation_low),
                high: of(self.rules.utilisation),
            },
        })
    }

    /// What `SGLang` leaves outside of its static share of a GPU (`arg_groups/memory_hook.py::handle_gpu_memory_settings`,
    /// `server_args.py` before 0.5.20). Since it captures graphs of prefill by default it reserves for these as well, by
    /// their sizes, or (most) 1.5 GiB with latent attention, of which nothing is known here.
    fn static_reserve(&self, total: u64) -> Bar {
        let wide = self.tensor >= 4;
        let graphs = match total >> 30 {
            0..20 => 8,
            20..35 => {
                if wide {
                    160
                } else {
                    48
                }
            }
            35..60 => {
                if wide {
                    160
                } else {
                    32
                }
            }
            60..160 => {
                if wide {
                    512
                } else {
                    256
                }
            }
            _ => 512,
        };
        let chunk = self.batch().max(2_048);
        let graphs = if self.eager { 0 } else { graphs };
        let prefill = if self.eager { 0 } else { 8 * prefill_sizes(chunk) };
        let latent = if self.eager { 0 } else { prefill.max(1_536) };
        let ranks = self.tensor.saturating_mul(self.pipeline);
        let mut mib = 512 + chunk.saturating_mul(3) / 2 + 2 * graphs + ranks * 1_024 / 8;
        if self.data_inside == Some(true) {
            let each = if graphs > 300 { 9 } else { 6 };
            mib += graphs * self.data * each / 2;
        }
        let least = if total > 60 << 30 { 10 << 10 } else { 0 };
        let of = |mib: u64| mib.max(least) << 20;
        Bar { value: of(mib + prefill), low: of(mib), high: of(mib + latent) }
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
/// And from here on the largest, whatever the GPU is called.
const LARGEST_GPU: u64 = 160 << 30;

/// How large steps are by default on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Small,
    Large,
    Largest,
}

/// Sizes in tokens of the graphs of prefill that `SGLang` captures, up to this one
/// (`cuda_graph_hook.py::generate_prefill_cuda_graph_batch_sizes`).
fn prefill_sizes(most: u64) -> u64 {
    [
        (4, 32, 4),
        (48, 256, 16),
        (288, 512, 32),
        (576, 1_024, 64),
        (1_280, 4_096, 256),
        (4_608, u64::MAX, 512),
    ]
    .into_iter()
    .filter(|(first, ..)| *first <= most)
    .map(|(first, last, step): (u64, u64, u64)| (most.min(last) - first) / step + 1)
    .sum()
}

impl Setup {
    fn tier(&self) -> Option<Tier> {
        let gpu = self.gpu?;
        let name = self.gpu_name.as_deref().unwrap_or_default().to_ascii_lowercase();
        // Memory enough, but slower: larger steps cost these throughput.
        let is_slow = ["a100", "gb10", "dgx spark", "dgx-spark"].iter().any(|n| name.contains(n));
        Some(match gpu {
            LARGEST_GPU.. => Tier::Largest,
            LARGE_GPU.. if !is_slow => Tier::Large,
            _ => Tier::Small,
        })
    }

    /// Tokens of one step.
    pub(super) fn batch(&self) -> u64 {
        self.batch.unwrap_or_else(|| self.usual_batch())
    }

    fn usual_batch(&self) -> u64 {
        if let (Budget::Static, Some(total)) = (self.rules.budget, self.gpu) {
            return match total >> 30 {
                0..20 => 2_048,
                20..60 => 4_096,
                60..160 => 8_192,
                _ => 16_384,
            };
        }
        match self.tier() {
            Some(Tier::Small) => self.rules.batch_small,
            Some(Tier::Largest) => self.rules.batch_largest,
            Some(Tier::Large) | None => self.rules.batch,
        }
    }

    /// Requests at a time.
    pub(super) fn requests(&self) -> u64 {
        let usual = match self.tier() {
            Some(Tier::Large | Tier::Largest) => self.rules.requests_large,
            Some(Tier::Small) | None => self.rules.requests,
        };
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
