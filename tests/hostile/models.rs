//! Directories that are no model, or a bad one, and what is said of each.

use std::path::Path;

/// A safetensors file with this header and so many bytes of data.
pub fn safetensors(json: &str, data: usize) -> Vec<u8> {
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

/// Makes them in `dir`: the name of each, and words that its error must have.
pub fn write(dir: &Path) -> Vec<(&'static str, &'static str)> {
    let at = |name: &str| dir.join(name);
    let model = |name: &str, file: &str, bytes: &[u8]| {
        std::fs::create_dir_all(at(name)).unwrap();
        std::fs::write(at(name).join(file), bytes).unwrap();
    };
    let mut many = b"GGUF\x03\0\0\0".to_vec();
    many.extend((1u64 << 60).to_le_bytes());
    many.extend(0u64.to_le_bytes());
    model("many", "m.gguf", &many);
    let mut long = b"GGUF\x03\0\0\0".to_vec();
    long.extend(0u64.to_le_bytes());
    long.extend(1u64.to_le_bytes());
    long.extend((1u64 << 40).to_le_bytes());
    long.resize(4_096, 0);
    model("long", "m.gguf", &long);
    model("claims", "model.safetensors", &[0, 0, 0, 0, 0, 0, 0, 0x10, b'{']);
    let overlap = safetensors(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
        6,
    );
    model("overlap", "model.safetensors", &overlap);
    model("nested", "config.json", "[".repeat(200_000).as_bytes());
    model("large", "config.json", &vec![b' '; 5 << 20]);
    model("empty", "config.json", b"{}");
    let words = r#"{"model_type":"llama","hidden_size":"many","num_hidden_layers":"2"}"#;
    model("words", "config.json", words.as_bytes());
    model("parts", "model-00001-of-00003.safetensors", &safetensors("{}", 0));
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    std::fs::create_dir(at("ring")).unwrap();
    std::os::unix::fs::symlink(at("ring"), at("ring").join("ring")).unwrap();
    std::os::unix::fs::symlink(at("ring").join("x.gguf"), at("ring").join("x.gguf")).unwrap();
    model("dangling", "config.json", words.replace("\"many\"", "64").as_bytes());
    let nowhere = at("dangling").join("blob");
    std::os::unix::fs::symlink(&nowhere, at("dangling").join("model.safetensors")).unwrap();
    vec![
        ("dangling", "is incomplete: model.safetensors is missing"),
        ("many", "tensors"),
        ("long", "a key of"),
        ("claims", "too large"),
        ("overlap", "overlaps"),
        ("nested", "not a config.json"),
        ("large", "too large"),
        ("words", "`hidden_size` is \"many\", which is no count"),
        ("empty", "has no layers or width that could be read"),
        ("parts", "model-00002-of-00003.safetensors"),
        ("loop", "loop"),
        ("ring", "x.gguf cannot be read"),
        ("nowhere", "does not exist"),
    ]
}
