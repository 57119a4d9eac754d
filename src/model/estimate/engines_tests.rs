//! What engines make of a model otherwise than its configuration says, against figures of their own code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use super::tests::{facts, rules};
use super::*;
use crate::model::tensors;

fn with(engine: &str, tensor: u64) -> Setup {
    Setup { tensor, ..Setup::new(rules(engine)) }
}

const GEMMA_27B: &str = r#"{"model_type":"gemma3","torch_dtype":"bfloat16","text_config":{"model_type":"gemma3_text",
    "hidden_size":5376,"intermediate_size":21504,"num_attention_heads":32,"num_hidden_layers":62,
    "num_key_value_heads":16,"head_dim":128,"rope_scaling":{"factor":8.0,"rope_type":"linear"},
    "sliding_window":1024},"vision_config":{"model_type":"siglip_vision_model","hidden_size":1152,
    "image_size":896,"intermediate_size":4304,"num_attention_heads":16,"num_hidden_layers":27,"patch_size":14,
    "vision_use_head":false}}"#;

/// Gemma 3 leaves out its length, which is the family's: vLLM refuses to start where that has no room.
#[test]
fn a_length_that_is_left_out_is_the_family_s() {
    let setup = Setup { cache_available: Some(8 << 30), ..with("vllm", 1) };
    let answer = predict(&facts(GEMMA_27B), &setup);
    assert_eq!((answer.context, answer.fits), (131_072, Some(false)));
    let gib = answer.ranks[0].cache_needed.value as f64 / (1u64 << 30) as f64;
    assert!((gib - 14.23).abs() < 0.01, "{gib}");
    assert!(!answer.notes.iter().any(|n| n.contains("assumed")), "{:?}", answer.notes);
}

/// Where nobody knows a length, engines take 2048 tokens, and what fits is told with that.
#[test]
fn a_length_that_is_assumed_is_told() {
    let unknown = r#"{"model_type":"nobody_knows","torch_dtype":"bfloat16","hidden_size":1024,"num_hidden_layers":2,
        "num_attention_heads":8,"num_key_value_heads":8,"intermediate_size":2048,"vocab_size":1024}"#;
    for engine in ["vllm", "sglang"] {
        let setup = Setup { cache_available: Some(8 << 30), ..with(engine, 1) };
        let answer = predict(&facts(unknown), &setup);
        assert_eq!((answer.context, answer.fits), (2_048, Some(true)));
        assert!(answer.notes.iter().any(|n| n.contains("2048 tokens are assumed")), "{engine}");
        let asked = predict(&facts(unknown), &Setup { context: Some(8_192), ..setup });
        assert!(!asked.notes.iter().any(|n| n.contains("assumed")), "{:?}", asked.notes);
    }
}

/// `SGLang` has a pool for windows only for some architectures; layers of all others keep every token.
#[test]
fn sglang_keeps_windows_apart_for_some_architectures_alone() {
    let tokens = |config: &str| {
        let setup = Setup { cache_available: Some(10 << 30), ..with("sglang", 1) };
        predict(&facts(config), &setup).tokens.unwrap().value
    };
    let mistral = r#"{"architectures":["MistralForCausalLM"],"model_type":"mistral","torch_dtype":"bfloat16",
        "hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,
        "num_key_value_heads":8,"sliding_window":4096,"vocab_size":32000,"max_position_embeddings":32768}"#;
    assert_eq!(tokens(mistral), 81_920);
    let gemma2 = r#"{"architectures":["Gemma2ForCausalLM"],"model_type":"gemma2","torch_dtype":"bfloat16",
        "hidden_size":3584,"intermediate_size":14336,"num_hidden_layers":42,"num_attention_heads":16,
        "num_key_value_heads":8,"head_dim":256,"sliding_window":4096,"vocab_size":256000}"#;
    assert_eq!(tokens(gemma2), 31_207);
    let gemma3 = r#"{"architectures":["Gemma3ForCausalLM"],"model_type":"gemma3_text","torch_dtype":"bfloat16",
        "hidden_size":1152,"intermediate_size":6912,"num_hidden_layers":26,"num_attention_heads":4,
        "num_key_value_heads":1,"head_dim":256,"sliding_window":512,"vocab_size":262144,
        "max_position_embeddings":32768}"#;
    assert_eq!(tokens(gemma3), 403_298);
    let command = r#"{"architectures":["Cohere2ForCausalLM"],"model_type":"cohere2","torch_dtype":"bfloat16",
        "hidden_size":12288,"intermediate_size":36864,"num_hidden_layers":64,"num_attention_heads":96,
        "num_key_value_heads":8,"head_dim":128,"sliding_window":4096,"vocab_size":256000,
        "max_position_embeddings":131072}"#;
    assert_eq!(tokens(command), 40_960);
    let oss = r#"{"architectures":["GptOssForCausalLM"],"model_type":"gpt_oss","torch_dtype":"bfloat16",
        "num_hidden_layers":24,"hidden_size":2880,"intermediate_size":2880,"num_attention_heads":64,
        "num_key_value_heads":8,"head_dim":64,"sliding_window":128,"num_local_experts":32,"vocab_size":201088,
        "max_position_embeddings":131072}"#;
    assert_eq!(tokens(oss), 242_730);
    // vLLM groups them all the same.
    let groups = predict(&facts(gemma2), &with("vllm", 1)).ranks[0].clone();
    assert!(groups.cache_beyond_windows.value < groups.cache_per_token.value);
    let plain = predict(&facts(gemma2), &with("sglang", 1)).ranks[0].clone();
    assert_eq!(plain.cache_beyond_windows, plain.cache_per_token);
}

