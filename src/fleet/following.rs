//! Following a host's samples: how closely, and from changes back to whole samples.

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::wire::{HostSample, Request, change};

/// How closely a host is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attention {
    /// Nobody looks and nothing of ours runs there: every five seconds.
    #[default]
    Seldom,
    /// It is on somebody's screen, or runs something of ours: every second.
    OnScreen,
    /// Somebody looks at its details: every second, with what costs much.
    LookedAt,
}

impl Attention {
    /// What the agent is asked for.
    pub(super) const fn request(self) -> Request {
        match self {
            Self::Seldom => Request::Follow { interval_ms: 5_000, looked_at: false },
            Self::OnScreen => Request::Follow { interval_ms: 1_000, looked_at: false },
            Self::LookedAt => Request::Follow { interval_ms: 1_000, looked_at: true },
        }
    }
}

/// Where the attention that a host gets is set and seen; it outlives connections.
pub(super) type AttentionCell = watch::Sender<Attention>;

/// The last sample, as JSON, for changes to be applied to.
#[derive(Default)]
pub(super) struct Picture(Option<(u64, Value)>);

impl Picture {
    /// A whole sample has come.
    pub(super) fn whole(&mut self, sample: &HostSample) {
        // As it was on the wire: values that are absent are absent.
        let value = serde_json::to_vec(sample).ok().and_then(|t| serde_json::from_slice(&t).ok());
        self.0 = value.map(|value| (sample.monotonic_ms, value));
    }

    /// A change has come: the sample it makes; none when it does not fit, and a whole sample must
    /// be asked for.
    pub(super) fn change(&mut self, since_ms: u64, change: Value) -> Option<HostSample> {
        let (at, mut value) = self.0.take()?;
        if at != since_ms {
            return None;
        }
        change::apply(&mut value, change).ok()?;
        let sample = HostSample::deserialize(&value).ok()?;
        self.0 = Some((sample.monotonic_ms, value));
        Some(sample)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{Gpu, Gpus};

    fn sample(at: u64, busy: Option<u32>) -> HostSample {
        let gpu = Gpu { utilisation_percent: busy, uuid: "GPU-1".to_owned(), ..Gpu::default() };
        HostSample {
            monotonic_ms: at,
            gpus: Gpus::Some(vec![gpu]),
            cpu_percent: Some(12.3),
            ..HostSample::default()
        }
    }

    fn between(a: &HostSample, b: &HostSample) -> Value {
        let value = |s: &HostSample| -> Value {
            serde_json::from_slice(&serde_json::to_vec(s).unwrap()).unwrap()
        };
        change::between(&value(a), &value(b)).unwrap()
    }

    #[test]
    fn changes_make_whole_samples_and_a_gap_is_noticed() {
        let (first, second) = (sample(1, Some(5)), sample(2, None));
        let third = HostSample { gpus: Gpus::Hung { for_ms: 9 }, ..sample(3, None) };
        let mut picture = Picture::default();
        assert_eq!(picture.change(1, between(&first, &second)), None, "nothing to change yet");
        picture.whole(&first);
        assert_eq!(picture.change(1, between(&first, &second)), Some(second.clone()));
        assert_eq!(picture.change(2, between(&second, &third)), Some(third.clone()));
        assert_eq!(picture.change(2, between(&second, &third)), None, "one was missed");
        assert_eq!(picture.change(3, between(&third, &first)), None, "until a whole one comes");
        picture.whole(&first);
        let hostile = serde_json::json!({ "gpus": { "some": { "7": { "index": 1 } } } });
        assert_eq!(picture.change(1, hostile), None);
    }
}
