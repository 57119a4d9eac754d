//! The number of the newest segment, in a file of its own: without it segments that were removed at the end would
//! look like a journal that is just older.
//!
//! It is written after its segment is on disk, so after a crash (or without space) it may be behind, never ahead.
//!
//! `journal.last` names the last record, so that records that are cut off at the end are missed, too. It is written over
//! in place after each append and never waited for: after a power failure it may be behind or say nothing.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::format::Link;

/// The last record that was written down, and its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// Its number.
    pub seq: u64,
    /// Its link, as text.
    pub link: String,
}

fn last_path(dir: &Path) -> PathBuf {
    dir.join("journal.last")
}

/// The last record that was written down; none: nobody has, or the file says nothing.
pub fn read_last(dir: &Path) -> Option<Last> {
    let mut text = String::new();
    File::open(last_path(dir)).ok()?.take(100).read_to_string(&mut text).ok()?;
    let (seq, link) = text.strip_suffix('\n')?.split_once(' ')?;
    Some(Last { seq: seq.parse().ok()?, link: link.to_owned() })
}

/// The file of the last record, to be written over.
pub fn open_last(dir: &Path) -> io::Result<File> {
    let mut open = fs::OpenOptions::new();
    open.create(true).truncate(false).write(true).mode(0o600).open(last_path(dir))
}

/// Writes the last record down: always as many bytes, so that no rest of an earlier one follows.
pub fn write_last(file: &File, seq: u64, link: Link) -> io::Result<()> {
    file.write_all_at(format!("{seq:020} {}\n", link.as_str()).as_bytes(), 0)
}

fn path(dir: &Path) -> PathBuf {
    dir.join("journal.head")
}

/// The newest segment that was written down; none: a journal of an older gpudeck, or a file that says nothing.
pub fn read(dir: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path(dir)).ok()?.take(20).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Writes it down, whole or not at all.
pub fn write(dir: &Path, segment: u32) -> io::Result<()> {
    let aside = dir.join("journal.head.new");
    let mut open = fs::OpenOptions::new();
    let mut file = open.create(true).write(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(format!("{segment}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path(dir))?;
    File::open(dir)?.sync_all()
}
