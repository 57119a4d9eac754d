//! Layers for speculative decoding (multi-token prediction) that a checkpoint holds besides the
//! model's own. Engines load them only when asked to.

use serde_json::{Map, Value};

use super::{Build, Certainty};
use crate::model::tensors;

pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) {
    let conf = build.conf;
    let caches = build.caches.len();
    let n = build.n;
    match conf.kind.as_str() {
        // One more layer after the last, with embedding and head of its own.
        "deepseek_v3" | "deepseek_v32" | "glm4_moe" | "glm_moe_dsa" | "kimi_k2"
        | "glm4_moe_lite" | "glm4v_moe_text" | "glm5_next_text" => {
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
                if !build.is_glm_46() && !conf.is(&["glm5_next_text"]) {
                    build.plain(&format!("{at}.embed_tokens.weight"), &[n.vocab, n.hidden], 1);
                    build.plain(&format!("{at}.shared_head.head.weight"), &[n.vocab, n.hidden], 1);
                }
            }
            if count > 0 && conf.is(&["glm4_moe"]) {
                build.glm_tables(count);
            }
            if count > 0 && conf.is(&["glm5_next_text"]) {
                let why = "whether its layer for speculation has an embedding and a head of its own is not known";
                build.doubt_by(Certainty::Close, (0, 5), why);
            }
        }
        "deepseek_v4" => {
            let count = conf.stated(&["num_nextn_predict_layers"]).unwrap_or(0).min(8);
            for number in 0..count {
                build.v4_draft(number);
            }
        }
        super::deepseek_v41::KIND => build.v41_drafts(),
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
            let keys = ["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"];
            if conf.stated(&keys).is_some_and(|n| n > 0) {
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
    /// GLM 4.6, which is told from 4.5 by its context alone, and from 4.7 by the older name for the type of its values.
    fn is_glm_46(&self) -> bool {
        self.conf.is(&["glm4_moe"])
            && self.conf.stated(&["max_position_embeddings"]) == Some(202_752)
            && self.conf.given("dtype").is_none()
    }

    /// The files of GLM 4.5 and 4.7 hold embedding and head of the layer for speculation (358 billion values), those of
    /// 4.6 do not (356,785,898,816 values are published), and their configurations do not tell.
    fn glm_tables(&mut self, count: u64) {
        let n = self.n;
        let each = n.vocab.saturating_mul(n.hidden).saturating_mul(self.dtype.1);
        let bytes = each.saturating_mul(2).saturating_mul(count);
        let all = tensors::total(&self.tensors);
        let share = tensors::mul_div(bytes, 1_000, all).saturating_add(1).min(1_000);
        // No rank loads them: only what is stored may be more.
        let spread = if self.is_glm_46() { (0, 0) } else { (share, 0) };
        if self.is_glm_46() {
            self.besides = self.besides.saturating_add(bytes);
        }
        let why =
            "whether its layer for speculation has an embedding and a head of its own is not known";
        self.doubt_by(Certainty::Close, spread, why);
    }

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
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

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

    /// GLM-4.5 and GLM-4.6, as published (of 4.6 the number of values; 14,400 of them are in 32 bits), which differ in
    /// their context, and GLM-4.7, which is as large as the first, and differs from the second in the name of a key.
    #[test]
    fn glm_may_hold_two_more_tables() {
        let of = |context: u64, dtype: &str, drafts: u64| {
            facts(&format!(
                r#"{{"model_type":"glm4_moe","hidden_size":5120,"num_hidden_layers":92,"num_attention_heads":96,
                "num_key_value_heads":8,"head_dim":128,"intermediate_size":12288,"moe_intermediate_size":1536,
                "n_routed_experts":160,"n_shared_experts":1,"num_experts_per_tok":8,"first_k_dense_replace":3,
                "vocab_size":151552,"attention_bias":true,"use_qk_norm":true,"tie_word_embeddings":false,
                "{dtype}":"bfloat16","num_nextn_predict_layers":{drafts},"max_position_embeddings":{context}}}"#
            ))
        };
        let (five, six) = (716_675_611_392, 2 * 356_785_898_816 + 2 * 14_400);
        let known = [
            (131_072, "torch_dtype", five),
            (202_752, "torch_dtype", six),
            (202_752, "dtype", five),
        ];
        for (context, dtype, value) in known {
            let model = of(context, dtype, 1);
            assert_eq!((model.weight_bytes.0, model.certainty), (value, Certainty::Close));
            let bar = predict(&model, &Setup::new(rules("vllm"))).weights;
            assert!(bar.low <= six && bar.high >= five, "{bar:?}");
            assert!(bar.high - bar.low < 10_000_000_000, "{bar:?}");
            assert_eq!(of(context, dtype, 0).certainty, Certainty::Exact);
        }
    }
}
