//! Model files, wherever they are: read over a host's link or from the local disk, never copied
//! whole. What they mean is for `model`.

pub mod files;

use std::collections::HashMap;
use std::time::Duration;

use crate::base::{Hint, text};
use crate::fleet::LinkError;
use crate::model::{Found, Inspection, ModelError, ModelFacts, Need};

pub use files::{FileSource, LinkFiles, LocalFiles, Piece, SourceError};

/// Longest an inspection may take.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Most requests of one inspection; a model of 2,000 files takes two a file.
const MAX_REQUESTS: usize = 8_000;

/// Files whose beginnings are fetched at once, and their bytes together.
const AHEAD: usize = 255;
const AHEAD_BYTES: u32 = 2 << 20;

/// Why nothing is known of a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// The model is somewhere gpudeck cannot fetch it from.
    #[error("model = `{model}`: fetching from {scheme} is not supported yet")]
    Fetch {
        /// The model, cleaned.
        model: String,
        /// `hf`, `s3`, `https`.
        scheme: String,
    },
    /// Neither a path nor a source.
    #[error("model = `{model}` is not an absolute path")]
    NotAPath {
        /// The model, cleaned.
        model: String,
    },
    /// What lies there is no model, or broken.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The host is not reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It took too long.
    #[error("reading the headers of {path} took longer than {} s", DEADLINE.as_secs())]
    Timeout {
        /// The model.
        path: String,
    },
}

impl Hint for WeightsError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch { .. } => Some("put the files on the hosts and give the path".to_owned()),
            Self::NotAPath { .. } => {
                Some("give the path on the hosts, beginning with `/`".to_owned())
            }
            Self::Model(error) => error.hint(),
            Self::Link(error) => error.hint(),
            Self::Timeout { .. } => {
                Some("see whether the model's disk answers, and try again".to_owned())
            }
        }
    }
}

/// The path that a spec's `model` means, or why it cannot be used.
pub fn path_of(model: &str) -> Result<&str, WeightsError> {
    let shown = || text::clean(model, 120);
    if let Some((scheme, _)) = model.split_once("://") {
        return Err(WeightsError::Fetch { model: shown(), scheme: text::clean(scheme, 20) });
    }
    let good = model.starts_with('/') && !model.contains('\0') && model.len() <= 4_096;
    if good { Ok(model) } else { Err(WeightsError::NotAPath { model: shown() }) }
}

/// Finds out what model lies at `model` (a spec's `model`), reading headers only: at most 64 MiB
/// and ten seconds.
pub async fn inspect(source: &dyn FileSource, model: &str) -> Result<ModelFacts, WeightsError> {
    let path = path_of(model)?;
    within(source, path, Inspection::new(path)).await
}

/// Likewise, where a directory with a `config.json` alone will do: its weights are counted from the
/// architecture.
pub async fn describe(source: &dyn FileSource, model: &str) -> Result<ModelFacts, WeightsError> {
    let path = path_of(model)?;
    within(source, path, Inspection::new(path).config_alone()).await
}

async fn within(
    source: &dyn FileSource,
    path: &str,
    inspection: Inspection,
) -> Result<ModelFacts, WeightsError> {
    match tokio::time::timeout(DEADLINE, drive(source, path, inspection)).await {
        Ok(result) => result,
        Err(_) => Err(WeightsError::Timeout { path: text::clean(path, 120) }),
    }
}

/// Beginnings of files that were fetched before they were asked for.
type Fetched = HashMap<String, Result<Piece, SourceError>>;

async fn drive(
    source: &dyn FileSource,
    path: &str,
    mut inspection: Inspection,
) -> Result<ModelFacts, WeightsError> {
    let mut fetched = Fetched::new();
    for _ in 0..MAX_REQUESTS {
        let result = match inspection.next() {
            Need::Done(result) => return Ok((*result)?),
            Need::ListDir { path } => source.list(&path).await.map(Found::Entries),
            Need::Read { path, offset: 0, length } => {
                if !fetched.contains_key(&path) {
                    fetched = fetch(source, &path, length, &inspection).await;
                }
                let missing = || Err(SourceError::Failed("it was not read".to_owned()));
                found(fetched.remove(&path).unwrap_or_else(missing))
            }
            Need::Read { path, offset, length } => found(source.read(&path, offset, length).await),
        };
        inspection.feed(match result {
            Ok(found) => found,
            Err(SourceError::Missing) => Found::Missing,
            Err(SourceError::Failed(why)) => Found::Failed { why },
            Err(SourceError::Link(error)) => return Err(error.into()),
        });
    }
    Err(WeightsError::Timeout { path: text::clean(path, 120) })
}

fn found(piece: Result<Piece, SourceError>) -> Result<Found, SourceError> {
    piece.map(|p| Found::Piece { bytes: p.bytes, file_bytes: p.file_bytes })
}

/// Reads the beginning of `path` and of the files that come after it at once: one round trip instead
/// of one a file.
async fn fetch(
    source: &dyn FileSource,
    path: &str,
    length: u32,
    inspection: &Inspection,
) -> Fetched {
    let mut wanted = vec![(path.to_owned(), length)];
    let mut room = AHEAD_BYTES.saturating_sub(length);
    for (path, length) in inspection.ahead().take(AHEAD) {
        if length > room {
            break;
        }
        room -= length;
        wanted.push((path.to_owned(), length));
    }
    let reads = wanted.into_iter().map(|(path, length)| async move {
        let piece = source.read(&path, 0, length).await;
        (path, piece)
    });
    futures::future::join_all(reads).await.into_iter().collect()
}

#[cfg(test)]
mod tests;
