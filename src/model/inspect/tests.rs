//! Inspections of made-up directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // small numbers of small tests
use super::*;
use crate::base::Hint;
use crate::model::estimate;
use crate::model::gguf::tests::{Builder, llama};
use crate::model::safetensors::tests::file as shard;
use crate::model::tensors::Tensor;

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn files(list: &[(&str, &[u8])]) -> Files {
    list.iter().map(|(p, b)| ((*p).to_owned(), b.to_vec())).collect()
}

fn list(files: &Files, path: &str) -> Found {
    let prefix = format!("{path}/");
    let mut entries: BTreeMap<String, DirEntry> = BTreeMap::new();
    for (name, bytes) in files {
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let (name, is_dir) = match rest.split_once('/') {
            Some((dir, _)) => (dir, true),
            None => (rest, false),
        };
        let size = Bytes(bytes.len() as u64);
        entries.insert(name.into(), DirEntry { name: name.into(), size, is_dir });
    }
    match entries.is_empty() {
        true if files.contains_key(path) => Found::Failed { why: "Not a directory".into() },
        true => Found::Missing,
        false => Found::Entries(entries.into_values().collect()),
    }
}

pub(crate) fn inspect(files: &Files, path: &str) -> Result<ModelFacts, ModelError> {
    run(Inspection::new(path), files)
}

fn run(mut inspection: Inspection, files: &Files) -> Result<ModelFacts, ModelError> {
    for _ in 0..1_000 {
        let found = match inspection.next() {
            Need::Done(result) => return *result,
            Need::ListDir { path } => list(files, &path),
            Need::Read { path, offset, length } => match files.get(&path) {
                None => Found::Missing,
                Some(bytes) => {
                    let from = (offset as usize).min(bytes.len());
                    let to = (from + length as usize).min(bytes.len());
                    Found::Piece {
                        bytes: bytes[from..to].to_vec(),
                        file_bytes: Bytes(bytes.len() as u64),
                    }
                }
            },
        };
        inspection.feed(found);
    }
    panic!("it never ends");
}

pub(crate) const CONFIG: &[u8] = br#"{"architectures":["LlamaForCausalLM"],"num_hidden_layers":2,
        "hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":100,
        "max_position_embeddings":512,"torch_dtype":"bfloat16"}"#;

pub(crate) fn a_shard(bytes: usize) -> Vec<u8> {
    let json = format!(
        r#"{{"w{bytes}":{{"dtype":"BF16","shape":[{}],"data_offsets":[0,{bytes}]}}}}"#,
        bytes / 2
    );
    shard(&json, bytes)
}

#[test]
fn a_gguf_file_under_any_name_or_alone_in_a_directory() {
    let all = files(&[("/m/tiny.gguf", &llama().file()), ("/b/blob", &llama().file())]);
    for path in ["/m/tiny.gguf", "/m", "/m/", "/b/blob"] {
        let facts = inspect(&all, path).unwrap();
        assert_eq!(facts.layers, Some(4), "{path}");
        assert_eq!(facts.head_dim, Some(32));
        assert_eq!(facts.vocab_size, Some(3));
        assert_eq!(facts.files.len(), 1);
    }
    assert_eq!(inspect(&all, "/m").unwrap().entry, "/m/tiny.gguf");
    insta::assert_snapshot!(inspect(&all, "/m").unwrap().summary().join("\n"), @r"
        GGUF, llama, 4 layers, 256 KiB of weights, Q4_K_M, context 2048
        8 attention heads, 2 of them for keys and values, head size 32, hidden size 256, vocabulary 3
        ");
}

#[test]
fn a_header_longer_than_the_first_read_is_read_piece_by_piece() {
    let words: Vec<String> = (0..300_000).map(|i| format!("token-{i}")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let file = llama().strings("tokenizer.ggml.merges", &words).file();
    assert!(file.len() > 4 << 20);
    assert!(inspect(&files(&[("/m.gguf", &file)]), "/m.gguf").is_ok());
    let cut = &file[..file.len() - 7];
    let error = inspect(&files(&[("/m.gguf", cut)]), "/m.gguf").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "/m.gguf is truncated: 7 bytes are missing ({} of {} are there)",
            Bytes(cut.len() as u64),
            Bytes(file.len() as u64)
        )
    );
    assert!(error.hint().unwrap().contains("copy the file again"));
}

