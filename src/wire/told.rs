//! Telling samples so that only the first is whole and the others are what has changed.

use serde_json::Value;

use super::{FromAgent, HostSample, change, encode_line};

/// What the other side knows.
#[derive(Debug, Default)]
pub struct Told {
    last: Option<(u64, Value)>,
    next: Option<(u64, Value)>,
}

impl Told {
    /// The line that tells a sample; none: nothing has changed.
    pub fn line(&mut self, sample: HostSample, changes: bool) -> Option<Vec<u8>> {
        if !changes {
            return encode_line(&FromAgent::Sample(Box::new(sample))).ok();
        }
        // Through its text, so that numbers are as short as they are there.
        let text = serde_json::to_vec(&sample).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        let message = match &self.last {
            None => FromAgent::Sample(Box::new(sample.clone())),
            Some((since_ms, before)) => {
                let since_ms = *since_ms;
                FromAgent::Change { since_ms, change: change::between(before, &value)? }
            }
        };
        self.next = Some((sample.monotonic_ms, value));
        encode_line(&message).ok()
    }

    /// The line is on its way: the next change is one from there.
    pub fn sent(&mut self) {
        if let Some(next) = self.next.take() {
            self.last = Some(next);
        }
    }

    /// The line was dropped: the next change is one from the sample before.
    pub fn missed(&mut self) {
        self.next = None;
    }
}
