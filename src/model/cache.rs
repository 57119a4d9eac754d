//! What each layer keeps of the tokens it has seen.

use serde::{Deserialize, Serialize};

/// What a layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Keeps {
    /// Keys and values of every token, or of those in a window.
    Attention {
        /// Key/value heads.
        kv_heads: u32,
        /// Values of a key.
        key: u32,
        /// Values of a value.
        value: u32,
        /// Only the last so many tokens.
        window: Option<u32>,
    },
    /// One compressed vector a token, the same for all heads; not divided by tensor parallelism.
    Latent {
        /// Values of the vector.
        width: u32,
        /// Values of its rotary part, that stay in 16 bits in an 8-bit cache of sparse attention.
        rotary: u32,
        /// Bytes a token of the index of sparse attention, besides; 0: it has none of its own.
        index: u32,
        /// Attention is sparse, by whatever layer's index.
        #[serde(default)]
        sparse: bool,
    },
    /// A page of `page` bytes for each `block` tokens, the same for all heads; not divided by tensor parallelism
    /// (`DeepSeek` V4 in vLLM, each of whose layers keeps several such things).
    Paged {
        /// Tokens of a page.
        block: u32,
        /// Its bytes.
        page: u32,
        /// Only the last so many tokens; 0: all.
        window: u32,
    },
    /// A state of constant size a request.
    State {
        /// Values of the convolution's window, in the model's type.
        conv: u64,
        /// Values of the recurrent state.
        recurrent: u64,
        /// Bytes of one of the latter.
        recurrent_bytes: u32,
        /// Values of the convolution's window that every rank keeps: those of the only group of Mamba-2 (vLLM
        /// `mamba_utils.py`, `extra_groups_for_head_shards`).
        #[serde(default)]
        whole: u64,
    },
}

/// One layer's cache. A layer that keeps two things has two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCache {
    /// The layer, from 0.
    pub layer: u32,
    /// What it keeps.
    pub keeps: Keeps,
}

impl Keeps {
    /// Bytes a token on one of `tensor` ranks, with cached values of `bits` bits; none for a state.
    pub fn per_token(self, tensor: u64, bits: CacheBits) -> Option<u64> {
        match self {
            Self::Attention { kv_heads, key, value, .. } => {
                // vLLM `ModelConfig.get_num_kv_heads`: replicated beyond one a rank.
                let heads = u64::from(kv_heads).checked_div(tensor.max(1)).unwrap_or(0).max(1);
                let heads = if kv_heads == 0 { 0 } else { heads };
                let values = heads * (u64::from(key) + u64::from(value));
                Some(bits.bytes(values) + 2 * heads * u64::from(bits.beside))
            }
            Self::Latent { width, rotary, index, sparse } => {
                let (width, rotary) = (u64::from(width), u64::from(rotary));
                let vector = if bits.laid_out || (sparse || index > 0) && bits.each <= 8 {
                    // `fp8_ds_mla`: 8-bit values, four 32-bit scales, the rotary part in 16 bits.
                    let plain = width.saturating_sub(rotary);
                    plain + plain.div_ceil(128) * 4 + rotary * 2
                } else {
                    bits.bytes(width)
                };
                Some(vector + u64::from(index))
            }
            Self::Paged { block, page, window: 0 } => {
                Some(u64::from(page).checked_div(u64::from(block)).unwrap_or(0))
            }
            Self::Paged { .. } | Self::State { .. } => None,
        }
    }

    /// Bytes a request of a state, on one of `tensor` ranks; 0 for anything else.
    pub fn per_request(self, tensor: u64) -> u64 {
        match self {
            Self::State { conv, recurrent, recurrent_bytes, whole } => {
                let tp = tensor.max(1);
                let conv = conv.saturating_sub(whole).div_ceil(tp) + whole;
                conv * 2 + recurrent.div_ceil(tp) * u64::from(recurrent_bytes)
            }
            _ => 0,
        }
    }

    /// Whether there is nothing that it would keep.
    pub const fn is_nothing(self) -> bool {
        matches!(self, Self::Attention { kv_heads: 0, .. })
    }

    /// The same, looking back at everything.
    #[must_use]
    pub const fn without_window(self) -> Self {
        match self {
            Self::Attention { kv_heads, key, value, .. } => {
                Self::Attention { kv_heads, key, value, window: None }
            }
            other => other,
        }
    }

