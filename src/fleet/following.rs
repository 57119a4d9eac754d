//! Following a host's samples: how closely, and from changes back to whole samples.

use std::sync::Arc;

use tokio::sync::watch;

use crate::wire::change::{SampleChange, apply_line};
use crate::wire::{HostSample, Request};

/// How closely a host is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attention {
    /// Nobody looks and nothing of ours runs there: every five seconds.
    #[default]
    Seldom,
    /// Nobody looks, but it runs something of ours: every two seconds, so that its silence is soon seen.
    Runs,
    /// It is on somebody's screen, or what runs there is being judged: every second.
    OnScreen,
    /// Somebody looks at its details: every second, with what costs much.
    LookedAt,
}

impl Attention {
    /// What the agent is asked for.
    pub(super) const fn request(self) -> Request {
        let (interval_ms, looked_at) = match self {
            Self::Seldom => (5_000, false),
            Self::Runs => (2_000, false),
            Self::OnScreen => (1_000, false),
            Self::LookedAt => (1_000, true),
        };
        Request::Follow { interval_ms, looked_at, packed: true }
    }
}

/// Where the attention that a host gets is set and seen; it outlives connections.
pub(super) type AttentionCell = watch::Sender<Attention>;

/// How the line of a change begins.
const CHANGE: &[u8] = b"{\"change\":";

/// The last sample, for changes to be applied to.
#[derive(Default)]
pub(super) struct Picture(Option<Arc<HostSample>>);

impl Picture {
    /// A whole sample has come.
    pub(super) fn whole(&mut self, sample: Arc<HostSample>) {
        self.0 = Some(sample);
    }

    /// A line has come: the sample it makes if it is a change that fits. Anything else is to be read
    /// as what it is; after a change that does not fit no other fits.
    pub(super) fn line(&mut self, line: &[u8]) -> Option<Arc<HostSample>> {
        if !line.starts_with(CHANGE) {
            return None;
        }
        let mut sample = self.0.take()?;
        apply_line(line, &mut sample).ok()?;
        self.0 = Some(Arc::clone(&sample));
        Some(sample)
    }

    /// A change has come: the sample it makes; none when it does not fit, and a whole sample must
    /// be asked for.
    pub(super) fn change(
        &mut self,
        since_ms: u64,
        change: SampleChange,
    ) -> Option<Arc<HostSample>> {
        let mut sample = self.0.take().filter(|last| last.monotonic_ms == since_ms)?;
        change.apply(&mut sample).ok()?;
        self.0 = Some(Arc::clone(&sample));
        Some(sample)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{FromAgent, Gpu, Gpus, encode_line};

    fn sample(at: u64, busy: Option<u32>) -> Arc<HostSample> {
        let gpu = Gpu { utilisation_percent: busy, uuid: "GPU-1".into(), ..Gpu::default() };
        Arc::new(HostSample {
            monotonic_ms: at,
            gpus: Gpus::Some(vec![gpu]),
            cpu_percent: Some(12.3),
            ..HostSample::default()
        })
    }

    /// As it comes over the wire.
    fn between(a: &Arc<HostSample>, b: &Arc<HostSample>) -> SampleChange {
        let change = SampleChange::Between(Arc::clone(a), Arc::clone(b));
        serde_json::from_str(&serde_json::to_string(&change).unwrap()).unwrap()
    }

    #[test]
    fn changes_make_whole_samples_and_a_gap_is_noticed() {
        let (first, second) = (sample(1, Some(5)), sample(2, None));
        let hung = Gpus::Hung { for_ms: 9 };
        let third = Arc::new(HostSample { gpus: hung, ..HostSample::clone(&sample(3, None)) });
        let mut picture = Picture::default();
        assert_eq!(picture.change(1, between(&first, &second)), None, "nothing to change yet");
        picture.whole(Arc::clone(&first));
        assert_eq!(picture.change(1, between(&first, &second)).as_ref(), Some(&second));
        assert_eq!(picture.change(2, between(&second, &third)).as_ref(), Some(&third));
        assert_eq!(picture.change(2, between(&second, &third)), None, "one was missed");
        assert_eq!(picture.change(3, between(&third, &first)), None, "until a whole one comes");
        picture.whole(Arc::clone(&first));
        let hostile = serde_json::json!({ "gpus": { "some": { "7": { "index": 1 } } } });
        let hostile = SampleChange::Read(serde_json::value::to_raw_value(&hostile).unwrap());
        assert_eq!(picture.change(1, hostile), None);
        picture.whole(Arc::clone(&first));
        let line = |since_ms| {
            let change = between(&first, &second);
            encode_line(&FromAgent::Change { since_ms, change }).unwrap()
        };
        assert_eq!(picture.line(b"{\"ranks\":[]}"), None, "another line");
        assert_eq!(picture.line(&line(1)).as_ref(), Some(&second));
        assert_eq!(picture.line(&line(1)), None, "one was missed");
        assert_eq!(picture.change(2, between(&second, &third)), None, "until a whole one comes");
        assert_eq!(first, sample(1, Some(5)), "whoever holds the sample before sees no change");
    }
}
