//! `compressed-tensors`: groups of layers, each with its own scheme (`quantization/quant_args.py`,
//! `quantization/lifecycle/initialize.py`, `compressors/*/base.py`). Scales are of the model's own
//! type, except the exponents of MXFP4 and MXFP8 and those of NVFP4.

use serde_json::{Map, Value};

use super::eight::{Eight, Input, Piece, Scale};
use super::names::Names;
use super::{Group, MAX_GROUPS, Method, Quantisation};
use crate::model::arch::conf::whole;

/// Values that share an exponent in MXFP4 and MXFP8.
const MX_GROUP: u64 = 32;

impl Quantisation {
    /// Groups of layers, each with its own method (`QuantizationConfig`).
    pub(super) fn compressed(&mut self, config: &Map<String, Value>) {
        let format = config.get("format").and_then(Value::as_str).unwrap_or_default();
        self.head = true;
        self.exceptions = Names::strict();
        let mut named = Vec::new();
        let groups = config.get("config_groups").and_then(Value::as_object);
        let groups = groups.into_iter().flat_map(Map::values).filter_map(Value::as_object);
        for group in groups {
            // Only activations, or the cache.
            let Some((method, name)) = scheme(group, format) else { continue };
            if self.groups.len() >= MAX_GROUPS {
                self.unknown = true;
                break;
            }
            let mut names = Names::strict();
            let targets = group.get("targets").and_then(Value::as_array);
            let targets = || targets.into_iter().flatten().filter_map(Value::as_str);
            // A capital begins the name of a class: linear layers are those that matter.
            let class = |t: &&str| t.starts_with(char::is_uppercase);
            names.extend(targets().filter(|t| !class(t)));
            let other = |t: &str| t.contains("Embedding") || t.contains("Attention");
            let linear = targets().next().is_none() || targets().any(|t| class(&t) && !other(t));
            if !named.contains(&name) {
                named.push(name);
            }
            self.groups.push(Group { method, names, linear });
        }
        let sparse = config.get("sparsity_config").and_then(|s| s.get("format")?.as_str());
        let left_out = |format: &str| format.contains("24") || format.contains("bitmask");
        self.unknown |= self.groups.is_empty() || left_out(format) || sparse.is_some_and(left_out);
        self.name = ["compressed-tensors", named.join(" + ").as_str()].join(" ");
        self.method = self.groups.first().map_or(Method::Plain, |g| g.method);
    }
}

/// The method of one group, and its name.
fn scheme(group: &Map<String, Value>, format: &str) -> Option<(Method, String)> {
    let part = |name: &str| group.get(name).and_then(Value::as_object);
    let weights = part("weights")?;
    let format = group.get("format").and_then(Value::as_str).unwrap_or(format);
    let text = |key: &str| weights.get(key).and_then(Value::as_str).unwrap_or_default();
    let bits = weights.get("num_bits").and_then(whole).unwrap_or(8).min(16);
    let uneven = weights.get("symmetric").and_then(Value::as_bool) == Some(false);
    let size = weights.get("group_size").and_then(whole).filter(|n| *n > 0);
    let block = weights.get("block_structure").and_then(Value::as_array);
    let block: Option<Vec<u64>> = block.and_then(|b| b.iter().map(whole).collect());
    let strategy = text("strategy");
    let piece = match (block.as_deref(), size) {
        (Some([rows, columns]), _) if *rows > 0 && *columns > 0 => Piece::Block(*rows, *columns),
        (_, Some(size)) if strategy != "channel" => Piece::Group(size),
        _ if strategy == "tensor" => Piece::Tensor,
        _ => Piece::Row,
    };
    let float = text("type") == "float";
    let eight = || Eight {
        integer: !float,
        piece,
        scale: match (piece, text("scale_dtype")) {
            (Piece::Group(MX_GROUP), kind)
                if kind.ends_with("uint8") || format.starts_with("mxfp8") =>
            {
                Scale::Exponent
            }
            _ => Scale::Model,
        },
        uneven,
        input: input(part("input_activations")),
    };
    let method = match (float, bits) {
        (true, 4) => {
            let dynamic = |a: &Map<String, Value>| a.get("dynamic") == Some(&Value::Bool(true));
            Method::Nvfp4 {
                group: size.unwrap_or(0).max(16),
                input: part("input_activations").is_some_and(|a| !dynamic(a)),
            }
        }
        (true, _) => Method::Eight(eight()),
        (false, 8) if format.starts_with("int-quantized") || format.starts_with("naive") => {
            Method::Eight(eight())
        }
        (false, _) => {
            // The order of `weight` and `static` ends with calibration.
            let ordered = weights.get("actorder").is_some_and(|a| match a {
                Value::String(s) => s == "group" || s == "dynamic",
                Value::Bool(b) => *b,
                _ => false,
            });
            let group = if let Piece::Group(size) = piece { size } else { 0 };
            Method::Packed { bits, group, symmetric: !uneven, ordered }
        }
    };
    Some((method, format!("{}{bits}", if float { "fp" } else { "int" })))
}

/// What is stored for a layer's input: fixed unless it says otherwise.
fn input(activations: Option<&Map<String, Value>>) -> Input {
    match activations {
        Some(a) if a.get("dynamic") == Some(&Value::Bool(false)) => {
            if a.get("symmetric") == Some(&Value::Bool(false)) {
                Input::StaticUneven
            } else {
                Input::Static
            }
        }
        _ => Input::Dynamic,
    }
}
