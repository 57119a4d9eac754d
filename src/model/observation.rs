//! One engine that loaded, or refused to: what it logged of its memory beside what was foreseen. This is
//! what a deck keeps.

use serde::{Deserialize, Serialize};

use super::calibration::Correction;
use super::estimate::{Budget, Pool, Setup, predict};
use super::facts::ModelFacts;
use super::tensors::mul_div;
use crate::base::Bytes;
use crate::spec::ParallelShape;

/// Memory of one device of one engine, as it logged it. What it did not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Weights; of several devices the most.
    pub weights: Option<Bytes>,
    /// Memory for the KV cache; of several devices the least.
    pub cache: Option<Bytes>,
    /// Memory for recurrent states, where the engine keeps them beside that; likewise.
    #[serde(default)]
    pub states: Option<Bytes>,
    /// Tokens that the cache holds.
    pub tokens: Option<u64>,
    /// Intermediate values of a step; of several devices the most.
    pub activation: Option<Bytes>,
    /// Captured graphs; of several devices the most.
    pub graphs: Option<Bytes>,
    /// It did not start for want of memory.
    pub refused: bool,
}

impl Loaded {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What several ranks of a replica say together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            weights: self.weights.max(other.weights),
            cache: least(self.cache, other.cache),
            states: least(self.states, other.states),
            tokens: least(self.tokens, other.tokens),
            activation: self.activation.max(other.activation),
            graphs: self.graphs.max(other.graphs),
            refused: self.refused || other.refused,
        }
    }
}

/// The lesser of what there is.
pub fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// What was foreseen, and what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The prediction, uncorrected.
    pub foreseen: u64,
    /// What the engine logged.
    pub measured: u64,
}

impl Pair {
    fn of(foreseen: Option<u64>, measured: Option<u64>) -> Option<Self> {
        Some(Self { foreseen: foreseen?, measured: measured? })
    }

    /// Measured for foreseen, per mille; none where that is not believed.
    pub(super) fn ratio(self, believed: &std::ops::RangeInclusive<u64>) -> Option<u64> {
        if self.foreseen == 0 || self.measured == 0 {
            return None;
        }
        Some(mul_div(self.measured, 1_000, self.foreseen)).filter(|r| believed.contains(r))
    }
}

/// Where an engine ran: what an observation is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Where {
    /// The engine's name.
    pub engine: String,
    /// The GPU's name, or `cpu`.
    pub device: String,
    /// Memory of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<Bytes>,
}

/// One engine that loaded, or refused to: what is kept in the deck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// The model's architecture.
    pub architecture: String,
    /// All its tensors: with the architecture, what tells it from other models.
    pub weight_bytes: Bytes,
    /// Engine and device.
    #[serde(flatten)]
    pub place: Where,
    /// Tensor parallelism.
    pub tensor: u64,
    /// Pipeline stages.
    pub pipeline: u64,
    /// Copies of attention.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub data: u64,
    /// Ranks that whole experts are divided over.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub expert: u64,
    /// How all of the replica was divided; none: by a version that did not write it down, when there were no copies with
    /// GPUs of their own. (What is counted above is how the engine divides one copy, where copies have nothing in common.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ParallelShape>,
    /// Longest sequence.
    pub context: u64,
    /// Requests at a time, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Tokens of a step, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// No graphs were captured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eager: bool,
    /// Share of the device that the engine might take, per mille.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// Bits of a cached value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bits: Option<u32>,
    /// Weights of the heaviest device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Pair>,
    /// Memory for the cache: what was left for it, or (llama.cpp) what it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Pair>,
    /// Tokens of the cache, given the memory that the engine had for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Pair>,
    /// Intermediate values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Pair>,
    /// Captured graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphs: Option<Pair>,
    /// All but weights and cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub besides: Option<Pair>,
    /// The engine refused to start for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

const fn one() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
const fn is_one(n: &u64) -> bool {
    *n == 1
}

