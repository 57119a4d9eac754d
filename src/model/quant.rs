//! How a checkpoint's linear layers are stored: what `quantization_config` (or `ModelOpt`'s
//! `hf_quant_config.json`) says, and the bytes that follow for one layer.
//!
//! Sources: vLLM `model_executor/layers/quantization/*.py` (`create_weights`), `AutoGPTQ`, `AutoAWQ`,
//! `compressed-tensors`, `ModelOpt`'s export, `bitsandbytes`' `QuantState`.

mod names;
mod stored;

use std::cell::Cell;

use serde_json::{Map, Value};

use self::names::{Names, general};
pub use self::stored::Stored;
use super::arch::conf::whole;
use super::tensors;
use crate::base::text;

/// Most groups of layers that are stored differently.
const MAX_GROUPS: usize = 16;

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
            decoder_only: false,
            head: false,
            unknown: false,
            zero_bias: false,
            rough: false,
            exceptions: Names::default(),
            groups: Vec::new(),
            left: Cell::new(names::BUDGET),
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
            "auto-round" | "auto_round" | "intel/auto-round" if number("bits").is_some() => {
                let awq = word("packing_format").is_some_and(|f| f.contains("awq"));
                this.method = if awq {
                    Method::Awq { bits, group: group_size }
                } else {
                    Method::Gptq { bits, group: group_size, ordered: false }
                };
                this.decoder_only = true;
                this.rough = true;
            }
            "eetq" => {
                this.method = Method::Channel { integer: true, static_input: false };
                this.rough = true;
            }
            "quark" | "torchao" | "hqq" => this.by_bits(config),
            _ if algorithm == "mixed_precision" => this.mixed(config),
            _ if algorithm == "fp8_pb_wo" => {
                this.method = Method::Fp8Block(128, 128);
                this.head = true;
                this.rough = true;
            }
            _ if algorithm.starts_with("fp8_pc") => {
                this.method = Method::Channel { integer: false, static_input: false };
                this.head = true;
                this.rough = true;
            }
            _ if algorithm.contains("nvfp4") => {
                let input = !algorithm.contains("a16");
                this.method = Method::Nvfp4 { group: group_size.max(16), input };
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

    /// Methods whose files say the bits of a weight, in one way or another.
    fn by_bits(&mut self, config: &Map<String, Value>) {
        let inside = |value: Option<&Value>, keys: &[&str]| -> Option<Value> {
            keys.iter().try_fold(value?.clone(), |at, key| at.get(*key).cloned())
        };
        let quark = inside(config.get("global_quant_config"), &["weight"]);
        let hqq = inside(config.get("quant_config"), &["weight_quant_params"]);
        let part = quark.as_ref().or(hqq.as_ref());
        let words = match part.and_then(|p| p.get("dtype")) {
            Some(dtype) => dtype.to_string(),
            None => config.get("quant_type").map(Value::to_string).unwrap_or_default(),
        };
        let words = text::clean(&words, 300).to_ascii_lowercase();
        let named = [("int4", 4), ("fp4", 4), ("int8", 8), ("fp8", 8), ("float8", 8), ("fp6", 6)];
        let bits = part
            .and_then(|p| p.get("nbits"))
            .and_then(whole)
            .or_else(|| named.iter().find(|(w, _)| words.contains(w)).map(|(_, bits)| *bits));
        match bits.filter(|bits| (1..=16).contains(bits)) {
            Some(bits) => {
                let group = part.and_then(|p| p.get("group_size")).and_then(whole);
                let group = group.unwrap_or(if bits < 8 { 128 } else { 0 });
                self.name = format!("{} {bits} bits", self.name);
                self.method = Method::Bits { bits, group };
                self.rough = true;
            }
            None => self.unknown = true,
        }
    }

    /// `ModelOpt`'s list of layers, each with its own method.
    fn mixed(&mut self, config: &Map<String, Value>) {
        let layers = config.get("quantized_layers").and_then(Value::as_object);
        for (name, settings) in layers.into_iter().flatten() {
            let algorithm = settings.get("quant_algo").and_then(Value::as_str).unwrap_or_default();
            let group = settings.get("group_size").and_then(whole).unwrap_or(0);
            let algorithm = algorithm.to_ascii_lowercase();
            let method = match algorithm.as_str() {
                a if a.contains("nvfp4") => {
                    Method::Nvfp4 { group: group.max(16), input: !a.contains("a16") }
                }
                "fp8" => Method::Fp8Tensor { static_input: true },
                a if a.contains("w4a16_awq") => {
                    Method::Packed { bits: 4, group, symmetric: true, ordered: false }
                }
                _ => {
                    self.unknown = true;
                    continue;
                }
            };
            let name = tensors::general_name(name);
            if let Some(of) = self.groups.iter_mut().find(|g| g.method == method) {
                of.names.add_module(&name);
            } else if self.groups.len() < MAX_GROUPS {
                let mut names = Names::default();
                names.add_module(&name);
                self.groups.push(Group { method, names, linear: false });
            } else {
                self.unknown = true;
            }
        }
        self.head = true;
        self.unknown |= self.groups.is_empty();
        self.method = self.groups.first().map_or(Method::Plain, |g| g.method);
    }

    /// Groups of layers, each with its own method (`compressed_tensors`' `QuantizationConfig`).
    fn compressed(&mut self, config: &Map<String, Value>) {
        let format = config.get("format").and_then(Value::as_str).unwrap_or_default();
        self.head = true;
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
            let mut names = Names::default();
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
        self.unknown |= self.groups.is_empty();
        self.name = ["compressed-tensors", named.join(" + ").as_str()].join(" ");
        self.method = self.groups.first().map_or(Method::Plain, |g| g.method);
    }

    fn except(&mut self, list: Option<&Value>) {
        let names = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        self.exceptions.extend(names);
    }

    /// How the linear layer of this name is stored.
    pub fn of(&self, module: &str) -> Method {
        let name = general(module);
        let in_decoder = name.starts_with("layers.") || name.starts_with("h.");
        if self.method == Method::Plain
            || self.decoder_only && !in_decoder
            || name == "lm_head" && !self.head
            || self.exceptions.contain(module, &self.left)
        {
            return Method::Plain;
        }
        if self.groups.is_empty() {
            return self.method;
        }
        // By name first, then by class (vLLM `compressed_tensors/utils.py`, `find_matched_target`).
        let by_name = self.groups.iter().find(|g| g.names.contain(module, &self.left));
        by_name
            .or_else(|| self.groups.iter().find(|g| g.linear))
            .map_or(Method::Plain, |g| g.method)
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

/// The method of one of `compressed-tensors`' groups, and its name.
fn scheme(group: &Map<String, Value>, format: &str) -> Option<(Method, String)> {
    let part = |name: &str| group.get(name).and_then(Value::as_object);
    let weights = part("weights")?;
    let format = group.get("format").and_then(Value::as_str).unwrap_or(format);
    let text = |key: &str| weights.get(key).and_then(Value::as_str).unwrap_or_default();
    let bits = weights.get("num_bits").and_then(whole).unwrap_or(8).min(16);
    let strategy = text("strategy");
    let group = weights.get("group_size").and_then(whole).filter(|_| strategy != "channel");
    let group = group.unwrap_or(0);
    let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    let ordered = weights.get("actorder").is_some_and(|a| match a {
        Value::String(s) => s == "group" || s == "weight" || s == "dynamic",
        Value::Bool(b) => *b,
        _ => false,
    });
    let static_input =
        part("input_activations").is_some_and(|a| a.get("dynamic") == Some(&Value::Bool(false)));
    let float = text("type") == "float";
    let block = weights.get("block_structure").and_then(Value::as_array);
    let block: Option<Vec<u64>> = block.and_then(|b| b.iter().map(whole).collect());
    let method = match (float, bits) {
        (true, 4) => {
            Method::Nvfp4 { group: group.max(16), input: part("input_activations").is_some() }
        }
        (true, _) => match block.as_deref() {
            Some([rows, columns]) if *rows > 0 && *columns > 0 => Method::Fp8Block(*rows, *columns),
            _ if strategy == "tensor" => Method::Fp8Tensor { static_input },
            _ => Method::Channel { integer: false, static_input },
        },
        (false, 8) if format.starts_with("int-quantized") || format.starts_with("naive") => {
            Method::Channel { integer: true, static_input }
        }
        (false, _) => Method::Packed { bits, group, symmetric, ordered },
    };
    Some((method, format!("{}{bits}", if float { "fp" } else { "int" })))
}

#[cfg(test)]
mod tests;
