//! The journal: what was decided and done, in order, on disk before it takes effect.
//!
//! A directory of segments `journal.000001.jsonl`, each a header line and then one record a line:
//! `SEQUENCE HASH JSON`. The hash chains every record to the one before it, across segments, so a
//! lost or altered record is found. A checkpoint begins a new segment with the whole state; older
//! segments are kept for a while. What the records mean is the controller's business; telemetry
//! never comes here.
//!
//! - [`format`](self::format) — lines and hashes, pure.
//! - [`segment`] — reading one segment: whole, torn at the end, or damaged.
//! - [`store`] — [`Journal`]: the lock, appending, checkpoints.
//! - [`reader`] — reading along while somebody else writes.
//! - [`head`] — the number of the newest segment and the last record, so that what was removed is missed.
//! - [`audit`] — the audit trail: who asked for what, in a chain of its own.

pub mod audit;
pub mod format;
pub mod head;
pub mod reader;
pub mod segment;
pub mod store;

use std::io;
use std::path::{Path, PathBuf};

use crate::base::Hint;

pub use format::{Record, RecordKind};
pub use reader::Reader;
pub use segment::{Report, SegmentReport, verify};
pub use store::Journal;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error("the journal {} is in use{}", dir.display(), pid.map(|p| format!(" by process {p}")).unwrap_or_default())]
    Locked {
        /// Its directory.
        dir: PathBuf,
        /// Who holds it, where known.
        pid: Option<u32>,
    },
    /// A record that is not the last one is damaged: what follows cannot be trusted.
    #[error("the journal is damaged at {}:{line}: {what}", file.display())]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// The line in it, from 1.
        line: u64,
        /// What does not fit.
        what: String,
    },
    /// Segments are gone that gpudeck did not remove.
    #[error("{} in the journal {}: only the oldest are ever removed", lacking(*from, *to), dir.display())]
    Missing {
        /// The journal's directory.
        dir: PathBuf,
        /// The first segment that is missing.
        from: u32,
        /// The last one.
        to: u32,
        /// There is none after it: the newest state is lost, too.
        is_newest: bool,
    },
    /// Records are gone at the end of the newest segment that were on disk.
    #[error("{}: after record {last} there was record {known}, which is missing or another one", file.display())]
    CutOff {
        /// The segment.
        file: PathBuf,
        /// The last record that is there.
        last: u64,
        /// The last one that was written down.
        known: u64,
    },
    /// It was written by a gpudeck of another time.
    #[error("{} has journal version {found}; this gpudeck reads versions {} to {}", file.display(), format::OLDEST_VERSION, format::VERSION)]
    Version {
        /// The segment.
        file: PathBuf,
        /// The version it says.
        found: u32,
    },
    /// The disk is full; the journal is as it was before.
    #[error("no space left for the journal {}", file.display())]
    NoSpace {
        /// The segment.
        file: PathBuf,
    },
    /// A record is longer than any reader would accept, or cannot be written as JSON.
    #[error("a record cannot be journaled: {what}")]
    Record {
        /// Why.
        what: String,
    },
    /// A write failed in a way that leaves unknown what is on disk; nothing more is written.
    #[error("the journal {} was given up after a failed write: {what}", file.display())]
    Broken {
        /// The segment.
        file: PathBuf,
        /// What failed.
        what: String,
    },
    /// It could not be written a moment ago, and was not tried again yet.
    #[error("{what} (it is tried again every two seconds)")]
    Waits {
        /// What was wrong.
        what: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The file system.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried: `cannot open`.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl JournalError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| {
            if is_full(&source) {
                Self::NoSpace { file: path.to_owned() }
            } else {
                Self::Io { what, path: path.to_owned(), source }
            }
        }
    }
}

fn lacking(from: u32, to: u32) -> String {
    if from == to {
        format!("segment {from} is missing")
    } else {
        format!("segments {from} to {to} are missing")
    }
}

/// Whether a write failed for want of space or quota.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Hint for JournalError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Locked { .. } => {
                "attach to the running controller by starting `gpudeck`, or end it with \
                 `gpudeck controller stop`"
                    .to_owned()
            }
            Self::Corrupt { file, .. } => format!(
                "move {} away and run `gpudeck controller take-over`: it reads the state back from \
                 the hosts",
                file.parent().unwrap_or(file).display()
            ),
            Self::Missing { dir, is_newest: true, .. } => format!(
                "put it back; or move {} away and run `gpudeck controller take-over`: it reads the \
                 state back from the hosts",
                dir.display()
            ),
            Self::CutOff { .. } => {
                "put the file back if there is a copy; or run `gpudeck controller take-over`: it reads what is newer \
                 back from the hosts"
                    .to_owned()
            }
            Self::Missing { .. } => {
                "put it back if there is a copy: what happened in it is lacking in `gpudeck journal`; \
                 the present state is whole, since every segment begins with all of it"
                    .to_owned()
            }
            Self::Version { .. } => {
                "use the gpudeck that wrote it, or the newer one of the two".to_owned()
            }
            Self::NoSpace { file } => {
                format!("free space on the disk that holds {}", file.display())
            }
            Self::Broken { .. } => {
                "check the disk (`dmesg`), then restart the controller: it reads the journal again"
                    .to_owned()
            }
            Self::Record { .. } => return None,
            Self::Waits { hint, .. } => return hint.clone(),
            Self::Io { path, .. } => {
                format!("check that {} exists and belongs to you", path.display())
            }
        })
    }
}
