//! Lines that could not be written (a full disk): they wait for room, in their order, before any other line.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::base::Timestamp;
use crate::journal::JournalError;

/// More than that are only counted.
const MOST: usize = 10_000;

/// Time between two attempts of which nobody asked for one.
const AGAIN: Duration = Duration::from_secs(2);

/// What waits.
#[derive(Default)]
pub(super) struct Owed {
    lines: VecDeque<Value>,
    /// Lines that found no place here.
    lost: u64,
    tried: Option<Instant>,
}

impl Owed {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.lost == 0
    }

    /// Whether something waits and was not tried just now.
    pub fn is_due(&self) -> bool {
        !self.is_empty() && self.tried.is_none_or(|tried| tried.elapsed() >= AGAIN)
    }

    /// A line about something that has happened: it is written now or later.
    pub fn push(&mut self, line: Value) {
        if self.lines.len() < MOST {
            self.lines.push_back(line);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Writes what waits; `append` writes one line. What was tried before has then the time at which it is written,
    /// and beside it the one at which it happened.
    ///
    /// # Errors
    /// The rest waits on. (A line that cannot be written as such does not: the others are not to wait for it.)
    pub fn write(
        &mut self,
        now: Timestamp,
        mut append: impl FnMut(&Value) -> Result<u64, JournalError>,
    ) -> Result<(), JournalError> {
        self.tried = Some(Instant::now());
        let mut wrong = Ok(());
        while let Some(line) = self.lines.front_mut() {
            if line.get("happened").is_some() {
                set(line, "at", json!(now));
            }
            match append(line) {
                Ok(_) => {}
                Err(error @ JournalError::Record { .. }) => wrong = Err(error),
                Err(error) => {
                    self.are_late();
                    return Err(error);
                }
            }
            self.lines.pop_front();
        }
        if self.lost > 0 {
            let result = json!({ "lost": self.lost });
            append(&json!({ "at": now, "event": "lines_lost", "result": result }))?;
            self.lost = 0;
        }
        wrong
    }

    /// They are not written when it happened.
    fn are_late(&mut self) {
        for line in self.lines.iter_mut().rev() {
            if line.get("happened").is_some() {
                continue;
            }
            if let Some(at) = line.get("at").cloned() {
                set(line, "happened", at);
            }
        }
    }
}

fn set(line: &mut Value, field: &str, value: Value) {
    if let Some(fields) = line.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn full(_: &Value) -> Result<u64, JournalError> {
        Err(JournalError::NoSpace { file: "audit.jsonl".into() })
    }

    fn drained(owed: &mut Owed, at: u64) -> Vec<Value> {
        let mut written = Vec::new();
        let wrote = owed.write(Timestamp(at), |line| {
            written.push(line.clone());
            Ok(1)
        });
        wrote.unwrap();
        written
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_written_first_and_in_its_order() {
        let mut owed = Owed::default();
        owed.push(json!({ "at": 10, "event": "stopped" }));
        assert!(owed.write(Timestamp(10), full).is_err());
        owed.push(json!({ "at": 20, "event": "answered" }));
        assert!(owed.write(Timestamp(20), full).is_err());
        owed.push(json!({ "at": 30, "event": "drain_ended" }));
        assert!(!owed.is_empty() && !owed.is_due(), "it was tried just now");
        let expected = [
            json!({ "at": 30, "happened": 10, "event": "stopped" }),
            json!({ "at": 30, "happened": 20, "event": "answered" }),
            json!({ "at": 30, "event": "drain_ended" }),
        ];
        assert_eq!(drained(&mut owed, 30), expected);
        assert!(owed.is_empty() && drained(&mut owed, 40).is_empty(), "once");
    }

    #[test]
    fn one_that_can_never_be_written_holds_up_no_other_and_too_many_are_counted() {
        let mut owed = Owed::default();
        for n in 0..MOST + 2 {
            owed.push(json!({ "at": n, "event": "stopped" }));
        }
        let mut written = Vec::new();
        let wrote = owed.write(Timestamp(9), |line| {
            if line["at"] == 0 {
                return Err(JournalError::Record { what: "too long".to_owned() });
            }
            written.push(line.clone());
            Ok(1)
        });
        assert!(matches!(wrote, Err(JournalError::Record { .. })));
        assert_eq!(written.len(), MOST, "one less, and the count");
        assert_eq!(written[MOST - 1]["result"], json!({ "lost": 2 }));
        assert!(owed.is_empty());
    }
}