/// vLLM's `minicpm3.py` makes keys and values of all 40 heads from the latent vector, and keeps these.
#[test]
fn latent_vectors_that_vllm_does_not_keep_are_keys_and_values() {
    let config = r#"{"model_type":"minicpm3","torch_dtype":"bfloat16"}"#;
    let rank = |engine, tensor| predict(&facts(config), &with(engine, tensor)).ranks[0].clone();
    assert_eq!(rank("vllm", 1).cache_per_token, Bar::exact(952_320));
    assert_eq!(rank("vllm", 2).cache_per_token, Bar::exact(952_320 / 2));
    // SGLang keeps the vector, undivided.
    assert_eq!(rank("sglang", 2).cache_per_token, Bar::exact(62 * (256 + 32) * 2));
    // No copy of `kv_b_proj` is made ready for the vector.
    let all = facts(config);
    assert_eq!(rank("vllm", 1).weights.value - all.rope_bytes, {
        let padded = 73_472 - 73_448;
        all.weight_bytes.0 + padded * 2_560 * 2
    });
    // DeepSeek's vector stays, whoever bears it.
    for kind in ["deepseek_v3", "kimi_k2", "AXK1", "mistral4"] {
        let config = format!(
            r#"{{"model_type":"{kind}","torch_dtype":"bfloat16","hidden_size":1024,"num_hidden_layers":2,
            "num_attention_heads":16,"num_key_value_heads":16,"intermediate_size":2048,"vocab_size":1024,
            "kv_lora_rank":128,"qk_rope_head_dim":32,"qk_nope_head_dim":64,"v_head_dim":64,
            "num_nextn_predict_layers":0,"max_position_embeddings":4096}}"#
        );
        let cache = predict(&facts(&config), &with("vllm", 2)).ranks[0].cache_per_token;
        assert_eq!(cache.value, 2 * (128 + 32) * 2, "{kind}");
    }
}

/// `MiniMax-Text-01`: every eighth layer has attention, all others a state of 64 · 128 · 128 values.
const LIGHTNING: &str = r#"{"model_type":"minimax_text_01","torch_dtype":"bfloat16","hidden_size":6144,
    "num_hidden_layers":80,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":128,"intermediate_size":9216,
    "num_local_experts":32,"num_experts_per_tok":2,"vocab_size":200064,"max_position_embeddings":10240000,
    "attn_type_list":[0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,
    0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,1]}"#;

/// `Qwen3-Next-80B-A3B`.
const DELTA: &str = r#"{"model_type":"qwen3_next","torch_dtype":"bfloat16","hidden_size":2048,"num_hidden_layers":48,
    "num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"intermediate_size":5120,
    "moe_intermediate_size":512,"shared_expert_intermediate_size":512,"num_experts":512,"num_experts_per_tok":10,
    "linear_num_key_heads":16,"linear_num_value_heads":32,"linear_key_head_dim":128,"linear_value_head_dim":128,
    "linear_conv_kernel_dim":4,"vocab_size":151936,"max_position_embeddings":262144}"#;

