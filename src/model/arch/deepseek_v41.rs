//! `DeepSeek` V4.1: layers that share the compressed cache of four of them, tables of sequences of words for two layers,
//! and blocks for speculation with experts of their own. All else is V4's (vLLM `models/deepseek_v41`).

use super::{Build, Certainty, Keeps, conf::Conf};

/// The family, by the name of its language model.
pub(super) const KIND: &str = "deepseek_v41_text";

/// Whether a layer is among those that a list names.
fn is_named(conf: &Conf<'_>, key: &str, layer: u64) -> bool {
    conf.numbers(key).is_some_and(|list| list.contains(&layer))
}

impl Build<'_> {
    /// What a layer has beside V4's projections, and what it keeps: a window, and (of those that the others read from)
    /// compressed vectors with the keys of an index. `ratio` tokens make one of these.
    pub(super) fn v41_index(&mut self, at: &str, layer: u64, ratio: u64) {
        let (conf, n) = (self.conf, self.n);
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let (heads, width) = (get("index_n_heads", 32), get("index_head_dim", 128));
        let source = is_named(conf, "kv_source_layer_ids", layer);
        if source {
            self.plain(&format!("{at}.compressor.wkv.weight"), &[n.head_dim, n.hidden], 1);
            if ratio > 1 {
                self.plain(&format!("{at}.compressor.wgate.weight"), &[n.head_dim, n.hidden], 1);
            }
            self.plain(&format!("{at}.compressor.norm.weight"), &[n.head_dim], 1);
        }
        if is_named(conf, "index_source_layer_ids", layer) {
            let query = get("q_lora_rank", 1_280);
            self.linear(&format!("{at}.indexer.wq_b"), heads * width, query, false);
            self.plain(&format!("{at}.indexer.weights_proj.weight"), &[heads, n.hidden], 1);
            if source {
                self.linear(&format!("{at}.indexer.wk"), width, n.head_dim, false);
                self.plain(&format!("{at}.indexer.k_norm.weight"), &[width], 1);
            }
        }
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let vector = n.head_dim + get("qk_rope_head_dim", 64) + 8;
        let mut page = |block: u64, bytes: u64, window: u64| {
            let page = small(bytes.next_multiple_of(576));
            self.keeps(layer, Keeps::Paged { block: small(block), page, window: small(window) });
        };
        page(64, 64 * vector, get("sliding_window", 128).max(1));
        if source && ratio > 0 {
            page(256, 256 / ratio.min(256) * vector, 0);
            page(256, 256 / ratio.min(256) * (width + 4), 0);
            self.v4_keeps(layer, ratio, width);
        }
    }

    /// A table of sequences of words, an exponent for 32 values, and what joins it to the streams.
    pub(super) fn engram(&mut self, at: &str, layer: u64) {
        let conf = self.conf;
        let place =
            conf.numbers("engram_layer_ids").and_then(|l| l.iter().position(|n| *n == layer));
        let Some(place) = place else { return };
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let width = get("engram_head_dim", 256).min(1 << 14);
        let rows = conf.numbers("engram_num_embeddings").and_then(|l| l.get(place).copied());
        let at = format!("{at}.engram");
        let Some(rows) = rows.filter(|n| *n <= 1 << 40) else {
            let why = "how long its tables of sequences of words are is not stated";
            return self.doubt_by(Certainty::Guess, (300, 1_000), why);
        };
        let name = format!("{at}.embed.weight");
        if self.quantisation.name.is_empty() {
            self.plain(&name, &[rows, width], 1);
        } else {
            self.typed(&name, &[rows, width], 1, ("F8_E4M3", 1));
            self.typed(&format!("{at}.embed.scale"), &[rows, width / 32], 1, ("F8_E8M0", 1));
        }
        let streams = get("hc_mult", 4).min(64);
        let found = get("engram_max_ngram_size", 4).saturating_sub(1) * get("engram_n_heads", 8);
        let hidden = self.n.hidden;
        self.linear(
            &format!("{at}.wkv"),
            hidden * (streams + 1),
            found.min(1 << 14) * width,
            false,
        );
        for part in ["q_weight", "k_weight"] {
            self.plain(&format!("{at}.{part}"), &[streams, hidden], 1);
        }
    }

    /// Blocks for speculation: V4's layer, with fewer experts, and what joins them to the layers that they look at.
    pub(super) fn v41_drafts(&mut self) {
        let (conf, n) = (self.conf, self.n);
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
        let number = get("dspark_n_routed_experts", 128).min(1 << 16);
        let width = get("moe_intermediate_size", 2_304);
        for block in 0..count {
            let at = format!("mtp.{block}");
            self.v4_attention(&format!("{at}.self_attn"), n.layers);
            self.streams(&at);
            self.plain(&format!("{at}.mlp.gate.weight"), &[number, n.hidden], 1);
            let experts = format!("{at}.mlp.experts.*");
            self.expert(&format!("{experts}.gate_proj"), width, n.hidden, number);
            self.expert(&format!("{experts}.up_proj"), width, n.hidden, number);
            self.expert(&format!("{experts}.down_proj"), n.hidden, width, number);
            let shared = width * get("n_shared_experts", 1).min(64);
            self.mlp(&at, "mlp.shared_experts", shared);
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                self.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
            }
        }
        if count > 0 {
            let seen = conf.numbers("dspark_target_layer_ids").map_or(3, |l| l.len() as u64);
            self.linear("mtp.main_proj", n.hidden, seen.min(64) * n.hidden, false);
            let rank = get("dspark_markov_rank", 256).min(1 << 14);
            for table in ["markov_w1", "markov_w2"] {
                self.plain(&format!("mtp.{table}.weight"), &[n.vocab, rank], 1);
            }
        }
        let why = "small parts of it are estimated";
        self.doubt_by(Certainty::Close, (3, 3), why);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// V4.1 Flash, whose index states 475.3 GiB: half of it experts of four bits, and two tables of 384 million rows.
    #[test]
    fn flash_is_as_large_as_its_index_states() {
        let ratios: Vec<u64> =
            (0..40).map(|l| [0, 2, 1][usize::from(l >= 2) + usize::from(l >= 20)]).collect();
        let flash = facts(&format!(
            r#"{{"architectures":["DeepseekV41ForCausalLM"],"model_type":"deepseek_v41","dtype":"bfloat16",
            "quantization_config":{{"quant_method":"fp8","activation_scheme":"dynamic","weight_block_size":[32,32],
            "scale_fmt":"ue8m0","expert_dtype":"fp4"}},"text_config":{{"model_type":"deepseek_v41_text",
            "vocab_size":129280,"hidden_size":5120,"moe_intermediate_size":2304,"num_hidden_layers":40,
            "num_attention_heads":64,"num_key_value_heads":1,"head_dim":512,"qk_rope_head_dim":64,"q_lora_rank":1280,
            "o_lora_rank":1024,"o_groups":8,"max_position_embeddings":1048576,"n_routed_experts":384,
            "n_shared_experts":1,"num_experts_per_tok":6,"topk_method":"noaux_tc","sliding_window":128,
            "compress_ratios":{ratios:?},"kv_source_layer_ids":[2,8,14,20],
            "index_source_layer_ids":[2,8,14,20,24,28,32,36],"index_n_heads":32,"index_head_dim":128,"hc_mult":4,
            "engram_layer_ids":[1,14],"engram_num_embeddings":[384006168,384016682],"engram_max_ngram_size":4,
            "engram_n_heads":8,"engram_head_dim":256,"num_nextn_predict_layers":3,"dspark_target_layer_ids":[37,38,39],
            "dspark_markov_rank":256,"dspark_n_routed_experts":128}},"vision_config":{{
            "model_type":"deepseek_v41_vision","num_hidden_layers":32,"hidden_size":1024,"num_attention_heads":16,
            "intermediate_size":2816,"patch_size":14}}}}"#
        ));
        let hundredths = ((flash.weight_bytes.0 >> 20) * 100) >> 10;
        assert!(hundredths.abs_diff(47_530) < 100, "{hundredths}");
        let rank = |tensor| {
            predict(&flash, &Setup { tensor, ..Setup::new(rules("vllm")) }).ranks[0].clone()
        };
        assert!(
            rank(8).weights.value < flash.weight_bytes.0 / 8 + (2 << 30),
            "{:?}",
            rank(8).weights
        );
        // Four layers keep what all read: three and a half vectors and keys of the index for two tokens.
        let token = rank(1).cache_beyond_windows.value;
        assert!((1_700..1_850).contains(&token), "{token}");
    }
}
