//! Memory of every rank of a replica, and the tokens that fit: weights, cache, and what an engine
//! takes besides, each with its error bar.
//!
//! How engines differ comes in as [`Rules`] from `engine`. The cache's arithmetic is that of vLLM's
//! `v1/core/kv_cache_utils.py`, `SGLang`'s `model_executor/model_runner.py` and llama.cpp's
//! `llama-kv-cache.cpp`.

use super::cache::{CacheBits, Keeps, LayerCache};
use super::facts::{Certainty, ModelFacts};
use super::graphs;
use super::memory::WeightSplit;
use super::tensors::mul_div;

mod kept;
mod pages;
mod pool;
mod setup;
mod weights;

pub use setup::{Bar, Budget, Pool, Remainder, Rules, Setup};

use self::pool::PoolOf;
use self::weights::Loads;

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
    pub cache_beyond_windows: Bar,
    /// States of a request.
    pub state_per_request: Bar,
    /// Intermediate values of a step.
    pub activation: Bar,
    /// Captured graphs.
    pub graphs: Bar,
    /// Communication and what libraries take.
    pub communication: Bar,
    /// What of all that comes out of the engine's budget before the cache does.
    pub counted: Bar,
    /// Memory for the cache, where a GPU or a figure is given.
    pub cache_available: Option<Bar>,
    /// Cache that one request of full length takes.
    pub cache_needed: Bar,
    /// Tokens that fit; none where nothing is kept of them, or it is not known what. [`u64::MAX`]: no limit is known.
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
    /// Tokens that the replica (of data parallelism: one copy) holds, as of a rank.
    pub tokens: Option<Bar>,
    /// Requests of full length at a time, in hundredths, likewise.
    pub requests: Option<Bar>,
    /// Whether the engine will start; none where no GPU and no figure is given. False unless it is
    /// sure within the error bars.
    pub fits: Option<bool>,
    /// What was assumed or left out.
    pub notes: Vec<String>,
}

