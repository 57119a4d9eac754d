//! `DeepSeek` V4: one key and value for all heads, compressed over tokens, an output through a narrow
//! middle, four streams of the hidden state, and layers whose experts a table of tokens chooses.
//!
//! As its files have it (`inference/model.py` beside the weights; vLLM `models/deepseek_v4`): the types of
//! what is not a linear layer are theirs, whatever type the model states.

use serde_json::Value;

use super::{Build, Keeps, conf::Conf, deepseek_v41};
use crate::model::quant::{Eight, Method, Piece, Scale};
use crate::model::tensors::{self, Place};

/// Tokens that a layer makes one of; 0: it keeps its window alone.
fn ratio(conf: &Conf<'_>, layer: u64) -> u64 {
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    let named = conf.list("layer_types").and_then(|l| l.get(at)).and_then(Value::as_str);
    match (conf.numbers("compress_ratios"), named) {
        (Some(list), _) => list.get(at).copied().unwrap_or(0).min(1 << 16),
        (None, Some("sliding_attention")) => 0,
        (None, Some("heavily_compressed_attention")) => 128,
        (None, Some(_)) => 4,
        (None, None) if layer < 2 || layer.is_multiple_of(2) => 128,
        (None, None) => 4,
    }
}

/// Whether a table chooses the experts of the layer at `at`, so that its router has no bias.
pub(super) fn has_table(conf: &Conf<'_>, at: &str) -> bool {
    let Place::Layer(layer) = tensors::place(at, 0) else { return false };
    let listed = conf.list("mlp_layer_types").and_then(|l| l.get(usize::try_from(layer).ok()?));
    match listed.and_then(Value::as_str) {
        Some(kind) => kind == "hash_moe",
        None => u64::from(layer) < conf.number(&["num_hash_layers"]).unwrap_or(3),
    }
}

/// Whether experts have four bits, whatever the quantisation says of all else; V4.1 states it inside of that.
pub(super) fn has_experts_of_four_bits(conf: &Conf<'_>) -> bool {
    let inside = || conf.object("quantization_config")?.get("expert_dtype")?.as_str();
    let v41 = || inside().filter(|_| conf.is(&[deepseek_v41::KIND]));
    conf.text_of("expert_dtype").or_else(v41) == Some("fp4")
}

/// Scales are exponents alone where experts have four bits; files of the base models have them in 32.
pub(super) fn scaled(conf: &Conf<'_>, method: Method) -> Method {
    match method {
        Method::Eight(eight @ Eight { piece: Piece::Block(..), .. })
            if conf.is(&["deepseek_v4", deepseek_v41::KIND]) && has_experts_of_four_bits(conf) =>
        {
            Method::Eight(Eight { scale: Scale::Exponent, ..eight })
        }
        other => other,
    }
}

