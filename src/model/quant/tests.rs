//! What checkpoints' configurations say of their quantisation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use serde_json::Value;

use super::read::FP8_TENSOR;
use super::*;

fn read(json: &str) -> Quantisation {
    Quantisation::read(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
}

fn bytes(q: &Quantisation, rows: u64, columns: u64) -> u64 {
    q.method.stored(rows, columns, ("BF16", 2)).iter().map(|s| s.3).sum()
}

#[test]
fn bytes_of_a_layer() {
    let cases = [
        (r#"{"quant_method":"fp8","weight_block_size":[128,128]}"#, 256 * 300 + 2 * 3 * 4),
        (r#"{"quant_method":"fp8","activation_scheme":"static"}"#, 256 * 300 + 8),
        (
            r#"{"quant_method":"awq","bits":4,"group_size":100}"#,
            256 * 300 / 2 + 3 * 32 * 4 + 3 * 256 * 2,
        ),
        (
            r#"{"quant_method":"gptq","bits":4,"group_size":-1}"#,
            38 * 256 * 4 + 32 * 4 + 256 * 2 + 300 * 4,
        ),
        (r#"{"quant_algo":"NVFP4","group_size":16}"#, 256 * 150 + 256 * 19 + 8),
        (r#"{"quant_method":"bitsandbytes","load_in_8bit":true}"#, 256 * 300 + 1024),
    ];
    for (json, expected) in cases {
        assert_eq!(bytes(&read(json), 256, 300), expected, "{json}");
    }
    assert!(read(r#"{"quant_method":"something new"}"#).unknown);
}

#[test]
fn exceptions_are_found_however_they_are_written() {
    let q = read(
        r#"{"quant_method":"modelopt","quant_algo":"NVFP4","kv_cache_scheme":{"num_bits":8},"ignore":["lm_head",
        "language_model.model.layers.0*","model.layers.7.self_attn.o_proj","*.mlp.shared_expert.*",
        "re:.*mlp\\.(gate|up)_proj.*","gate"]}"#,
    );
    assert!(q.cache_fp8);
    for out in [
        "lm_head",
        "layers.0.mlp.down_proj",
        "model.layers.7.self_attn.o_proj",
        "model.layers.3.mlp.shared_expert.up_proj",
        "layers.4.mlp.gate_proj",
        "layers.5.mlp.gate",
    ] {
        assert!(!q.covers(out), "{out}");
    }
    for covered in
        ["layers.10.mlp.down_proj", "layers.7.self_attn.q_proj", "layers.4.mlp.experts.*.up_proj"]
    {
        assert!(q.covers(covered), "{covered}");
    }
    assert!(!read(r#"{"quant_method":"awq"}"#).covers("visual.blocks.1.attn.qkv"));
}

#[test]
fn every_group_has_its_own_targets() {
    let groups = |first: &str, second: &str| {
        read(&format!(
            r#"{{"quant_method":"compressed-tensors","format":"mixed-precision",
            "config_groups":{{"group_0":{first},"group_1":{second}}},"ignore":["lm_head"]}}"#
        ))
    };
    let nvfp4 = r#"{"targets":["re:.*mlp.*"],"weights":{"num_bits":4,"type":"float","strategy":"tensor_group",
        "group_size":16},"input_activations":{"dynamic":"local"}}"#;
    let fp8 = r#"{"targets":["re:.*self_attn.*"],"weights":{"num_bits":8,"type":"float","strategy":"channel"}}"#;
    let all = fp8.replace("re:.*self_attn.*", "Linear");
    let channel = Method::Eight(Eight::float(Piece::Row, Scale::Model));
    for q in [groups(nvfp4, fp8), groups(fp8, nvfp4), groups(&all, nvfp4)] {
        assert!(q.name.contains("fp4") && q.name.contains("fp8"), "{}", q.name);
        assert_eq!(q.of("model.layers.3.mlp.up_proj"), Method::Nvfp4 { group: 16, input: true });
        assert_eq!(q.of("model.layers.3.self_attn.q_proj"), channel);
        assert_eq!(q.of("lm_head"), Method::Plain);
        assert!(q.is_followed());
    }
    assert_eq!(groups(nvfp4, fp8).of("model.layers.3.linear_attn.in_proj"), Method::Plain);
    assert_eq!(groups(nvfp4, &all).of("model.layers.3.linear_attn.in_proj"), channel);
    let experts = nvfp4.replace("re:.*mlp.*", r"re:.*experts\\.\\d+\\.(gate|up|down)_proj$");
    let q = groups(&experts, &all);
    assert_eq!(
        q.of("model.layers.3.mlp.experts.*.up_proj"),
        Method::Nvfp4 { group: 16, input: true }
    );
    assert_eq!(q.of("model.layers.3.mlp.shared_expert.up_proj"), channel);
    // The head by its name, before a class; weights alone have no scale of their input.
    let head = fp8.replace("re:.*self_attn.*", "lm_head");
    let alone = nvfp4.replace("re:.*mlp.*", "Linear").replace("input_activations", "x");
    let q = read(&format!(
        r#"{{"quant_method":"compressed-tensors","config_groups":{{"group_0":{head},"group_1":{alone}}}}}"#
    ));
    assert_eq!(q.of("lm_head"), channel);
    let method = Method::Nvfp4 { group: 16, input: false };
    assert_eq!(q.of("model.layers.3.mlp.up_proj"), method);
    let bytes =
        |method: Method| method.stored(256, 320, ("BF16", 2)).iter().map(|s| s.3).sum::<u64>();
    assert_eq!(bytes(method), 256 * 160 + 256 * 20 + 4);
    // MXFP4 has one scale of 32, and no other.
    assert_eq!(bytes(Method::Nvfp4 { group: 32, input: true }), 256 * 160 + 256 * 10);
    let mixed = read(
        r#"{"quant_algo":"MIXED_PRECISION","quantized_layers":{
        "model.layers.0.mlp.up_proj":{"quant_algo":"NVFP4","group_size":16},
        "model.layers.0.mlp.experts.7.down_proj":{"quant_algo":"FP8"}}}"#,
    );
    assert_eq!(mixed.of("model.layers.0.mlp.up_proj"), Method::Nvfp4 { group: 16, input: true });
    let fp8 = Method::Eight(FP8_TENSOR);
    assert_eq!(mixed.of("model.layers.0.mlp.experts.*.down_proj"), fp8);
    assert_eq!(mixed.of("model.layers.1.mlp.up_proj"), Method::Plain);
}

#[test]
fn methods_not_known_well_are_counted_by_their_bits() {
    for (json, method) in [
        (
            r#"{"quant_method":"auto-round","bits":4,"group_size":128,"packing_format":"auto_round:auto_gptq"}"#,
            Method::Gptq { bits: 4, group: 128, ordered: false },
        ),
        (
            r#"{"quant_method":"auto-round","bits":4,"group_size":128,"packing_format":"auto_round:auto_awq"}"#,
            Method::Awq { bits: 4, group: 128 },
        ),
        (
            r#"{"quant_method":"quark","global_quant_config":{"weight":{"dtype":"fp4","group_size":32}}}"#,
            Method::Bits { bits: 4, group: 32 },
        ),
        (
            r#"{"quant_method":"quark","global_quant_config":{"weight":{"dtype":"fp8_e4m3"}}}"#,
            Method::Bits { bits: 8, group: 0 },
        ),
        (
            r#"{"quant_method":"torchao","quant_type":{"default":{"_type":"Int4WeightOnlyConfig"}}}"#,
            Method::Bits { bits: 4, group: 128 },
        ),
        (
            r#"{"quant_method":"hqq","quant_config":{"weight_quant_params":{"nbits":3,"group_size":64}}}"#,
            Method::Bits { bits: 3, group: 64 },
        ),
        (
            r#"{"quant_method":"eetq","weights":"int8"}"#,
            Method::Eight(Eight { integer: true, ..Eight::float(Piece::Row, Scale::Model) }),
        ),
    ] {
        let q = read(json);
        assert_eq!((q.method, q.rough, q.unknown), (method, true, false), "{json}");
    }
    assert!(read(r#"{"quant_method":"quark"}"#).unknown);
    assert_eq!(
        bytes(
            &read(
                r#"{"quant_method":"hqq","quant_config":{"weight_quant_params":{"nbits":4,"group_size":100}}}"#
            ),
            256,
            300
        ),
        256 * 150 + 256 * 3 * 2
    );
}

#[test]
fn lists_are_followed_as_far_as_they_are_cheap() {
    let list = |names: &[String]| {
        let names = serde_json::to_string(names).unwrap();
        read(&format!(r#"{{"quant_method":"fp8","ignore":{names}}}"#))
    };
    let many = |make: &dyn Fn(usize) -> String| -> Vec<String> { (0..2_000).map(make).collect() };
    // One star at an end costs nothing, however many there are.
    let q = list(&many(&|i| format!("model.layers.{i}.self_attn*")));
    assert!(!q.covers("model.layers.17.self_attn.q_proj") && q.covers("layers.17.mlp.up_proj"));
    let q = list(&many(&|i| format!("*.{i}.mlp.gate")));
    assert!(!q.covers("model.layers.17.mlp.gate") && q.covers("model.layers.17.mlp.gate_proj"));
    assert!(q.is_followed());
    // Others are counted, and so is the work.
    let q = list(&many(&|i| format!("*l*a*y*q*x{i}")));
    assert!(!q.is_followed());
    let q = list(&(0..60).map(|i| format!("*l*a*y*q*x{i}")).collect::<Vec<_>>());
    for layer in 0..20_000 {
        assert!(q.covers(&format!("model.layers.{layer}.mlp.up_proj")));
    }
    assert!(!q.is_followed());
    // An expression too large, or none that is known here (Python's look-ahead).
    for pattern in ["re:(?:.{0,900}.{0,900}.{0,100})", "re:^(?!.*mlp).*", "re:(", "re:a)|(?:b"] {
        assert!(!list(&[pattern.to_owned()]).is_followed(), "{pattern}");
    }
    assert!(list(&["re:.*mlp.*".to_owned(), "re:.*gate$".to_owned()]).is_followed());
    // Expressions are tried as far as they are few, good ones and others.
    for make in [|i| format!("re:.*layers\\.{i}\\.mlp.*"), |i| format!("re:(?:.{{0,900}}){i}")] {
        assert!(!list(&(0..20_000).map(make).collect::<Vec<_>>()).is_followed());
    }
}

/// `GPTQModel` writes `lm_head: true` where it has packed the head as well.
#[test]
fn gptq_packs_the_head_where_it_says_so() {
    let llama = |head: &str| {
        crate::model::estimate::tests::facts(&format!(
            r#"{{"model_type":"llama","hidden_size":4096,"num_hidden_layers":32,"num_attention_heads":32,
            "num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256,"tie_word_embeddings":false,
            "torch_dtype":"float16","quantization_config":{{"quant_method":"gptq","bits":4,"group_size":128,
            "checkpoint_format":"gptq"{head}}}}}"#
        ))
        .weight_bytes
        .0
    };
    let (rows, columns) = (128_256, 4_096);
    let packed = rows * columns / 2 + columns / 128 * (rows / 2 + 2 * rows) + 4 * columns;
    assert_eq!(llama(r#","lm_head":false"#), 5_732_835_328);
    assert_eq!(llama(""), 5_732_835_328);
    assert_eq!(llama(r#","lm_head":true"#), 5_732_835_328 - 2 * rows * columns + packed);
    let all = r#","lm_head":true,"modules_in_block_to_quantize":[["mlp.up_proj"]]"#;
    let some = r#","modules_in_block_to_quantize":[["mlp.up_proj"]]"#;
    assert_eq!(llama(all), llama(some) - 2 * rows * columns + packed);
    assert_eq!(llama(r#","lm_head":true,"dynamic":{"-:lm_head":{}}"#), llama(""));
}
