//! Reading a journal along with whoever writes it: no lock, no change. A record that is just being
//! written is read at the next look.

use std::path::{Path, PathBuf};

use super::format::Record;
use super::{JournalError, segment};

/// Reads the records of a directory, each once, in order.
pub struct Reader {
    dir: PathBuf,
    next_seq: u64,
    /// Number and length of the newest segment when it was last read.
    seen: Option<(u32, u64)>,
}

impl Reader {
    /// Begins with the oldest record that is kept.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), next_seq: 0, seen: None }
    }

    /// The records that were not read yet; empty if there is nothing new.
    pub fn more(&mut self) -> Result<Vec<Record>, JournalError> {
        let segments = segment::list(&self.dir)?;
        let Some((newest, path)) = segments.last() else { return Ok(Vec::new()) };
        let length = std::fs::metadata(path).map_or(0, |m| m.len());
        if self.seen == Some((*newest, length)) {
            return Ok(Vec::new());
        }
        let from = self.seen.map_or(0, |(number, _)| number);
        let mut found = Vec::new();
        for (number, path) in segments.iter().filter(|(number, _)| *number >= from) {
            let read = match segment::read(path, *number) {
                Ok(read) => read,
                // An old segment that was removed while we looked.
                Err(JournalError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            found.extend(read.records.into_iter().filter(|r| r.seq >= self.next_seq));
        }
        if let Some(last) = found.last() {
            self.next_seq = last.seq + 1;
        }
        self.seen = Some((*newest, length));
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    #[test]
    fn each_record_is_read_once_over_segments() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        let mut reader = Reader::new(dir.path());
        let mut seen = Vec::new();
        for round in 0..3 {
            journal.append(&[round, round]).unwrap();
            seen.extend(reader.more().unwrap().into_iter().map(|r| r.seq));
            assert_eq!(reader.more().unwrap(), []);
            journal.checkpoint(&"state").unwrap();
        }
        seen.extend(reader.more().unwrap().into_iter().map(|r| r.seq));
        assert_eq!(seen, (1..=9).collect::<Vec<u64>>());
    }
}