impl Observation {
    /// Compares what an engine logged with what was foreseen for the same question. None where the
    /// log says nothing.
    pub fn new(facts: &ModelFacts, setup: &Setup, place: Where, loaded: &Loaded) -> Option<Self> {
        if loaded.is_empty() {
            return None;
        }
        let setup = Setup { correction: Correction::default(), ..setup.clone() };
        // A command of the user's is one of the engines that are known.
        let place = Where { engine: setup.rules.engine.to_owned(), ..place };
        let prediction = predict(facts, &setup);
        let heaviest = prediction.ranks.iter().max_by_key(|r| r.weights.value)?;
        let bytes = |b: Option<Bytes>| b.map(|b| b.0);
        let cells = setup.rules.pool == Pool::Cells;
        let cache = if cells {
            prediction.ranks.iter().map(|r| r.cache_needed.value).max()
        } else {
            prediction.ranks.iter().filter_map(|r| r.cache_available).map(|b| b.value).min()
        };
        // What the engine counts with the memory that it really had.
        let given = loaded.cache.filter(|_| !cells).and_then(|cache| {
            predict(facts, &Setup { cache_available: Some(cache.0), ..setup.clone() }).tokens
        });
        // `SGLang` keeps states in a pool of their own. Where its log does not tell of that one, what
        // else it took cannot be told either.
        let apart = setup.rules.pool == Pool::Tokens && heaviest.state_per_request.value > 0;
        let taken = match (loaded.cache, loaded.states) {
            (Some(cache), Some(states)) if apart => Some(cache.saturating_add(states)),
            (cache, _) => cache.filter(|_| !apart),
        };
        let budget = setup.budget().filter(|_| setup.rules.budget != Budget::Needed);
        let besides = budget.map(|b| b.value).and_then(|budget| {
            let left = |weights: u64, cache: u64| budget.checked_sub(weights)?.checked_sub(cache);
            Pair::of(
                left(heaviest.weights.value, heaviest.cache_available?.value),
                left(loaded.weights?.0, taken?.0),
            )
        });
        let pair = Pair::of;
        Some(Self {
            architecture: facts.architecture.clone().unwrap_or_default(),
            weight_bytes: facts.weight_bytes,
            place,
            tensor: setup.tensor,
            pipeline: setup.pipeline,
            data: setup.data,
            expert: setup.expert,
            shape: None,
            context: prediction.context,
            requests: setup.requests,
            batch: setup.batch,
            eager: setup.eager,
            share: setup.share_per_mille(),
            cache_bits: setup.cache.map(|bits| bits.each),
            weights: pair(Some(heaviest.weights.value), bytes(loaded.weights)),
            cache: pair(cache, bytes(taken)),
            tokens: pair(given.map(|b| b.value), loaded.tokens.filter(|_| !cells)),
            activation: pair(Some(heaviest.activation.value), bytes(loaded.activation)),
            graphs: pair(Some(heaviest.graphs.value), bytes(loaded.graphs)),
            besides,
            refused: loaded.refused,
        })
    }

    /// The same of a replica of this shape.
    #[must_use]
    pub fn of_shape(self, shape: ParallelShape) -> Self {
        Self { shape: Some(shape), ..self }
    }

    /// What tells it from measurements of the same model that are of something else.
    pub fn subject(&self) -> (&Where, [u64; 4], Option<ParallelShape>, bool) {
        let degrees = [self.tensor, self.pipeline, self.data, self.expert];
        // What says no more than the degrees is told by older versions, too.
        let shape = self.shape.filter(|shape| shape.groups() > 1);
        (&self.place, degrees, shape, self.refused)
    }

    /// Whether it is of this model.
    pub fn is_of(&self, facts: &ModelFacts) -> bool {
        self.weight_bytes == facts.weight_bytes
            && facts.architecture.as_deref().unwrap_or_default() == self.architecture
    }

    /// For people: `weights 15.3 GiB (foreseen 15.3 GiB), KV cache 136080 tokens (foreseen 136092)`.
    pub fn text(&self) -> String {
        let size = |what: &str, pair: Option<Pair>| {
            let pair = pair?;
            let (measured, foreseen) = (Bytes(pair.measured), Bytes(pair.foreseen));
            Some(format!("{what} {measured} (foreseen {foreseen})"))
        };
        let tokens = self
            .tokens
            .map(|pair| format!("KV cache {} tokens (foreseen {})", pair.measured, pair.foreseen));
        let parts: Vec<String> = [
            size("weights", self.weights),
            size("KV cache", self.cache),
            tokens,
            size("activations", self.activation),
            size("graphs", self.graphs),
            size("all else", self.besides),
        ]
        .into_iter()
        .flatten()
        .collect();
        let counted = || self.tensor.saturating_mul(self.pipeline);
        let devices = self.shape.map_or_else(counted, |shape| shape.devices());
        let shape = self.shape.filter(|shape| shape.groups() > 1);
        let divided = shape.map(|shape| format!(" as {shape}")).unwrap_or_default();
        let refused = if self.refused { ", refused to start for want of memory" } else { "" };
        format!(
            "{}{divided} on {devices}×{}{refused}: {}",
            self.place.engine,
            self.place.device,
            if parts.is_empty() { "no figures".to_owned() } else { parts.join(", ") }
        )
    }
}