#[test]
fn the_parts_of_a_split_model_are_one_model() {
    let part = |no: u32, name: &str| {
        Builder::default()
            .string("general.architecture", "llama")
            .u32("llama.block_count", 4)
            .u32("split.no", no)
            .u32("split.count", 2)
            .tensor(name, &[64], 0)
            .file()
    };
    let mut all = files(&[
        ("/m/x-00001-of-00002.gguf", &part(0, "a")),
        ("/m/x-00002-of-00002.gguf", &part(1, "b")),
    ]);
    for path in ["/m", "/m/x-00001-of-00002.gguf", "/m/x-00002-of-00002.gguf"] {
        let facts = inspect(&all, path).unwrap();
        assert_eq!((facts.parts, facts.weight_bytes), (2, Bytes(512)));
        assert_eq!(facts.entry, "/m/x-00001-of-00002.gguf");
    }
    all.insert("/m/x-00002-of-00002.gguf".into(), part(0, "b"));
    assert!(inspect(&all, "/m").unwrap_err().to_string().contains("part 1 of 2"));
    all.remove("/m/x-00002-of-00002.gguf");
    let error = inspect(&all, "/m").unwrap_err();
    assert_eq!(error.to_string(), "/m is incomplete: x-00002-of-00002.gguf is missing");
}

#[test]
fn a_directory_with_safetensors_and_an_index() {
    let index = br#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    let mut all = files(&[
        ("/m/config.json", CONFIG),
        ("/m/model.safetensors.index.json", index),
        ("/m/model-1.safetensors", &a_shard(100)),
        ("/m/model-2.safetensors", &a_shard(60)),
        ("/m/consolidated.safetensors", &a_shard(160)),
    ]);
    let facts = inspect(&all, "/m").unwrap();
    assert_eq!((facts.parts, facts.weight_bytes), (2, Bytes(160)));
    assert_eq!(facts.kv_heads, Some(2));
    assert_eq!(facts.quantisation.as_deref(), Some("bfloat16"));
    assert_eq!(facts.entry, "/m");
    assert_eq!(facts.files.len(), 3);

    let whole = all.insert("/m/model-2.safetensors".into(), a_shard(60)[..90].to_vec());
    assert!(inspect(&all, "/m").unwrap_err().to_string().contains("model-2.safetensors is trunc"));
    all.insert("/m/model-2.safetensors".into(), whole.unwrap());
    all.remove("/m/model-1.safetensors");
    let error = inspect(&all, "/m").unwrap_err();
    assert_eq!(error.to_string(), "/m is incomplete: model-1.safetensors is missing");
}

#[test]
fn safetensors_without_an_index() {
    let all = files(&[
        ("/m/config.json", CONFIG),
        ("/m/model-00001-of-00003.safetensors", &a_shard(4)),
        ("/m/model-00003-of-00003.safetensors", &a_shard(6)),
    ]);
    let error = inspect(&all, "/m").unwrap_err();
    assert!(error.to_string().contains("model-00002-of-00003.safetensors is missing"), "{error}");
    let all = files(&[("/m/model.safetensors", &a_shard(4)), ("/m/x.safetensors", &a_shard(2))]);
    let facts = inspect(&all, "/m").unwrap();
    assert_eq!(facts.weight_bytes, Bytes(4));
    // No config.json, a file left aside, no layers.
    assert_eq!(facts.notes.len(), 3);
}

#[test]
fn a_hugging_face_cache() {
    let mut all = files(&[
        ("/hub/models--a--b/refs/main", b"beef01\n"),
        ("/hub/models--a--b/snapshots/beef01/config.json", CONFIG),
        ("/hub/models--a--b/snapshots/beef01/model.safetensors", &a_shard(4)),
    ]);
    let facts = inspect(&all, "/hub/models--a--b").unwrap();
    assert_eq!(facts.entry, "/hub/models--a--b/snapshots/beef01");
    all.insert("/hub/models--a--b/snapshots/0000/model.safetensors".into(), a_shard(8));
    assert_eq!(inspect(&all, "/hub/models--a--b").unwrap().weight_bytes, Bytes(4));
    all.insert("/hub/models--a--b/refs/main".into(), b"../../etc".to_vec());
    assert!(inspect(&all, "/hub/models--a--b").is_err());
    assert!(inspect(&all, "/hub").unwrap_err().to_string().contains("cache of 1 models"));
}

