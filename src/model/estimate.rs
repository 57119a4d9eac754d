//! Memory of every rank of a replica, and the tokens that fit: weights, cache, and what an engine
//! takes besides, each with its error bar.
//!
//! How engines differ comes in as [`Rules`] from `engine`. The cache's arithmetic is that of vLLM's
//! `v1/core/kv_cache_utils.py`, `SGLang`'s `model_executor/model_runner.py` and llama.cpp's
//! `llama-kv-cache.cpp`.

use serde::{Deserialize, Serialize};

use super::cache::{CacheBits, Keeps, LayerCache};
use super::calibration::Correction;
use super::facts::{Certainty, ModelFacts};
use super::graphs;
use super::memory::WeightSplit;
use super::tensors::{self, Place, Ranks, Split, mul_div};

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
    /// Memory for the cache of a rank, where the engine said it; none: it follows from the GPU's.
    pub cache_available: Option<u64>,
    /// Tokens of one step; none: the engine's default.
    pub batch: Option<u64>,
    /// Requests at a time; none: the engine's default.
    pub requests: Option<u64>,
    /// No graphs are captured.
    pub eager: bool,
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
            eager: false,
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
    fn is_inside(&self, facts: &ModelFacts) -> bool {
        let usual = || self.rules.data_inside && (facts.layout.latent || facts.experts.is_some());
        self.data > 1
            && self.tensor.is_multiple_of(self.data)
            && self.data_inside.unwrap_or_else(usual)
    }

    /// The memory that the engine takes of a GPU, where that is given.
    pub(super) fn budget(&self) -> Option<Bar> {
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
    pub(super) fn share_per_mille(&self) -> Option<u32> {
        if self.rules.budget == Budget::Needed {
            return None;
        }
        let share = self.utilisation.unwrap_or(self.rules.utilisation).clamp(0.0, 1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1000
        Some((share * 1_000.0).round() as u32)
    }
}

/// One rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankMemory {
    /// Its pipeline stage, from 0.
    pub stage: u64,
    /// Its number among the stage's ranks, from 0.
    pub tensor: u64,
    /// Layers, from the first to before the last.
    pub layers: (u64, u64),
    /// Weights as loaded.
    pub weights: Bar,
    /// Cache of a token that all layers still see.
    pub cache_per_token: Bar,
    /// Cache of a token that windows have left behind.
    pub cache_beyond_windows: u64,
    /// States of a request.
    pub state_per_request: u64,
    /// Intermediate values of a step.
    pub activation: Bar,
    /// Captured graphs.
    pub graphs: Bar,
    /// Communication and what libraries take.
    pub communication: Bar,
    /// Memory for the cache, where a GPU or a figure is given.
    pub cache_available: Option<Bar>,
    /// Cache that one request of full length takes.
    pub cache_needed: Bar,
    /// Tokens that fit.
    pub tokens: Option<Bar>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// All tensors as stored.
    pub weights: Bar,
    /// Every rank of one replica: stages, and ranks in them.
    pub ranks: Vec<RankMemory>,
    /// Longest sequence that is asked for.
    pub context: u64,
    /// Tokens of a block.
    pub block: u64,
    /// Tokens that the replica (of data parallelism: one copy) holds.
    pub tokens: Option<Bar>,
    /// Requests of full length at a time, in hundredths.
    pub requests: Option<Bar>,
    /// Whether the engine will start; none where no GPU and no figure is given. False unless it is
    /// sure within the error bars.
    pub fits: Option<bool>,
    /// What was assumed or left out.
    pub notes: Vec<String>,
}

/// Layers of each stage, in order.
pub fn stages(layers: u64, pipeline: u64, remainder: Remainder) -> Vec<(u64, u64)> {
    let stages = pipeline.clamp(1, 1_024);
    if remainder == Remainder::WithOutput {
        let edge = |k: u64| (k * (layers + 1)).div_ceil(stages).min(layers);
        return (0..stages).map(|k| (edge(k), edge(k + 1))).collect();
    }
    let (each, left) = (layers / stages, layers % stages);
    let more = |stage: u64| match remainder {
        // The last but one gets the first, and so on backwards.
        Remainder::BeforeLast => stage + 2 <= stages && stages - 2 - stage < left,
        _ => stages - 1 - stage < left,
    };
    let mut at = 0;
    (0..stages)
        .map(|stage| {
            let first = at;
            at += each + u64::from(more(stage));
            (first, at)
        })
        .collect()
}

