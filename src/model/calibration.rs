//! How what engines logged of their memory corrects the next prediction for the same model, engine and
//! GPU.
//!
//! A correction is bounded: it stays within the error bar of the uncorrected prediction and a tenth
//! more, so that no log, whoever wrote it, can push a prediction to where it makes no sense. It narrows
//! the bar to what was seen. Where an engine refused to start, the same question gets the same answer.

use super::estimate::{Bar, Pool, Setup};
use super::observation::{Observation, Pair};
use super::tensors::mul_div;

/// Most observations that are looked at for one correction, the newest.
const MOST: usize = 64;
/// A measurement is never believed to be better than this, per mille.
const LEAST_SPREAD: u64 = 10;
/// Measured for foreseen, per mille: anything else was read wrong, or is of something else.
const BELIEVED: std::ops::RangeInclusive<u64> = 500..=2_000;
/// The same for what an engine takes besides weights and cache, of which little is known before.
const BELIEVED_BESIDES: std::ops::RangeInclusive<u64> = 50..=8_000;

/// How measured and foreseen compare: per mille, and how far measurements lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    ratio: u64,
    spread: u64,
}

impl Factor {
    /// The median, and the farthest from it.
    fn of(mut ratios: Vec<u64>) -> Option<Self> {
        ratios.sort_unstable();
        let ratio = *ratios.get(ratios.len() / 2)?;
        let (first, last) = (*ratios.first()?, *ratios.last()?);
        let apart = (ratio - first).max(last - ratio);
        Some(Self { ratio, spread: mul_div(apart, 1_000, ratio.max(1)).max(LEAST_SPREAD) })
    }

    /// The bar as corrected, within itself and a tenth more.
    #[must_use]
    pub fn on(self, bar: Bar) -> Bar {
        let (floor, ceiling) = (bar.low - bar.low / 10, bar.high.saturating_add(bar.high / 10));
        let value = mul_div(bar.value, self.ratio, 1_000).clamp(floor, ceiling.max(floor));
        let around = Bar::around(value, self.spread);
        Bar { value, low: around.low.max(floor), high: around.high.min(ceiling).max(value) }
    }
}

fn corrected(factor: Option<Factor>, bar: Bar) -> Bar {
    factor.map_or(bar, |factor| factor.on(bar))
}

/// What corrects a prediction. Nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correction {
    pub(super) weights: Option<Factor>,
    pub(super) tokens: Option<Factor>,
    pub(super) cells: Option<Factor>,
    pub(super) activation: Option<Factor>,
    pub(super) graphs: Option<Factor>,
    pub(super) besides: Option<Factor>,
    /// Questions that an engine answered with no, and no later one with yes.
    refusals: Vec<Refusal>,
    /// Observations behind it.
    pub(super) count: usize,
    /// The device that they are of.
    pub(super) device: String,
}

/// How a model is divided: tensor, pipeline, data and expert parallelism.
type Division = (u64, u64, u64, u64);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    division: Division,
    context: u64,
    share: Option<u32>,
    cache_bits: Option<u32>,
    /// Requests at a time and tokens of a step, where they were asked for.
    requests: Option<u64>,
    batch: Option<u64>,
    eager: bool,
}

impl Correction {
    /// From all observations of one model, engine and device, the oldest first, for a question that is
    /// divided as `setup`. What depends on how a model is divided is taken from the same division alone.
    pub fn from(observations: &[&Observation], setup: &Setup) -> Self {
        let newest =
            observations.get(observations.len().saturating_sub(MOST)..).unwrap_or_default();
        let asked = (setup.tensor, setup.pipeline, setup.data, setup.expert);
        let of = |o: &Observation| (o.tensor, o.pipeline, o.data, o.expert);
        let same = |o: &&&Observation| of(o) == asked;
        let ratios = |alike: bool, pick: fn(&Observation) -> Option<Pair>, believed| {
            let list = newest.iter().filter(|o| !alike || same(o));
            list.filter_map(|o| pick(o)?.ratio(believed)).collect::<Vec<u64>>()
        };
        let factor = |pick, believed| Factor::of(ratios(true, pick, believed));
        let mut refusals: Vec<Refusal> = Vec::new();
        for o in newest {
            let question = Refusal {
                division: of(o),
                context: o.context,
                share: o.share,
                cache_bits: o.cache_bits,
                requests: o.requests,
                batch: o.batch,
                eager: o.eager,
            };
            if o.refused {
                refusals.push(question);
            } else {
                // It ran after all: the memory was somebody else's that day.
                refusals.retain(|r| !r.covers(&question));
            }
        }
        Self {
            weights: factor(|o| o.weights, &BELIEVED)
                .or_else(|| Factor::of(ratios(false, |o| o.weights, &BELIEVED))),
            tokens: factor(|o| o.tokens, &BELIEVED),
            cells: factor(|o| o.cache.filter(|_| o.tokens.is_none()), &BELIEVED),
            activation: factor(|o| o.activation, &BELIEVED_BESIDES),
            graphs: factor(|o| o.graphs, &BELIEVED_BESIDES),
            besides: factor(|o| o.besides, &BELIEVED_BESIDES),
            refusals,
            count: newest.len(),
            device: newest.last().map(|o| o.place.device.clone()).unwrap_or_default(),
        }
    }

