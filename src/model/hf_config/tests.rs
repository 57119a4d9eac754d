//! Configurations as people write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use crate::model::arch::Certainty;
use crate::model::tensors::total;

#[test]
fn reads_numbers_as_people_write_them() {
    let config = parse(
        br#"{"architectures":["LlamaForCausalLM"],"num_hidden_layers":"32","hidden_size":4096.0,
            "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,
            "max_position_embeddings":131072,"torch_dtype":"bfloat16","tie_word_embeddings":false}"#,
    )
    .unwrap();
    assert_eq!(config.layers, Some(32));
    assert_eq!(config.hidden_size, Some(4096));
    assert_eq!(config.head_dim, Some(128));
    assert_eq!(config.kv_heads, Some(8));
    assert_eq!(config.dtype.as_deref(), Some("bfloat16"));
    assert_eq!(config.tie_word_embeddings, Some(false));
}

#[test]
fn looks_into_the_language_model_of_a_multimodal_one() {
    let config = parse(
        br#"{"architectures":["X"],"hidden_size":1,"torch_dtype":"float16","vision_config":{"num_hidden_layers":9},
            "text_config":{"num_hidden_layers":48,"hidden_size":5120,"num_attention_heads":64,
            "num_local_experts":16,"num_experts_per_tok":1,
            "layer_types":["full_attention","sliding_attention"]},
            "quantization_config":{"quant_method":"gptq","bits":4}}"#,
    )
    .unwrap();
    assert_eq!(config.layers, Some(48));
    assert_eq!(config.hidden_size, Some(5120));
    assert_eq!(config.kv_heads, Some(64));
    assert_eq!(config.experts, Some(16));
    assert_eq!(config.full_attention_layers, Some(1));
    assert_eq!(config.quantisation.as_deref(), Some("gptq 4 bits"));
}

