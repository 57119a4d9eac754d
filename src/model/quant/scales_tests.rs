//! Types and shapes of what lies beside a layer's weight.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use serde_json::Value;

use super::*;

fn read(json: &str) -> Quantisation {
    Quantisation::read(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
}

/// Type and bytes of every tensor of a layer of 256 rows and 320 columns besides its weight.
fn beside(json: &str, dtype: (&'static str, u64)) -> Vec<(&'static str, &'static str, u64)> {
    let stored = read(json).method.stored(256, 320, dtype).into_iter();
    stored.filter(|s| s.0 != "weight" && s.0 != "weight_packed").map(|s| (s.0, s.1, s.3)).collect()
}

/// `compressed-tensors` keeps scales in the model's own type; `initialize.py`, `compressors/*/base.py`.
#[test]
fn scales_have_the_type_and_shape_of_their_method() {
    let of = |weights: &str, more: &str, format: &str| {
        format!(
            r#"{{"quant_method":"compressed-tensors","format":"{format}","config_groups":{{"group_0":
            {{"targets":["Linear"],"weights":{{{weights}}}{more}}}}}}}"#
        )
    };
    let half = ("F16", 2);
    let static_input = r#","input_activations":{"dynamic":false,"num_bits":8,"type":"float"}"#;
    let fp8 = |strategy: &str| format!(r#""num_bits":8,"type":"float","strategy":"{strategy}""#);
    let tensor = of(&fp8("tensor"), static_input, "float-quantized");
    let two = [("weight_scale", "F16", 2), ("input_scale", "F16", 2)];
    assert_eq!(beside(&tensor, half), two);
    assert_eq!(beside(&tensor, ("F32", 4))[0], ("weight_scale", "F32", 4));
    let channel = of(&fp8("channel"), r#","input_activations":{"dynamic":true}"#, "x");
    assert_eq!(beside(&channel, half), [("weight_scale", "F16", 512)]);
    assert_eq!(beside(&channel, ("F32", 4)), [("weight_scale", "F32", 1_024)]);
    let block = format!(r#"{},"block_structure":[128,128]"#, fp8("block"));
    assert_eq!(beside(&of(&block, "", "x"), half), [("weight_scale", "F16", 2 * 3 * 2)]);
    let group = format!(r#"{},"group_size":64"#, fp8("group"));
    assert_eq!(beside(&of(&group, "", "x"), half), [("weight_scale", "F16", 256 * 5 * 2)]);
    // MXFP8: a shared exponent of 32, in a byte.
    let mx = format!(r#"{},"group_size":32,"scale_dtype":"torch.uint8""#, fp8("group"));
    let exponents = [("weight_scale", "U8", 256 * 10)];
    assert_eq!(beside(&of(&mx, "", "mxfp8-quantized"), half), exponents);
    assert_eq!(
        beside(&of(&mx.replace("scale_dtype", "x"), "", "mxfp8-quantized"), half),
        exponents
    );
    for json in
        [r#"{"quant_method":"modelopt","quant_algo":"MXFP8"}"#, r#"{"quant_method":"mxfp8"}"#]
    {
        assert_eq!(beside(json, half), exponents, "{json}");
        assert!(!read(json).rough && !read(json).unknown);
    }
    // Integers with zero points.
    let uneven = r#""num_bits":8,"type":"int","strategy":"channel","symmetric":false"#;
    assert_eq!(
        beside(&of(uneven, "", "int-quantized"), half),
        [("weight_scale", "F16", 512), ("weight_zero_point", "I8", 256)]
    );
    let static_input =
        r#","input_activations":{"dynamic":false,"num_bits":8,"type":"int","symmetric":false}"#;
    let whole = r#""num_bits":8,"type":"int","strategy":"tensor""#;
    assert_eq!(
        beside(&of(whole, static_input, "int-quantized"), half),
        [("weight_scale", "F16", 2), ("input_scale", "F16", 2), ("input_zero_point", "I8", 1)]
    );
    // An index only where groups follow it.
    let packed = |order: &str| {
        let weights = format!(
            r#""num_bits":4,"type":"int","strategy":"group","group_size":64,"actorder":{order}"#
        );
        beside(&of(&weights, "", "pack-quantized"), half)
    };
    let usual = [("weight_scale", "F16", 256 * 5 * 2), ("weight_shape", "I64", 16)];
    for order in ["null", r#""weight""#, r#""static""#, "false"] {
        assert_eq!(packed(order), usual, "{order}");
    }
    for order in [r#""group""#, r#""dynamic""#, "true"] {
        assert_eq!(packed(order)[2], ("weight_g_idx", "I32", 1_280), "{order}");
    }
    // FBGEMM and `ModelOpt` have floats for each row and block.
    let rows = [("weight_scale", "F32", 1_024)];
    assert_eq!(beside(r#"{"quant_method":"fbgemm_fp8"}"#, half), rows);
    let modelopt = |name: &str| format!(r#"{{"quant_method":"modelopt","quant_algo":"{name}"}}"#);
    assert_eq!(beside(&modelopt("FP8_PER_CHANNEL_PER_TOKEN"), half), rows);
    assert!(!read(&modelopt("FP8_PER_CHANNEL_PER_TOKEN")).rough);
    assert_eq!(beside(&modelopt("FP8_PB_WO"), half)[0].2, 2 * 3 * 4);
    // Four bits whose inputs are scaled as they come have no scale of their own.
    let nvfp4 = r#""num_bits":4,"type":"float","strategy":"tensor_group","group_size":16"#;
    let with = |dynamic: &str| {
        let input = format!(r#","input_activations":{{"dynamic":{dynamic}}}"#);
        beside(&of(nvfp4, &input, "nvfp4-pack-quantized"), half).len()
    };
    assert_eq!((with("true"), with(r#""local""#), with("false")), (2, 3, 3));
    // Half of the weights are left out, in a way that is not followed.
    assert!(read(&of(&fp8("channel"), "", "marlin-24")).unknown);
}

#[test]
fn scales_of_the_cache_are_stored_where_they_are_fixed() {
    let of = |scheme: &str| {
        let json = format!(
            r#"{{"model_type":"llama","torch_dtype":"bfloat16","hidden_size":64,"num_hidden_layers":2,
            "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":128,"vocab_size":100,
            "quantization_config":{scheme}}}"#
        );
        let config = crate::model::hf_config::parse(json.as_bytes()).unwrap();
        let tensors = config.blueprint(None).0.unwrap().tensors;
        let named = |end: &str| -> u64 {
            tensors.iter().filter(|t| t.name.ends_with(end)).map(|t| t.bytes).sum()
        };
        (named(".k_scale"), named(".v_scale"))
    };
    let compressed = |cache: &str| {
        of(&format!(
            r#"{{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{{"group_0":
            {{"targets":["Linear"],"weights":{{"num_bits":8,"type":"float","strategy":"channel"}}}}}},
            "kv_cache_scheme":{cache}}}"#
        ))
    };
    assert_eq!(
        compressed(r#"{"num_bits":8,"type":"float","dynamic":false,"strategy":"tensor"}"#),
        (4, 4)
    );
    assert_eq!(compressed(r#"{"num_bits":8,"type":"float","dynamic":true}"#), (0, 0));
    assert_eq!(compressed(r#"{"num_bits":8,"dynamic":false,"strategy":"attn_head"}"#), (8, 8));
    assert_eq!(compressed("null"), (0, 0));
    let modelopt = r#"{"quant_method":"modelopt","quant_algo":"FP8","kv_cache_scheme":{"num_bits":8,
        "dynamic":false,"type":"float"}}"#;
    assert_eq!(of(modelopt), (8, 8));
}

/// MLX on Apple silicon: `mlx-lm`'s `quantize_model`, with settings for single layers.
#[test]
fn mlx_states_its_bits_and_nothing_more() {
    let q = read(
        r#"{"group_size":64,"bits":4,"model.layers.0.mlp.gate":{"group_size":64,"bits":8},
        "language_model.model.layers.1.mlp.switch_mlp.down_proj":{"group_size":32,"bits":6},
        "model.layers.2.mlp.down_proj":false,"lm_head":true}"#,
    );
    assert!(q.is_mlx() && !q.unknown && !q.rough);
    assert_eq!(q.name, "mlx 4 bits");
    let mlx = |bits, group| Method::Mlx { bits, group, exponent: false };
    assert_eq!(q.of("model.layers.0.mlp.up_proj"), mlx(4, 64));
    assert_eq!(q.of("model.layers.0.mlp.gate"), mlx(8, 64));
    assert_eq!(q.of("model.layers.1.mlp.experts.*.down_proj"), mlx(6, 32));
    assert_eq!(q.of("model.layers.2.mlp.down_proj"), Method::Plain);
    assert_eq!((q.of("lm_head"), q.of("model.embed_tokens")), (mlx(4, 64), mlx(4, 64)));
    // Packed, with a scale and a bias for each group; what groups do not divide stays as it is.
    let bytes = |method: Method, columns| {
        method.stored(256, columns, ("BF16", 2)).iter().map(|s| s.3).sum::<u64>()
    };
    assert_eq!(bytes(mlx(4, 64), 320), 256 * 160 + 2 * 256 * 5 * 2);
    assert_eq!(bytes(mlx(4, 64), 300), 256 * 300 * 2);
    for (mode, method, expected) in [
        ("mxfp4", Method::Mlx { bits: 4, group: 32, exponent: true }, 256 * 160 + 256 * 10),
        ("nvfp4", Method::Mlx { bits: 4, group: 16, exponent: true }, 256 * 160 + 256 * 20),
        ("mxfp8", Method::Mlx { bits: 8, group: 32, exponent: true }, 256 * 320 + 256 * 10),
    ] {
        let q = read(&format!(r#"{{"mode":"{mode}"}}"#));
        assert_eq!(q.method, method, "{mode}");
        assert_eq!(bytes(q.method, 320), expected, "{mode}");
    }
    // AutoGPTQ's own file says as little, but what MLX never does.
    assert!(!read(r#"{"bits":4,"group_size":128,"desc_act":false}"#).is_mlx());
    assert!(!read(r#"{"quant_method":"gptq","bits":4,"group_size":128}"#).is_mlx());
}
