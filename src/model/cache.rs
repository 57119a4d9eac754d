//! What each layer keeps of the tokens it has seen.

mod bits;

use serde::{Deserialize, Serialize};

pub use self::bits::{CacheBits, LaidOut, Packed};

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
    /// In 16 bits, whatever the type of the others.
    #[serde(default)]
    pub half: bool,
}

impl LayerCache {
    /// A layer that keeps this in the type that is asked for.
    pub const fn new(layer: u32, keeps: Keeps) -> Self {
        Self { layer, keeps, half: false }
    }

    /// Bytes a token on one of `tensor` ranks ([`Keeps::per_token`]).
    pub fn per_token(self, tensor: u64, bits: CacheBits) -> Option<u64> {
        self.keeps.per_token(tensor, if self.half { CacheBits::HALF } else { bits })
    }
}

impl Keeps {
    /// Bytes a token on one of `tensor` ranks, with cached values of `bits` bits; none for a state.
    pub fn per_token(self, tensor: u64, bits: CacheBits) -> Option<u64> {
        match self {
            Self::Attention { kv_heads, key, value, .. } => {
                // vLLM `ModelConfig.get_num_kv_heads`: replicated beyond one a rank.
                let heads = u64::from(kv_heads).checked_div(tensor.max(1)).unwrap_or(0).max(1);
                let heads = if kv_heads == 0 { 0 } else { heads };
                if let Some(packed) = bits.packed {
                    return Some(heads.saturating_mul(packed.slot(key.into(), value.into())));
                }
                let values = heads * (u64::from(key) + u64::from(value));
                Some(bits.bytes(values) + 2 * heads * u64::from(bits.beside))
            }
            Self::Latent { width, rotary, index, sparse } => {
                let (width, rotary) = (u64::from(width), u64::from(rotary));
                let plain = width.saturating_sub(rotary);
                let vector = match bits.laid_out {
                    Some(LaidOut::Four) => plain.div_ceil(2) + plain.div_ceil(16) + rotary,
                    None if !(sparse || index > 0) || bits.each > 8 => {
                        // Both scales of a head are there, though there is but one vector (`mla_attention.py`,
                        // `MLACommonBackend.customize_spec`).
                        bits.bytes(width) + 2 * u64::from(bits.beside)
                    }
                    Some(LaidOut::Eight) | None => plain + plain.div_ceil(128) * 4 + rotary * 2,
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
        // 512 values of 4 bits, 32 scales, 64 values of 8 bits.
        assert_eq!((token("nvfp4_ds_mla"), token("int8_per_token_head")), (352, 576 + 8));
        let sparse = Keeps::Latent { width: 576, rotary: 64, index: 132, sparse: true };
        let token = |name: &str| sparse.per_token(8, CacheBits::named(name).unwrap()).unwrap();
        assert_eq!((token("fp8"), token("nvfp4_ds_mla")), (656 + 132, 352 + 132));
    }

    /// Slots of vLLM's `TurboQuant` and `UltraQuant` for heads of 64, 128 and 256.
    #[test]
    fn keys_and_values_of_a_head_are_packed_into_one_slot() {
        for (name, slots) in [
            ("turboquant_k8v4", [100, 196, 388]),
            ("turboquant_4bit_nc", [70, 134, 262]),
            ("turboquant_k3v4_nc", [62, 118, 230]),
            ("turboquant_3bit_nc", [54, 102, 198]),
            ("ultraquant_4bit", [68, 136, 272]),
        ] {
            let bits = CacheBits::named(name).unwrap();
            let of = |width| {
                let keeps =
                    Keeps::Attention { kv_heads: 8, key: width, value: width, window: None };
                keeps.per_token(4, bits).unwrap()
            };
            assert_eq!([64, 128, 256].map(of), slots.map(|slot| 2 * slot), "{name}");
            assert!((3..=6).contains(&bits.each), "{name}");
        }
        let layer = LayerCache::new(
            0,
            Keeps::Attention { kv_heads: 8, key: 128, value: 128, window: None },
        );
        let bits = CacheBits::named("turboquant_3bit_nc").unwrap();
        assert_eq!(layer.per_token(1, bits), Some(8 * 102));
        assert_eq!(LayerCache { half: true, ..layer }.per_token(1, bits), Some(4_096));
    }

    #[test]
    fn half_a_head_is_a_whole_one() {
        let keeps = Keeps::Attention { kv_heads: 8, key: 128, value: 128, window: None };
        let token =
            |name: &str, tensor| keeps.per_token(tensor, CacheBits::named(name).unwrap()).unwrap();
        assert_eq!(token("int8_per_token_head", 16), 256 + 2 * 4);
    }
}
