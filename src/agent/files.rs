//! Looking at files of the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;

use super::error::{failed, io_refusal};
use crate::base::Bytes;
use crate::wire::{DirEntry, Refusal, Reply};

/// Most entries of a directory.
const MAX_ENTRIES: usize = 10_000;

/// Longest piece of a file.
const MAX_PIECE: u32 = 1 << 20;

fn absolute(path: &str) -> Result<&Path, Refusal> {
    let path = Path::new(path);
    if path.is_absolute() { Ok(path) } else { Err(failed("the path must be absolute")) }
}

/// What a directory holds, by name. Names that are not UTF-8 or hold control characters are left
/// out: nobody could name them in a spec.
///
/// # Errors
/// It is not there, is no directory, or cannot be read.
pub fn list(path: &str) -> Result<Vec<DirEntry>, Refusal> {
    let path = absolute(path)?;
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| io_refusal(&e, "list", path))?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.chars().any(char::is_control) {
            continue;
        }
        // A link that leads nowhere is an empty file, which cannot be read.
        let meta = fs::metadata(entry.path()).ok();
        let size = Bytes(meta.as_ref().map_or(0, fs::Metadata::len));
        entries.push(DirEntry { name, size, is_dir: meta.is_some_and(|m| m.is_dir()) });
        if entries.len() >= MAX_ENTRIES {
            break;
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// A piece of a regular file.
///
/// # Errors
/// It is not there, is no regular file, or cannot be read.
pub fn read(path: &str, offset: u64, length: u32) -> Result<Reply, Refusal> {
    let path = absolute(path)?;
    let fail = |e: io::Error| io_refusal(&e, "read", path);
    // Opening a FIFO would wait for its writer.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(failed(format!("{} is no regular file", path.display())));
    }
    let left = meta.len().saturating_sub(offset).min(u64::from(length.min(MAX_PIECE)));
    let piece = read_exactly(&file, offset, usize::try_from(left).unwrap_or(0)).map_err(fail)?;
    Ok(Reply::FilePiece {
        data: base64::engine::general_purpose::STANDARD.encode(piece),
        file_bytes: Bytes(meta.len()),
    })
}

fn read_exactly(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_reads() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.gguf"), b"0123456789").unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("evil\u{1b}[2J"), b"").unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("dangling")).unwrap();
        let root = dir.path().to_str().unwrap();
        let entries = list(root).unwrap();
        let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.is_dir)).collect();
        assert_eq!(names, [("a", true), ("b.gguf", false), ("dangling", false)]);
        let nowhere = read(&format!("{root}/dangling"), 0, 100);
        assert!(matches!(nowhere, Err(Refusal::NoFile { .. })), "{nowhere:?}");
        assert_eq!(
            read(&format!("{root}/b.gguf"), 8, 100).unwrap(),
            Reply::FilePiece { data: "ODk=".to_owned(), file_bytes: Bytes(10) }
        );
        assert!(matches!(list(&format!("{root}/not-there")), Err(Refusal::NoFile { .. })));
        assert!(list("relative").is_err());
        assert!(read("/dev/zero", 0, 10).is_err());
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert!(read(fifo.to_str().unwrap(), 0, 10).is_err(), "must not wait for a writer");
    }
}