#[test]
fn parts_of_a_hugging_face_cache() {
    let all = files(&[
        ("/hub/models--a--b/refs/main", b"beef01\n"),
        ("/hub/models--a--b/blobs/77aa", b"{}"),
        ("/hub/models--a--b/snapshots/0000/model.safetensors", &a_shard(8)),
        ("/hub/models--a--b/snapshots/beef01/config.json", CONFIG),
        ("/hub/models--a--b/snapshots/beef01/model.safetensors", &a_shard(4)),
    ]);
    let facts = inspect(&all, "/hub/models--a--b/snapshots").unwrap();
    assert_eq!(facts.entry, "/hub/models--a--b/snapshots/beef01");
    for part in ["refs", "refs/main", "blobs"] {
        let error = inspect(&all, &format!("/hub/models--a--b/{part}")).unwrap_err();
        assert!(error.to_string().contains("of a model in a Hugging Face cache"), "{error}");
        let hint = error.hint().unwrap();
        assert!(hint.ends_with("the model's directory: /hub/models--a--b"), "{hint}");
    }
}

#[test]
fn words_of_what_is_cut_short_or_leads_in_a_circle() {
    let one = |bytes: &[u8]| {
        let error = inspect(&files(&[("/m.gguf", bytes)]), "/m.gguf").unwrap_err();
        error.to_string()
    };
    assert_eq!(one(b""), "/m.gguf is truncated: it is empty");
    let begun = one(b"GGUF");
    assert!(begun.contains("it ends within its header, after 4 B (at least"), "{begun}");
    let cut = &CONFIG[..CONFIG.len() / 2];
    let all = files(&[("/m/config.json", cut), ("/m/model.safetensors", &a_shard(4))]);
    let error = inspect(&all, "/m").unwrap_err();
    assert!(error.to_string().contains("it ends too early, at line "), "{error}");
    assert!(error.hint().unwrap().contains("published one"));
    let circle = ModelError::Unreadable {
        path: "/m/config.json".to_owned(),
        why: "Too many levels of symbolic links (os error 40)".to_owned(),
    };
    assert!(circle.hint().unwrap().contains("lead in a circle"));
}

#[test]
fn what_is_no_model_is_named_for_what_it_is() {
    let all = files(&[
        ("/two/a.gguf", &llama().file()),
        ("/two/b.gguf", &llama().file()),
        ("/pickle/pytorch_model.bin", b"x"),
        ("/none/readme.md", b"x"),
        ("/text/file", b"hello"),
        ("/lfs/m.gguf", b"version https://git-lfs.github.com/spec/v1\n"),
        ("/html/m.gguf", b"<html>404</html>"),
        (
            "/proj/m.gguf",
            &Builder::default().string("general.type", "mmproj").tensor("t", &[32], 0).file(),
        ),
    ]);
    for (path, expected) in [
        ("/two", "2 GGUF files: a.gguf, b.gguf"),
        ("/pickle", "pickles"),
        ("/none", "neither"),
        ("/text/file", "neither a GGUF file nor a directory"),
        ("/lfs/m.gguf", "Git LFS pointer"),
        ("/html/m.gguf", "not a GGUF file (it begins with `<htm`)"),
        ("/proj/m.gguf", "a model's mmproj"),
        ("/nowhere", "/nowhere does not exist"),
        ("/nowhere.gguf", "/nowhere.gguf does not exist"),
    ] {
        let error = inspect(&all, path).unwrap_err();
        assert!(error.to_string().contains(expected), "{path}: {error}");
        assert!(error.hint().is_some(), "{path}");
    }
}

#[test]
fn a_file_that_changes_under_the_reader_is_not_believed() {
    let mut inspection = Inspection::new("/m.gguf");
    let file = llama().file();
    let piece =
        |n: usize, total: u64| Found::Piece { bytes: file[..n].to_vec(), file_bytes: Bytes(total) };
    inspection.feed(piece(100, 1 << 30));
    assert!(matches!(inspection.next(), Need::Read { offset: 100, .. }));
    inspection.feed(piece(100, 2 << 30));
    let Need::Done(result) = inspection.next() else { panic!() };
    assert!(result.unwrap_err().to_string().contains("changed while"));
}

