//! Inspections on a real disk, and over a link that answers as an agent does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;

use super::*;
use crate::base::{Bytes, HostName};
use crate::fleet::{DialStream, HostLink};
use crate::wire::{DialAccess, DialTarget, Refusal, Reply, Request};

/// An agent on this machine's own disk, for one lie at a time.
struct Agent {
    host: HostName,
    lie: Option<Reply>,
}

#[async_trait]
impl HostLink for Agent {
    fn host(&self) -> &HostName {
        &self.host
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        if let Some(lie) = &self.lie {
            return Ok(lie.clone());
        }
        let refuse = |error: SourceError, path: String| {
            let refusal = match error {
                SourceError::Missing => Refusal::NoFile { path },
                other => Refusal::Failed { message: other.to_string() },
            };
            LinkError::Refused { host: self.host.clone(), refusal }
        };
        match request {
            Request::ListDir { path } => {
                LocalFiles.list(&path).await.map(Reply::Entries).map_err(|e| refuse(e, path))
            }
            Request::ReadFile { path, offset, length } => {
                let piece = LocalFiles.read(&path, offset, length).await;
                let piece = piece.map_err(|e| refuse(e, path))?;
                let data = base64::engine::general_purpose::STANDARD.encode(piece.bytes);
                Ok(Reply::FilePiece { data, file_bytes: piece.file_bytes })
            }
            _ => panic!("nothing else is asked"),
        }
    }

    async fn dial(&self, _: &DialTarget, _: DialAccess) -> Result<Box<dyn DialStream>, LinkError> {
        panic!("nothing is dialled")
    }
}

fn agent(lie: Option<Reply>) -> LinkFiles {
    LinkFiles::new(Arc::new(Agent { host: "gpu-a".parse().unwrap(), lie }))
}

fn shard(bytes: usize) -> Vec<u8> {
    let json = format!(r#"{{"w":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json.as_bytes());
    out.resize(out.len() + bytes, 0);
    out
}

#[tokio::test]
async fn a_cache_of_links_is_read_alike_here_and_over_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("models--a--b");
    let snapshot = model.join("snapshots/0abc");
    let blobs = model.join("blobs");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join("1"), shard(3_000_000)).unwrap();
    std::os::unix::fs::symlink("../../blobs/1", snapshot.join("model.safetensors")).unwrap();
    std::fs::write(snapshot.join("config.json"), r#"{"model_type":"x","n_layer":3}"#).unwrap();
    let path = model.to_str().unwrap();

    let here = inspect(&LocalFiles, path).await.unwrap();
    let there = inspect(&agent(None), path).await.unwrap();
    assert_eq!(here, there);
    assert_eq!(here.weight_bytes, Bytes(3_000_000));
    assert_eq!(here.layers, Some(3));

    let whole = std::fs::File::options().write(true).open(blobs.join("1")).unwrap();
    whole.set_len(1_000_000).unwrap();
    let error = inspect(&agent(None), path).await.unwrap_err();
    assert!(error.to_string().contains("is truncated"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("x.gguf"), dir.path().join("x")] {
        let path = path.to_str().unwrap();
        for source in [&LocalFiles as &dyn FileSource, &agent(None)] {
            let error = inspect(source, path).await.unwrap_err();
            assert_eq!(error.to_string(), format!("{path} does not exist"));
        }
    }
}

#[tokio::test]
async fn an_agent_that_lies_is_not_believed() {
    let data = |text: &str| Reply::FilePiece { data: text.into(), file_bytes: Bytes(1 << 40) };
    let long = base64::engine::general_purpose::STANDARD.encode(vec![0; 70_000]);
    for lie in [Reply::Done, data("%%%"), data(&long)] {
        let error = inspect(&agent(Some(lie)), "/m.gguf").await.unwrap_err();
        assert!(matches!(error, WeightsError::Link(LinkError::Unexpected { .. })), "{error}");
    }
    // Empty pieces for ever end the inspection instead of going round.
    let error = inspect(&agent(Some(data(""))), "/m.gguf").await.unwrap_err();
    assert!(error.to_string().contains("ended early"), "{error}");
}

#[tokio::test]
async fn only_paths_are_inspected() {
    let error = inspect(&LocalFiles, "hf://meta-llama/x").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "model = `hf://meta-llama/x`: fetching from hf is not supported yet"
    );
    assert_eq!(error.hint().as_deref(), Some("put the files on the hosts and give the path"));
    assert!(path_of("models/x").is_err());
    assert!(path_of("").is_err());
    assert_eq!(path_of("/models/x"), Ok("/models/x"));
}

