//! What configurations leave out of a quantisation, by whatever name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use serde_json::Value;

use super::*;

fn read(json: &str) -> Quantisation {
    Quantisation::read(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
}

/// Every way in which published configurations leave out a tower, and what they do not leave out.
#[test]
fn towers_are_left_out_by_any_of_their_names() {
    let of = |key: &str, list: &str| {
        read(&format!(r#"{{"quant_method":"fp8","weight_block_size":[128,128],"{key}":{list}}}"#))
    };
    let clip = "visual.vision_model.encoder.layers.3.self_attn.q_proj";
    let joiner = "visual.multi_modal_projector.linear_1";
    let qwen = "visual.blocks.3.attn.qkv";
    let kimi = "visual.encoder.blocks.3.wqkv";
    let layer = "model.layers.3.mlp.up_proj";
    for (list, out, stays) in [
        (
            r#"["re:vision_tower.*","re:.*lm_head"]"#,
            &[clip, qwen, kimi, "lm_head"][..],
            &[joiner][..],
        ),
        (r#"["re:.*vision_model.*","re:.*multi_modal_projector.*"]"#, &[clip, joiner], &[]),
        (r#"["re:model\\.visual\\..*"]"#, &[qwen], &[joiner]),
        (r#"["re:^visual.*"]"#, &[qwen], &[joiner]),
        (r#"["re:model.vision_tower.*","re:model.multi_modal_projector.*"]"#, &[clip, joiner], &[]),
        (r#"["model.visual"]"#, &[qwen, "visual.merger.mlp.0"], &[joiner]),
        (r#"["vision_tower","multi_modal_projector","lm_head"]"#, &[clip, kimi, joiner], &[]),
        (r#"["vision_model*","multi_modal_projector*"]"#, &[clip, joiner, qwen], &[]),
        (r#"["*visual*"]"#, &[qwen, "visual.merger.mlp.0"], &[joiner]),
        (r#"["*.vision_tower.*","*.mm_projector.*"]"#, &[kimi, joiner], &[]),
        (
            r#"["re:vision_tower.*","re:mm_projector.*"]"#,
            &[kimi, "visual.mm_projector.proj.0"],
            &[],
        ),
        (
            r#"["language_model.lm_head","vision_tower.encoder.blocks.3.wqkv"]"#,
            &["lm_head", kimi],
            &["visual.encoder.blocks.4.wqkv"],
        ),
        (
            r#"["model.vision_tower.vision_model.encoder.layers.3.self_attn.q_proj"]"#,
            &[clip],
            &["visual.vision_model.encoder.layers.4.self_attn.q_proj"],
        ),
        (r#"["vision_tower.vision_model.encoder.layers.3.self_attn.q_proj"]"#, &[clip], &[joiner]),
        (
            r#"["re:.*audio_tower.*","model.embed_audio.embedding_projection"]"#,
            &["visual.audio_tower.layers.2.fc1", "visual.embed_audio.embedding_projection"],
            &[clip],
        ),
        (r#"["thinker.visual","thinker.audio_tower"]"#, &[qwen, "visual.audio_tower.proj1"], &[]),
        // A word instead of a list.
        (r#""lm_head""#, &["lm_head"], &[clip]),
    ] {
        for key in [
            "ignore",
            "modules_to_not_convert",
            "ignored_layers",
            "exclude_modules",
            "llm_int8_skip_modules",
            "exclude",
            "skip_modules",
        ] {
            let q = of(key, list);
            for name in out {
                assert!(!q.covers(name), "{key} {list}: {name}");
            }
            for name in stays.iter().chain([&layer]) {
                assert!(q.covers(name), "{key} {list}: {name}");
            }
            assert!(q.is_followed());
        }
    }
}

#[test]
fn layers_are_found_behind_any_wrapper() {
    let of = |list: &str| read(&format!(r#"{{"quant_method":"fp8","ignore":{list}}}"#));
    let (up, other) = ("model.layers.3.mlp.up_proj", "model.layers.4.mlp.up_proj");
    for list in [
        r#"["re:model\\.language_model\\.layers\\.3\\..*"]"#,
        r#"["re:language_model.model.layers.3.*"]"#,
        r#"["re:^layers\\.3\\..*"]"#,
        r#"["re:.*\\.layers\\.3\\.mlp.*"]"#,
        r#"["model.language_model.layers.3.mlp"]"#,
        r#"["language_model.model.layers.3.mlp.up_proj"]"#,
        r#"["llm.model.layers.3.mlp.up_proj"]"#,
        r#"["thinker.model.layers.3.mlp"]"#,
        r#"["language_model.model.layers.3.*"]"#,
        r#"["*language_model*layers.3.*"]"#,
    ] {
        let q = of(list);
        assert!(!q.covers(up), "{list}");
        assert!(q.covers(other), "{list}");
    }
    // `ModelOpt` never quantises what it does not list of a tower (vLLM `modelopt.py`).
    let modelopt = read(r#"{"quant_method":"modelopt","quant_algo":"FP8","ignore":["lm_head"]}"#);
    assert!(!modelopt.covers("visual.vision_model.encoder.layers.3.mlp.fc1"));
    assert!(modelopt.covers(up));
}

/// `AutoGPTQ`'s modules in a block, and what `GPTQModel` says of single ones.
#[test]
fn gptq_names_what_it_quantises() {
    let q = read(
        r#"{"quant_method":"gptq","bits":4,"group_size":128,"modules_in_block_to_quantize":
        [["self_attn.k_proj","self_attn.q_proj"],["mlp.up_proj"]]}"#,
    );
    assert!(q.covers("model.layers.3.self_attn.q_proj") && q.covers("model.layers.3.mlp.up_proj"));
    assert!(!q.covers("model.layers.3.self_attn.v_proj") && !q.covers("lm_head"));
    let q = read(
        r#"{"quant_method":"gptq","bits":4,"group_size":128,"dynamic":{"-:.*attn.*":{},
        "-:.*shared_expert.*":{},"+:.*\\.layers\\.5\\..*down_proj.*":{"bits":8},
        ".*\\.layers\\.6\\..*down_proj.*":{"group_size":32}}}"#,
    );
    let usual = Method::Gptq { bits: 4, group: 128, ordered: false };
    assert!(!q.covers("model.layers.3.self_attn.q_proj"));
    assert!(!q.covers("model.layers.3.mlp.shared_expert.up_proj"));
    assert_eq!(q.of("model.layers.3.mlp.down_proj"), usual);
    assert_eq!(q.of("model.layers.3.mlp.experts.*.up_proj"), usual);
    let eight = Method::Gptq { bits: 8, group: 128, ordered: false };
    assert_eq!(q.of("model.layers.5.mlp.down_proj"), eight);
    let small = Method::Gptq { bits: 4, group: 32, ordered: false };
    assert_eq!(q.of("model.layers.6.mlp.down_proj"), small);
    assert!(!q.covers("visual.blocks.3.attn.qkv"));
}

/// A plain name of `compressed-tensors` is that of one layer: `llm-compressor` lists containers whose
/// other layers it quantises.
#[test]
fn compressed_tensors_leave_out_just_the_layers_of_these_names() {
    let q = read(
        r#"{"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"group_0":
        {"targets":["Linear"],"weights":{"num_bits":4,"type":"int","strategy":"group","group_size":128}},
        "group_mtp":{"targets":["re:.*mtp\\..*proj$"],"weights":{"num_bits":4,"type":"int",
        "strategy":"group","group_size":32}}},"ignore":["model.visual.blocks.0.attn.qkv","visual",
        "model.language_model.layers.0.linear_attn","model.language_model.layers.0.linear_attn.in_proj_a",
        "re:.*layers\\.7\\.","language_model.lm_head"]}"#,
    );
    for out in [
        "visual.blocks.0.attn.qkv",
        "model.layers.0.linear_attn.in_proj_a",
        "model.layers.7.mlp.up_proj",
        "lm_head",
    ] {
        assert!(!q.covers(out), "{out}");
    }
    let usual = Method::Packed { bits: 4, group: 128, symmetric: true, ordered: false };
    for covered in [
        "visual.blocks.0.attn.proj",
        "model.layers.0.linear_attn.in_proj_qkv",
        "model.layers.0.linear_attn.out_proj",
        "model.layers.1.linear_attn.in_proj_a",
    ] {
        assert_eq!(q.of(covered), usual, "{covered}");
    }
    let small = Method::Packed { bits: 4, group: 32, symmetric: true, ordered: false };
    assert_eq!(q.of("mtp.layers.0.mlp.up_proj"), small);
}

/// Matrices of experts and of an index by the names of Mixtral's and `MiniMax`'s files, and Molmo's tower.
#[test]
fn layers_are_known_by_the_names_of_their_files() {
    let at = "language_model.model.layers.3";
    let mixed = read(&format!(
        r#"{{"quant_method":"modelopt","quant_algo":"MIXED_PRECISION","quantized_layers":{{
        "{at}.block_sparse_moe.experts.0.w1":{{"quant_algo":"NVFP4","group_size":16}},
        "{at}.block_sparse_moe.experts.0.w2":{{"quant_algo":"NVFP4","group_size":16}},
        "{at}.self_attn.index_q_proj":{{"quant_algo":"MXFP8"}}}}}}"#
    ));
    let covered = |name: &str| mixed.covers(&format!("model.layers.3.{name}"));
    assert!(covered("block_sparse_moe.experts.*.gate_proj"));
    assert!(covered("block_sparse_moe.experts.*.down_proj"));
    assert!(covered("self_attn.indexer.q_proj"));
    assert!(!covered("block_sparse_moe.experts.*.up_proj"));
    assert!(!covered("self_attn.indexer.k_proj"));
    let molmo = read(
        r#"{"quant_method":"bitsandbytes","load_in_4bit":true,
        "llm_int8_skip_modules":["model.vision_backbone","model.transformer.ff_out"]}"#,
    );
    for name in ["image_projector.w1", "encoder.layers.3.mlp.fc1", "image_pooling_2d.wq"] {
        assert!(!molmo.covers(&format!("visual.{name}")), "{name}");
    }
    assert!(molmo.covers("model.layers.3.mlp.down_proj"));
}
