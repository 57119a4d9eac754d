//! Reading pieces of files: on a host through its agent, or on this machine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::base::{Bytes, text};
use crate::fleet::{HostLink, LinkError};
use crate::wire::{DirEntry, Refusal, Reply, Request};

/// Longest piece read at once.
pub const MAX_PIECE: u32 = 1 << 20;
/// Most entries of a directory.
const MAX_ENTRIES: usize = 10_000;

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The bytes; fewer than asked for only at the end of the file.
    pub bytes: Vec<u8>,
    /// Length of the whole file.
    pub file_bytes: Bytes,
}

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// There is no such file or directory.
    #[error("it does not exist")]
    Missing,
    /// It cannot be listed or read.
    #[error("{0}")]
    Failed(String),
    /// The host is not reached, or answered nonsense.
    #[error(transparent)]
    Link(LinkError),
}

/// Where files can be read.
#[async_trait]
pub trait FileSource: Send + Sync {
    /// The entries of a directory, at most 10,000.
    async fn list(&self, path: &str) -> Result<Vec<DirEntry>, SourceError>;

    /// A piece of a file, at most 1 MiB.
    async fn read(&self, path: &str, offset: u64, length: u32) -> Result<Piece, SourceError>;
}

/// The files of a host, through its agent.
pub struct LinkFiles {
    link: Arc<dyn HostLink>,
}

impl LinkFiles {
    /// The files behind `link`.
    pub fn new(link: Arc<dyn HostLink>) -> Self {
        Self { link }
    }

    fn unexpected(&self, what: &str) -> SourceError {
        SourceError::Link(LinkError::Unexpected {
            host: self.link.host().clone(),
            what: what.to_owned(),
        })
    }

    async fn ask(&self, request: Request) -> Result<Reply, SourceError> {
        self.link.request(request).await.map_err(|error| match error {
            LinkError::Refused { refusal: Refusal::NoFile { .. }, .. } => SourceError::Missing,
            LinkError::Refused { refusal: Refusal::Failed { message }, .. } => {
                SourceError::Failed(text::clean(&message, 200))
            }
            other => SourceError::Link(other),
        })
    }
}

#[async_trait]
impl FileSource for LinkFiles {
    async fn list(&self, path: &str) -> Result<Vec<DirEntry>, SourceError> {
        match self.ask(Request::ListDir { path: path.to_owned() }).await? {
            Reply::Entries(entries) if entries.len() <= MAX_ENTRIES => Ok(entries),
            _ => Err(self.unexpected("not the entries of a directory")),
        }
    }

    async fn read(&self, path: &str, offset: u64, length: u32) -> Result<Piece, SourceError> {
        let length = length.min(MAX_PIECE);
        let request = Request::ReadFile { path: path.to_owned(), offset, length };
        let Reply::FilePiece { data, file_bytes } = self.ask(request).await? else {
            return Err(self.unexpected("not a piece of a file"));
        };
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(data)
            .map_err(|_| self.unexpected("a piece of a file that is not base64"))?;
        if bytes.len() > length as usize {
            return Err(self.unexpected("a longer piece of a file than was asked for"));
        }
        Ok(Piece { bytes, file_bytes })
    }
}

/// The files of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFiles;

fn failed(error: &io::Error) -> SourceError {
    match error.kind() {
        io::ErrorKind::NotFound => SourceError::Missing,
        _ => SourceError::Failed(text::clean(&error.to_string(), 200)),
    }
}

#[async_trait]
impl FileSource for LocalFiles {
    async fn list(&self, path: &str) -> Result<Vec<DirEntry>, SourceError> {
        let mut entries = tokio::fs::read_dir(path).await.map_err(|e| failed(&e))?;
        let mut out = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(|e| failed(&e))? {
            if out.len() >= MAX_ENTRIES {
                break;
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Links are followed: a Hugging Face cache consists of them. One that leads nowhere is an
            // empty file, which cannot be read.
            let meta = tokio::fs::metadata(entry.path()).await.ok();
            let size = Bytes(meta.as_ref().map_or(0, std::fs::Metadata::len));
            out.push(DirEntry { name, size, is_dir: meta.is_some_and(|m| m.is_dir()) });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    async fn read(&self, path: &str, offset: u64, length: u32) -> Result<Piece, SourceError> {
        let path = PathBuf::from(path);
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let meta = tokio::fs::metadata(&path).await.map_err(|e| failed(&e))?;
        if !meta.is_file() {
            return Err(SourceError::Failed("it is not a regular file".to_owned()));
        }
        let mut file = tokio::fs::File::open(&path).await.map_err(|e| failed(&e))?;
        let file_bytes = Bytes(file.metadata().await.map_err(|e| failed(&e))?.len());
        file.seek(io::SeekFrom::Start(offset)).await.map_err(|e| failed(&e))?;
        let mut bytes = Vec::new();
        let length = u64::from(length.min(MAX_PIECE));
        file.take(length).read_to_end(&mut bytes).await.map_err(|e| failed(&e))?;
        Ok(Piece { bytes, file_bytes })
    }
}
