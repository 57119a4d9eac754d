//! Eight bits a value: how `fp8`, `fbgemm_fp8`, `ModelOpt` and `compressed-tensors` store such layers
//! and their scales.

use super::stored::Stored;

/// What has one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The whole matrix.
    Tensor,
    /// A row.
    Row,
    /// So many values of a row.
    Group(u64),
    /// So many rows and columns.
    Block(u64, u64),
}

/// The type in which scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// 32 bits.
    Float,
    /// The model's own.
    Model,
    /// An exponent alone, of eight bits.
    Exponent,
}

/// What is stored for a layer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing: it is scaled as it comes.
    Dynamic,
    /// A scale.
    Static,
    /// A scale and a zero point.
    StaticUneven,
}

/// A layer of eight bits a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eight {
    /// Integers, else FP8.
    pub integer: bool,
    /// What has one scale.
    pub piece: Piece,
    /// Type of the scales.
    pub scale: Scale,
    /// There are zero points beside the scales.
    pub uneven: bool,
    /// What is stored for its input.
    pub input: Input,
}

impl Eight {
    /// FP8 with a scale for each `piece`, inputs as they come.
    pub const fn float(piece: Piece, scale: Scale) -> Self {
        Self { integer: false, piece, scale, uneven: false, input: Input::Dynamic }
    }

    /// The same with a stored scale for the input, if `fixed`.
    #[must_use]
    pub const fn with_input(mut self, fixed: bool) -> Self {
        self.input = if fixed { Input::Static } else { Input::Dynamic };
        self
    }

    /// MXFP8: a shared exponent of 32 values.
    pub const MX: Self = Self::float(Piece::Group(32), Scale::Exponent);

    /// The tensors of a layer of `rows` outputs and `columns` inputs in a model of type `dtype`.
    pub(super) fn stored(self, rows: u64, columns: u64, dtype: (&'static str, u64)) -> Vec<Stored> {
        let (kind, size) = match self.scale {
            Scale::Float => ("F32", 4),
            Scale::Exponent => ("U8", 1),
            Scale::Model => dtype,
        };
        let shape = match self.piece {
            Piece::Tensor => vec![1],
            Piece::Row => vec![rows, 1],
            Piece::Group(n) => vec![rows, columns.div_ceil(n.max(1))],
            Piece::Block(r, c) => vec![rows.div_ceil(r.max(1)), columns.div_ceil(c.max(1))],
        };
        let count = shape.iter().fold(1u64, |n, side| n.saturating_mul(*side));
        // So DeepSeek named it, and what follows it.
        let inverse = matches!((self.piece, self.scale), (Piece::Block(..), Scale::Float));
        let name = if inverse { "weight_scale_inv" } else { "weight_scale" };
        let weight = if self.integer { "I8" } else { "F8_E4M3" };
        let mut out = vec![
            ("weight", weight, vec![rows, columns], rows.saturating_mul(columns)),
            (name, kind, shape.clone(), count.saturating_mul(size)),
        ];
        if self.uneven {
            out.push(("weight_zero_point", "I8", shape, count));
        }
        if self.input != Input::Dynamic {
            out.push(("input_scale", kind, vec![1], size));
        }
        if self.input == Input::StaticUneven {
            out.push(("input_zero_point", "I8", vec![1], 1));
        }
        out
    }
}
