//! A rank's log: one file the engine itself appends to, bounded by giving its oldest blocks back.
//!
//! The engine writes straight into the file (no pipe), so it neither blocks nor gets SIGPIPE when
//! its supervisor is killed. Old blocks are released with `FALLOC_FL_PUNCH_HOLE`: the file's
//! offsets go on counting everything ever logged, only its older part is a hole. Where the file
//! system cannot do that, the whole file is cut and the count kept in `log.base`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate};

use super::error::io_refusal;
use super::state;
use crate::base::Bytes;
use crate::base::last_words::excerpt;
use crate::wire::{LogChunk, Refusal};

/// Largest piece of a log in one answer.
pub const MAX_PIECE: u32 = 256 << 10;

/// A log is never kept shorter than this.
const MIN_LIMIT: u64 = 64 << 10;

/// Longest stretch looked through for the end of a line that was cut.
const MAX_LINE: usize = 8 << 10;

const BLOCK: u64 = 4096;
/// Bytes of the last lines that are told of a rank that ended, and of what is looked through for
/// them: Python's traces of several processes follow upon the line that says why.
const LAST_LINES: usize = 2 << 10;
const LOOKED_THROUGH: u32 = 32 << 10;

fn log_path(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn base_path(dir: &Path) -> PathBuf {
    dir.join("log.base")
}

/// Offset of the file's first byte in everything ever logged.
fn base(dir: &Path) -> u64 {
    state::read_json(&base_path(dir)).ok().flatten().unwrap_or(0)
}

/// Opens a rank's log for its engine.
///
/// # Errors
/// It cannot be made.
pub fn create(dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(log_path(dir))
}

/// Gives back what is older than the last `limit` bytes. Cheap when there is nothing to give back.
///
/// # Errors
/// The file cannot be changed.
pub fn trim(dir: &Path, limit: Bytes) -> io::Result<()> {
    let path = log_path(dir);
    let limit = limit.0.max(MIN_LIMIT);
    let length = fs::metadata(&path)?.len();
    if length <= limit + limit / 4 {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(&path)?;
    let first = first_kept(&file, 0, length);
    let cut = (length - limit) / BLOCK * BLOCK;
    // In steps of a quarter, so that not every line costs a call.
    if cut <= first + limit / 4 {
        return Ok(());
    }
    match fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, cut) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            state::write_json(&base_path(dir), &(base(dir) + length))?;
            file.set_len(0)
        }
        Err(error) => Err(error.into()),
    }
}

/// The first byte at or after `from` that was not given back.
fn first_kept(file: &File, from: u64, length: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(at) => at.min(length),
        // No data behind `from`, or a file system without holes.
        Err(rustix::io::Errno::NXIO) => length,
        Err(_) => from,
    }
}

fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// A piece of a rank's log from `offset` of everything ever logged (none: the last `length` bytes).
///
/// # Errors
/// There is no such log, or it cannot be read.
pub fn read(dir: &Path, offset: Option<u64>, length: u32) -> Result<LogChunk, Refusal> {
    let path = log_path(dir);
    let fail = |error: io::Error| io_refusal(&error, "read", &path);
    let length = u64::from(length.min(MAX_PIECE));
    let base = base(dir);
    let file = File::open(&path).map_err(fail)?;
    let end = file.metadata().map_err(fail)?.len();
    let asked = match offset {
        Some(offset) => offset.saturating_sub(base).min(end),
        None => end.saturating_sub(length),
    };
    let mut start = first_kept(&file, asked, end);
    if start > asked || (asked > 0 && offset.is_none()) {
        start += rest_of_line(&file, start).map_err(fail)?;
    }
    let bytes = usize::try_from(length.min(end.saturating_sub(start))).unwrap_or(0);
    let mut piece = read_at(&file, start, bytes).map_err(fail)?;
    // A character cut in two is left for the next piece, unless it never gets complete.
    if start + (piece.len() as u64) < end
        && let Err(error) = std::str::from_utf8(&piece)
        && error.error_len().is_none()
        && error.valid_up_to() > 0
    {
        piece.truncate(error.valid_up_to());
    }
    Ok(LogChunk {
        offset: base + start,
        next_offset: base + start + piece.len() as u64,
        text: String::from_utf8_lossy(&piece).into_owned(),
    })
}

/// How far it is to the next line's beginning; 0 where no line ends nearby.
fn rest_of_line(file: &File, from: u64) -> io::Result<u64> {
    let ahead = read_at(file, from.saturating_sub(1), MAX_LINE)?;
    let skip = usize::from(from > 0);
    Ok(ahead.iter().position(|b| *b == b'\n').map_or(0, |at| (at + 1 - skip.min(at + 1)) as u64))
}

/// The last lines, cleaned, at most 2 KiB, with the one that says why it ended: what a person
/// should see of a rank that ended.
pub fn last_lines(dir: &Path) -> String {
    let Ok(chunk) = read(dir, None, LOOKED_THROUGH) else { return String::new() };
    excerpt(&chunk.text, LAST_LINES)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn offsets_count_everything_while_old_blocks_are_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = create(dir.path()).unwrap();
        let limit = Bytes(64 << 10);
        let mut written = 0u64;
        for number in 0..40_000 {
            let line = format!("line {number:08}\n");
            written += line.len() as u64;
            log.write_all(line.as_bytes()).unwrap();
            if number % 500 == 0 {
                trim(dir.path(), limit).unwrap();
            }
        }
        trim(dir.path(), limit).unwrap();
        log.sync_all().unwrap();
        let kept = fs::metadata(dir.path().join("log")).unwrap().blocks() * 512;
        assert!(kept < 200 << 10, "{kept} bytes on disk of {written}");

        let end = read(dir.path(), None, 100).unwrap();
        assert_eq!(end.next_offset, written);
        assert!(end.text.starts_with("line ") && end.text.ends_with("line 00039999\n"), "{end:?}");
        // Asked for what is gone: the oldest whole line that is left.
        let old = read(dir.path(), Some(0), 28).unwrap();
        assert!(old.offset > written - (100 << 10), "{old:?}");
        assert!(old.text.starts_with("line ") && old.text.len() == 28, "{old:?}");
        let number: u64 = old.text[5..13].parse().unwrap();
        assert_eq!(number * 14, old.offset);
        // Reading on goes on exactly there.
        let next = read(dir.path(), Some(old.next_offset), 14).unwrap();
        assert_eq!(next.text, format!("line {:08}\n", number + 2));
        assert_eq!(read(dir.path(), Some(u64::MAX), 10).unwrap().text, "");
        assert!(last_lines(dir.path()).ends_with("\nline 00039999"));
    }

    #[test]
    fn a_character_is_never_cut() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path()).unwrap().write_all("aäb\n".as_bytes()).unwrap();
        let first = read(dir.path(), Some(0), 2).unwrap();
        assert_eq!((first.text.as_str(), first.next_offset), ("a", 1));
        assert_eq!(read(dir.path(), Some(1), 4).unwrap().text, "äb\n");
    }
}