impl Build<'_> {
    /// Attention of a layer, what it keeps, and what mixes the streams around it.
    pub(super) fn v4_attention(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let query = get("q_lora_rank", 1_024);
        let middle = get("o_groups", 8) * get("o_lora_rank", 1_024);
        let all = n.heads * n.head_dim;
        self.typed(&format!("{at}.sinks"), &[n.heads], 1, ("F32", 4));
        // Names of what other families have in their place, for that is divided alike.
        self.linear(&format!("{at}.q_a_proj"), query, n.hidden, false);
        self.plain(&format!("{at}.q_a_layernorm.weight"), &[query], 1);
        self.linear(&format!("{at}.q_b_proj"), all, query, false);
        self.linear(&format!("{at}.kv_a_proj_with_mqa"), n.head_dim, n.hidden, false);
        self.plain(&format!("{at}.kv_a_layernorm.weight"), &[n.head_dim], 1);
        let grouped = all.checked_div(get("o_groups", 8)).unwrap_or(all);
        self.linear(&format!("{at}.o_a_proj"), middle, grouped, false);
        self.linear(&format!("{at}.o_proj"), n.hidden, middle, false);
        // Layers for speculation have the number after the last, and no compression.
        let ratio = if layer < n.layers { ratio(conf, layer) } else { 0 };
        if conf.is(&[deepseek_v41::KIND]) {
            if layer < n.layers {
                self.v41_index(at, layer, ratio);
            }
            return;
        }
        if ratio > 0 {
            self.compressor(&format!("{at}.compressor"), n.head_dim, ratio);
        }
        let heads = get("index_n_heads", 64);
        let width = get("index_head_dim", 128);
        if (1..=4).contains(&ratio) {
            self.compressor(&format!("{at}.indexer.compressor"), width, ratio);
            self.linear(&format!("{at}.indexer.wq_b"), heads * width, query, false);
            self.plain(&format!("{at}.indexer.weights_proj.weight"), &[heads, n.hidden], 1);
        }
        if layer < n.layers {
            self.v4_keeps(layer, ratio, width);
            self.v4_pages(layer, ratio, width);
        }
    }

    /// What makes one vector of `ratio` tokens; those of four overlap, and are made twice as wide.
    fn compressor(&mut self, at: &str, width: u64, ratio: u64) {
        let hidden = self.n.hidden;
        let wide = if ratio <= 4 { 2 * width } else { width };
        self.typed(&format!("{at}.ape"), &[ratio, wide], 1, ("F32", 4));
        self.plain(&format!("{at}.norm.weight"), &[width], 1);
        self.plain(&format!("{at}.wkv.weight"), &[wide, hidden], 1);
        self.plain(&format!("{at}.wgate.weight"), &[wide, hidden], 1);
    }

    /// The same as vLLM lays it out in pages (`deepseek_v4/attention.py`, `compressor.py`, `sparse_swa.py`: `fp8_ds_mla`,
    /// whose pages are multiples of 576 bytes): vectors and entries of the index of all tokens, a window, and in
    /// 32 bits what is still to be made one vector.
    fn v4_pages(&mut self, layer: u64, ratio: u64, index: u64) {
        let rotary = self.conf.number(&["qk_rope_head_dim"]).unwrap_or(64);
        let (head, seen) = (self.n.head_dim, self.conf.number(&["sliding_window"]).unwrap_or(128));
        let vector = head + rotary + 8;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let mut page = |block: u64, bytes: u64, window: u64| {
            let page = small(bytes.next_multiple_of(576));
            self.keeps(layer, Keeps::Paged { block: small(block), page, window: small(window) });
        };
        page(64, 64 * vector, seen.max(1));
        let states = |block: u64, width: u64| 8 * block * width;
        match ratio {
            0 => {}
            1..=4 => {
                page(256, 256 / ratio * vector, 0);
                page(256, 256 / ratio * (index + 4), 0);
                page(4, states(4, 2 * head), 2 * ratio);
                page(4, states(4, 2 * index), 2 * ratio);
            }
            _ => {
                page(256, (256 / ratio).max(1) * vector, 0);
                page(8, states(8, head), ratio);
            }
        }
    }

    /// A vector of so many tokens (4 or 128), and of each 4 an entry of the index (`SGLang`
    /// `deepseek_v4_memory_pool.py`). The window of 128 tokens that every layer has besides is small, and left out.
    pub(super) fn v4_keeps(&mut self, layer: u64, ratio: u64, index: u64) {
        if ratio == 0 {
            return;
        }
        let rotary = self.conf.number(&["qk_rope_head_dim"]).unwrap_or(64);
        // Eight bits a value, sixteen of the rotary part, and eight bytes of scales.
        let vector = (self.n.head_dim + rotary + 8).div_ceil(ratio);
        let index = if ratio <= 4 { (index + 4).div_ceil(ratio) } else { 1 };
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        // All of it counts as the rotary part: whatever type is asked for, it stays as it is.
        let width = small(vector / 2);
        let index = small(index.max(1));
        self.keeps(layer, Keeps::Latent { width, rotary: width, index, sparse: true });
    }

    /// What mixes the streams before and after attention and experts of a layer.
    pub(super) fn streams(&mut self, at: &str) {
        let streams = self.conf.number(&["hc_mult"]).unwrap_or(4).min(64);
        let mixed = streams * streams + 2 * streams;
        for part in ["hc_attn", "hc_ffn"] {
            self.typed(&format!("{at}.{part}_scale"), &[3], 1, ("F32", 4));
            self.typed(&format!("{at}.{part}_base"), &[mixed], 1, ("F32", 4));
            let name = format!("{at}.{part}_fn");
            self.typed(&name, &[mixed, streams * self.n.hidden], 1, ("F32", 4));
        }
    }

    /// What makes one of the streams after the last layer.
    pub(super) fn stream_end(&mut self, at: &str) {
        let streams = self.conf.number(&["hc_mult"]).unwrap_or(4).min(64);
        self.typed(&format!("{at}.hc_head_scale"), &[1], 1, ("F32", 4));
        self.typed(&format!("{at}.hc_head_base"), &[streams], 1, ("F32", 4));
        let name = format!("{at}.hc_head_fn");
        self.typed(&name, &[streams, streams * self.n.hidden], 1, ("F32", 4));
    }

    /// The table of a layer whose experts it chooses.
    pub(super) fn v4_table(&mut self, at: &str) {
        if has_table(self.conf, at) {
            let used = self.conf.number(&["num_experts_per_tok"]).unwrap_or(6);
            let name = format!("{at}.mlp.gate.tid2eid");
            self.typed(&name, &[self.n.vocab, used], 1, ("I64", 8));
        }
    }

    /// A layer for speculation: it shares embedding and head.
    pub(super) fn v4_draft(&mut self, number: u64) {
        let n = self.n;
        let at = format!("mtp.{number}");
        self.v4_attention(&format!("{at}.self_attn"), n.layers);
        self.experts(&at);
        self.streams(&at);
        self.stream_end(&at);
        for name in ["e_proj", "h_proj"] {
            self.linear(&format!("{at}.{name}"), n.hidden, n.hidden, false);
        }
        for norm in
            ["input_layernorm", "post_attention_layernorm", "enorm", "hnorm", "shared_head.norm"]
        {
            self.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// The bytes that the index of V4 Flash states. Without quantisation and speculation, and with the table in
    /// 64 bits, it is what `transformers` builds of these numbers.
    #[test]
    fn flash_has_the_bytes_that_its_index_states() {
        let ratios: Vec<u64> = (0..44)
            .map(|l| [0, 0, 4, 128, 4, 128][if (2..=42).contains(&l) { 2 + l % 2 } else { 0 }])
            .collect();
        let numbers = format!(
            r#"{{"architectures":["DeepseekV4ForCausalLM"],"model_type":"deepseek_v4","torch_dtype":"bfloat16",
            "hidden_size":4096,"num_hidden_layers":43,"num_attention_heads":64,"num_key_value_heads":1,"head_dim":512,
            "q_lora_rank":1024,"o_groups":8,"o_lora_rank":1024,"qk_rope_head_dim":64,"index_head_dim":128,
            "index_n_heads":64,"hc_mult":4,"moe_intermediate_size":2048,"n_routed_experts":256,"n_shared_experts":1,
            "num_experts_per_tok":6,"num_hash_layers":3,"vocab_size":129280,"sliding_window":128,
            "max_position_embeddings":1048576,"topk_method":"noaux_tc","tie_word_embeddings":false,
            "compress_ratios":{ratios:?}"#
        );
        let flash = facts(&format!(
            r#"{numbers},"num_nextn_predict_layers":1,"expert_dtype":"fp4","quantization_config":{{
            "quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","scale_fmt":"ue8m0",
            "weight_block_size":[128,128]}}}}"#
        ));
        assert_eq!((flash.weight_bytes.0, flash.certainty), (159_609_485_896, Certainty::Exact));
        let held = |tensor| {
            predict(&flash, &Setup { tensor, ..Setup::new(rules("vllm")) }).ranks[0].weights.value
        };
        // Speculation is not loaded; of the rest most is divided.
        let one = held(1) - flash.rope_bytes;
        assert!(one.abs_diff(156_015_698_140) < 1 << 20, "{one}");
        assert!(held(4) < 156_015_698_140 / 4 * 105 / 100, "{}", held(4));
    }
}