    /// The same with values of a recurrent state in 32 bits, and those of its convolution where `all` are.
    #[must_use]
    pub const fn in_32_bits(self, all: bool) -> Self {
        match self {
            Self::State { conv, recurrent, whole, .. } => {
                let times = if all { 2 } else { 1 };
                let (conv, whole) = (conv.saturating_mul(times), whole.saturating_mul(times));
                Self::State { conv, recurrent, recurrent_bytes: 4, whole }
            }
            other => other,
        }
    }

    /// The window of sliding attention.
    pub fn window(self) -> Option<u64> {
        match self {
            Self::Attention { window, .. } => window.map(u64::from),
            _ => None,
        }
    }
}

/// How cached values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBits {
    /// Bits of a value.
    pub each: u32,
    /// Bits of 16 of them with their blocks' scales (llama.cpp's `q8_0` has 8.5 bits a value).
    pub sixteen: u32,
    /// Bytes beside each head's key and value: a scale of 32 bits with vLLM's `…_per_token_head`
    /// (`v1/kv_cache_interface.py`, `AttentionSpec.unpadded_page_size_bytes`).
    pub beside: u32,
    /// Latent vectors are laid out as for sparse attention, whatever theirs is (`MLAAttentionSpec.real_page_size_bytes`).
    pub laid_out: bool,
}

impl CacheBits {
    /// Half precision.
    pub const HALF: Self = Self::of(16, 256);

    const fn of(each: u32, sixteen: u32) -> Self {
        Self { each, sixteen, beside: 0, laid_out: false }
    }

    /// The type of this name; none if unknown. `auto` is none as well: it follows the model.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "f16" | "bf16" | "fp16" | "bfloat16" | "float16" | "half" => Self::HALF,
            "fp8" | "fp8_e4m3" | "fp8_e5m2" | "int8" | "fp8_inc" | "f8" => Self::of(8, 128),
            "fp8_ds_mla" => Self { laid_out: true, ..Self::of(8, 128) },
            "int8_per_token_head" | "fp8_per_token_head" => Self { beside: 4, ..Self::of(8, 128) },
            "int4_per_token_head" => Self { beside: 4, ..Self::of(4, 64) },
            "f32" | "fp32" | "float32" => Self::of(32, 512),
            "q8_0" => Self::of(8, 136),
            "q5_0" => Self::of(5, 88),
            "q5_1" => Self::of(5, 96),
            "q4_0" | "iq4_nl" => Self::of(4, 72),
            "q4_1" => Self::of(4, 80),
            "nvfp4" | "fp4_e2m1" | "fp4" => Self::of(4, 72),
            _ => return None,
        })
    }

    /// Bytes of so many values.
    pub fn bytes(self, values: u64) -> u64 {
        values.saturating_mul(u64::from(self.sixteen)).div_ceil(128)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    /// 8 heads of 128: keys and values, and a scale of each.
    #[test]
    fn scales_of_a_head_are_beside_its_values() {
        let keeps = Keeps::Attention { kv_heads: 8, key: 128, value: 128, window: None };
        let token =
            |name: &str, tensor| keeps.per_token(tensor, CacheBits::named(name).unwrap()).unwrap();
        assert_eq!((token("bf16", 1), token("fp8", 1)), (4_096, 2_048));
        assert_eq!(token("int8_per_token_head", 1), 2_048 + 2 * 8 * 4);
        assert_eq!(token("FP8_per_token_head", 1), 2_048 + 2 * 8 * 4);
        assert_eq!(token("int4_per_token_head", 1), 1_024 + 2 * 8 * 4);
        // `DeepSeek` V3: 512 values of 8 bits, four scales, 64 values of 16 bits.
        let latent = Keeps::Latent { width: 576, rotary: 64, index: 0, sparse: false };
        let token = |name: &str| latent.per_token(8, CacheBits::named(name).unwrap()).unwrap();
        assert_eq!((token("fp8"), token("fp8_ds_mla")), (576, 656));
    }

    #[test]
    fn half_a_head_is_a_whole_one() {
        let keeps = Keeps::Attention { kv_heads: 8, key: 128, value: 128, window: None };
        let token =
            |name: &str, tensor| keeps.per_token(tensor, CacheBits::named(name).unwrap()).unwrap();
        assert_eq!(token("int8_per_token_head", 16), 256 + 2 * 4);
    }
}
