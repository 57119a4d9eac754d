//! How much memory a replica takes on each of its devices: an honest rough estimate.
//!
//! Weights are exact sums of tensors; the cache follows from heads and layers (exact for grouped
//! query attention); what engines take besides is a constant a person measured, given by the
//! engine's adapter. Where a model is not fully understood the estimate errs upwards and says so.

use super::ModelFacts;
use crate::base::Bytes;
use crate::spec::ParallelShape;

/// How an engine divides a model over devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightSplit {
    /// Every tensor is divided (tensor parallelism).
    Tensors,
    /// Whole layers are (llama.cpp's `-sm layer`).
    Layers,
}

/// What an engine takes besides weights and cache, and how it divides those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overheads {
    /// How the model is divided.
    pub split: WeightSplit,
    /// Taken on every device: the engine's process, CUDA context, graphs, activations.
    pub fixed: Bytes,
    /// Taken besides when there is more than one device: communication buffers.
    pub parallel: Bytes,
    /// Tokens of one step whose logits are held in 32 bits on the last device; 0 if counted in `fixed`.
    pub batch_tokens: u32,
    /// Bytes of a cached value (2: half precision).
    pub cache_value_bytes: u32,
}

/// Memory of one rank on each of its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Its share of the weights.
    pub weights: Bytes,
    /// The cache for the tokens asked for.
    pub kv_cache: Bytes,
    /// What the engine takes besides.
    pub overhead: Bytes,
    /// Everything.
    pub total: Bytes,
    /// Everything, at its most; zero: not known.
    pub high: Bytes,
    /// Whether it is sure to fit on the GPU that was asked about; none: none was.
    pub fits: Option<bool>,
    /// What was assumed or left out.
    pub notes: Vec<String>,
}

/// The memory of a model on each device of a shape, with a cache for `tokens` tokens.
pub fn per_device(
    facts: &ModelFacts,
    shape: ParallelShape,
    tokens: u64,
    overheads: &Overheads,
) -> MemoryEstimate {
    let devices = u64::from(shape.tensor.get()).saturating_mul(u64::from(shape.pipeline.get()));
    let mut notes = Vec::new();
    let weights = match overheads.split {
        WeightSplit::Tensors => {
            let even = facts.weight_bytes.0.div_ceil(devices);
            even.saturating_add(replicated_kv_bytes(facts, shape))
        }
        WeightSplit::Layers => by_layers(facts, facts.weight_bytes.0, devices),
    };
    let cache_bytes = u64::from(overheads.cache_value_bytes);
    let per_token = match overheads.split {
        // Cached heads are divided by tensor parallelism, layers by pipeline parallelism.
        WeightSplit::Tensors => facts
            .cache_values_per_token(shape.tensor.get())
            .map(|n| n.div_ceil(u64::from(shape.pipeline.get()))),
        WeightSplit::Layers => {
            facts.cache_values_per_token(1).map(|n| by_layers(facts, n, devices))
        }
    };
    let kv_cache = if let Some(values) = per_token {
        values.saturating_mul(cache_bytes).saturating_mul(tokens)
    } else {
        notes.push(
            "the model's files do not tell its cache: a quarter of its weights is assumed"
                .to_owned(),
        );
        weights / 4
    };
    let logits = u64::from(overheads.batch_tokens)
        .saturating_mul(u64::from(facts.vocab_size.unwrap_or(0)))
        .saturating_mul(4);
    let parallel = if devices > 1 { overheads.parallel } else { Bytes::ZERO };
    let overhead = overheads.fixed.saturating_add(parallel).saturating_add(Bytes(logits));
    MemoryEstimate {
        weights: Bytes(weights),
        kv_cache: Bytes(kv_cache),
        overhead,
        total: Bytes(weights).saturating_add(Bytes(kv_cache)).saturating_add(overhead),
        notes,
        ..MemoryEstimate::default()
    }
}

/// The largest share of `whole` that a device gets when whole layers are divided.
fn by_layers(facts: &ModelFacts, whole: u64, devices: u64) -> u64 {
    // llama.cpp counts the output layer as one more (llama-model.cpp, `n_layer + 1` splits).
    let layers = u64::from(facts.layers.unwrap_or(0)) + 1;
    if devices <= 1 {
        return whole;
    }
    if layers <= 1 {
        return whole.div_ceil(devices);
    }
    let most = layers.div_ceil(devices);
    let share = u128::from(whole) * u128::from(most) / u128::from(layers - 1).max(1);
    u64::try_from(share.min(u128::from(whole))).unwrap_or(whole)
}