/// Predicts the memory of a replica.
pub fn predict(facts: &ModelFacts, setup: &Setup) -> Prediction {
    let mut setup = setup.bounded();
    setup.data_inside = Some(setup.is_inside(facts));
    let setup = &setup;
    let rules = &setup.rules;
    let mut notes = Vec::new();
    if setup.data_inside == Some(true) {
        notes.push(format!(
            "DP attention is assumed: {} copies of attention on {} ranks, {} each",
            setup.data,
            setup.tensor,
            setup.attention(facts)
        ));
    }
    let stored = match facts.certainty {
        _ if facts.parts > 0 => Bar::exact(facts.weight_bytes.0),
        Certainty::Exact => Bar::exact(facts.weight_bytes.0),
        certainty => {
            let spread = facts.spread.unwrap_or(certainty.usual_spread());
            Bar::exact(facts.weight_bytes.0).spread(spread)
        }
    };
    let layers = facts.layers.map_or(0, u64::from);
    let context = setup.context.or(facts.context).unwrap_or(4_096).max(1);
    let mut bits = setup.cache.unwrap_or(CacheBits::HALF);
    if setup.cache.is_none() && facts.cache_fp8 && rules.pool != Pool::Cells {
        bits = CacheBits::named("fp8").unwrap_or(bits);
        notes.push("its checkpoint asks for a cache of 8 bits".to_owned());
    }
    let block = block_of(facts, setup, bits);
    let ranges = stages(layers, setup.pipeline, rules.remainder);
    let mut ranks = Vec::new();
    for (stage, range) in ranges.iter().enumerate() {
        let first = stage == 0;
        let last = stage + 1 == ranges.len();
        let rank =
            one_rank(facts, setup, &Stage { range: *range, first, last }, bits, block, context);
        // A rank's number within its stage makes no difference to its memory.
        let wide =
            if rules.split == WeightSplit::Layers { 1 } else { setup.tensor.clamp(1, 1_024) };
        for tensor in 0..wide {
            ranks.push(RankMemory { stage: stage as u64, tensor, ..rank.clone() });
        }
    }
    // A stage of layers that keep nothing holds as many tokens as the others.
    let keeping = |r: &&RankMemory| r.cache_needed.value > 0;
    let least = |pick: fn(&Bar) -> u64| {
        ranks.iter().filter(keeping).filter_map(|r| r.tokens.as_ref().map(pick)).min().unwrap_or(0)
    };
    let known = ranks.iter().all(|r| r.tokens.is_some()) && !ranks.is_empty();
    let tokens = known.then(|| Bar {
        value: least(|b| b.value),
        low: least(|b| b.low),
        high: least(|b| b.high),
    });
    let per_hundred = |available: u64, needed: u64| mul_div(available, 100, needed.max(1));
    let requests = known.then(|| {
        let each = |pick: fn(&Bar) -> u64, need: fn(&Bar) -> u64| {
            let of = |r: &RankMemory| {
                let needed = need(&r.cache_needed);
                if needed == 0 {
                    return u64::MAX;
                }
                per_hundred(r.cache_available.as_ref().map_or(0, pick), needed)
            };
            ranks.iter().map(of).min().unwrap_or(0)
        };
        Bar {
            value: each(|b| b.value, |b| b.value),
            low: each(|b| b.low, |b| b.high),
            high: each(|b| b.high, |b| b.low),
        }
    });
    let refused = setup.correction.is_refused(setup, context);
    if refused {
        notes.push("the engine refused to start with as much and as little".to_owned());
    }
    notes.extend(setup.correction.text());
    let fits = known.then(|| {
        ranks
            .iter()
            .all(|r| r.cache_available.is_some_and(|a| a.low >= r.cache_needed.high && a.low > 0))
            && tokens.is_some_and(|t| t.low > 0)
            && !refused
    });
    notes.extend(facts.notes.iter().cloned());
    if facts.caches.is_empty() {
        notes.push("its files do not tell its cache".to_owned());
    }
    Prediction { weights: stored, ranks, context, block, tokens, requests, fits, notes }
}

