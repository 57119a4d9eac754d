//! A container's log by byte offset, which engines do not offer: they know time.
//!
//! Offsets count the bytes of both streams together, in the engine's order, from the oldest line
//! it still has. To find one, the log is looked through from the beginning (it is bounded by the
//! rank's log limit; nothing is gathered but the piece asked for). Where a reader goes on, the
//! second it was in and the offset at which that second began are remembered, so that following a
//! log asks the engine for the last second only.
//!
//! Limits: after older lines were rotated away *and* this memory was lost, offsets begin anew at
//! the oldest line that is left; a reader beyond the end then gets an empty piece and goes on from
//! the end.

use std::collections::HashMap;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures::StreamExt;

use super::Answer;
use crate::wire::LogChunk;

/// Most bytes given at once, as an agent would.
const MAX_PIECE: usize = 256 << 10;
/// Containers whose place is remembered.
const MAX_CURSORS: usize = 256;
/// Lines asked for when only the last ones are wanted.
const TAIL_LINES: &str = "400";

/// A place in a log from which it can be read on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// A second since the Unix epoch, by the host's clock; 0: the beginning.
    second: i32,
    /// Bytes before the first line of that second.
    offset: u64,
}

/// The places remembered, by container name.
#[derive(Debug, Default)]
pub struct Cursors(HashMap<String, Cursor>);

impl Cursors {
    /// Where to begin to look for `offset`. The end (none) is looked for from the last place.
    pub fn before(&self, name: &str, offset: Option<u64>) -> Cursor {
        let known = self.0.get(name).copied().unwrap_or_default();
        // What is asked for from the end may begin before the place, as may an earlier offset:
        // then only the whole will do.
        offset.filter(|o| *o >= known.offset).map_or_else(Cursor::default, |_| known)
    }

    /// Remembers where a reader goes on.
    pub fn remember(&mut self, name: &str, cursor: Cursor) {
        if self.0.len() >= MAX_CURSORS && !self.0.contains_key(name) {
            // Forgetting costs a look through a log, no more.
            self.0.clear();
        }
        self.0.insert(name.to_owned(), cursor);
    }