/// Key and value projections exist once per rank when there are more ranks than heads: what a rank
/// holds of them beyond its even share. Two bytes a weight are assumed.
fn replicated_kv_bytes(facts: &ModelFacts, shape: ParallelShape) -> u64 {
    let tensor = u64::from(shape.tensor.get());
    let (Some(kv), Some(dim), Some(hidden), Some(layers), None) =
        (facts.kv_heads, facts.head_dim, facts.hidden_size, facts.layers, facts.latent_cache_width)
    else {
        return 0;
    };
    let kv = u64::from(kv);
    if kv == 0 || tensor <= kv {
        return 0;
    }
    let one_head = 2 * u64::from(dim) * u64::from(hidden) * 2;
    let per_layer = one_head.saturating_sub(one_head.saturating_mul(kv) / tensor);
    per_layer.saturating_mul(u64::from(layers)).div_ceil(u64::from(shape.pipeline.get()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::model::ModelFormat;
    use std::num::NonZeroU32;

    const BARE: Overheads = Overheads {
        split: WeightSplit::Tensors,
        fixed: Bytes::ZERO,
        parallel: Bytes::ZERO,
        batch_tokens: 0,
        cache_value_bytes: 2,
    };

    fn shape(tensor: u32) -> ParallelShape {
        let one = NonZeroU32::MIN;
        ParallelShape { tensor: NonZeroU32::new(tensor).unwrap(), pipeline: one, data: one }
    }

    fn model(layers: u32, heads: u32, kv: u32, dim: u32, hidden: u32, bytes: u64) -> ModelFacts {
        ModelFacts {
            layers: Some(layers),
            attention_heads: Some(heads),
            kv_heads: Some(kv),
            head_dim: Some(dim),
            hidden_size: Some(hidden),
            weight_bytes: Bytes(bytes),
            ..ModelFacts::unknown(ModelFormat::Safetensors, "/m".into())
        }
    }

    #[test]
    fn the_cache_of_published_models_is_exact() {
        // Layers, heads, KV heads, head size and bytes per token as published for
        // Llama-3.1-8B, Llama-3.1-405B, Qwen2.5-72B, Qwen3-8B and Qwen3-235B-A22B.
        for (layers, heads, kv, dim, expected) in [
            (32, 32, 8, 128, 131_072),
            (126, 128, 8, 128, 516_096),
            (80, 64, 8, 128, 327_680),
            (36, 32, 8, 128, 147_456),
            (94, 64, 4, 128, 192_512),
        ] {
            let facts = model(layers, heads, kv, dim, heads * dim, 0);
            assert_eq!(per_device(&facts, shape(1), 1, &BARE).kv_cache, Bytes(expected));
            let four = per_device(&facts, shape(4), 1, &BARE).kv_cache;
            assert_eq!(four, Bytes(expected / 4));
        }
    }

    #[test]
    fn heads_are_replicated_beyond_one_a_rank() {
        let facts = model(80, 64, 8, 128, 8192, 145_412_407_296);
        let eight = per_device(&facts, shape(8), 1000, &BARE);
        let sixteen = per_device(&facts, shape(16), 1000, &BARE);
        assert_eq!(eight.kv_cache, sixteen.kv_cache);
        assert_eq!(eight.weights, Bytes(145_412_407_296 / 8));
        // Half of each head's projections: 2 · 128 · 8192 · 2 bytes / 2 · 80 layers.
        assert_eq!(sixteen.weights, Bytes(145_412_407_296 / 16 + 2 * 128 * 8192 * 80));
    }

    #[test]
    fn a_latent_cache_is_not_divided() {
        let facts = ModelFacts {
            latent_cache_width: Some(576),
            ..model(61, 128, 128, 56, 7168, 688_574_839_360)
        };
        for tensor in [1, 8] {
            let kv = per_device(&facts, shape(tensor), 10, &BARE).kv_cache;
            assert_eq!(kv, Bytes(10 * 61 * 576 * 2));
        }
    }

    #[test]
    fn whole_layers_are_rounded_up_and_never_exceed_the_whole() {
        let layers = Overheads { split: WeightSplit::Layers, ..BARE };
        let facts = model(4, 8, 2, 32, 256, 4_000);
        assert_eq!(per_device(&facts, shape(1), 1, &layers).weights, Bytes(4_000));
        // Five pieces (with the output layer) on two devices: three on one of them.
        assert_eq!(per_device(&facts, shape(2), 1, &layers).weights, Bytes(3_000));
        assert!(per_device(&facts, shape(8), 1, &layers).weights >= Bytes(1_000));
    }

    #[test]
    fn an_unknown_model_gets_an_assumption_that_is_named() {
        let facts = ModelFacts {
            weight_bytes: Bytes::gib(8),
            ..ModelFacts::unknown(ModelFormat::Gguf, "/m".into())
        };
        let estimate = per_device(&facts, shape(1), 4096, &BARE);
        assert_eq!(estimate.kv_cache, Bytes::gib(2));
        assert_eq!(estimate.notes.len(), 1);
        // Absurd numbers saturate.
        let absurd = model(1 << 28, 1 << 28, 1 << 28, 1 << 28, 1 << 28, u64::MAX);
        assert_eq!(per_device(&absurd, shape(1), u64::MAX, &BARE).total, Bytes(u64::MAX));
    }
}
