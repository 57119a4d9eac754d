//! How a checkpoint's linear layers are stored: what `quantization_config` (or `ModelOpt`'s
//! `hf_quant_config.json`) says, and the bytes that follow for one layer.
//!
//! Sources: vLLM `model_executor/layers/quantization/*.py` (`create_weights`), `AutoGPTQ`, `AutoAWQ`,
//! `compressed-tensors`, `ModelOpt`'s export, `bitsandbytes`' `QuantState`.

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

use super::arch::conf::whole;
use crate::base::text;

/// Most patterns of a list of exceptions that are compiled; the rest is compared as plain names.
const MAX_PATTERNS: usize = 2_000;
/// Longest pattern.
const MAX_PATTERN: usize = 300;

/// How a linear layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// In the model's own type.
    Plain,
    /// FP8 with a 32-bit scale for each block of so many rows and columns.
    Fp8Block(u64, u64),
    /// FP8 with one scale a layer, and one for its input.
    Fp8Tensor {
        /// Inputs have a stored scale.
        static_input: bool,
    },
    /// Eight bits with one 16-bit scale a row.
    Channel {
        /// Integers, else FP8.
        integer: bool,
        /// Inputs have a stored scale.
        static_input: bool,
    },
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
        /// Weights of one scale.
        group: u64,
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
    /// Only layers of the decoder are quantised.
    decoder_only: bool,
    /// The head is quantised unless excepted.
    head: bool,
    /// It is not understood: the name says what it is.
    pub unknown: bool,
    /// Linear layers without a bias have one of zeroes all the same, which engines skip: checkpoints
    /// of `AutoGPTQ`, whose configuration has no `checkpoint_format` yet.
    pub zero_bias: bool,
    exact: HashSet<String>,
    words: Vec<Vec<String>>,
    globs: Vec<String>,
    patterns: Vec<Regex>,
    targets: Vec<Regex>,
}

/// One tensor of a stored linear layer: suffix, type, shape, bytes.
pub type Stored = (&'static str, &'static str, Vec<u64>, u64);

