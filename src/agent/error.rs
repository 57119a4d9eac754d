//! How errors of the operating system become refusals.

use std::io;
use std::path::Path;

use crate::base::text::clean;
use crate::wire::Refusal;

/// A refusal in words, made safe to draw.
pub fn failed(message: impl AsRef<str>) -> Refusal {
    Refusal::Failed { message: clean(message.as_ref(), 500) }
}

/// The refusal that an I/O error at `path` is: a missing file and a full disk have names of their
/// own, the rest is said in words (`doing` as in "cannot … PATH").
pub fn io_refusal(error: &io::Error, doing: &str, path: &Path) -> Refusal {
    let shown = clean(&path.to_string_lossy(), 300);
    match error.kind() {
        io::ErrorKind::NotFound => Refusal::NoFile { path: shown },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Refusal::NoSpace { path: shown }
        }
        _ => failed(format!("cannot {doing} {shown}: {error}")),
    }
}

/// Runs what blocks (disk, /proc) beside the event loop.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(failed("the agent is ending")),
    }
}
