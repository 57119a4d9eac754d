//! Layers for speculative decoding (multi-token prediction) that a checkpoint holds besides the
//! model's own. Engines load them only when asked to.

use serde_json::{Map, Value};

use super::{Build, Certainty};

pub(super) fn add(build: &mut Build<'_>, _top: &Map<String, Value>) {
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