/// A safetensors file with these tensors, whose data are zeros.
fn holding(tensors: &[(String, &Tensor)]) -> Vec<u8> {
    let mut at = 0;
    let entry = |(name, tensor): &(String, &Tensor)| {
        let (begin, shape) = (at, &tensor.shape);
        at += tensor.bytes;
        let kind = &tensor.dtype;
        format!(r#""{name}":{{"dtype":"{kind}","shape":{shape:?},"data_offsets":[{begin},{at}]}}"#)
    };
    let json = tensors.iter().map(entry).collect::<Vec<_>>().join(",");
    shard(&format!("{{{json}}}"), at as usize)
}

/// Experts of one layer lie in several files of every large mixture of experts.
#[test]
fn experts_of_a_layer_in_two_files_are_divided_as_those_in_one() {
    const MOE: &str = r#"{"model_type":"qwen3_moe","torch_dtype":"bfloat16","num_hidden_layers":2,"hidden_size":64,
        "num_attention_heads":4,"num_key_value_heads":4,"head_dim":16,"intermediate_size":128,"vocab_size":64,
        "num_experts":10,"num_experts_per_tok":2,"moe_intermediate_size":32,"max_position_embeddings":4096,
        "tie_word_embeddings":false}"#;
    let alone = estimate::tests::facts(MOE);
    let mut parts = [Vec::new(), Vec::new()];
    for tensor in &alone.tensors {
        for number in 0..tensor.count {
            let name = tensor.name.replace(".*.", &format!(".{number}."));
            parts[usize::from(number >= 5)].push((name, tensor));
        }
    }
    let all = files(&[
        ("/m/config.json", MOE.as_bytes()),
        ("/m/model-00001-of-00002.safetensors", &holding(&parts[0])),
        ("/m/model-00002-of-00002.safetensors", &holding(&parts[1])),
    ]);
    let stored = inspect(&all, "/m").unwrap();
    assert_eq!(stored.weight_bytes, alone.weight_bytes);
    assert_eq!(stored.stored(), alone.stored());
    for (tensor, data, expert) in [(1, 1, 1), (2, 1, 2), (2, 2, 4), (1, 8, 8)] {
        let rules = estimate::tests::rules("vllm");
        let setup = crate::model::Setup { tensor, data, expert, ..crate::model::Setup::new(rules) };
        let weights = |facts| crate::model::predict(facts, &setup).ranks[0].weights;
        assert_eq!(weights(&stored), weights(&alone), "tp {tensor} dp {data} ep {expert}");
    }
}

#[test]
fn a_tensor_that_two_files_hold_is_not_counted_twice() {
    let mut all = files(&[
        ("/m/config.json", CONFIG),
        ("/m/model-00001-of-00002.safetensors", &a_shard(4)),
        ("/m/model-00002-of-00002.safetensors", &a_shard(6)),
        ("/m/model.safetensors", &a_shard(4)),
    ]);
    let error = inspect(&all, "/m").unwrap_err();
    let said =
        "/m/model.safetensors holds a tensor that model-00001-of-00002.safetensors holds, too";
    assert_eq!(error.to_string(), said);
    assert!(error.hint().unwrap().contains("an older set of files"), "{error}");
    // The index says which set it is.
    let index = br#"{"weight_map":{"w4":"model-00001-of-00002.safetensors","w6":"model-00002-of-00002.safetensors"}}"#;
    all.insert("/m/model.safetensors.index.json".into(), index.to_vec());
    assert_eq!(inspect(&all, "/m").unwrap().weight_bytes, Bytes(10));
    // Experts have one name here, and are not one.
    let expert = |n: u32| {
        let name = format!("model.layers.0.mlp.experts.{n}.up_proj.weight");
        shard(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#), 4)
    };
    let two = |a, b| {
        let both = [("/e/model-1.safetensors", expert(a)), ("/e/model-2.safetensors", expert(b))];
        inspect(&both.into_iter().map(|(n, b)| (n.to_owned(), b)).collect(), "/e")
    };
    assert_eq!(two(0, 1).unwrap().weight_bytes, Bytes(8));
    assert!(two(1, 1).is_err());
}

#[test]
fn more_bytes_than_can_be_counted_are_no_figure() {
    let config = r#"{"model_type":"qwen3_moe","num_hidden_layers":2000,"hidden_size":1048576,"num_attention_heads":16384,
        "num_key_value_heads":16384,"head_dim":65536,"intermediate_size":4194304,"vocab_size":4194304,
        "num_experts":65536,"moe_intermediate_size":4194304}"#;
    let all = files(&[("/m/config.json", config.as_bytes())]);
    let error = run(Inspection::new("/m").config_alone(), &all).unwrap_err();
    assert!(error.to_string().contains("more bytes together than can be counted"), "{error}");
    assert!(error.hint().is_some());
}

