//! Mistral's own format: a `params.json`, read as the `config.json` that vLLM makes of it
//! (`transformers_utils/configs/mistral.py`).

use serde_json::{Map, Value};

use super::super::HeaderError;
use super::super::arch::conf::whole;
use super::{mamba, meta};

/// Names in it, and what Hugging Face calls them.
const NAMES: [(&str, &str); 8] = [
    ("dim", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("hidden_dim", "intermediate_size"),
    ("max_seq_len", "max_position_embeddings"),
    ("model_max_length", "max_position_embeddings"),
    ("tied_embeddings", "tie_word_embeddings"),
];

/// Names of its `moe`, where experts are those of `DeepSeek` (`_remap_moe_args`).
const EXPERTS: [(&str, &str); 6] = [
    ("route_every_n", "moe_layer_freq"),
    ("first_k_dense_replace", "first_k_dense_replace"),
    ("num_experts_per_tok", "num_experts_per_tok"),
    ("num_experts", "n_routed_experts"),
    ("expert_hidden_dim", "moe_intermediate_size"),
    ("num_shared_experts", "n_shared_experts"),
];

/// Names of Whisper's encoder (`_remap_mistral_audio_args`).
const SOUND: [(&str, &str); 5] = [
    ("dim", "d_model"),
    ("n_layers", "encoder_layers"),
    ("n_heads", "encoder_attention_heads"),
    ("hidden_dim", "encoder_ffn_dim"),
    ("max_source_positions", "max_source_positions"),
];

/// Length that vLLM assumes where none is stated.
const CONTEXT: u64 = 128_000;

fn rename(from: &Map<String, Value>, names: &[(&str, &str)], to: &mut Map<String, Value>) {
    for (own, usual) in names {
        if let Some(value) = from.get(*own) {
            to.insert((*usual).to_owned(), value.clone());
        }
    }
}

/// The `config.json` of a `params.json`.
pub(super) fn translated(mut top: Map<String, Value>) -> Result<Map<String, Value>, HeaderError> {
    for (own, usual) in NAMES {
        if let Some(value) = top.remove(own) {
            top.entry(usual).or_insert(value);
        }
    }
    let sees = top.remove("vision_args").is_some_and(|v| v.is_object());
    if top.get("model_type").and_then(Value::as_str) == Some("mamba") {
        mamba::from_params(&mut top);
    } else if meta::is(&top) {
        meta::complete(&mut top)?;
    } else {
        // Null, for the family's own width is not this model's.
        top.entry("intermediate_size").or_insert(Value::Null);
    }
    if let Some(Value::Object(experts)) = top.remove("moe") {
        with_experts(&mut top, &experts)?;
    } else if top.get("kv_lora_rank").is_none_or(Value::is_null) {
        top.entry("model_type").or_insert_with(|| "mistral".into());
    }
    top.entry("tie_word_embeddings").or_insert(Value::Bool(false));
    top.entry("torch_dtype").or_insert_with(|| "bfloat16".into());
    top.entry("max_position_embeddings").or_insert_with(|| CONTEXT.into());
    windows(&mut top);
    let stored = top.get("quantization").and_then(|q| q.get("qformat_weight")?.as_str());
    if stored == Some("fp8_e4m3") && !top.contains_key("quantization_config") {
        let plain = top.get("quantization").and_then(|q| q.get("qscheme_act")?.as_str());
        let scheme = if plain == Some("NO_SCALES") { "dynamic" } else { "static" };
        let method = serde_json::json!({"quant_method": "fp8", "activation_scheme": scheme});
        top.insert("quantization_config".to_owned(), method);
    }
    let inside = |key: &str| top.get("multimodal").and_then(|m| m.get(key)).cloned();
    let sound = inside("whisper_model_args");
    let sight = inside("vision_encoder_args").or_else(|| top.remove("vision_encoder"));
    top.remove("multimodal");
    Ok(match (sight, sound) {
        (Some(Value::Object(tower)), _) => with_sight(top, tower),
        (_, Some(Value::Object(tower))) => with_sound(top, &tower),
        // Meta's tower has names of its own, and all models of the family the same one.
        _ if sees && top.get("model_type").and_then(Value::as_str) == Some("llama4_text") => {
            let mut whole = around("llama4", top);
            let class = Value::from("Llama4ForConditionalGeneration");
            whole.insert("architectures".to_owned(), Value::Array(vec![class]));
            whole
        }
        _ => top,
    })
}

/// Experts as Mixtral has them or, where some are shared, as `DeepSeek` V3 does.
fn with_experts(
    top: &mut Map<String, Value>,
    experts: &Map<String, Value>,
) -> Result<(), HeaderError> {
    if experts.get("num_shared_experts").and_then(whole).is_some_and(|n| n > 0) {
        rename(experts, &EXPERTS, top);
        top.insert("model_type".to_owned(), "deepseek_v3".into());
        // Its routers have no bias of their own.
        top.insert("topk_method".to_owned(), "greedy".into());
        return Ok(());
    }
    if top.get("intermediate_size").is_none_or(Value::is_null) {
        let why =
            "not a params.json: `moe` has experts, and `hidden_dim` does not state their width";
        return Err(HeaderError::broken(why));
    }
    rename(experts, &[("num_experts_per_tok", "num_experts_per_tok")], top);
    rename(experts, &[("num_experts", "num_local_experts")], top);
    top.entry("model_type").or_insert_with(|| "mixtral".into());
    Ok(())
}

/// A list of windows is one for each layer, again and again; null: all tokens.
fn windows(top: &mut Map<String, Value>) {
    let Some(Value::Array(list)) = top.get("sliding_window") else { return };
    let layers = top.get("num_hidden_layers").and_then(whole).unwrap_or(0).min(2_000);
    let Some(size) = list.iter().find(|n| !n.is_null()).cloned() else { return };
    let (sliding, full) = ("sliding_attention", "full_attention");
    let kinds = list.iter().map(|n| Value::from(if n.is_null() { full } else { sliding }));
    let kinds: Vec<Value> =
        kinds.cycle().take(usize::try_from(layers).unwrap_or_default()).collect();
    top.insert("layer_types".to_owned(), kinds.into());
    top.insert("sliding_window".to_owned(), size);
}

/// The whole around a language model, of a family that has the same parts.
fn around(kind: &str, text: Map<String, Value>) -> Map<String, Value> {
    let mut top = Map::new();
    top.insert("model_type".to_owned(), kind.into());
    for key in ["tie_word_embeddings", "torch_dtype", "quantization_config"] {
        if let Some(value) = text.get(key) {
            top.insert(key.to_owned(), value.clone());
        }
    }
    top.insert("text_config".to_owned(), text.into());
    top
}

/// Pixtral's tower. `PixtralForConditionalGeneration` merges patches only where it is told to.
fn with_sight(text: Map<String, Value>, mut tower: Map<String, Value>) -> Map<String, Value> {
    let merges = tower.get("mm_projector_id").and_then(Value::as_str) == Some("patch_merge");
    let mut top = around(if merges { "mistral3" } else { "llava" }, text);
    top.insert("vision_feature_layer".to_owned(), Value::from(-1));
    let bias = tower.get("adapter_bias").cloned().unwrap_or(Value::Bool(true));
    top.insert("multimodal_projector_bias".to_owned(), bias);
    if let Some(merge) = tower.get("spatial_merge_size") {
        top.insert("spatial_merge_size".to_owned(), merge.clone());
    }
    tower.entry("model_type").or_insert_with(|| "pixtral".into());
    top.insert("vision_config".to_owned(), tower.into());
    top
}

/// Whisper's encoder, as Voxtral has it.
fn with_sound(text: Map<String, Value>, tower: &Map<String, Value>) -> Map<String, Value> {
    let mut top = around("voxtral", text);
    let encoder = tower.get("encoder_args").and_then(Value::as_object);
    let mut audio = Map::new();
    if let Some(encoder) = encoder {
        rename(encoder, &SOUND, &mut audio);
        if let Some(bands) = encoder.get("audio_encoding_args").and_then(|a| a.get("num_mel_bins"))
        {
            audio.insert("num_mel_bins".to_owned(), bands.clone());
        }
    }
    top.insert("audio_config".to_owned(), audio.into());
    top
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::{parse, parse_params};
    use crate::model::arch::{Blueprint, Certainty};
    use crate::model::tensors::total;

    fn drawn(json: &str) -> Blueprint {
        parse_params(json.as_bytes()).unwrap().blueprint(None).0.unwrap()
    }

    const SMALL: &str = r#""dim":5120,"n_layers":40,"head_dim":128,"hidden_dim":32768,"n_heads":32,"n_kv_heads":8,
        "rope_theta":1e9,"norm_eps":1e-5,"vocab_size":131072"#;
    const TOWER: &str = r#""intermediate_size":4096,"num_hidden_layers":24,"num_attention_heads":16,"hidden_size":1024,
        "num_channels":3"#;

    /// Numbers of values that the models' pages state: Mistral 7B v0.3, Small 3 and 3.1, Pixtral 12B, Voxtral Mini.
    #[test]
    fn what_the_files_hold_is_what_their_hugging_face_form_holds() {
        let merging = format!(
            r#"{{{SMALL},"max_position_embeddings":131072,"vision_encoder":{{{TOWER},"image_size":1540,"patch_size":14,
            "mm_projector_id":"patch_merge","spatial_merge_size":2,"add_pre_mm_projector_layer_norm":true,
            "adapter_bias":false}}}}"#
        );
        let pixtral = format!(
            r#"{{{},"vision_encoder":{{{TOWER},"image_size":1024,"patch_size":16,"adapter_bias":true}}}}"#,
            SMALL.replace("32768", "14336")
        );
        let voxtral = r#"{"dim":3072,"n_layers":30,"head_dim":128,"hidden_dim":8192,"n_heads":32,"n_kv_heads":8,
            "vocab_size":131072,"max_position_embeddings":32768,"multimodal":{"whisper_model_args":{"encoder_args":{
            "audio_encoding_args":{"sampling_rate":16000,"num_mel_bins":128,"hop_length":160,"window_size":400},
            "dim":1280,"n_layers":32,"head_dim":64,"hidden_dim":5120,"n_heads":20,"vocab_size":51866,
            "max_source_positions":1500},"downsample_args":{"downsample_factor":4}}}}"#;
        let seven = r#"{"dim":4096,"n_layers":32,"head_dim":128,"hidden_dim":14336,"n_heads":32,"n_kv_heads":8,
            "norm_eps":1e-05,"vocab_size":32768,"rope_theta":1000000.0}"#;
        for (json, values) in [
            (seven, 7_248_023_552),
            (&format!("{{{SMALL}}}"), 23_572_403_200),
            (&merging, 24_011_361_280),
            (&pixtral, 12_682_739_712),
            (voxtral, 4_676_271_104),
        ] {
            let drawn = drawn(json);
            assert_eq!(total(&drawn.tensors), 2 * values, "{json}");
            assert_eq!((drawn.certainty, drawn.tied), (Certainty::Exact, false), "{json}");
        }
    }

    /// Mistral Large 3 has `DeepSeek` V3's layers, and scales of weights and inputs.
    #[test]
    fn experts_and_scales_have_names_of_their_own() {
        let large = r#"{"dim":7168,"n_layers":61,"head_dim":128,"hidden_dim":16384,"n_heads":128,"n_kv_heads":128,
            "vocab_size":131072,"q_lora_rank":1536,"qk_rope_head_dim":64,"qk_nope_head_dim":128,"kv_lora_rank":512,
            "v_head_dim":128,"moe":{"route_every_n":1,"first_k_dense_replace":3,"num_experts":128,
            "num_experts_per_tok":4,"expert_hidden_dim":4096,"num_shared_experts":1}MORE}"#;
        let usual = r#"{"model_type":"deepseek_v3","hidden_size":7168,"num_hidden_layers":61,"intermediate_size":16384,
            "num_attention_heads":128,"num_key_value_heads":128,"vocab_size":131072,"q_lora_rank":1536,
            "qk_rope_head_dim":64,"qk_nope_head_dim":128,"kv_lora_rank":512,"v_head_dim":128,"topk_method":"greedy",
            "first_k_dense_replace":3,"moe_layer_freq":1,"n_routed_experts":128,"num_experts_per_tok":4,
            "moe_intermediate_size":4096,"n_shared_experts":1,"tie_word_embeddings":false,
            "torch_dtype":"bfloat16"MORE}"#;
        for (own, other) in [
            ("", ""),
            (
                r#","quantization":{"qformat_weight":"fp8_e4m3","qscheme_act":"TENSOR"}"#,
                r#","quantization_config":{"quant_method":"fp8","activation_scheme":"static"}"#,
            ),
        ] {
            let read = parse(usual.replace("MORE", other).as_bytes()).unwrap();
            let (own, usual) =
                (drawn(&large.replace("MORE", own)), read.blueprint(None).0.unwrap());
            assert_eq!(own.tensors, usual.tensors);
            assert_eq!(own.caches, usual.caches);
            assert_eq!(own.layout.expanded, 0);
        }
        let mixtral = r#"{"dim":4096,"n_layers":32,"head_dim":128,"hidden_dim":14336,"n_heads":32,"n_kv_heads":8,
            "vocab_size":32000,"moe":{"num_experts_per_tok":2,"num_experts":8}}"#;
        assert_eq!(total(&drawn(mixtral).tensors), 93_405_585_408);
    }

    #[test]
    fn a_list_of_windows_goes_round() {
        let json = format!(r#"{{{SMALL},"sliding_window":[null,32768,32768,32768]}}"#);
        let windows =
            |drawn: &Blueprint| drawn.caches.iter().filter(|c| c.keeps.window().is_some()).count();
        assert_eq!(windows(&drawn(&json)), 30);
        assert_eq!(windows(&drawn(&format!(r#"{{{SMALL},"sliding_window":4096}}"#))), 40);
        assert_eq!(windows(&drawn(&format!(r#"{{{SMALL},"sliding_window":[null]}}"#))), 0);
    }
}