    /// The container is gone.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

/// A piece and the place where its reader goes on.
#[derive(Debug)]
pub struct Piece {
    /// What was asked for.
    pub chunk: LogChunk,
    /// Where to look from next.
    pub cursor: Cursor,
}

/// Reads at most `length` bytes from `offset` (none: the last ones), looking from `from` on.
pub async fn read(
    docker: &Docker,
    name: &str,
    from: Cursor,
    offset: Option<u64>,
    length: u32,
) -> Answer<Piece> {
    let options = LogsOptionsBuilder::default()
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .since(from.second)
        .tail("all")
        .build();
    let mut window = Window::new(from, offset, length);
    let mut stream = Box::pin(docker.logs(name, Some(options)));
    while let Some(frame) = stream.next().await {
        if window.push(bytes_of(&frame?)) {
            break;
        }
    }
    Ok(window.finish())
}

/// The last lines of a log, at most `limit` bytes.
pub async fn tail(docker: &Docker, name: &str, limit: usize) -> Answer<String> {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(TAIL_LINES).build();
    let mut kept = Vec::new();
    let mut stream = Box::pin(docker.logs(name, Some(options)));
    while let Some(frame) = stream.next().await {
        kept.extend_from_slice(bytes_of(&frame?));
        keep_last(&mut kept, limit);
    }
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

fn bytes_of(frame: &LogOutput) -> &[u8] {
    frame.as_ref()
}

fn keep_last(bytes: &mut Vec<u8>, limit: usize) {
    let surplus = bytes.len().saturating_sub(limit);
    bytes.drain(..surplus);
}

/// Takes the lines of a log one by one and keeps what was asked for.
struct Window {
    /// From here; none: the end.
    wanted: Option<u64>,
    length: usize,
    /// Offset of the next byte.
    at: u64,
    /// The second of the newest line and where it began.
    cursor: Cursor,
    /// Where the piece's end lies: fixed once it is full.
    resume: Cursor,
    kept: Vec<u8>,
}

impl Window {
    fn new(from: Cursor, wanted: Option<u64>, length: u32) -> Self {
        let length = usize::try_from(length).unwrap_or(MAX_PIECE).min(MAX_PIECE);
        Self { wanted, length, at: from.offset, cursor: from, resume: from, kept: Vec::new() }
    }

    /// One frame, which is one line (or a part of a long one) behind its time. True: that is all.
    fn push(&mut self, frame: &[u8]) -> bool {
        let (second, line) = split_time(frame);
        if let Some(second) = second.filter(|s| *s > self.cursor.second) {
            self.cursor = Cursor { second, offset: self.at };
        }
        let end = self.at.saturating_add(line.len() as u64);
        self.resume = self.cursor;
        match self.wanted {
            None => {
                self.kept.extend_from_slice(line);
                keep_last(&mut self.kept, self.length);
            }
            Some(wanted) => {
                let skip = usize::try_from(wanted.saturating_sub(self.at)).unwrap_or(usize::MAX);
                let room = self.length.saturating_sub(self.kept.len());
                let part = line.get(skip..).unwrap_or_default();
                self.kept.extend_from_slice(part.get(..room).unwrap_or(part));
            }
        }
        self.at = end;
        self.wanted.is_some() && self.kept.len() >= self.length
    }

    fn finish(self) -> Piece {
        let kept = self.kept.len() as u64;
        let offset = match self.wanted {
            // Beyond the end: the reader goes on from the end there is.
            Some(wanted) => wanted.min(self.at),
            None => self.at.saturating_sub(kept),
        };
        Piece {
            chunk: LogChunk {
                offset,
                next_offset: offset.saturating_add(kept),
                text: String::from_utf8_lossy(&self.kept).into_owned(),
            },
            cursor: self.resume,
        }
    }
}

/// `2026-11-23T22:43:59.123456789Z line` → the second, and the line. Without a time, all is line.
fn split_time(frame: &[u8]) -> (Option<i32>, &[u8]) {
    let parse = || {
        let space = frame.iter().take(40).position(|b| *b == b' ')?;
        let time = std::str::from_utf8(frame.get(..space)?).ok()?;
        let time: jiff::Timestamp = time.parse().ok()?;
        Some((i32::try_from(time.as_second()).ok()?, frame.get(space + 1..)?))
    };
    match parse() {
        Some((second, line)) => (Some(second), line),
        None => (None, frame),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A log of lines at given seconds, served as an engine does: whole lines from a second on.
    fn serve(lines: &[(i32, String)], from: Cursor, wanted: Option<u64>, length: u32) -> Piece {
        let mut window = Window::new(from, wanted, length);
        for (second, line) in lines.iter().filter(|(s, _)| *s >= from.second) {
            let time = jiff::Timestamp::from_second(i64::from(*second)).unwrap();
            if window.push(format!("{time} {line}").as_bytes()) {
                break;
            }
        }
        window.finish()
    }

    proptest! {
        #[test]
        fn following_gives_every_byte_once(
            steps in prop::collection::vec((0_i32..2, "[a-z]{0,9}\n"), 0..30),
            length in 1_u32..25,
        ) {
            let mut second = 1_000;
            let lines: Vec<(i32, String)> = steps
                .into_iter()
                .map(|(step, line)| {
                    second += step;
                    (second, line)
                })
                .collect();
            let whole: String = lines.iter().map(|(_, l)| l.as_str()).collect();
            let mut cursors = Cursors::default();
            let (mut read, mut next) = (String::new(), 0);
            // Lines appear while the log is followed.
            for upto in 0..=lines.len() {
                for _ in 0..40 {
                    let from = cursors.before("c", Some(next));
                    let piece = serve(&lines[..upto], from, Some(next), length);
                    prop_assert_eq!(piece.chunk.offset, next);
                    cursors.remember("c", piece.cursor);
                    read.push_str(&piece.chunk.text);
                    next = piece.chunk.next_offset;
                    if piece.chunk.text.is_empty() {
                        break;
                    }
                }
            }
            prop_assert_eq!(&read, &whole);
            // The end, and a place far back, are found too.
            let end = serve(&lines, cursors.before("c", None), None, length).chunk;
            prop_assert_eq!(end.next_offset, whole.len() as u64);
            prop_assert!(whole.ends_with(&end.text));
            let first = serve(&lines, cursors.before("c", Some(0)), Some(0), length).chunk;
            prop_assert!(whole.starts_with(&first.text));
        }
    }

    #[test]
    fn a_reader_beyond_the_end_goes_on_from_the_end() {
        let piece = serve(&[(5, "one\n".to_owned())], Cursor::default(), Some(900), 10);
        assert_eq!((piece.chunk.offset, piece.chunk.next_offset), (4, 4));
        assert_eq!(piece.chunk.text, "");
    }

    #[test]
    fn lines_without_a_time_are_lines() {
        assert_eq!(split_time(b"no time here"), (None, b"no time here".as_slice()));
        assert_eq!(split_time(b""), (None, b"".as_slice()));
        let (second, line) = split_time(b"1970-01-01T00:00:07.123456789Z a b");
        assert_eq!((second, line), (Some(7), b"a b".as_slice()));
    }
}
