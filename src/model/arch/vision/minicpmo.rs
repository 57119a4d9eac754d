//! `MiniCPM-o` 2.6: beside `MiniCPM-V`'s tower Whisper's encoder and what speaks, which engines do not load
//! (`modeling_minicpmo.py` beside its weights: `ConditionalChatTTS`, `DVAE`).

use serde_json::{Map, Value};

use super::super::{Build, Certainty, conf::whole};

/// What speaks, if it is there and known.
pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) {
    if top.get("init_tts") == Some(&Value::Bool(false)) {
        return;
    }
    let known = top.get("version").is_some_and(|v| v.to_string().contains("2.6"));
    if !known {
        let why = "what speaks is not counted; engines leave it aside";
        return build.doubt_by(Certainty::Close, (30, 300), why);
    }
    let inside = top.get("tts_config").and_then(Value::as_object);
    let get = |key: &str, usual: u64| {
        inside.and_then(|c| c.get(key)).and_then(whole).unwrap_or(usual).min(1 << 20)
    };
    let (width, inner) = (get("hidden_size", 768), get("intermediate_size", 3_072));
    let (codes, of) = (get("num_vq", 4).min(64), get("num_audio_tokens", 626));
    let seen = get("llm_dim", build.n.hidden);
    let mut w =
        |name: &str, shape: &[u64], count| build.plain(&format!("tts.{name}"), shape, count);
    for l in 0..get("num_hidden_layers", 20).min(512) {
        w(&format!("model.layers.{l}.self_attn"), &[4, width, width], 1);
        w(&format!("model.layers.{l}.mlp"), &[3, width, inner], 1);
        w(&format!("model.layers.{l}.norms"), &[2, width], 1);
    }
    w("model.norm", &[width], 1);
    // An embedding that nothing uses, with as many words as a Llama has where nothing is said.
    w("model.embed_tokens", &[32_000, width], 1);
    w("emb_text", &[get("num_text_tokens", 21_178), width], 1);
    w("emb_code", &[of, width], codes);
    w("head_code", &[of, width + 1], codes);
    w("projector.linear1", &[width, seen + 1], 1);
    w("projector.linear2", &[width, width + 1], 1);
    dvae(&mut w);
}

/// What makes sound of codes; its sizes are in its code alone.
fn dvae(w: &mut impl FnMut(&str, &[u64], u64)) {
    let (bands, outer, middle, inner) = (100, 512, 128, 256);
    w("dvae.coef", &[bands], 1);
    w("dvae.downsample_conv.0", &[outer, bands * 3 + 1], 1);
    w("dvae.downsample_conv.2", &[outer, outer * 4 + 1], 1);
    for (part, out) in [("encoder", 2 * outer), ("decoder", outer)] {
        w(&format!("dvae.{part}.conv_in.0"), &[middle, outer * 3 + 1], 1);
        w(&format!("dvae.{part}.conv_in.2"), &[inner, middle * 3 + 1], 1);
        for l in 0..12 {
            let at = format!("dvae.{part}.decoder_block.{l}");
            w(&format!("{at}.dwconv"), &[inner, 7 + 1], 1);
            w(&format!("{at}.norm"), &[2, inner], 1);
            w(&format!("{at}.pwconv1"), &[4 * inner, inner + 1], 1);
            w(&format!("{at}.pwconv2"), &[inner, 4 * inner + 1], 1);
            w(&format!("{at}.coef"), &[inner], 1);
        }
        w(&format!("dvae.{part}.conv_out"), &[out, inner], 1);
    }
    w("dvae.out_conv", &[bands, outer * 3], 1);
    // Two groups of codes with five steps in four directions.
    w("dvae.vq_layer.project_in", &[4, outer + 1], 2);
    w("dvae.vq_layer.project_out", &[outer, 4 + 1], 2);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    const TOWER: &str = r#""query_num":64,"image_size":448,"drop_vision_last_layer":false,"torch_dtype":"bfloat16",
        "tie_word_embeddings":false,"vision_config":{"hidden_size":1152,"image_size":980,"intermediate_size":4304,
        "model_type":"siglip","num_attention_heads":16,"num_hidden_layers":27,"patch_size":14}"#;

    /// The number of values that its page states, which has Qwen3's layers.
    #[test]
    fn the_version_tells_the_language_model() {
        let of = |version: &str| {
            facts(&format!(
                r#"{{"architectures":["MiniCPMV"],"model_type":"minicpmv","version":{version},"hidden_size":4096,
                "intermediate_size":12288,"num_hidden_layers":36,"num_attention_heads":32,"num_key_value_heads":8,
                "head_dim":128,"vocab_size":151748,{TOWER}}}"#
            ))
        };
        for version in ["4.5", "\"4.5\""] {
            assert_eq!(
                (of(version).weight_bytes.0, of(version).certainty),
                (2 * 8_695_895_280, Certainty::Exact)
            );
        }
        assert_eq!(of("9.0").certainty, Certainty::Guess);
    }

    /// Its page states 8,674,812,720 values.
    #[test]
    fn what_hears_is_loaded_and_what_speaks_is_not() {
        let omni = facts(&format!(
            r#"{{"architectures":["MiniCPMO"],"model_type":"minicpmo","version":"2.6","hidden_size":3584,
            "intermediate_size":18944,"num_hidden_layers":28,"num_attention_heads":28,"num_key_value_heads":4,
            "vocab_size":151700,"init_audio":true,"init_tts":true,"init_vision":true,
            "audio_config":{{"d_model":1024,"encoder_attention_heads":16,"encoder_ffn_dim":4096,"encoder_layers":24,
            "num_mel_bins":80}},"tts_config":{{"model_type":"conditional_chattts","llm_dim":3584}},{TOWER}}}"#
        ));
        assert!(omni.weight_bytes.0.abs_diff(2 * 8_674_812_720) < 400_000, "{}", omni.weight_bytes);
        assert_eq!(omni.certainty, Certainty::Exact);
        let held = predict(&omni, &Setup::new(rules("vllm"))).ranks[0].weights.value;
        let (speaks, padding) = (2 * 251_839_540, 2 * (151_744 - 151_700) * 3_584 * 2);
        assert_eq!(held - omni.rope_bytes, omni.weight_bytes.0 - speaks + padding);
    }
}