/// What nobody knows, under names that nobody knows.
#[test]
fn a_config_that_tells_nothing_is_told_so() {
    let of = |config: &str| {
        let all = files(&[("/m/config.json", config.as_bytes())]);
        run(Inspection::new("/m").config_alone(), &all).unwrap_err()
    };
    let foreign =
        r#"{"architectures":["OwnForCausalLM"],"model_type":"own","breadth":4096,"storeys":32}"#;
    let error = of(foreign);
    assert_eq!(
        error.to_string(),
        "/m is not a model: architecture OwnForCausalLM is not known, and its config.json has no layers or width \
         that could be read: the weights are needed"
    );
    assert!(error.hint().unwrap().contains("with its weights"), "{error}");
    let said = of("{}").to_string();
    assert!(said.contains("not a model: its config.json has no layers"), "{said}");
    let said = of(r#"{"model_type":"llama","num_hidden_layers":null}"#).to_string();
    assert!(said.contains("not a model: its config.json has no layers"), "{said}");
}

#[test]
fn a_params_file_alone_is_enough_where_a_config_is() {
    let params = br#"{"dim":4096,"n_layers":32,"head_dim":128,"hidden_dim":14336,"n_heads":32,"n_kv_heads":8,
        "vocab_size":32768}"#;
    let all = files(&[("/m/params.json", &params[..])]);
    let facts = run(Inspection::new("/m").config_alone(), &all).unwrap();
    assert_eq!(facts.weight_bytes, Bytes(2 * 7_248_023_552));
    assert!(
        facts.notes.iter().any(|n| n.contains("counted from params.json")),
        "{:?}",
        facts.notes
    );
    assert!(inspect(&all, "/m").is_err());
}

#[test]
fn an_index_names_parts_beside_those_that_count_themselves() {
    let index = br#"{"weight_map":{"w4":"model-00001-of-00002.safetensors","w6":"model-00002-of-00002.safetensors",
        "w8":"extra.safetensors"}}"#;
    let mut all = files(&[
        ("/m/config.json", CONFIG),
        ("/m/model-00001-of-00002.safetensors", &a_shard(4)),
        ("/m/model-00002-of-00002.safetensors", &a_shard(6)),
        ("/m/model.safetensors.index.json", index),
    ]);
    let error = inspect(&all, "/m").unwrap_err();
    assert!(
        matches!(&error, ModelError::MissingParts { names, .. } if names == &["extra.safetensors"]),
        "{error}"
    );
    all.insert("/m/extra.safetensors".into(), a_shard(8));
    assert_eq!(inspect(&all, "/m").unwrap().weight_bytes, Bytes(18));
}

#[test]
fn snapshots_that_lead_in_a_circle_are_named() {
    // What cannot be followed is listed as something that is no directory.
    let all = files(&[
        ("/c/models--a--b/snapshots/0123abc", b""),
        ("/c/models--a--b/refs/main", b"0123abc"),
    ]);
    let error = inspect(&all, "/c/models--a--b").unwrap_err();
    assert!(error.to_string().contains("no directories: 0123abc"), "{error}");
    assert!(error.hint().unwrap().contains("in a circle"), "{error}");
}

#[test]
fn tokenizers_go_by_many_names() {
    for (name, is) in [
        ("tokenizer.json", true),
        ("vocab.txt", true),
        ("spiece.model", true),
        ("sentencepiece.bpe.model", true),
        ("qwen.tiktoken", true),
        ("tokenizer_config.json", false),
        ("vocab.bin", false),
    ] {
        let path = format!("/m/{name}");
        let all = files(&[
            ("/m/config.json", CONFIG),
            ("/m/model.safetensors", &a_shard(4)),
            (path.as_str(), b"{}"),
        ]);
        assert_eq!(inspect(&all, "/m").unwrap().tokenizer, is, "{name}");
    }
}

#[test]
fn what_autogptq_wrote_beside_a_config_says_how_weights_are_stored() {
    let config =
        br#"{"model_type":"llama","torch_dtype":"float16","num_hidden_layers":2,"hidden_size":1024,
        "num_attention_heads":8,"num_key_value_heads":8,"intermediate_size":2048,"vocab_size":1024,
        "max_position_embeddings":512,"tie_word_embeddings":false}"#;
    let of = |more: &[(&str, &[u8])]| {
        let all: Vec<(&str, &[u8])> =
            [("/m/config.json", &config[..])].into_iter().chain(more.iter().copied()).collect();
        run(Inspection::new("/m").config_alone(), &files(&all)).unwrap().weight_bytes.0
    };
    let beside = br#"{"bits":4,"group_size":128,"desc_act":false,"sym":true}"#;
    let plain = of(&[]);
    let packed = of(&[("/m/quantize_config.json", beside)]);
    assert!(packed < plain / 2, "{packed} of {plain}");
}
