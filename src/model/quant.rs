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
mod stored;
mod towers;

use std::cell::Cell;

use serde_json::{Map, Value};

pub use self::eight::{Eight, Input, Piece, Scale};
use self::names::{Names, general};
pub use self::stored::Stored;
use super::arch::conf::whole;
use super::tensors;
use crate::base::text;

/// Most groups of layers that are stored differently.
const MAX_GROUPS: usize = 16;

/// FP8 of `ModelOpt`: one scale a layer, and one for its input.
const FP8_TENSOR: Eight = Eight::float(Piece::Tensor, Scale::Float).with_input(true);

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

    /// Reads a `quantization_config`, or the `quantization` of an `hf_quant_config.json`.
    pub fn read(config: &Map<String, Value>) -> Self {
        if mlx::is_mlx(config) {
            return Self::mlx(config);
        }
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
                let piece = match block.as_deref() {
                    Some([rows, columns]) if *rows > 0 && *columns > 0 => {
                        Piece::Block(*rows, *columns)
                    }
                    _ if method == "fbgemm_fp8" => Piece::Row,
                    _ => Piece::Tensor,
                };
                let fixed = static_input && piece == Piece::Tensor;
                this.method = Method::Eight(Eight::float(piece, Scale::Float).with_input(fixed));
            }
            "awq" | "awq_marlin" => {
                this.method = Method::Awq { bits, group: group_size };
                this.decoder_only = true;
            }
            "gptq" | "gptq_marlin" | "marlin" => {
                this.method = Method::Gptq { bits, group: group_size, ordered: on("desc_act") };
                this.decoder_only = true;
                this.head = on("lm_head");
                this.named_by_gptq(config);
                this.zero_bias = method == "gptq"
                    && !config.contains_key("checkpoint_format")
                    && !config.contains_key("meta");
            }
            "mxfp4" => this.method = Method::Mxfp4,
            "mxfp8" => this.method = Method::Eight(Eight::MX),
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
                let float = Eight::float(Piece::Row, Scale::Model);
                this.method = Method::Eight(Eight { integer: true, ..float });
                this.rough = true;
            }
            "quark" | "torchao" | "hqq" => this.by_bits(config),
            _ if algorithm == "mixed_precision" => this.mixed(config),
            _ if algorithm == "fp8_pb_wo" => {
                this.method = Method::Eight(Eight::float(Piece::Block(128, 128), Scale::Float));
                this.head = true;
            }
            _ if algorithm.starts_with("fp8_per_channel") || algorithm.starts_with("fp8_pc") => {
                this.method = Method::Eight(Eight::float(Piece::Row, Scale::Float));
                this.head = true;
            }
            _ if algorithm.contains("nvfp4") => {
                let input = !algorithm.contains("a16");
                this.method = Method::Nvfp4 { group: group_size.max(16), input };
                this.head = true;
            }
            _ if algorithm == "mxfp8" => {
                this.method = Method::Eight(Eight::MX);
                this.head = true;
            }
            _ if algorithm.starts_with("fp8") => {
                this.method = Method::Eight(FP8_TENSOR);
                this.head = true;
            }
            _ if algorithm.contains("w4a16_awq") => {
                this.method =
                    Method::Packed { bits: 4, group: group_size, symmetric: true, ordered: false };
            }
            "" if algorithm.is_empty() => {}
            _ => this.unknown = true,
        }
        // `ModelOpt` leaves towers alone (vLLM `modelopt.py`, `get_quant_method`).
        this.towers_apart = !algorithm.is_empty();
        let cache = word("kv_cache_quant_algo").is_some_and(|a| a.contains("fp8"))
            || word("kv_cache_scheme").is_some_and(|a| a.contains("fp8"))
            || config
                .get("kv_cache_scheme")
                .and_then(Value::as_object)
                .is_some_and(|s| s.get("num_bits").and_then(whole) == Some(8));
        this.cache_fp8 = cache;
        let scheme = config.get("kv_cache_scheme").and_then(Value::as_object);
        let scheme = |key: &str| scheme.and_then(|s| s.get(key));
        this.cache_scales = match (cache, method.as_str()) {
            (false, _) => CacheScales::None,
            (_, "compressed-tensors") => match scheme("dynamic") {
                Some(Value::Bool(true)) => CacheScales::None,
                _ if scheme("strategy").and_then(Value::as_str) == Some("attn_head") => {
                    CacheScales::Heads
                }
                _ => CacheScales::Attention,
            },
            _ => CacheScales::Projections,
        };
        for key in [
            "modules_to_not_convert",
            "ignored_layers",
            "ignore",
            "exclude_modules",
            "llm_int8_skip_modules",
            "exclude",
            "skip_modules",
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
                "fp8" => Method::Eight(FP8_TENSOR),
                "mxfp8" => Method::Eight(Eight::MX),
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

    fn except(&mut self, list: Option<&Value>) {
        let names = match list {
            Some(Value::Array(names)) => names.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => return,
        };
        self.exceptions.extend(names.iter().filter_map(Value::as_str));
    }

    /// How the linear layer of this name is stored.
    pub fn of(&self, module: &str) -> Method {
        let name = general(module);
        let in_decoder = name.starts_with("layers.") || name.starts_with("h.");
        if self.method == Method::Plain
            || self.decoder_only && !in_decoder
            || self.towers_apart && towers::is_tower(module)
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
mod tests;