    /// Weights of a rank.
    pub(super) fn weights(&self, bar: Bar) -> Bar {
        corrected(self.weights, bar)
    }

    /// Intermediate values: with the rest, where only that is known.
    pub(super) fn activation(&self, bar: Bar) -> Bar {
        corrected(self.besides.or(self.activation), bar)
    }

    /// Graphs, likewise.
    pub(super) fn graphs(&self, bar: Bar) -> Bar {
        corrected(self.besides.or(self.graphs), bar)
    }

    /// Contexts and communication, likewise.
    pub(super) fn communication(&self, bar: Bar) -> Bar {
        corrected(self.besides, bar)
    }

    /// All but weights and cache, in one.
    pub(super) fn besides(&self, bar: Bar) -> Bar {
        corrected(self.besides, bar)
    }

    /// Tokens of the cache.
    pub(super) fn tokens(&self, bar: Bar) -> Bar {
        corrected(self.tokens, bar)
    }

    /// What one request takes of the cache. Where an engine's cache holds fewer tokens than foreseen,
    /// a request takes more of it; that it might take less is not concluded.
    pub(super) fn needed(&self, bar: Bar, pool: Pool) -> Bar {
        match (pool, self.cells, self.tokens) {
            (Pool::Cells, Some(factor), _) => factor.on(bar),
            (Pool::Groups | Pool::Tokens, _, Some(factor))
                if factor.ratio < 1_000 - LEAST_SPREAD =>
            {
                let more = |n: u64| mul_div(n, 1_000, factor.ratio.max(1));
                Bar { value: more(bar.value), low: bar.low, high: more(bar.high) }
            }
            _ => bar,
        }
    }

    /// Whether an engine refused just this, or less.
    pub fn is_refused(&self, setup: &Setup, context: u64) -> bool {
        let question = Refusal {
            division: (setup.tensor, setup.pipeline, setup.data, setup.expert),
            context,
            share: setup.share_per_mille(),
            cache_bits: setup.cache.map(|bits| bits.each),
            requests: setup.requests,
            batch: setup.batch,
            eager: setup.eager,
        };
        self.refusals.iter().any(|r| r.covers(&question))
    }

    /// For people; none where nothing is corrected.
    pub fn text(&self) -> Option<String> {
        if self.count == 0 {
            return None;
        }
        let percent = |what: &str, factor: Option<Factor>| {
            let off = factor?.ratio as f64 / 10.0 - 100.0;
            (off.abs() >= 0.1).then(|| format!("{what} {off:+.1} %"))
        };
        let parts: Vec<String> = [
            percent("weights", self.weights),
            percent("KV tokens", self.tokens),
            percent("KV cache", self.cells),
            percent("all else", self.besides.or(self.activation)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let runs =
            if self.count == 1 { "1 run".to_owned() } else { format!("{} runs", self.count) };
        let how = if parts.is_empty() { "as foreseen".to_owned() } else { parts.join(", ") };
        Some(format!("corrected by {runs} on {}: {how}", self.device))
    }
}

impl Refusal {
    /// Whether `question` asks for as much or more, with as little.
    fn covers(&self, question: &Self) -> bool {
        // What an engine takes where nothing is asked for is no number that could be compared.
        let as_much = |asked: Option<u64>, refused: Option<u64>| match (asked, refused) {
            (Some(asked), Some(refused)) => asked >= refused,
            (asked, refused) => asked == refused,
        };
        self.division == question.division
            && self.cache_bits == question.cache_bits
            && question.context >= self.context
            && question.share <= self.share
            && as_much(question.requests, self.requests)
            && as_much(question.batch, self.batch)
            // Graphs take memory: without them it may fit.
            && (self.eager || !question.eager)
    }
}

#[cfg(test)]
mod tests;