struct Stage {
    range: (u64, u64),
    first: bool,
    last: bool,
}

/// Tokens of a block: with states, vLLM makes an attention block as large as a state
/// (`platforms/interface.py::_align_hybrid_block_size`).
fn block_of(facts: &ModelFacts, setup: &Setup, bits: CacheBits) -> u64 {
    let block = setup.block.unwrap_or(setup.rules.block).clamp(1, 1 << 20);
    if setup.rules.pool != Pool::Groups {
        return block;
    }
    let ranks = setup.attention(facts);
    let state = facts.caches.iter().map(|c| c.keeps.per_request(ranks)).max().unwrap_or(0);
    let token = facts.caches.iter().filter_map(|c| c.keeps.per_token(ranks, bits)).max();
    let latent = facts.caches.iter().any(|c| matches!(c.keeps, Keeps::Latent { .. }));
    let step = if latent { block.max(128) } else { block };
    match token.filter(|t| *t > 0 && state > 0) {
        Some(token) => block.max(step * state.div_ceil(step * token)),
        None => block,
    }
}

fn one_rank(
    facts: &ModelFacts,
    setup: &Setup,
    stage: &Stage,
    bits: CacheBits,
    block: u64,
    context: u64,
) -> RankMemory {
    let rules = &setup.rules;
    let by_layers = rules.split == WeightSplit::Layers;
    let tensor = if by_layers { 1 } else { setup.tensor.max(1) };
    let weights = setup.correction.weights(weights_of(facts, setup, stage, tensor));
    let attention = if by_layers { 1 } else { setup.attention(facts).max(1) };
    let caches: Vec<LayerCache> = facts
        .caches
        .iter()
        .filter(|c| (stage.range.0..stage.range.1).contains(&u64::from(c.layer)))
        .copied()
        .collect();
    let per_token = |beyond: bool| {
        caches
            .iter()
            .filter(|c| !(beyond && c.keeps.window().is_some()))
            .filter_map(|c| c.keeps.per_token(attention, bits))
            .fold(0u64, u64::saturating_add)
    };
    let state: u64 = caches.iter().map(|c| c.keeps.per_request(attention)).sum();
    let correction = &setup.correction;
    let activation = correction.activation(activation_of(facts, setup, tensor));
    let many = setup.tensor * setup.pipeline > 1;
    let communication = if many { rules.context.plus(rules.communication) } else { rules.context };
    let communication = correction.communication(communication);
    let graphs = match (rules.budget, setup.requests) {
        _ if setup.eager => Bar::default(),
        (Budget::Share, Some(requests)) => graphs::for_requests(rules.graphs, requests),
        _ => rules.graphs,
    };
    let graphs = correction.graphs(graphs);
    let available = setup.cache_available.map(Bar::exact).or_else(|| {
        let besides = match rules.budget {
            // Activations and graphs are outside of the static share.
            Budget::Static => weights.plus(correction.besides(Bar::mib(300, 100, 1_200))),
            Budget::Share | Budget::Needed => {
                weights.plus(activation).plus(graphs).plus(communication)
            }
        };
        Some(setup.budget()?.minus(besides))
    });
    let pool = PoolOf { setup, caches: &caches, tensor: attention, bits, block, context };
    let doubted = |bar: Bar| doubted(bar, facts.cache_certainty);
    let needed = correction.needed(doubted(pool.needed()), rules.pool);
    RankMemory {
        stage: 0,
        tensor: 0,
        layers: stage.range,
        weights,
        cache_per_token: doubted(Bar::exact(per_token(false))),
        cache_beyond_windows: per_token(true),
        state_per_request: state,
        activation,
        graphs,
        communication,
        cache_available: available,
        cache_needed: needed,
        tokens: available.map(|a| {
            // An engine prints what it has left with two decimals, and keeps a block or two aside.
            let around = if setup.cache_available.is_some() { Bar::around(a.value, 10) } else { a };
            let tokens = pool.tokens(Bar { value: a.value, ..around });
            // Where a token may take less, more of them fit.
            let (less, more) =
                (doubted(Bar::exact(1 << 20)).low, doubted(Bar::exact(1 << 20)).high);
            correction.tokens(Bar {
                low: mul_div(tokens.low, 1 << 20, more),
                high: mul_div(tokens.high, 1 << 20, less),
                ..tokens
            })
        }),
    }
}

