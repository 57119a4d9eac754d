//! Telling samples so that only the first is whole and the others are what has changed.

use std::sync::Arc;

use super::change::SampleChange;
use super::{FromAgent, HostSample, encode_line};

/// What the other side knows.
#[derive(Debug, Default)]
pub struct Told {
    last: Option<Arc<HostSample>>,
    next: Option<Arc<HostSample>>,
}

impl Told {
    /// The line that tells a sample; none: nothing has changed.
    pub fn line(&mut self, sample: HostSample, changes: bool) -> Option<Vec<u8>> {
        if !changes {
            return encode_line(&FromAgent::Sample(Box::new(sample))).ok();
        }
        let sample = Arc::new(sample);
        let message = match &self.last {
            None => FromAgent::Sample(Box::new(HostSample::clone(&sample))),
            Some(before) if *before == sample => return None,
            Some(before) => FromAgent::Change {
                since_ms: before.monotonic_ms,
                change: SampleChange::Between(Arc::clone(before), Arc::clone(&sample)),
            },
        };
        self.next = Some(sample);
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
