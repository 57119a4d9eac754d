//! How a checkpoint's linear layers are stored: what `quantization_config` (or `ModelOpt`'s
//! `hf_quant_config.json`) says, and the bytes that follow for one layer.
//!
//! Sources: vLLM `model_executor/layers/quantization/*.py` (`create_weights`), `AutoGPTQ`, `AutoAWQ`,
//! `compressed-tensors`, `ModelOpt`'s export, `bitsandbytes`' `QuantState`.

mod compressed;
mod eight;
mod gptq;
pub(super) mod mlx;
mod names;
mod read;
mod stored;
mod towers;

use std::cell::Cell;

pub use self::eight::{Eight, Input, Piece, Scale};
use self::names::{Names, general};
pub use self::stored::Stored;

/// Most groups of layers that are stored differently.
const MAX_GROUPS: usize = 16;

/// How a linear layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// In the model's own type.
    Plain,
    /// Eight bits: FP8, or integers.
    Eight(Eight),
    /// `AutoAWQ`: packed columns, zero points.
    Awq {
        /// Bits of a weight.
        bits: u64,
        /// Weights of one scale.
        group: u64,
    },
    /// `AutoGPTQ`: packed rows, zero points, an index.
    Gptq {
        /// Bits of a weight.
        bits: u64,
        /// Weights of one scale; 0: a whole column.
        group: u64,
        /// Columns are reordered: the index is used.
        ordered: bool,
    },
    /// `compressed-tensors`' packed integers.
    Packed {
        /// Bits of a weight.
        bits: u64,
        /// Weights of one scale; 0: a whole row.
        group: u64,
        /// There are no zero points.
        symmetric: bool,
        /// There is an index.
        ordered: bool,
    },
    /// NVFP4: four bits, FP8 scales of 16, a global scale and one for the input.
    Nvfp4 {
        /// Weights of one scale; 32: MXFP4, without the global ones.
        group: u64,
        /// Inputs have a scale.
        input: bool,
    },
    /// MXFP4 of experts: four bits, a shared exponent of 32.
    Mxfp4,
    /// bitsandbytes' NF4 or FP4.
    Nf4 {
        /// Scales are themselves quantised.
        nested: bool,
    },
    /// bitsandbytes' eight bits.
    Int8,
    /// MLX: packed values with a scale and a bias for each group.
    Mlx {
        /// Bits of a weight.
        bits: u64,
        /// Weights of one scale.
        group: u64,
        /// Scales are bytes, and there are no biases.
        exponent: bool,
    },
    /// So many bits a weight with a 16-bit scale a group: roughly, of a method not known better.
    Bits {
        /// Bits of a weight.
        bits: u64,
        /// Weights of one scale; 0: a whole row.
        group: u64,
    },
}

/// Layers that are stored alike.
#[derive(Clone, Debug)]
struct Group {
    method: Method,
    /// Those of these names.
    names: Names,
    /// All linear layers that no group names.
    linear: bool,
}

/// Scales of keys and values in the files of a layer whose cache is FP8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheScales {
    /// None: they are found as the engine runs.
    None,
    /// One, of 32 bits, beside each projection that is quantised (`ModelOpt`).
    Projections,
    /// One beside the attention, in the model's own type (`compressed-tensors`).
    Attention,
    /// One for each of its heads, likewise.
    Heads,
}

/// A `quantization_config`.
#[derive(Clone, Debug)]
pub struct Quantisation {
    /// For people: `awq 4 bits`.
    pub name: String,
    /// How linear layers are stored.
    pub method: Method,
    /// Whether the checkpoint's own scheme for the cache is FP8.
    pub cache_fp8: bool,
    /// The scales that its files hold for the cache.
    pub cache_scales: CacheScales,
    /// Only layers of the decoder are quantised.
    decoder_only: bool,
    /// Towers are not, listed or not.
    towers_apart: bool,
    /// The head is quantised unless excepted.
    head: bool,
    /// It is that of MLX, which only Apple's machines run.
    mlx: bool,
    /// It is not understood: the name says what it is.
    pub unknown: bool,
    /// It is understood but for details: bytes are near.
    pub rough: bool,
    /// Linear layers without a bias have one of zeroes all the same, which engines skip: checkpoints
    /// of `AutoGPTQ`, whose configuration has no `checkpoint_format` yet.
    pub zero_bias: bool,
    exceptions: Names,
    /// Other than `method` for all linear layers.
    groups: Vec<Group>,
    /// What is left of [`names::BUDGET`].
    left: Cell<u32>,
}

impl Quantisation {
    /// Nothing is quantised.
    pub fn none() -> Self {
        Self {
            name: String::new(),
            method: Method::Plain,
            cache_fp8: false,
            cache_scales: CacheScales::None,
            decoder_only: false,
            towers_apart: false,
            head: false,
            mlx: false,
            unknown: false,
            zero_bias: false,
            rough: false,
            exceptions: Names::default(),
            groups: Vec::new(),
            left: Cell::new(names::BUDGET),
        }
    }

    /// How the linear layer of this name is stored.
    pub fn of(&self, module: &str) -> Method {
        let name = general(module);
        let in_decoder = name.starts_with("layers.") || name.starts_with("h.");
        let is_head = name == "lm_head";
        if self.method == Method::Plain
            || self.decoder_only && !in_decoder && !is_head
            || self.towers_apart && towers::is_tower(module)
            || is_head && !self.head
            || self.exceptions.contain(module, &self.left)
        {
            return Method::Plain;
        }
        if self.groups.is_empty() {
            return self.method;
        }
        // By name first, then by class (vLLM `compressed_tensors/utils.py`, `find_matched_target`).
        let by_name = self.groups.iter().find(|g| g.names.contain(module, &self.left));
        // Lists of the decoder's layers say nothing of a head that is quantised beside them.
        let other = if is_head && self.decoder_only { self.method } else { Method::Plain };
        by_name.or_else(|| self.groups.iter().find(|g| g.linear)).map_or(other, |g| g.method)
    }

    /// Whether it is that of MLX, which quantises embeddings and routers too.
    pub const fn is_mlx(&self) -> bool {
        self.mlx
    }

    /// Whether the linear layer of this name is quantised.
    pub fn covers(&self, module: &str) -> bool {
        self.of(module) != Method::Plain
    }

    /// Whether its lists of names were followed to their end.
    pub fn is_followed(&self) -> bool {
        let cut = self.exceptions.cut || self.groups.iter().any(|g| g.names.cut);
        !cut && self.left.get() > 0
    }
}

#[cfg(test)]
mod exceptions_tests;
#[cfg(test)]
mod scales_tests;
#[cfg(test)]
mod tests;