/// A figure of the cache, as sure as the caches are: a model that is not known may share caches
/// between layers, keep windows or latent vectors (less), or something besides (more).
fn doubted(bar: Bar, certainty: Certainty) -> Bar {
    bar.spread(match certainty {
        Certainty::Exact => (0, 0),
        Certainty::Close => (50, 50),
        Certainty::Guess => (600, 400),
    })
}

/// What a rank loads, and how sure that is.
fn weights_of(facts: &ModelFacts, setup: &Setup, stage: &Stage, tensor: u64) -> Bar {
    let rules = &setup.rules;
    let by_layers = rules.split == WeightSplit::Layers;
    let devices =
        if by_layers { setup.pipeline } else { tensor.saturating_mul(setup.pipeline) }.max(1);
    if facts.tensors.is_empty() || facts.layout.layers == 0 && devices > 1 {
        // Not known which layers there are: plainly, with what engines replicate above it.
        let plain = facts.weight_bytes.0.div_ceil(devices);
        return Bar::around(plain, if devices > 1 { 250 } else { 150 }).plus(rules.loading);
    }
    let attention = if by_layers { 1 } else { setup.attention(facts).max(1) };
    let all = if by_layers { 1 } else { attention.saturating_mul(setup.data.max(1)) };
    let ranks = Ranks {
        tensor,
        expert: all.max(if by_layers { 1 } else { setup.expert }),
        whole_experts: setup.expert > 1,
    };
    let layout = &facts.layout;
    let has_head =
        facts.tensors.iter().any(|t| tensors::place(&t.name, layout.layers) == Place::Head);
    let mut sum = 0u64;
    // What more it is where options of DP attention (`--moe-dense-tp-size 1`, `--enable-dp-lm-head`,
    // DeepEP) keep the rest whole as well.
    let mut whole = 0u64;
    for tensor in &facts.tensors {
        let place = tensors::place(&tensor.name, layout.layers);
        let split = tensors::split(tensor, layout);
        let here = match place {
            // llama.cpp reads rows of the embedding on the host; a tied head is copied to a device.
            Place::Embedding if by_layers => {
                stage.last && !has_head && split == Split::Vocabulary && setup.gpu_like()
                    || !setup.gpu_like() && stage.first
            }
            Place::Embedding => {
                stage.first || stage.last && facts.tied && split == Split::Vocabulary
            }
            Place::Layer(n) => (stage.range.0..stage.range.1).contains(&u64::from(n)),
            Place::Head => stage.last && (by_layers || !facts.tied),
            Place::Norm => stage.last,
            Place::Beside => stage.first,
            Place::Draft => false,
        };
        if here {
            let divided = match place {
                Place::Embedding => attention,
                _ if tensors::is_mixer(&tensor.name) => attention,
                _ => ranks.tensor,
            };
            let held = |tensor_ranks| {
                let ranks = Ranks { tensor: tensor_ranks, ..ranks };
                let share = tensors::share(tensor, split, layout, ranks, rules.vocabulary);
                loaded(facts, rules, tensor, split, share)
            };
            let share = held(divided);
            sum = sum.saturating_add(share);
            whole = whole.saturating_add(held(attention).saturating_sub(share));
        }
    }
    let layers = stage.range.1.saturating_sub(stage.range.0);
    if rules.pool == Pool::Groups && layers > 0 {
        sum = sum.saturating_add(facts.rope_bytes);
        sum = sum.saturating_add(absorbed(facts, layers, attention));
    }
    let loading = rules.loading;
    let sure = match facts.certainty {
        Certainty::Exact => Bar {
            value: sum,
            low: mul_div(sum, 985, 1_000),
            high: mul_div(sum, 1_020, 1_000).saturating_add(64 << 20),
        },
        // Tensors were read, only how the engine divides them is not known.
        Certainty::Guess if facts.parts > 0 => Bar::around(sum, if devices > 1 { 150 } else { 50 }),
        certainty => {
            let (less, more) = facts.spread.unwrap_or(certainty.usual_spread());
            Bar::exact(sum).spread((less + 20, more + 20))
        }
    };
    Bar { high: sure.high.saturating_add(whole), ..sure }.plus(loading)
}

