//! The log that is followed: a ring of lines, fed by pieces, never more than a page behind.

use std::collections::VecDeque;
use std::time::Duration;

use super::message::Effect;
use crate::api::{ApiError, LogChunk, RankId, text};

/// Lines kept.
pub const MAX_LINES: usize = 10_000;
/// Characters kept of a line.
const MAX_LINE_CHARS: usize = 4_000;
/// Bytes of a line without an end that are waited for.
const MAX_PARTIAL: usize = 64 * 1024;
/// Bytes asked for at once.
pub const LENGTH: u32 = 64 * 1024;
/// Full pieces in a row after which the rest is skipped: the tail shows now, not minutes ago.
const MAX_BEHIND: u32 = 4;
/// Between two questions while nothing new is written.
const POLL: Duration = Duration::from_millis(500);
/// Between two questions after an error.
const RETRY: Duration = Duration::from_secs(2);

/// A followed log.
#[derive(Clone, Debug)]
pub struct Follow {
    /// Whose.
    pub rank: RankId,
    /// Its lines, cleaned.
    pub lines: VecDeque<String>,
    /// Bytes that were skipped because more was written than could be shown.
    pub skipped_bytes: u64,
    /// Rows scrolled up from the end; 0 is live.
    pub back: usize,
    /// Columns scrolled to the right.
    pub left: usize,
    /// What went wrong last.
    pub trouble: Option<String>,
    ticket: u64,
    partial: String,
    next: Option<u64>,
    full_in_a_row: u32,
    /// After a jump the next piece begins in the middle of a line.
    jumped: bool,
}

impl Follow {
    /// Begins to follow; the effect fetches the first piece.
    pub fn start(rank: RankId, ticket: u64) -> (Self, Effect) {
        let follow = Self {
            rank,
            lines: VecDeque::new(),
            skipped_bytes: 0,
            back: 0,
            left: 0,
            trouble: None,
            ticket,
            partial: String::new(),
            next: None,
            full_in_a_row: 0,
            jumped: false,
        };
        let effect = follow.ask(Duration::ZERO);
        (follow, effect)
    }

    fn ask(&self, after: Duration) -> Effect {
        Effect::Log {
            ticket: self.ticket,
            rank: Box::new(self.rank.clone()),
            offset: self.next,
            length: LENGTH,
            after,
        }
    }

    /// Takes an answer in. Returns how many lines were added, and the next question; none if the
    /// answer was to an older one.
    pub fn take(
        &mut self,
        ticket: u64,
        result: Result<LogChunk, ApiError>,
    ) -> Option<(usize, Effect)> {
        if ticket != self.ticket {
            return None;
        }
        let chunk = match result {
            Ok(chunk) => chunk,
            Err(error) => {
                self.trouble = Some(text::clean(&error.message, 200));
                return Some((0, self.ask(RETRY)));
            }
        };
        self.trouble = None;
        if let Some(asked) = self.next {
            self.skipped_bytes += chunk.offset.saturating_sub(asked);
        }
        let got = chunk.next_offset.saturating_sub(chunk.offset);
        let known = self.next;
        // A log that was begun anew counts from 0 again.
        self.next = Some(chunk.next_offset);
        let added = self.append(&chunk.text);
        if got < u64::from(LENGTH) {
            self.full_in_a_row = 0;
            return Some((added, self.ask(if got == 0 { POLL } else { POLL / 2 })));
        }
        self.full_in_a_row += 1;
        if self.full_in_a_row <= MAX_BEHIND || known.is_none() {
            return Some((added, self.ask(Duration::ZERO)));
        }
        // Too far behind: ask for the end. What lies between is counted when it comes.
        self.full_in_a_row = 0;
        self.jumped = true;
        let Effect::Log { ticket, rank, length, after, .. } = self.ask(Duration::ZERO) else {
            return None;
        };
        Some((added, Effect::Log { ticket, rank, offset: None, length, after }))
    }

    fn append(&mut self, text: &str) -> usize {
        if std::mem::take(&mut self.jumped) {
            self.partial.clear();
        }
        let mut added = 0;
        for piece in text.split_inclusive('\n') {
            self.partial.push_str(piece);
            if piece.ends_with('\n') || self.partial.len() > MAX_PARTIAL {
                let line = std::mem::take(&mut self.partial);
                // A progress bar writes over itself: what stands there last is what is seen.
                let line = line.trim_end_matches(['\n', '\r']);
                let line = line.rsplit('\r').next().unwrap_or(line);
                self.lines.push_back(text::clean(line, MAX_LINE_CHARS));
                added += 1;
            }
        }
        while self.lines.len() > MAX_LINES {
            self.lines.pop_front();
        }
        added
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::unnecessary_wraps)]
    use super::*;
    use crate::tui::fixture;

    fn chunk(offset: u64, text: &str) -> Result<LogChunk, ApiError> {
        Ok(LogChunk { offset, next_offset: offset + text.len() as u64, text: text.to_owned() })
    }

    #[test]
    fn lines_are_joined_over_pieces_and_cleaned() {
        let (mut follow, _) = Follow::start(fixture::rank("chat", 11, 0), 7);
        assert!(follow.take(6, chunk(0, "old\n")).is_none(), "an old answer");
        follow.take(7, chunk(0, "one\ntw")).unwrap();
        let (added, _) = follow.take(7, chunk(6, "o\u{1b}[31m!\n")).unwrap();
        assert_eq!(added, 1);
        assert_eq!(follow.lines, ["one", "two!"]);
    }

    #[test]
    fn the_ring_is_bounded_and_a_gap_is_counted() {
        let (mut follow, _) = Follow::start(fixture::rank("chat", 11, 0), 1);
        follow.take(1, chunk(0, &"x\n".repeat(MAX_LINES + 5))).unwrap();
        assert_eq!(follow.lines.len(), MAX_LINES);
        let next = follow.next.unwrap();
        follow.take(1, chunk(next + 100, "y\n")).unwrap();
        assert_eq!(follow.skipped_bytes, 100);
    }

    #[test]
    fn who_is_too_far_behind_jumps_to_the_end() {
        let (mut follow, _) = Follow::start(fixture::rank("chat", 11, 0), 1);
        let page = "z".repeat(LENGTH as usize - 1) + "\n";
        let mut at = 0;
        let mut jumped = false;
        for _ in 0..=MAX_BEHIND {
            let (_, effect) = follow.take(1, chunk(at, &page)).unwrap();
            at += u64::from(LENGTH);
            let Effect::Log { offset, after, .. } = effect else { panic!("a question") };
            assert_eq!(after, Duration::ZERO);
            jumped = offset.is_none();
        }
        assert!(jumped);
        follow.take(1, chunk(at + 5_000, "end\n")).unwrap();
        assert_eq!(follow.skipped_bytes, 5_000);
    }

    #[test]
    fn an_error_is_kept_and_tried_again() {
        let (mut follow, _) = Follow::start(fixture::rank("chat", 11, 0), 1);
        let error = ApiError {
            kind: crate::api::ErrorKind::Unreachable,
            message: "node1 is not reached".to_owned(),
            hint: None,
        };
        let (_, effect) = follow.take(1, Err(error)).unwrap();
        assert!(matches!(effect, Effect::Log { after: RETRY, .. }));
        assert!(follow.trouble.is_some());
    }
}
