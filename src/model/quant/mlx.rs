//! MLX, on Apple silicon: `"quantization": {"group_size": 64, "bits": 4}`, with settings for single
//! layers by their names (`mlx-lm`'s `quantize_model`, `mlx.core.quantize`). Embeddings and routers are
//! quantised like linear layers; what a group does not divide stays as it is.

use serde_json::{Map, Value};

use super::names::Names;
use super::{Group, MAX_GROUPS, Method, Quantisation};
use crate::model::arch::conf::whole;

/// Settings of `AutoGPTQ` and others, whose own files name no method either.
const OTHERS: [&str; 7] =
    ["quant_method", "quant_algo", "desc_act", "sym", "zero_point", "w_bit", "checkpoint_format"];

/// Bits, group, and whether scales are bytes without a bias, as the mode has them unless stated.
fn mode(name: &str) -> Option<(u64, u64, bool)> {
    match name {
        "affine" => Some((4, 64, false)),
        "mxfp4" => Some((4, 32, true)),
        "nvfp4" => Some((4, 16, true)),
        "mxfp8" => Some((8, 32, true)),
        _ => None,
    }
}

fn method(settings: &Map<String, Value>) -> Option<Method> {
    let named = settings.get("mode").and_then(Value::as_str).unwrap_or("affine");
    let (bits, group, exponent) = mode(named)?;
    let stated = |key: &str| settings.get(key).and_then(whole);
    Some(Method::Mlx {
        bits: stated("bits").unwrap_or(bits).min(16),
        group: stated("group_size").filter(|n| *n > 0).unwrap_or(group),
        exponent,
    })
}

/// Whether these are MLX's settings.
pub(in crate::model) fn is_mlx(config: &Map<String, Value>) -> bool {
    let named = config.get("mode").and_then(Value::as_str).is_some_and(|m| mode(m).is_some());
    (named || config.contains_key("bits") && config.contains_key("group_size"))
        && !OTHERS.iter().any(|key| config.contains_key(*key))
}

impl Quantisation {
    /// Reads MLX's settings.
    pub(super) fn mlx(config: &Map<String, Value>) -> Self {
        let mut this = Self::none();
        let Some(usual) = method(config) else {
            this.unknown = true;
            return this;
        };
        this.mlx = true;
        // `mlx-vlm` leaves towers as they are (`skip_multimodal_module`).
        this.towers_apart = true;
        this.head = true;
        this.method = usual;
        if let Method::Mlx { bits, .. } = usual {
            this.name = format!("mlx {bits} bits");
        }
        for (name, settings) in config {
            // Experts lie in one tensor there, and routers have two names.
            let mut name = name.replace(".switch_mlp.", ".experts.*.");
            if let Some(before) = name.strip_suffix(".router") {
                name = format!("{before}.gate");
            }
            match settings {
                Value::Bool(false) => this.exceptions.add_module(&name),
                Value::Object(settings) => {
                    let Some(method) = method(settings) else { continue };
                    if let Some(of) = this.groups.iter_mut().find(|g| g.method == method) {
                        of.names.add_module(&name);
                    } else if this.groups.len() < MAX_GROUPS {
                        let mut names = Names::default();
                        names.add_module(&name);
                        this.groups.push(Group { method, names, linear: false });
                    } else {
                        this.unknown = true;
                    }
                }
                _ => {}
            }
        }
        if !this.groups.is_empty() {
            let names = Names::default();
            this.groups.push(Group { method: usual, names, linear: true });
        }
        this
    }
}