/// Bytes on the device of a share of a tensor as stored.
fn loaded(
    facts: &ModelFacts,
    rules: &Rules,
    tensor: &tensors::Tensor,
    split: Split,
    share: u64,
) -> u64 {
    if rules.pool == Pool::Cells {
        return share;
    }
    // Weights in 32 bits are loaded in 16.
    if matches!(tensor.dtype.as_str(), "F32" | "F64")
        && tensor.shape.len() >= 2
        && !tensor.name.contains("scale")
        && !tensor.name.contains("absmax")
    {
        return share / if tensor.dtype == "F64" { 4 } else { 2 };
    }
    // The index of GPTQ is dropped unless columns are reordered.
    if tensor.name.ends_with("g_idx") || tensor.name.ends_with(".zero_bias") {
        return 0;
    }
    // MXFP4 kernels pad both sides of an expert to whole tiles (vLLM `fused_moe/oracle/mxfp4.py`).
    if split == Split::Experts && tensor.dtype == "U8" && tensor.name.ends_with("_blocks") {
        let hidden = facts.hidden_size.map_or(1, u64::from).max(1);
        return mul_div(share, hidden.next_multiple_of(256), hidden);
    }
    share
}

/// vLLM keeps the two halves of `kv_b_proj` once more in 16 bits, ready to be multiplied
/// (`MLACommonImpl.process_weights_after_loading`).
fn absorbed(facts: &ModelFacts, layers: u64, tensor: u64) -> u64 {
    let latent = facts.layout.latent;
    let one = facts.tensors.iter().find(|t| {
        latent
            && tensors::module(&t.name).ends_with("kv_b_proj")
            && t.shape.len() == 2
            && !t.name.contains("scale")
    });
    one.map_or(0, |t| {
        let values = t.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
        (values / tensor.max(1)).saturating_mul(2).saturating_mul(layers)
    })
}

/// Intermediate values of the largest step: hidden states, the widest layer, the logits.
fn activation_of(facts: &ModelFacts, setup: &Setup, tensor: u64) -> Bar {
    let rules = &setup.rules;
    let hidden = facts.hidden_size.map_or(4_096, u64::from);
    let vocab = facts.vocab_size.map_or(32_000, u64::from);
    let inner = facts.intermediate_size.map_or(4 * hidden, u64::from);
    if rules.pool == Pool::Cells {
        // Logits in 32 bits, hidden states, and scores of a physical batch.
        let batch = setup.batch();
        let value = batch.saturating_mul(vocab * 4 + hidden * 24 + inner * 4);
        return Bar {
            value,
            low: value / 2,
            high: value.saturating_mul(2).saturating_add(256 << 20),
        };
    }
    let batch = setup.batch();
    let requests = setup.requests();
    let wide = inner.saturating_mul(3) / tensor.max(1);
    let value = batch
        .saturating_mul(hidden.saturating_mul(6).saturating_add(wide))
        .saturating_mul(2)
        .saturating_add(requests.saturating_mul(vocab).saturating_mul(10));
    let mut bar = Bar { value, low: value / 4, high: value.saturating_mul(2).max(2 << 30) };
    if facts.experts.is_some() {
        bar.high = bar.high.saturating_add(2 << 30);
    }
    if facts.quantisation.as_deref().is_some_and(|q| q.starts_with("mxfp4")) {
        // Seen on H100: up to 9 GiB besides weights while kernels prepare their tiles.
        bar.high = bar.high.saturating_add(6 << 30);
    }
    if facts.vision {
        bar.value = bar.value.saturating_add(1 << 30);
        bar.high = bar.high.saturating_add(8 << 30);
    }
    bar
}

