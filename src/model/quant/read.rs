//! What a `quantization_config` says, method by method.

use serde_json::{Map, Value};

use super::eight::{Eight, Piece, Scale};
use super::names::Names;
use super::{CacheScales, Group, MAX_GROUPS, Method, Quantisation, mlx};
use crate::base::text;
use crate::model::arch::conf::whole;
use crate::model::tensors;

/// FP8 of `ModelOpt`: one scale a layer, and one for its input.
pub(super) const FP8_TENSOR: Eight = Eight::float(Piece::Tensor, Scale::Float).with_input(true);

impl Quantisation {
    /// Of a `quantization_config` that is no object: a word, or a list.
    pub fn not_understood(stated: &Value) -> Self {
        let name = stated.as_str().map_or_else(|| "not known".to_owned(), |s| text::clean(s, 60));
        Self { name, unknown: true, ..Self::none() }
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
        let mut method = word("quant_method").unwrap_or_default();
        let algorithm = word("quant_algo").unwrap_or_default();
        if method.is_empty() && algorithm.is_empty() && config.contains_key("config_groups") {
            "compressed-tensors".clone_into(&mut method);
        }
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
}