impl Prediction {
    /// Whether a sum has reached the largest number there is, and says nothing any more.
    pub fn is_beyond_counting(&self) -> bool {
        let most = |bar: &Bar| bar.value == u64::MAX;
        self.ranks.iter().any(|r| most(&r.weights) || most(&r.cache_needed) || most(&r.activation))
    }
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

/// Longest sequence in tokens, where neither the model nor anyone else states one: vLLM `config/model.py`
/// (`_get_and_verify_max_len`, `default_max_len`) and `SGLang` `hf_transformers_utils.py` (`get_context_length`).
pub const ASSUMED_CONTEXT: u64 = 2_048;

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
    let unloaded = if facts.parts > 0 { 0 } else { facts.unloaded_bytes.0 };
    let stored = Bar { high: stored.high.saturating_add(unloaded), ..stored };
    let layers = facts.layers.map_or(0, u64::from);
    let longest = facts.context_stated.filter(|_| rules.pool == Pool::Tokens).or(facts.context);
    let context = setup.context.or(longest).unwrap_or(ASSUMED_CONTEXT).max(1);
    if setup.context.or(longest).is_none() {
        notes.push(format!(
            "its files state no longest sequence: {ASSUMED_CONTEXT} tokens are assumed, as engines do"
        ));
    }
    let mut bits = setup.cache.unwrap_or(CacheBits::HALF);
    if setup.cache.is_none() && facts.cache_fp8 && rules.pool != Pool::Cells {
        bits = CacheBits::named("fp8").unwrap_or(bits);
        notes.push("its checkpoint asks for a cache of 8 bits".to_owned());
    }
    let mut caches = kept::caches(facts, rules);
    if bits.packed.is_some() && rules.pool == Pool::Groups {
        kept::ends_in_half(&mut caches, facts);
    }
    // In the order of layers, so that a stage's are side by side.
    caches.sort_by_key(|c| c.layer);
    let block = block_of(&caches, setup, setup.attention(facts), bits);
    let ranges = stages(layers, setup.pipeline, rules.remainder);
    let loads = Loads::of(facts, setup);
    let mut ranks = Vec::new();
    for (stage, range) in ranges.iter().enumerate() {
        let first = stage == 0;
        let last = stage + 1 == ranges.len();
        let place = Stage { range: *range, first, last };
        let rank = one_rank(&loads, &place, &caches, bits, block, context);
        // A rank's number within its stage makes no difference to its memory.
        let wide =
            if rules.split == WeightSplit::Layers { 1 } else { setup.tensor.clamp(1, 1_024) };
        for tensor in 0..wide {
            ranks.push(RankMemory { stage: stage as u64, tensor, ..rank.clone() });
        }
    }
    // A stage of layers that keep nothing holds as many tokens as the others; so does one of llama.cpp
    // with windows alone, whose cache does not grow.
    let keeps = |r: &&RankMemory| r.cache_needed.value > 0;
    let grows = |r: &&RankMemory| keeps(r) && r.cache_beyond_windows.value > 0;
    let some_grow = rules.pool == Pool::Cells && ranks.iter().any(|r| grows(&r));
    let keeping = |r: &&RankMemory| if some_grow { grows(r) } else { keeps(r) };
    let least = |pick: fn(&Bar) -> u64| {
        ranks.iter().filter(keeping).filter_map(|r| r.tokens.as_ref().map(pick)).min().unwrap_or(0)
    };
    let known = ranks.iter().all(|r| r.cache_available.is_some()) && !ranks.is_empty();
    // An encoder keeps nothing: it needs no room for that, and counts neither tokens nor requests. Of what is not
    // known nothing is counted either.
    let keeps_nothing = !caches.is_empty() && caches.iter().all(|c| c.keeps.is_nothing());
    let counts = known && ranks.iter().any(|r| keeps(&r));
    let tokens = counts.then(|| Bar {
        value: least(|b| b.value),
        low: least(|b| b.low),
        high: least(|b| b.high),
    });
    let requests = counts.then(|| {
        let each = |pick: fn(&Bar) -> u64, need: fn(&Bar) -> u64| {
            ranks.iter().map(|r| at_a_time(r, setup, context, pick, need)).min().unwrap_or(0)
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
    // Where a figure is given for keys and values alone, states are beside it.
    let beside = |r: &RankMemory| match (rules.pool, setup.cache_available) {
        (Pool::Tokens, Some(_)) => r.state_per_request.value,
        _ => 0,
    };
    let room = |r: &RankMemory| {
        let needed = r.cache_needed.high.saturating_sub(beside(r));
        r.cache_available.is_some_and(|a| a.low >= needed && a.low > 0)
    };
    // A pool may hold less than all that is left, for states have one of their own.
    let whole = |tokens: Bar| match rules.pool {
        Pool::Tokens => tokens.low >= context && requests.is_some_and(|r| r.low >= 100),
        _ => tokens.low > 0,
    };
    let fits = known.then(|| {
        let holds = keeps_nothing || tokens.is_some_and(|t| t.low > 0 && whole(t));
        ranks.iter().all(room) && holds && !refused
    });
    notes.extend(facts.notes.iter().cloned());
    if caches.is_empty() {
        notes.push("its files do not tell its cache".to_owned());
    }
    Prediction { weights: stored, ranks, context, block, tokens, requests, fits, notes }
}

/// Requests of full length that a rank has room for, in hundredths; `pick` and `need` are the ends of
/// the bars of what there is and of what is needed.
fn at_a_time(
    rank: &RankMemory,
    setup: &Setup,
    context: u64,
    pick: fn(&Bar) -> u64,
    need: fn(&Bar) -> u64,
) -> u64 {
    let needed = need(&rank.cache_needed);
    if needed == 0 {
        return u64::MAX;
    }
    let available = rank.cache_available.as_ref().map_or(0, pick);
    if setup.rules.pool != Pool::Tokens {
        return mul_div(available, 100, needed);
    }
    let tokens = rank.tokens.as_ref().map_or(0, pick);
    let by_tokens = mul_div(tokens, 100, context.max(1));
    let state = rank.state_per_request.value;
    if state == 0 || rank.cache_per_token.value == 0 || tokens == u64::MAX {
        return if tokens == u64::MAX { tokens } else { by_tokens };
    }
    by_tokens.min(mul_div(pool::two_pools(setup, available).1, 100, state))
}

/// Architectures with windows that came to vLLM so late that most of what serves them counts tokens anew (0.21,
/// #43308).
const YOUNGER: [&str; 2] = ["Gemma4", "Step3p7"];

struct Stage {
    range: (u64, u64),
    first: bool,
    last: bool,
}

/// Tokens of a block: with states, vLLM makes an attention block as large as a state
/// (`platforms/interface.py::_align_hybrid_block_size`).
fn block_of(caches: &[LayerCache], setup: &Setup, ranks: u64, bits: CacheBits) -> u64 {
    let block = setup.block.unwrap_or(setup.rules.block).clamp(1, 1 << 20);
    if setup.rules.pool != Pool::Groups {
        return block;
    }
    let state = caches.iter().map(|c| c.keeps.per_request(ranks)).max().unwrap_or(0);
    let token = caches.iter().filter_map(|c| c.per_token(ranks, bits)).max();
    let latent = caches.iter().any(|c| matches!(c.keeps, Keeps::Latent { width: 1.., .. }));
    let step = if latent { block.max(128) } else { block };
    match token.filter(|t| *t > 0 && state > 0) {
        Some(token) => block.max(step * state.div_ceil(step * token)),
        None => block,
    }
}

fn one_rank(
    loads: &Loads<'_>,
    stage: &Stage,
    caches: &[LayerCache],
    bits: CacheBits,
    block: u64,
    context: u64,
) -> RankMemory {
    let (facts, setup) = (loads.facts, loads.setup);
    let rules = &setup.rules;
    let by_layers = rules.split == WeightSplit::Layers;
    let tensor = if by_layers { 1 } else { setup.tensor.max(1) };
    let weights = setup.correction.weights(loads.weights(stage));
    let attention = if by_layers { 1 } else { setup.attention(facts).max(1) };
    let edge = |layer: u64| caches.partition_point(|c| u64::from(c.layer) < layer);
    let caches = caches.get(edge(stage.range.0)..edge(stage.range.1)).unwrap_or_default();
    let per_token = |beyond: bool| {
        caches
            .iter()
            .filter(|c| !(beyond && c.keeps.window().is_some()))
            .filter_map(|c| c.per_token(attention, bits))
            .fold(0u64, u64::saturating_add)
    };
    let state = caches.iter().map(|c| c.keeps.per_request(attention)).fold(0, u64::saturating_add);
    let correction = &setup.correction;
    let activation = correction.activation(activation_of(facts, setup, tensor));
    // Copies talk to each other where experts are divided over them.
    let experts = setup.expert > 1 || (setup.data > 1 && facts.has_experts());
    let many = setup.tensor * setup.pipeline > 1 || (experts && !by_layers);
    let communication = if many { rules.context.plus(rules.communication) } else { rules.context };
    let communication = correction.communication(communication);
    let graphs = match (rules.budget, setup.requests) {
        _ if setup.eager => Bar::default(),
        (Budget::Share, Some(requests)) => graphs::for_requests(rules.graphs, requests),
        _ => rules.graphs,
    };
    let graphs = correction.graphs(graphs);
    let counted = match rules.budget {
        // Activations and graphs are outside of the static share.
        Budget::Static => weights.plus(correction.besides(Bar::mib(300, 100, 1_200))),
        Budget::Share | Budget::Needed => weights.plus(activation).plus(graphs).plus(communication),
    };
    let available =
        setup.cache_available.map(Bar::exact).or_else(|| Some(setup.budget()?.minus(counted)));
    let by_requests = facts
        .architecture
        .as_deref()
        .is_some_and(|name| YOUNGER.iter().any(|family| name.starts_with(family)));
    let pool = PoolOf { setup, caches, tensor: attention, bits, block, context, by_requests };
    let doubted = |bar: Bar| doubted(bar, facts);
    let needed = correction.needed(doubted(pool.needed()), rules.pool);
    RankMemory {
        stage: 0,
        tensor: 0,
        layers: stage.range,
        weights,
        cache_per_token: doubted(Bar::exact(per_token(false))),
        cache_beyond_windows: doubted(Bar::exact(per_token(true))),
        state_per_request: doubted(Bar::exact(state)),
        activation,
        graphs,
        communication,
        counted,
        cache_available: available,
        cache_needed: needed,
        tokens: available.filter(|_| needed.value > 0).map(|a| {
            // An engine prints what it has left with two decimals, and keeps a block or two aside.
            let around = if setup.cache_available.is_some() { Bar::around(a.value, 10) } else { a };
            let tokens = pool.tokens(Bar { value: a.value, ..around });
            // Where a token may take less, more of them fit.
            let (less, more) =
                (doubted(Bar::exact(1 << 20)).low, doubted(Bar::exact(1 << 20)).high);
            let high = if less == 0 { u64::MAX } else { mul_div(tokens.high, 1 << 20, less) };
            correction.tokens(Bar { low: mul_div(tokens.low, 1 << 20, more), high, ..tokens })
        }),
    }
}

/// A figure of the cache, as sure as the caches are: a model that is not known may share caches
/// between layers, keep windows or latent vectors (less), or something besides (more).
fn doubted(bar: Bar, facts: &ModelFacts) -> Bar {
    bar.spread(match facts.cache_certainty {
        Certainty::Exact => (0, 0),
        Certainty::Close => (50, 50),
        Certainty::Guess => facts.cache_spread.unwrap_or((600, 400)),
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

#[cfg(test)]
mod engines_tests;
#[cfg(test)]
pub(crate) mod tests;