/// From here on vLLM takes larger steps by default (`vllm/engine/arg_utils.py`, `get_batch_defaults`).
const LARGE_GPU: u64 = 70 << 30;

impl Setup {
    /// Tokens of one step.
    fn batch(&self) -> u64 {
        let small = self.gpu.is_some_and(|gpu| gpu < LARGE_GPU);
        self.batch.unwrap_or(if small { self.rules.batch_small } else { self.rules.batch })
    }

    /// Requests at a time.
    fn requests(&self) -> u64 {
        let large = self.gpu.is_some_and(|gpu| gpu >= LARGE_GPU);
        let usual = if large { self.rules.requests_large } else { self.rules.requests };
        self.requests.unwrap_or(usual).min(1_024)
    }

    /// The same with numbers that no sum overflows with.
    fn bounded(&self) -> Self {
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
    fn gpu_like(&self) -> bool {
        self.rules.budget != Budget::Needed || !self.eager
    }
}

/// The cache of one rank.
struct PoolOf<'a> {
    setup: &'a Setup,
    caches: &'a [LayerCache],
    tensor: u64,
    bits: CacheBits,
    block: u64,
    context: u64,
}

/// Layers of one kind.
struct Kind {
    layers: u64,
    window: Option<u64>,
    state: bool,
}

/// How vLLM groups a rank's layers.
struct Groups {
    /// Bytes of one block of one group.
    bytes_per_block: u64,
    count: u64,
    /// Blocks of a request of full length.
    blocks_per_request: u64,
}