/// A directory of a model in many files, and how it was read.
struct Counted {
    files: std::collections::BTreeMap<String, Vec<u8>>,
    bytes: std::sync::atomic::AtomicUsize,
    under_way: std::sync::atomic::AtomicUsize,
    rounds: std::sync::atomic::AtomicUsize,
}

impl Counted {
    async fn round(&self) {
        use std::sync::atomic::Ordering::SeqCst;
        if self.under_way.fetch_add(1, SeqCst) == 0 {
            self.rounds.fetch_add(1, SeqCst);
        }
        // What is asked at the same time is under way at the same time.
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        self.under_way.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl FileSource for Counted {
    async fn list(&self, _: &str) -> Result<Vec<crate::wire::DirEntry>, SourceError> {
        self.round().await;
        let entry = |(name, bytes): (&String, &Vec<u8>)| crate::wire::DirEntry {
            name: name.clone(),
            size: Bytes(bytes.len() as u64),
            is_dir: false,
        };
        Ok(self.files.iter().map(entry).collect())
    }

    async fn read(&self, path: &str, offset: u64, length: u32) -> Result<Piece, SourceError> {
        self.round().await;
        let name = path.rsplit('/').next().unwrap();
        let file = self.files.get(name).ok_or(SourceError::Missing)?;
        // The data of a file is not there: only its header is, and what it says of its length.
        let header = u64::from_le_bytes(file[..8].try_into().unwrap());
        let json = std::path::Path::new(name).extension().is_some_and(|e| e == "json");
        let file_bytes = if json { file.len() as u64 } else { 8 + header + DATA };
        let from = usize::try_from(offset).unwrap().min(file.len());
        let mut bytes = file[from..(from + length as usize).min(file.len())].to_vec();
        if !json {
            bytes.resize(length as usize, 0);
        }
        self.bytes.fetch_add(bytes.len(), std::sync::atomic::Ordering::SeqCst);
        Ok(Piece { bytes, file_bytes: Bytes(file_bytes) })
    }
}

/// Bytes of data in each file: about 4 GB.
const DATA: u64 = 6 * 354_600_000 * 2;

#[tokio::test]
async fn a_model_in_191_files_is_read_in_few_rounds_and_few_bytes() {
    let mut files = std::collections::BTreeMap::new();
    let config = r#"{"model_type":"llama","torch_dtype":"bfloat16","hidden_size":16384,"num_hidden_layers":126,
        "num_attention_heads":128,"num_key_value_heads":8,"intermediate_size":53248,"vocab_size":128256}"#;
    files.insert("config.json".to_owned(), config.into());
    let mut index = std::collections::BTreeMap::new();
    for file in 1..=191u64 {
        let tensors: Vec<String> = (0..6u64)
            .map(|i| {
                let (from, to) = (i * DATA / 6, (i + 1) * DATA / 6);
                format!(
                    r#""model.layers.{}.mlp.part_{file}_{i}_proj.weight":{{"dtype":"BF16","shape":[{},100],"data_offsets":[{from},{to}]}}"#,
                    file % 126,
                    (to - from) / 200
                )
            })
            .collect();
        let json = format!("{{{}}}", tensors.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        let name = format!("model-{file:05}-of-00191.safetensors");
        for i in 0..6u64 {
            index.insert(
                format!("model.layers.{}.mlp.part_{file}_{i}_proj.weight", file % 126),
                name.clone(),
            );
        }
        files.insert(name, bytes);
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
    let source = Counted { files, bytes: 0.into(), under_way: 0.into(), rounds: 0.into() };
    let facts = inspect(&source, "/models/big").await.unwrap();
    assert_eq!(facts.parts, 191);
    assert_eq!(facts.weight_bytes, Bytes(191 * DATA));
    let rounds = source.rounds.into_inner();
    let bytes = source.bytes.into_inner();
    println!("{rounds} rounds, {bytes} bytes");
    // At 20 ms a round: a tenth of a second.
    assert!(rounds <= 6, "{rounds} rounds");
    assert!(bytes <= 2 << 20, "{bytes} bytes");
}
