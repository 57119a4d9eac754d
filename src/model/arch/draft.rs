//! Layers for speculative decoding (multi-token prediction) that a checkpoint holds besides the
//! model's own. Engines load them only when asked to.

use serde_json::{Map, Value};

use super::{Build, Certainty};

pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) {
    let conf = build.conf;
    let caches = build.caches.len();
    let n = build.n;
    match conf.kind.as_str() {
        // One more layer after the last, with embedding and head of its own.
        "deepseek_v3" | "deepseek_v32" | "glm4_moe" | "glm_moe_dsa" | "kimi_k2"
        | "glm4_moe_lite" | "glm4v_moe_text" => {
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
            for layer in n.layers..n.layers + count {
                let at = format!("model.layers.{layer}");
                build.attention(&at, "self_attn", layer);
                build.plain(&format!("{at}.input_layernorm.weight"), &[n.hidden], 1);
                build.plain(&format!("{at}.post_attention_layernorm.weight"), &[n.hidden], 1);
                build.experts(&at);
                for norm in ["enorm", "hnorm", "shared_head.norm"] {
                    build.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
                }
                build.plain(&format!("{at}.eh_proj.weight"), &[n.hidden, 2 * n.hidden], 1);
                build.plain(&format!("{at}.embed_tokens.weight"), &[n.vocab, n.hidden], 1);
                build.plain(&format!("{at}.shared_head.head.weight"), &[n.vocab, n.hidden], 1);
            }
        }
        "deepseek_v4" => {
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
            for number in 0..count {
                build.v4_draft(number);
            }
        }
        // `MiMo`: a layer of its own kind, with the two halves that it joins.
        "mimo" => {
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
            for layer in 0..count {
                let at = format!("model.mtp_layers.{layer}");
                build.attention(&at, "self_attn", n.layers);
                build.mlp(&at, "mlp", n.inner);
                build.linear(&format!("{at}.input_proj"), n.hidden, 2 * n.hidden, false);
                for norm in [
                    "input_layernorm",
                    "post_attention_layernorm",
                    "token_layernorm",
                    "hidden_layernorm",
                    "final_layernorm",
                ] {
                    build.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
                }
            }
        }
        // Step: likewise, but with a dense layer and no embedding (vLLM `step3p5_mtp.py`).
        "step3p5" => {
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
            for layer in n.layers..n.layers + count {
                let at = format!("model.layers.{layer}");
                build.attention(&at, "self_attn", layer);
                build.mlp(&at, "mlp", n.inner);
                for norm in [
                    "input_layernorm",
                    "post_attention_layernorm",
                    "enorm",
                    "hnorm",
                    "shared_head.norm",
                ] {
                    build.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
                }
                build.plain(&format!("{at}.eh_proj.weight"), &[n.hidden, 2 * n.hidden], 1);
                build.plain(&format!("{at}.shared_head.output.weight"), &[n.vocab, n.hidden], 1);
            }
        }
        // A dense layer, and what joins embedding and hidden state (vLLM `ernie_mtp.py`).
        "ernie4_5_moe" => {
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
            for layer in 0..count {
                let at = format!("model.mtp_block.{layer}");
                build.attention(&at, "self_attn", n.layers);
                build.mlp(&at, "mlp", n.inner);
                build.plain(&format!("{at}.input_layernorm.weight"), &[n.hidden], 1);
                build.plain(&format!("{at}.post_attention_layernorm.weight"), &[n.hidden], 1);
                build.plain(&format!("model.mtp_emb_norm.{layer}.weight"), &[n.hidden], 1);
                build.plain(&format!("model.mtp_hidden_norm.{layer}.weight"), &[n.hidden], 1);
                let joined = format!("model.mtp_linear_proj.{layer}");
                build.linear(&joined, n.hidden, 2 * n.hidden, false);
            }
        }
        // Likewise with latent attention, and an embedding of its own (vLLM `longcat_flash_mtp.py`).
        "longcat_flash" => {
            // Its files hold one, and its configuration does not say so.
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(1).min(8);
            let inner = conf.number(&["ffn_hidden_size"]).unwrap_or(n.inner);
            for layer in 0..count {
                let at = format!("model.mtp.layers.{layer}");
                build.latent(&format!("{at}.self_attn"), n.layers, false);
                build.mlp(&at, "transformer_layer.mlp", inner);
                for norm in ["input_layernorm", "post_attention_layernorm", "enorm.m", "hnorm.m"] {
                    build.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
                }
                build.linear(&format!("{at}.eh_proj"), n.hidden, 2 * n.hidden, false);
            }
            if count > 0 {
                build.plain("model.mtp.embed_tokens.weight", &[n.vocab, n.hidden], 1);
                build.plain("model.mtp.norm.weight", &[n.hidden], 1);
            }
        }
        // Blocks of the model's own kinds, with the two halves that they join before the first (vLLM
        // `nemotron_h_mtp.py`); embedding and head are the model's.
        "nemotron_h" => build.nemotron_draft(),
        // The files of `MiniMax` M3 hold none, whatever the configuration counts.
        "minimax_m3_vl_text" => {}
        // `transformers` leaves it out of what it writes of the language model alone (`modeling_qwen3_5.py`,
        // `_keys_to_ignore_on_load_unexpected`).
        "qwen3_5_text" | "qwen3_5_moe_text" if !top.contains_key("text_config") => {}
        // A small model of its own under `mtp.`, sharing embedding and head.
        "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text" => {
            let usual = u64::from(conf.is(&["qwen3_next"]));
            let count = conf.stated(&["mtp_num_hidden_layers", "num_nextn_predict_layers"]);
            for layer in 0..count.unwrap_or(usual).min(8) {
                let at = format!("mtp.layers.{layer}");
                build.attention(&at, "self_attn", n.layers);
                build.plain(&format!("{at}.input_layernorm.weight"), &[n.hidden], 1);
                build.plain(&format!("{at}.post_attention_layernorm.weight"), &[n.hidden], 1);
                if super::mlp::experts(conf).is_some() {
                    build.experts(&at);
                } else {
                    build.mlp(&at, "mlp", n.inner);
                }
            }
            if count.unwrap_or(usual) > 0 {
                build.linear("mtp.fc", n.hidden, 2 * n.hidden, false);
                for norm in ["norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"] {
                    build.plain(&format!("mtp.{norm}.weight"), &[n.hidden], 1);
                }
            }
        }
        _ => {
            if conf.stated(&["num_nextn_predict_layers"]).is_some_and(|n| n > 0) {
                build.doubt(
                    Certainty::Close,
                    "its files may hold layers for speculative decoding besides, which are not counted",
                );
            }
        }
    }
    // They keep nothing unless they are used.
    build.caches.truncate(caches);
}