impl PoolOf<'_> {
    fn per_token(&self, keeps: Keeps) -> u64 {
        keeps.per_token(self.tensor, self.bits).unwrap_or(0)
    }

    fn all_tokens(&self) -> u64 {
        self.caches.iter().map(|c| self.per_token(c.keeps)).fold(0, u64::saturating_add)
    }

    fn states(&self) -> u64 {
        self.caches.iter().map(|c| c.keeps.per_request(self.tensor)).sum()
    }

    fn windows(&self) -> bool {
        self.caches.iter().any(|c| c.keeps.window().is_some_and(|w| w < self.context))
    }

    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = Vec::new();
        for cache in self.caches {
            let state = matches!(cache.keeps, Keeps::State { .. });
            let window = cache.keeps.window();
            match kinds.iter_mut().find(|k| k.state == state && k.window == window) {
                Some(kind) => kind.layers += 1,
                None => kinds.push(Kind { layers: 1, window, state }),
            }
        }
        kinds
    }

    /// vLLM `_get_kv_cache_groups_uniform_page_size`.
    fn groups(&self) -> Groups {
        let kinds = self.kinds();
        let batch = self.setup.batch();
        let blocks = |kind: &Kind| match (kind.state, kind.window) {
            // A state, and the one it is being made from (`mamba_cache_mode = align`).
            (true, _) => 2,
            (false, Some(window)) => {
                (window.saturating_sub(1) + batch).min(self.context).div_ceil(self.block) + 1
            }
            (false, None) => self.context.div_ceil(self.block),
        };
        if kinds.len() <= 1 {
            return Groups {
                bytes_per_block: match kinds.first() {
                    Some(k) if k.state => self.states().max(1),
                    _ => self.all_tokens().saturating_mul(self.block).max(1),
                },
                count: 1,
                blocks_per_request: kinds.first().map_or(1, blocks).max(1),
            };
        }
        let least = kinds.iter().map(|k| k.layers).min().unwrap_or(1).max(1);
        let most = kinds.iter().map(|k| k.layers).max().unwrap_or(1);
        let size = if 2 * most < 3 * least { most } else { least };
        let page = self
            .caches
            .iter()
            .map(|c| {
                self.per_token(c.keeps)
                    .saturating_mul(self.block)
                    .max(c.keeps.per_request(self.tensor))
            })
            .max()
            .unwrap_or(1);
        Groups {
            bytes_per_block: page.saturating_mul(size).max(1),
            count: kinds.iter().map(|k| k.layers.div_ceil(size)).sum(),
            blocks_per_request: kinds
                .iter()
                .map(|k| k.layers.div_ceil(size).saturating_mul(blocks(k)))
                .fold(0, u64::saturating_add)
                .max(1),
        }
    }

    /// Cache of one request of full length.
    fn needed(&self) -> Bar {
        let rules = &self.setup.rules;
        if self.caches.is_empty() {
            return Bar::default();
        }
        match rules.pool {
            Pool::Groups => {
                let groups = self.groups();
                Bar::exact(groups.blocks_per_request.saturating_mul(groups.bytes_per_block))
            }
            Pool::Tokens | Pool::Cells => {
                let context = match rules.pool {
                    Pool::Cells => self.context.next_multiple_of(256),
                    _ => self.context.next_multiple_of(self.block),
                };
                let batch = self.setup.batch();
                let tokens = |keeps: Keeps| match (rules.pool, keeps.window()) {
                    (Pool::Cells, Some(window)) => {
                        window.saturating_add(batch).next_multiple_of(256).min(context)
                    }
                    _ => context,
                };
                let sum = self
                    .caches
                    .iter()
                    .map(|c| self.per_token(c.keeps).saturating_mul(tokens(c.keeps)))
                    .fold(0, u64::saturating_add);
                Bar::exact(sum.saturating_add(self.states()))
            }
        }
    }

    /// Tokens that fit into so much memory.
    fn tokens(&self, available: Bar) -> Bar {
        let (value, low, high) =
            (self.within(available.value), self.within(available.low), self.within(available.high));
        Bar { value: value.0, low: low.1.min(value.1), high: high.2.max(value.2) }
    }

    /// Tokens that fit: the engine's own count, and the least and most that its versions say.
    fn within(&self, available: u64) -> (u64, u64, u64) {
        let rules = &self.setup.rules;
        let all = self.all_tokens();
        if all == 0 {
            // Only states: as many tokens as one likes, for so many requests.
            let requests = available.checked_div(self.states()).unwrap_or(0);
            let tokens = requests.saturating_mul(self.context);
            return (tokens, tokens, tokens);
        }
        match rules.pool {
            Pool::Groups => {
                let groups = self.groups();
                let blocks = available / groups.bytes_per_block;
                // Until about 0.20: blocks of one group. Since then: what requests of full length
                // could hold.
                let plain = (blocks / groups.count.max(1)).saturating_mul(self.block);
                if groups.count <= 1 {
                    return (plain, plain, plain);
                }
                let requests = mul_div(blocks, self.context, groups.blocks_per_request);
                let value = if self.states() > 0 { requests } else { plain };
                (value, plain.min(requests), plain.max(requests))
            }
            Pool::Tokens => {
                let mut left = available;
                if self.states() > 0 {
                    // `--mamba-full-memory-ratio 0.9`.
                    left = mul_div(available, 10, 19);
                }
                let whole = |per: u64| left / per.max(1) / self.block * self.block;
                let plain = whole(all);
                if !self.windows() {
                    return (plain, plain, plain);
                }
                // `--swa-full-tokens-ratio 0.8`.
                let windows: u64 = self
                    .caches
                    .iter()
                    .filter(|c| c.keeps.window().is_some())
                    .map(|c| self.per_token(c.keeps))
                    .sum();
                let hybrid = whole(all - windows + mul_div(windows, 8, 10));
                (hybrid, plain, hybrid.max(plain))
            }
            Pool::Cells => {
                let batch = self.setup.batch();
                let sum = |windows: bool| -> u64 {
                    self.caches
                        .iter()
                        .filter(|c| c.keeps.window().is_some() == windows)
                        .map(|c| {
                            let cells = c
                                .keeps
                                .window()
                                .map_or(1, |w| w.saturating_add(batch).next_multiple_of(256));
                            self.per_token(c.keeps).saturating_mul(cells)
                        })
                        .fold(0, u64::saturating_add)
                };
                let left = available.saturating_sub(sum(true)).saturating_sub(self.states());
                let tokens = left.checked_div(sum(false)).unwrap_or(0) / 256 * 256;
                (tokens, tokens, tokens)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