impl Quantisation {
    /// Nothing is quantised.
    pub fn none() -> Self {
        Self {
            name: String::new(),
            method: Method::Plain,
            cache_fp8: false,
            decoder_only: false,
            head: false,
            unknown: false,
            zero_bias: false,
            exact: HashSet::new(),
            words: Vec::new(),
            globs: Vec::new(),
            patterns: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Reads a `quantization_config`, or the `quantization` of an `hf_quant_config.json`.
    pub fn read(config: &Map<String, Value>) -> Self {
        let word = |key: &str| {
            config.get(key).and_then(Value::as_str).map(|s| text::clean(s, 60).to_ascii_lowercase())
        };
        let number = |key: &str| config.get(key).and_then(whole);
        let on = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
        let group = |n: Option<&Value>| match n.and_then(Value::as_i64) {
            Some(n) if n > 0 => n.unsigned_abs(),
            _ => n.and_then(whole).unwrap_or(0),
        };
        let method = word("quant_method").unwrap_or_default();
        let algorithm = word("quant_algo").unwrap_or_default();
        let mut this = Self::none();
        this.name = match (method.is_empty(), number("bits")) {
            (true, _) => algorithm.clone(),
            (false, Some(bits)) => format!("{method} {bits} bits"),
            (false, None) if method == "modelopt" => format!("modelopt {algorithm}"),
            (false, None) => method.clone(),
        };
        let static_input = word("activation_scheme").as_deref() == Some("static");
        let bits = number("bits").or(number("w_bit")).unwrap_or(4).min(16);
        let group_size = group(
            config.get("group_size").or(config.get("q_group_size")).or(config.get("groupsize")),
        );
        match method.as_str() {
            "fp8" | "fbgemm_fp8" => {
                let block = config.get("weight_block_size").and_then(Value::as_array);
                let block: Option<Vec<u64>> = block.and_then(|b| b.iter().map(whole).collect());
                this.method = match block.as_deref() {
                    Some([rows, columns]) if *rows > 0 && *columns > 0 => {
                        Method::Fp8Block(*rows, *columns)
                    }
                    _ if method == "fbgemm_fp8" => {
                        Method::Channel { integer: false, static_input: false }
                    }
                    _ => Method::Fp8Tensor { static_input },
                };
            }
            "awq" | "awq_marlin" => {
                this.method = Method::Awq { bits, group: group_size };
                this.decoder_only = true;
            }
            "gptq" | "gptq_marlin" | "marlin" => {
                this.method = Method::Gptq { bits, group: group_size, ordered: on("desc_act") };
                this.decoder_only = true;
                this.head = on("lm_head");
                this.zero_bias = method == "gptq"
                    && !config.contains_key("checkpoint_format")
                    && !config.contains_key("meta");
            }
            "mxfp4" => this.method = Method::Mxfp4,
            "bitsandbytes" => {
                this.method = if on("load_in_8bit") || on("_load_in_8bit") {
                    Method::Int8
                } else {
                    Method::Nf4 { nested: on("bnb_4bit_use_double_quant") }
                };
            }
            "compressed-tensors" => this.compressed(config),
            _ if algorithm.contains("nvfp4") => {
                this.method = Method::Nvfp4 { group: group_size.max(1).max(16) };
                this.head = true;
            }
            _ if algorithm.starts_with("fp8") => {
                this.method = Method::Fp8Tensor { static_input: true };
                this.head = true;
            }
            _ if algorithm.contains("w4a16_awq") => {
                this.method =
                    Method::Packed { bits: 4, group: group_size, symmetric: true, ordered: false };
            }
            "" if algorithm.is_empty() => {}
            _ => this.unknown = true,
        }
        let cache = word("kv_cache_quant_algo").is_some_and(|a| a.contains("fp8"))
            || word("kv_cache_scheme").is_some_and(|a| a.contains("fp8"))
            || config
                .get("kv_cache_scheme")
                .and_then(Value::as_object)
                .is_some_and(|s| s.get("num_bits").and_then(whole) == Some(8));
        this.cache_fp8 = cache;
        for key in [
            "modules_to_not_convert",
            "ignored_layers",
            "ignore",
            "exclude_modules",
            "llm_int8_skip_modules",
        ] {
            this.except(config.get(key));
        }
        this
    }

    fn compressed(&mut self, config: &Map<String, Value>) {
        let format = config.get("format").and_then(Value::as_str).unwrap_or_default();
        let groups = config.get("config_groups").and_then(Value::as_object);
        let first = groups.and_then(|g| g.values().next()).and_then(Value::as_object);
        let part = |name: &str| first.and_then(|g| g.get(name)).and_then(Value::as_object);
        self.head = true;
        let Some(weights) = part("weights") else {
            self.unknown = true;
            return;
        };
        let text = |key: &str| weights.get(key).and_then(Value::as_str).unwrap_or_default();
        let bits = weights.get("num_bits").and_then(whole).unwrap_or(8).min(16);
        let group = weights.get("group_size").and_then(whole).unwrap_or(0);
        let strategy = text("strategy");
        let group = if strategy == "channel" { 0 } else { group };
        let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
        let ordered = weights.get("actorder").is_some_and(|a| match a {
            Value::String(s) => s == "group" || s == "weight" || s == "dynamic",
            Value::Bool(b) => *b,
            _ => false,
        });
        let static_input = part("input_activations")
            .is_some_and(|a| a.get("dynamic") == Some(&Value::Bool(false)));
        let float = text("type") == "float";
        self.name = format!("compressed-tensors {}{bits}", if float { "fp" } else { "int" });
        let block = weights.get("block_structure").and_then(Value::as_array);
        let block: Option<Vec<u64>> = block.and_then(|b| b.iter().map(whole).collect());
        self.method = match (float, bits) {
            (true, 4) => Method::Nvfp4 { group: group.max(16) },
            (true, _) => match block.as_deref() {
                Some([rows, columns]) if *rows > 0 && *columns > 0 => {
                    Method::Fp8Block(*rows, *columns)
                }
                _ if strategy == "tensor" => Method::Fp8Tensor { static_input },
                _ => Method::Channel { integer: false, static_input },
            },
            (false, 8) if format.starts_with("int-quantized") || format.starts_with("naive") => {
                Method::Channel { integer: true, static_input }
            }
            (false, _) => Method::Packed { bits, group, symmetric, ordered },
        };
        let targets = first.and_then(|g| g.get("targets")).and_then(Value::as_array);
        for target in targets.into_iter().flatten().filter_map(Value::as_str).take(50) {
            if let Some(pattern) = target.strip_prefix("re:").filter(|p| p.len() <= MAX_PATTERN)
                && let Ok(regex) = Regex::new(&format!("^(?:{pattern})"))
            {
                self.targets.push(regex);
            }
        }
    }

    fn except(&mut self, list: Option<&Value>) {
        let names = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        for name in names.take(100_000) {
            if let Some(pattern) = name.strip_prefix("re:") {
                if self.patterns.len() < 200
                    && pattern.len() <= MAX_PATTERN
                    && let Ok(regex) = Regex::new(&format!("^(?:{pattern})"))
                {
                    self.patterns.push(regex);
                }
                continue;
            }
            let name = general(name);
            if name.contains('*') {
                if self.globs.len() < MAX_PATTERNS {
                    self.globs.push(name.to_owned());
                }
            } else if name.split('.').count() <= 3 && !name.starts_with("layers.") {
                if self.words.len() < MAX_PATTERNS {
                    self.words.push(name.split('.').map(str::to_owned).collect());
                }
            } else {
                self.exact.insert(name.to_owned());
            }
        }
    }

    /// Whether the linear layer of this name is quantised.
    pub fn covers(&self, module: &str) -> bool {
        let name = general(module);
        let in_decoder = name.starts_with("layers.") || name.starts_with("h.");
        if self.method == Method::Plain
            || self.decoder_only && !in_decoder
            || name == "lm_head" && !self.head
        {
            return false;
        }
        let raw = format!("model.{name}");
        if !self.targets.is_empty()
            && !self.targets.iter().any(|t| t.is_match(name) || t.is_match(&raw))
        {
            return false;
        }
        // A list may name a parent: every ancestor is looked up.
        let mut ancestor = Some(name);
        while let Some(a) = ancestor {
            if self.exact.contains(a) {
                return false;
            }
            ancestor = a.rsplit_once('.').map(|(parent, _)| parent);
        }
        let parts: Vec<&str> = name.split('.').collect();
        let named = |words: &Vec<String>| {
            parts.windows(words.len()).any(|w| w.iter().zip(words).all(|(a, b)| *a == b.as_str()))
        };
        !(self.words.iter().any(named)
            || self.globs.iter().any(|g| glob(g, name) || glob(g, module))
            || self.patterns.iter().any(|p| p.is_match(name) || p.is_match(&raw)))
    }

    /// The tensors of a stored linear layer of `rows` outputs and `columns` inputs, where it is
    /// quantised.
    pub fn stored(&self, rows: u64, columns: u64) -> Vec<Stored> {
        let each = |count: u64, bytes: u64| count.saturating_mul(bytes);
        let weight = |dtype, bytes| ("weight", dtype, vec![rows, columns], bytes);
        let all = rows.saturating_mul(columns);
        let scalar = |name: &'static str| (name, "F32", vec![1], 4);
        match self.method {
            Method::Plain | Method::Mxfp4 => Vec::new(),
            Method::Fp8Block(r, c) => {
                let (r, c) = (rows.div_ceil(r), columns.div_ceil(c));
                vec![
                    weight("F8_E4M3", all),
                    ("weight_scale_inv", "F32", vec![r, c], each(r * c, 4)),
                ]
            }
            Method::Fp8Tensor { static_input } => {
                let mut out = vec![weight("F8_E4M3", all), scalar("weight_scale")];
                if static_input {
                    out.push(scalar("input_scale"));
                }
                out
            }
            Method::Channel { integer, static_input } => {
                let kind = if integer { "I8" } else { "F8_E4M3" };
                let mut out =
                    vec![weight(kind, all), ("weight_scale", "BF16", vec![rows, 1], each(rows, 2))];
                if static_input {
                    out.push(scalar("input_scale"));
                }
                out
            }
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
                    ("weight_scale", "BF16", vec![rows, groups], each(rows * groups, 2)),
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
            Method::Nvfp4 { group } => {
                let groups = columns.div_ceil(group.max(1));
                vec![
                    ("weight", "U8", vec![rows, columns / 2], all / 2),
                    ("weight_scale", "F8_E4M3", vec![rows, groups], rows * groups),
                    scalar("weight_scale_2"),
                    scalar("input_scale"),
                ]
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
            Method::Int8 => {
                vec![weight("I8", all), ("SCB", "F32", vec![rows], rows * 4)]
            }
        }
    }
}

/// A module's name without what comes before its layers, which differs from wrapper to wrapper.
fn general(name: &str) -> &str {
    let mut name = name;
    while let Some((first, rest)) = name.split_once('.') {
        if !["model", "language_model", "text_model", "backbone", "transformer"].contains(&first) {
            break;
        }
        name = rest;
    }
    name
}

/// Shell-like matching with `*` alone.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return false };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn read(json: &str) -> Quantisation {
        Quantisation::read(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
    }

    fn bytes(q: &Quantisation, rows: u64, columns: u64) -> u64 {
        q.stored(rows, columns).iter().map(|s| s.3).sum()
    }

    #[test]
    fn bytes_of_a_layer() {
        let cases = [
            (r#"{"quant_method":"fp8","weight_block_size":[128,128]}"#, 256 * 300 + 2 * 3 * 4),
            (r#"{"quant_method":"fp8","activation_scheme":"static"}"#, 256 * 300 + 8),
            (
                r#"{"quant_method":"awq","bits":4,"group_size":100}"#,
                256 * 300 / 2 + 3 * 32 * 4 + 3 * 256 * 2,
            ),
            (
                r#"{"quant_method":"gptq","bits":4,"group_size":-1}"#,
                38 * 256 * 4 + 32 * 4 + 256 * 2 + 300 * 4,
            ),
            (r#"{"quant_algo":"NVFP4","group_size":16}"#, 256 * 150 + 256 * 19 + 8),
            (r#"{"quant_method":"bitsandbytes","load_in_8bit":true}"#, 256 * 300 + 1024),
        ];
        for (json, expected) in cases {
            assert_eq!(bytes(&read(json), 256, 300), expected, "{json}");
        }
        assert!(read(r#"{"quant_method":"something new"}"#).unknown);
    }

    #[test]
    fn exceptions_are_found_however_they_are_written() {
        let q = read(
            r#"{"quant_method":"modelopt","quant_algo":"NVFP4","kv_cache_scheme":{"num_bits":8},"ignore":["lm_head",
            "language_model.model.layers.0*","model.layers.7.self_attn.o_proj","*.mlp.shared_expert.*",
            "re:.*mlp\\.(gate|up)_proj.*","gate"]}"#,
        );
        assert!(q.cache_fp8);
        for out in [
            "lm_head",
            "layers.0.mlp.down_proj",
            "model.layers.7.self_attn.o_proj",
            "model.layers.3.mlp.shared_expert.up_proj",
            "layers.4.mlp.gate_proj",
            "layers.5.mlp.gate",
        ] {
            assert!(!q.covers(out), "{out}");
        }
        for covered in [
            "layers.10.mlp.down_proj",
            "layers.7.self_attn.q_proj",
            "layers.4.mlp.experts.*.up_proj",
        ] {
            assert!(q.covers(covered), "{covered}");
        }
        assert!(!read(r#"{"quant_method":"awq"}"#).covers("visual.blocks.1.attn.qkv"));
    }
}