#[test]
fn what_is_no_count_is_named() {
    for (key, value) in [
        ("num_hidden_layers", "-3"),
        ("num_hidden_layers", "[80]"),
        ("num_hidden_layers", "2001"),
        ("num_hidden_layers", "true"),
        ("hidden_size", "4096.5"),
        ("hidden_size", "1e300"),
        ("vocab_size", "1000000000"),
        ("kv_lora_rank", "\"many\""),
        ("num_attention_heads", "\"32.5\""),
        ("num_key_value_heads", "[8,-1]"),
        ("moe_intermediate_size", "{}"),
        ("first_k_dense_replace", "\"x\""),
        ("max_position_embeddings", "-5"),
        ("max_position_embeddings", "0"),
        ("max_position_embeddings", "9223372036854775808"),
        ("n_positions", "\"long\""),
        ("sliding_window", "-1"),
        ("sliding_window", "99999999999"),
        ("linear_num_value_heads", "-32"),
        ("linear_conv_kernel_dim", "1.5"),
        ("index_head_dim", "99999999"),
        ("mamba_d_state", "\"much\""),
        ("ssm_state_size", "-128"),
        ("conv_kernel", "-4"),
        ("n_groups", "\"some\""),
        ("expand", "2.5"),
        ("mamba_dt_rank", "-1"),
        ("num_kv_heads", "-8"),
        ("moe_num_experts", "\"x\""),
        ("attn_layer_period", "-8"),
    ] {
        for json in
            [format!(r#"{{"{key}":{value}}}"#), format!(r#"{{"text_config":{{"{key}":{value}}}}}"#)]
        {
            let error = parse(json.as_bytes()).unwrap_err().to_string();
            let begins = value.get(..2).unwrap_or(value);
            assert!(error.contains(&format!("`{key}` is {begins}")), "{json}: {error}");
        }
    }
    for (object, key, value) in [
        ("linear_attn_config", "num_heads", "-32"),
        ("linear_attn_config", "head_dim", "1.5"),
        ("linear_attn_config", "short_conv_kernel_size", "\"wide\""),
        ("attn_config", "kv_n_heads", "99999999"),
        ("ffn_config", "moe_num_experts", "-1"),
    ] {
        let json = format!(r#"{{"{object}":{{"{key}":{value}}}}}"#);
        let error = parse(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{object}.{key}` is ")), "{json}: {error}");
    }
    let good = br#"{"num_hidden_layers":"32","hidden_size":4096.0,"num_key_value_heads":[8,4],
        "head_dim":null,"moe_intermediate_size":[1536,512],"quantization_config":null,
        "sliding_window":0,"mamba_d_head":"auto","mamba_d_ssm":null,"max_position_embeddings":"4096"}"#;
    let config = parse(good).unwrap();
    assert_eq!((config.layers, config.hidden_size), (Some(32), Some(4096)));
    assert_eq!(config.head_dim, None);
    for bad in [&b"[]"[..], b"", b"{", b"nul\0"] {
        assert!(parse(bad).is_err());
    }
}

#[test]
fn heads_that_differ_from_layer_to_layer_are_no_default() {
    let of = |heads: &str| {
        let json = format!(
            r#"{{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
            "num_key_value_heads":{heads},"intermediate_size":128,"vocab_size":100,"torch_dtype":"bfloat16"}}"#
        );
        parse(json.as_bytes()).unwrap().blueprint(None).0.unwrap()
    };
    assert_eq!(of("[2,2]").tensors, of("2").tensors);
    assert_eq!(of("[2,2]").certainty, arch::Certainty::Exact);
    assert_eq!(of("[2,1]").certainty, arch::Certainty::Guess);
}

/// GPT-2 and its like were published in 32 bits, before files stated a type; of all others it is not known.
#[test]
fn a_type_that_is_not_stated_is_no_exact_figure() {
    let of = |kind: &str, more: &str| {
        let json = format!(
            r#"{{"model_type":"{kind}","hidden_size":64,"n_embd":64,"num_hidden_layers":2,"num_layers":2,"n_layer":2,
            "num_attention_heads":4,"num_heads":4,"n_head":4,"intermediate_size":256{more},"vocab_size":100}}"#
        );
        let drawn = parse(json.as_bytes()).unwrap().blueprint(None).0.unwrap();
        (crate::model::tensors::total(&drawn.tensors), drawn.certainty)
    };
    for kind in ["gpt2", "gpt_neo"] {
        let (half, sure) = of(kind, r#","torch_dtype":"float16""#);
        assert_eq!(sure, arch::Certainty::Exact);
        assert_eq!(of(kind, ""), (2 * half, sure), "{kind}");
    }
    let (bytes, sure) = of("llama", r#","torch_dtype":"bfloat16""#);
    assert_eq!(sure, arch::Certainty::Exact);
    assert_eq!(of("llama", ""), (bytes, arch::Certainty::Close));
    assert_eq!(of("llama", r#","dtype":"float32""#), (2 * bytes, sure));
    // What is left of a quantised model is in 16 bits.
    let eight = r#","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}"#;
    assert_eq!(of("llama", eight).1, arch::Certainty::Exact);
}

#[test]
fn reads_what_python_writes() {
    let config = parse(
        br#"{"model_type":"a \" Infinity","limit":[0.0, Infinity, -Infinity, NaN],"n_layer":2}"#,
    )
    .unwrap();
    assert_eq!(config.architecture.as_deref(), Some(r#"a " Infinity"#));
    assert_eq!(config.layers, Some(2));
}

#[test]
fn scaled_positions_make_the_context_longer() {
    let of = |scaling: &str| {
        let json = format!(r#"{{"max_position_embeddings":40960,"rope_scaling":{scaling}}}"#);
        parse(json.as_bytes()).unwrap().context
    };
    let yarn = r#"{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768}"#;
    for (scaling, context) in [
        (yarn, 131_072),
        (&yarn.replace("rope_type", "type"), 131_072),
        (r#"{"type":"yarn","factor":"4"}"#, 163_840),
        (r#"{"type":"dynamic","factor":2.0}"#, 81_920),
        (r#"{"rope_type":"linear","factor":8}"#, 327_680),
        (r#"{"type":"dynamic","alpha":1000.0}"#, 40_960),
        // Stated as they are after scaling.
        (r#"{"rope_type":"llama3","factor":8.0,"original_max_position_embeddings":8192}"#, 40_960),
        (r#"{"type":"longrope","factor":32,"original_max_position_embeddings":4096}"#, 40_960),
        (r#"{"type":"su","original_max_position_embeddings":4096}"#, 40_960),
        (r#"{"type":"mrope","mrope_section":[16,24,24]}"#, 40_960),
        (r#"{"type":"yarn","factor":1e300}"#, 40_960),
        ("null", 40_960),
    ] {
        assert_eq!(of(scaling), Some(context), "{scaling}");
    }
    // One of each kind of layer; a length for all of it beside that of a part.
    let more = br#"{"max_position_embeddings":8192,"rope_parameters":{
        "full_attention":{"rope_type":"yarn","factor":8.0,"original_max_position_embeddings":8192},
        "sliding_attention":{"rope_type":"default","rope_theta":10000.0}}}"#;
    assert_eq!(parse(more).unwrap().context, Some(65_536));
    let command = br#"{"max_position_embeddings":8192,"model_max_length":131072}"#;
    assert_eq!(parse(command).unwrap().context, Some(131_072));
    let gemma = br#"{"text_config":{"model_type":"gemma3_text","max_position_embeddings":131072,
        "rope_scaling":{"rope_type":"linear","factor":8.0}}}"#;
    assert_eq!(parse(gemma).unwrap().context, Some(131_072));
}

#[test]
fn what_a_family_assumes_is_left_out() {
    let of = |json: &str| {
        let read = parse(json.as_bytes()).unwrap();
        (read.context, read.vocab_size)
    };
    assert_eq!(
        of(r#"{"model_type":"falcon","num_hidden_layers":32}"#),
        (Some(2_048), Some(65_024))
    );
    let gemma = r#"{"model_type":"gemma3","text_config":{"model_type":"gemma3_text","hidden_size":2560,
        "rope_scaling":{"rope_type":"linear","factor":8.0}}}"#;
    assert_eq!(of(gemma), (Some(131_072), Some(262_208)));
    let paligemma =
        r#"{"model_type":"paligemma","text_config":{"model_type":"gemma2","vocab_size":257216}}"#;
    assert_eq!(of(paligemma), (Some(8_192), Some(257_216)));
    assert_eq!(of(r#"{"model_type":"gpt2","vocab_size":50}"#), (Some(1_024), Some(50)));
    // What is stated counts; what nobody knows stays so.
    assert_eq!(of(r#"{"model_type":"falcon","max_position_embeddings":8192}"#).0, Some(8_192));
    assert_eq!(of(r#"{"model_type":"nobody_knows"}"#), (None, None));
}

#[test]
fn latent_attention_caches_one_vector() {
    let config = parse(
        br#"{"num_hidden_layers":61,"kv_lora_rank":512,"qk_rope_head_dim":64,
            "num_attention_heads":128,"hidden_size":7168,"n_routed_experts":256}"#,
    )
    .unwrap();
    assert_eq!(config.latent_cache_width, Some(576));
}

#[test]
fn heads_of_latent_attention_are_not_a_share_of_the_hidden_size() {
    let deepseek = r#"{"model_type":"deepseek_v3","num_hidden_layers":61,"hidden_size":7168,
        "num_attention_heads":128,"num_key_value_heads":128,"kv_lora_rank":512,"qk_rope_head_dim":64,
        "qk_nope_head_dim":128,"v_head_dim":128}"#;
    for json in [deepseek.to_owned(), deepseek.replace("61,", "61,\"head_dim\":64,")] {
        let config = parse(json.as_bytes()).unwrap();
        assert_eq!(config.head_dim, Some(192), "{json}");
        let mut facts = ModelFacts::unknown(super::super::ModelFormat::Safetensors, "/m".into());
        config.fill(&mut facts);
        assert_eq!((facts.head_dim, facts.value_head_dim), (Some(192), Some(128)));
        let text = facts.summary().join("\n");
        let told = "latent attention: keys of 128 + 64, values of 128, 512 + 64 cached";
        assert!(text.contains(told) && !text.contains("head size"), "{text}");
    }
}

/// A method for each of 23,000 layers, as `MiniMax` M3 in mixed precision has them: 2.9 MiB.
#[test]
fn a_list_of_all_layers_and_their_methods_is_read() {
    let layers: Vec<String> = (0..23_000)
        .map(|n| {
            format!(
                r#""language_model.model.layers.{}.block_sparse_moe.experts.{n}.w1":
                {{"quant_algo":"NVFP4","group_size":16}}"#,
                n / 400
            )
        })
        .collect();
    let json = format!(
        r#"{{"model_type":"llama","hidden_size":4096,"quantization_config":{{"quant_algo":"MIXED_PRECISION",
        "quantized_layers":{{{}}}}}}}"#,
        layers.join(",")
    );
    assert!(json.len() > 2 << 20 && (json.len() as u64) < MAX_CONFIG);
    assert!(parse(json.as_bytes()).unwrap().states_quantisation());
    // What would take much more memory than its text is no configuration.
    let heavy = format!(r#"{{"a":[{}{{}}]}}"#, r#"{"":0},"#.repeat(200_000));
    let error = parse(heavy.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("holds too much"), "{error}");
}

/// Numbers of a quantisation that would make it nothing, or something else.
#[test]
fn bits_and_blocks_are_counts() {
    let of = |stored: &str| {
        parse(format!(r#"{{"model_type":"llama","quantization_config":{stored}}}"#).as_bytes())
    };
    for (stored, named) in [
        (r#"{"quant_method":"awq","bits":0}"#, "bits` is 0"),
        (r#"{"quant_method":"gptq","bits":"four"}"#, "bits` is "),
        (r#"{"quant_method":"awq","w_bit":64}"#, "w_bit` is 64"),
        (r#"{"quant_method":"fp8","weight_block_size":[0,0]}"#, "weight_block_size` is [0,0]"),
        (r#"{"quant_method":"fp8","weight_block_size":[-1,128]}"#, "weight_block_size"),
        (r#"{"quant_method":"fp8","weight_block_size":[128]}"#, "weight_block_size"),
        (r#"{"quant_method":"fp8","weight_block_size":"128"}"#, "weight_block_size"),
    ] {
        let error = of(stored).unwrap_err().to_string();
        assert!(error.contains(named), "{stored}: {error}");
    }
    for stored in [
        r#"{"quant_method":"awq","bits":4}"#,
        r#"{"quant_method":"gptq","bits":"8"}"#,
        r#"{"quant_method":"exl2","bits":4.25}"#,
        r#"{"quant_method":"fp8","weight_block_size":[128,128]}"#,
        r#"{"quant_method":"fp8","weight_block_size":null}"#,
    ] {
        assert!(of(stored).is_ok(), "{stored}");
    }
}

/// compressed-tensors' first name for it, at the top and inside; and what is no object at all.
#[test]
fn a_quantisation_has_an_older_name_and_may_not_be_understood() {
    let llama = |more: &str| {
        let json = format!(
            r#"{{"model_type":"llama","hidden_size":4096,"num_hidden_layers":32,"num_attention_heads":32,
            "num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256,"tie_word_embeddings":false,
            "torch_dtype":"bfloat16"{more}}}"#
        );
        let read = parse(json.as_bytes()).unwrap();
        let (drawn, _) = read.blueprint(None);
        (total(&drawn.as_ref().unwrap().tensors), drawn.unwrap().certainty, read)
    };
    let scheme = r#"{METHOD"format":"float-quantized","ignore":["lm_head"],"config_groups":{"g":{
        "targets":["Linear"],"weights":{"num_bits":8,"type":"float","strategy":"tensor"},"input_activations":{
        "num_bits":8,"type":"float","dynamic":false,"strategy":"tensor"}}}}"#;
    let named = scheme.replace("METHOD", r#""quant_method":"compressed-tensors","#);
    let usual = llama(&format!(r#","quantization_config":{named}"#));
    assert_eq!((usual.0, usual.1), (9_081_201_536, Certainty::Exact));
    for older in [
        format!(r#","compression_config":{named}"#),
        format!(
            r#","quantization_config":null,"compression_config":{}"#,
            scheme.replace("METHOD", "")
        ),
        format!(r#","text_config":{{"model_type":"llama","compression_config":{named}}}"#),
    ] {
        let found = llama(&older);
        assert_eq!((found.0, found.1), (usual.0, usual.1), "{older}");
        assert!(found.2.states_quantisation());
    }
    let plain = llama("");
    assert!(plain.1 == Certainty::Exact && !plain.2.states_quantisation());
    for (stated, name) in [(r#""fp8""#, Some("fp8")), (r#"["fp8"]"#, None), ("true", None)] {
        let found = llama(&format!(r#","quantization_config":{stated}"#));
        assert_eq!(found.1, Certainty::Guess, "{stated}");
        assert!(found.2.states_quantisation());
        assert_eq!(found.2.quantisation.as_deref(), name, "{stated}");
    }
    assert_eq!(llama(r#","quantization_config":false"#).1, Certainty::Exact);
}