impl Build<'_> {
    fn nemotron_draft(&mut self) {
        let (conf, n) = (self.conf, self.n);
        let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
        let pattern = conf.text_of("mtp_hybrid_override_pattern").unwrap_or("*E");
        let pattern: Vec<char> = pattern.chars().take(64).collect();
        let mut number = 0;
        for _ in 0..count {
            for (at_step, letter) in pattern.iter().enumerate() {
                let at = format!("mtp.layers.{number}");
                number += 1;
                self.plain(&format!("{at}.norm.weight"), &[n.hidden], 1);
                match letter {
                    '*' => self.attention(&at, "mixer", n.layers),
                    'E' => self.experts(&at),
                    '-' => self.mlp(&at, "mixer", n.inner),
                    _ => {
                        self.doubt(
                            Certainty::Close,
                            "its layers for speculation are not all known",
                        );
                    }
                }
                if at_step == 0 {
                    self.plain(&format!("{at}.enorm.weight"), &[n.hidden], 1);
                    self.plain(&format!("{at}.hnorm.weight"), &[n.hidden], 1);
                    self.linear(&format!("{at}.eh_proj"), n.hidden, 2 * n.hidden, false);
                }
                if at_step + 1 == pattern.len() {
                    self.plain(&format!("{at}.final_layernorm.weight"), &[n.hidden], 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::facts;

    /// Nemotron 3: a block of attention and one of experts, which see a shorter vector.
    #[test]
    fn nemotron_speculates_with_blocks_of_its_own_kinds() {
        let of = |drafts: u64| {
            facts(&format!(
                r#"{{"model_type":"nemotron_h","dtype":"bfloat16","hidden_size":4096,"hybrid_override_pattern":"M*E",
                "num_attention_heads":32,"num_key_value_heads":2,"head_dim":128,"n_routed_experts":512,
                "n_shared_experts":1,"moe_intermediate_size":2688,"moe_shared_expert_intermediate_size":5376,
                "moe_latent_size":1024,"mtp_hybrid_override_pattern":"*E","num_nextn_predict_layers":{drafts},
                "vocab_size":131072}}"#
            ))
        };
        let attention = 4_096 + 4_096 * (4_096 + 2 * 256) + 4_096 * 4_096;
        let experts =
            4_096 + 512 * 4_096 + 2 * 1_024 * 4_096 + 512 * 2 * 1_024 * 2_688 + 2 * 4_096 * 5_376;
        let joined = 3 * 4_096 + 4_096 * 8_192;
        let (none, one) = (of(0), of(1));
        let more = 2 * (attention + experts + joined) + 512 * 4;
        assert_eq!(one.weight_bytes.0 - none.weight_bytes.0, more);
        assert_eq!((none.certainty, one.certainty), (Certainty::Exact, Certainty::Exact));
        assert_eq!(one.caches, none.caches);
    }

    /// What `transformers` writes of the language model alone has no layer for speculation (an index of such files, of
    /// 128 experts, states 37,087,995,136 bytes).
    #[test]
    fn a_language_model_that_was_written_alone_speculates_no_more() {
        let facts = facts(
            r#"{"architectures":["Qwen3_5MoeForConditionalGeneration"],"model_type":"qwen3_5_moe_text","dtype":"float16",
            "num_hidden_layers":40,"hidden_size":2048,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,
            "num_experts":128,"moe_intermediate_size":512,"shared_expert_intermediate_size":512,"vocab_size":248320,
            "mtp_num_hidden_layers":1,"tie_word_embeddings":false}"#,
        );
        assert_eq!(facts.weight_bytes.0, 37_087_995_136);
    }
}
