//! Telling samples so that only the first is whole and the others are what has changed.

use std::sync::Arc;

use super::change::SampleChange;
use super::packed::pack_line;
use super::{FromAgent, HostSample, encode_line};

/// How samples are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Only what changes, after the first.
    pub changes: bool,
    /// A whole one may be packed.
    pub packed: bool,
}

/// What the other side knows.
#[derive(Debug, Default)]
pub struct Told {
    last: Option<Arc<HostSample>>,
    next: Option<Arc<HostSample>>,
}

impl Told {
    /// The line that tells a sample; none: nothing has changed.
    pub fn line(&mut self, sample: HostSample, manner: Manner) -> Option<Vec<u8>> {
        let whole = |sample: HostSample| {
            let line = encode_line(&FromAgent::Sample(Box::new(sample))).ok()?;
            Some(if manner.packed { pack_line(line) } else { line })
        };
        if !manner.changes {
            return whole(sample);
        }
        let sample = Arc::new(sample);
        let line = match &self.last {
            None => whole(HostSample::clone(&sample)),
            Some(before) if *before == sample => return None,
            Some(before) => {
                let change = SampleChange::Between(Arc::clone(before), Arc::clone(&sample));
                encode_line(&FromAgent::Change { since_ms: before.monotonic_ms, change }).ok()
            }
        };
        self.next = Some(sample);
        line
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