#[test]
fn states_have_the_type_that_the_engine_gives_them() {
    let of = |config, engine, tensor| predict(&facts(config), &with(engine, tensor));
    let minimax = of(LIGHTNING, "vllm", 8);
    assert_eq!((minimax.ranks[0].state_per_request.value, minimax.block), (18_350_080, 512));
    assert_eq!(of(LIGHTNING, "sglang", 8).ranks[0].state_per_request.value, 2 * 18_350_080);
    // 36 layers: 8192 channels of a convolution three tokens back, 32 · 128 · 128 values of a state.
    let (conv, state) = (8_192 * 3, 32 * 128 * 128);
    let each = |engine, tensor| of(DELTA, engine, tensor).ranks[0].state_per_request.value;
    assert_eq!(each("vllm", 4), 36 * (2 * conv + 2 * state) / 4);
    assert_eq!(each("sglang", 4), 19_316_736);
    assert_eq!(each("llamacpp", 1), 36 * 4 * (conv + state));
}

const BAMBA: &str = r#"{"model_type":"bamba","hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,
    "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,"attn_layer_indices":[9,18,27],
    "mamba_d_conv":4,"mamba_d_head":64,"mamba_d_state":128,"mamba_expand":2,"mamba_n_groups":1,"mamba_n_heads":128,
    "tie_word_embeddings":false,"torch_dtype":"bfloat16","max_position_embeddings":262144}"#;

/// granite-4.0-h, of which every tenth layer has attention.
fn granite(hidden: u64, numbers: &str) -> String {
    let ten =
        r#""mamba","mamba","mamba","mamba","mamba","attention","mamba","mamba","mamba","mamba""#;
    format!(
        r#"{{"model_type":"granitemoehybrid","hidden_size":{hidden},"num_hidden_layers":40,"vocab_size":100352,
        "mamba_d_conv":4,"mamba_d_head":64,"mamba_d_state":128,"mamba_expand":2,"mamba_n_groups":1,{numbers},
        "torch_dtype":"bfloat16","tie_word_embeddings":true,"layer_types":[{ten},{ten},{ten},{ten}]}}"#
    )
}

/// vLLM's `MambaMixer2` raises the only group to one for each rank.
#[test]
fn the_only_group_of_mamba_2_is_on_every_rank() {
    let small = granite(
        4_096,
        r#""num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":768,"num_experts_per_tok":10,
        "shared_intermediate_size":1536,"num_local_experts":72,"mamba_n_heads":128"#,
    );
    for (config, tensor, more) in [
        (BAMBA, 4, 45_668_736),
        (BAMBA, 8, 53_280_192),
        (small.as_str(), 4, 56_692_224),
        (small.as_str(), 8, 66_140_928),
    ] {
        let one = facts(config);
        let mut apart = one.clone();
        apart.layout.groups = (8, 0);
        let held = |f: &ModelFacts| predict(f, &with("vllm", tensor)).ranks[0].weights.value;
        assert_eq!(held(&one) - held(&apart), more, "{tensor}");
    }
    let tiny = granite(
        1_536,
        r#""num_attention_heads":12,"num_key_value_heads":4,"intermediate_size":512,"num_experts_per_tok":6,
        "shared_intermediate_size":1024,"num_local_experts":64,"mamba_n_heads":48"#,
    );
    let state =
        |tensor| predict(&facts(&tiny), &with("vllm", tensor)).ranks[0].state_per_request.value;
    assert_eq!(state(4), 7_299_072);
    assert_eq!(state(1), 36 * ((3_072 + 256) * 3 + 48 * 64 * 128) * 2);
    // What `transformers` 5 has loaded and saved.
    let renamed = tiny
        .replace("\"attention\"", "\"full_attention\"")
        .replace("\"mamba\"", "\"linear_attention\"");
    assert_ne!(tiny, renamed);
    let (tiny, renamed) = (facts(&tiny), facts(&renamed));
    assert_eq!((tiny.weight_bytes, tiny.caches), (renamed.weight_bytes, renamed.caches));
}

