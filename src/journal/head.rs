//! The number of the newest segment, in a file of its own: without it segments that were removed at the end would
//! look like a journal that is just older.
//!
//! It is written after its segment is on disk, so after a crash (or without space) it may be behind, never ahead.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

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
