//! How cached values are stored: the types that engines take, and their bytes.

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
    /// Latent vectors are laid out as sparse attention reads them, whatever theirs is; none: they are not.
    pub laid_out: Option<LaidOut>,
    /// Keys and values of a head are packed into one slot; none: they are not.
    pub packed: Option<Packed>,
}

/// Layouts of latent vectors in vLLM, which say how large they are whatever the type of values
/// (`model_executor/layers/attention/mla_attention.py`, `state_content_bytes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaidOut {
    /// `fp8_ds_mla`: values of 8 bits, a scale of 32 bits for 128 of them, the rotary part in 16 bits.
    Eight,
    /// `nvfp4_ds_mla`: values of 4 bits, a scale of 8 bits for 16 of them, the rotary part in 8 bits.
    Four,
}

/// A slot with key and value of one head (vLLM, `TurboQuant` and `UltraQuant`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Of a key: bits of 32 values, and bytes beside them.
    pub key: (u32, u32),
    /// Of a value, likewise.
    pub value: (u32, u32),
}

impl Packed {
    /// Bytes of the slot of a head with keys and values so wide: even
    /// (`layers/quantization/turboquant/config.py`, `slot_size_aligned`).
    pub fn slot(self, key: u64, value: u64) -> u64 {
        let of = |values: u64, (bits, beside): (u32, u32)| {
            values.saturating_mul(u64::from(bits)).div_ceil(256).saturating_add(u64::from(beside))
        };
        of(key, self.key).saturating_add(of(value, self.value)).next_multiple_of(2)
    }
}

impl CacheBits {
    /// Half precision.
    pub const HALF: Self = Self::of(16, 256);

    const fn of(each: u32, sixteen: u32) -> Self {
        Self { each, sixteen, beside: 0, laid_out: None, packed: None }
    }

    const fn packed(key: (u32, u32), value: (u32, u32)) -> Self {
        // About as many bits as a key and a value have on the average.
        let sixteen = (key.0 + value.0).div_ceil(4);
        Self { packed: Some(Packed { key, value }), ..Self::of(sixteen / 16, sixteen) }
    }

    /// The type of this name; none if unknown. `auto` is none as well: it follows the model.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "f16" | "bf16" | "fp16" | "bfloat16" | "float16" | "half" => Self::HALF,
            "fp8" | "fp8_e4m3" | "fp8_e5m2" | "int8" | "fp8_inc" | "f8" => Self::of(8, 128),
            // An exponent of 8 bits for 32 values.
            "mxfp8" => Self::of(8, 132),
            "fp8_ds_mla" => Self { laid_out: Some(LaidOut::Eight), ..Self::of(8, 128) },
            "nvfp4_ds_mla" => Self { laid_out: Some(LaidOut::Four), ..Self::of(4, 72) },
            "int8_per_token_head" | "fp8_per_token_head" => Self { beside: 4, ..Self::of(8, 128) },
            "int4_per_token_head" => Self { beside: 4, ..Self::of(4, 64) },
            "f32" | "fp32" | "float32" => Self::of(32, 512),
            "q8_0" => Self::of(8, 136),
            "q5_0" => Self::of(5, 88),
            "q5_1" => Self::of(5, 96),
            "q4_0" | "iq4_nl" => Self::of(4, 72),
            "q4_1" => Self::of(4, 80),
            "nvfp4" | "nvfp4_4over6" | "fp4_e2m1" | "fp4_mx_block16" | "fp4" => Self::of(4, 72),
            // Keys have a norm of 16 bits beside them, values a scale and a zero of 16 bits each
            // (`layers/quantization/turboquant/config.py`, `TQ_PRESETS`).
            "turboquant_k8v4" => Self::packed((256, 0), (128, 4)),
            "turboquant_4bit_nc" => Self::packed((128, 2), (128, 4)),
            "turboquant_k3v4_nc" => Self::packed((96, 2), (128, 4)),
            "turboquant_3bit_nc" => Self::packed((96, 2), (96, 4)),
            // An exponent of 8 bits for 32 values (`v1/attention/ops/ultraquant/format.py`).
            "ultraquant_4bit" => Self::packed((136, 0), (136, 0)),
            _ => return None,
        })
    }

    /// Bytes of so many values.
    pub fn bytes(self, values: u64) -> u64 {
        values.saturating_mul(u64::from(self.sixteen)).div_ceil(128)
    }

    /// Four bits a value without a scale for each head, which no engine keeps latent vectors in as they are.
    pub const fn is_plain_four(self) -> bool {
        self.each == 4 && self.beside == 0 && self.laid_out.is_none() && self.packed.is_none()
    }
}