/// `InternVL3`, with the tower of 45 layers, 3200 wide and with 25 heads.
fn internvl(numbers: &str) -> String {
    format!(
        r#"{{"model_type":"internvl_chat","torch_dtype":"bfloat16","downsample_ratio":0.5,
        "llm_config":{{"model_type":"qwen2",{numbers},"vocab_size":151674,"tie_word_embeddings":false,
        "max_position_embeddings":32768}},"vision_config":{{"model_type":"intern_vit_6b","hidden_size":3200,
        "intermediate_size":12800,"num_hidden_layers":45,"num_attention_heads":25,"image_size":448,"patch_size":14,
        "qkv_bias":false,"qk_normalization":true,"norm_type":"rms_norm"}}}}"#
    )
}

/// vLLM keeps the attention of `InternViT` whole where its heads do not divide, and what `transformers` builds.
#[test]
fn what_vllm_keeps_whole_of_towers() {
    let held = |config: &str, tensor| {
        let facts = facts(config);
        predict(&facts, &with("vllm", tensor)).ranks[0].weights.value
    };
    let large = internvl(
        r#""hidden_size":8192,"intermediate_size":29568,"num_hidden_layers":80,"num_attention_heads":64,
        "num_key_value_heads":8"#,
    );
    let small = internvl(
        r#""hidden_size":5120,"intermediate_size":27648,"num_hidden_layers":64,"num_attention_heads":40,
        "num_key_value_heads":8"#,
    );
    let audio = r#"{"model_type":"qwen2_audio","torch_dtype":"bfloat16","text_config":{"model_type":"qwen2",
        "hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,
        "num_key_value_heads":32,"vocab_size":156032,"max_position_embeddings":8192},
        "audio_config":{"model_type":"qwen2_audio_encoder"}}"#;
    for (config, tensor, bytes) in [
        (large.as_str(), 4, 41_981_141_696u64),
        (&large, 8, 22_840_461_664),
        (&small, 2, 40_241_653_120),
        (&small, 4, 21_970_058_944),
        // The encoder, 636,968,960 values, and the matrix that joins it are whole.
        (audio, 2, 9_041_674_240),
    ] {
        assert_eq!(held(config, tensor), bytes, "{tensor}");
    }
    // A tower whose heads divide is divided: 25 over five ranks.
    let whole = facts(&large);
    let mut named = whole.clone();
    named.layout.towers = crate::model::towers::Towers::default();
    let weights = |f: &ModelFacts, tensor| predict(f, &with("vllm", tensor)).ranks[0].weights.value;
    assert_eq!(weights(&whole, 5), weights(&named, 5));
    let attention = 3_686_688_000;
    assert_eq!(weights(&whole, 4) - weights(&named, 4), attention - attention / 4);
}

/// vLLM multiplies with `kv_b_proj` in 16 bits, however it is stored.
#[test]
fn absorbed_latent_attention_is_in_sixteen_bits_whatever_is_stored() {
    let lite = |more: &str| {
        facts(&format!(
            r#"{{"model_type":"deepseek_v2","hidden_size":2048,"intermediate_size":10944,"num_hidden_layers":27,
            "num_attention_heads":16,"num_key_value_heads":16,"kv_lora_rank":512,"qk_nope_head_dim":128,
            "qk_rope_head_dim":64,"v_head_dim":128,"n_routed_experts":64,"n_shared_experts":2,
            "num_experts_per_tok":6,"moe_intermediate_size":1408,"first_k_dense_replace":1,"vocab_size":102400,
            "tie_word_embeddings":false,"torch_dtype":"bfloat16"{more}}}"#
        ))
    };
    let absorbed = 27 * 512 * 16 * 256 * 2;
    for more in [
        "",
        r#","quantization_config":{"quant_method":"awq","bits":4,"group_size":128,"zero_point":true}"#,
        r#","quantization_config":{"quant_method":"gptq","bits":4,"group_size":128,"checkpoint_format":"gptq"}"#,
        r#","quantization_config":{"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16}"#,
    ] {
        let facts = lite(more);
        let held = predict(&facts, &Setup::new(rules("vllm"))).ranks[0].weights.value;
        let index: u64 = facts
            .tensors
            .iter()
            .filter(|t| t.name.ends_with("g_idx"))
            .map(tensors::Tensor::total)
            .sum();
        assert_eq!(held - facts.rope_bytes, facts.weight_bytes.0 - index + absorbed, "{more}");
    }
}
