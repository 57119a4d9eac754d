//! The tensors of one linear layer, as each method stores it.

use super::Method;

/// One tensor of a stored linear layer: suffix, type, shape, bytes.
pub type Stored = (&'static str, &'static str, Vec<u64>, u64);

impl Method {
    /// The tensors of a stored linear layer of `rows` outputs and `columns` inputs; none where it is
    /// stored as it is. `dtype` is the model's own type and its bytes.
    pub fn stored(self, rows: u64, columns: u64, dtype: (&'static str, u64)) -> Vec<Stored> {
        let each = |count: u64, bytes: u64| count.saturating_mul(bytes);
        let weight = |dtype, bytes| ("weight", dtype, vec![rows, columns], bytes);
        let all = rows.saturating_mul(columns);
        let scalar = |name: &'static str| (name, "F32", vec![1], 4);
        match self {
            Method::Plain | Method::Mxfp4 => Vec::new(),
            Method::Eight(eight) => eight.stored(rows, columns, dtype),
            Method::Awq { bits, group } => {
                let packed = (rows * bits).div_ceil(32);
                let groups = columns.div_ceil(if group == 0 { columns.max(1) } else { group });
                vec![
                    ("qweight", "I32", vec![columns, packed], each(columns * packed, 4)),
                    ("qzeros", "I32", vec![groups, packed], each(groups * packed, 4)),
                    ("scales", "F16", vec![groups, rows], each(groups * rows, 2)),
                ]
            }
            Method::Gptq { bits, group, .. } => {
                let packed = (columns * bits).div_ceil(32);
                let groups = columns.div_ceil(if group == 0 { columns.max(1) } else { group });
                let zeros = (rows * bits).div_ceil(32);
                vec![
                    ("qweight", "I32", vec![packed, rows], each(packed * rows, 4)),
                    ("qzeros", "I32", vec![groups, zeros], each(groups * zeros, 4)),
                    ("scales", "F16", vec![groups, rows], each(groups * rows, 2)),
                    ("g_idx", "I32", vec![columns], each(columns, 4)),
                ]
            }
            Method::Packed { bits, group, symmetric, ordered } => {
                let packed = (columns * bits).div_ceil(32);
                let groups = columns.div_ceil(if group == 0 { columns.max(1) } else { group });
                let mut out = vec![
                    ("weight_packed", "I32", vec![rows, packed], each(rows * packed, 4)),
                    ("weight_scale", dtype.0, vec![rows, groups], each(rows * groups, dtype.1)),
                    ("weight_shape", "I64", vec![2], 16),
                ];
                if !symmetric {
                    let zeros = (rows * bits).div_ceil(32);
                    out.push((
                        "weight_zero_point",
                        "I32",
                        vec![zeros, groups],
                        each(zeros * groups, 4),
                    ));
                }
                if ordered {
                    out.push(("weight_g_idx", "I32", vec![columns], each(columns, 4)));
                }
                out
            }
            Method::Nvfp4 { group, input } => {
                let groups = columns.div_ceil(group.max(1));
                let mut out = vec![
                    ("weight", "U8", vec![rows, columns / 2], all / 2),
                    (
                        "weight_scale",
                        if group < 32 { "F8_E4M3" } else { "U8" },
                        vec![rows, groups],
                        each(rows, groups),
                    ),
                ];
                if group < 32 {
                    out.push(scalar("weight_scale_2"));
                    out.extend(input.then(|| scalar("input_scale")));
                }
                out
            }
            Method::Nf4 { nested } => {
                let blocks = all.div_ceil(64);
                let mut out = vec![
                    ("weight", "U8", vec![all.div_ceil(2), 1], all.div_ceil(2)),
                    ("weight.quant_map", "F32", vec![16], 64),
                ];
                if nested {
                    let outer = blocks.div_ceil(256);
                    out.push(("weight.absmax", "U8", vec![blocks], blocks));
                    out.push(("weight.nested_absmax", "F32", vec![outer], outer * 4));
                    out.push(("weight.nested_quant_map", "F32", vec![256], 1_024));
                } else {
                    out.push(("weight.absmax", "F32", vec![blocks], blocks * 4));
                }
                // Its length varies by a few bytes with the numbers it holds.
                out.push(("weight.quant_state.bitsandbytes__nf4", "U8", vec![80], 80));
                out
            }
            Method::Mlx { bits, group, exponent } => {
                if group == 0 || !columns.is_multiple_of(group) {
                    return vec![weight(dtype.0, each(all, dtype.1))];
                }
                let (packed, groups) = ((columns * bits).div_ceil(32), columns / group);
                let (kind, size) = if exponent { ("U8", 1) } else { dtype };
                let scales = |name| (name, kind, vec![rows, groups], each(rows * groups, size));
                let mut out = vec![("weight", "U32", vec![rows, packed], each(rows * packed, 4))];
                out.push(scales("scales"));
                out.extend((!exponent).then(|| scales("biases")));
                out
            }
            Method::Bits { bits, group } => {
                let groups = columns.div_ceil(if group == 0 { columns.max(1) } else { group });
                let packed = (columns * bits).div_ceil(8);
                vec![
                    ("weight", "U8", vec![rows, packed], each(rows, packed)),
                    ("scales", "F16", vec![rows, groups], each(rows * groups, 2)),
                ]
            }
            Method::Int8 => {
                vec![weight("I8", all), ("SCB", "F32", vec![rows], rows * 4)]
            }
        }
    }
}
