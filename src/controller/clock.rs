//! The controller's clock: the machine's, which may be set, made fit for deadlines.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::base::Timestamp;

/// A clock that is never set back: where the machine's is, it runs on from where it was, and no deadline
/// stands still. It follows the machine's forward at once.
struct Clock {
    /// How far it is ahead of the time since the machine was started, in milliseconds.
    ahead_ms: AtomicU64,
}

impl Clock {
    /// What it says `up_ms` milliseconds after the machine was started: `moment`, if it was never later.
    fn at_least(&self, moment: Timestamp, up_ms: u64) -> Timestamp {
        let ahead = moment.0.saturating_sub(up_ms);
        let most = self.ahead_ms.fetch_max(ahead, Ordering::Relaxed).max(ahead);
        Timestamp(up_ms.saturating_add(most))
    }
}

static CLOCK: Clock = Clock { ahead_ms: AtomicU64::new(0) };

/// The time.
pub fn now() -> Timestamp {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    not_before(Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)))
}

/// The time, which is `moment` at least from now on: an earlier life of the controller had come so far.
pub fn not_before(moment: Timestamp) -> Timestamp {
    let up = clock_gettime(ClockId::Boottime);
    let up_ms = u64::try_from(up.tv_sec).unwrap_or(0).saturating_mul(1_000)
        + u64::try_from(up.tv_nsec).unwrap_or(0) / 1_000_000;
    CLOCK.at_least(moment, up_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_runs_on_and_one_that_is_set_forward_is_followed() {
        let clock = Clock { ahead_ms: AtomicU64::new(0) };
        assert_eq!(clock.at_least(Timestamp(1_000_000), 500), Timestamp(1_000_000));
        assert_eq!(clock.at_least(Timestamp(1_000_100), 600), Timestamp(1_000_100));
        // Ten minutes back.
        assert_eq!(clock.at_least(Timestamp(400_300), 800), Timestamp(1_000_300));
        assert_eq!(clock.at_least(Timestamp(401_500), 2_000), Timestamp(1_001_500));
        // An hour forward, and on from there.
        assert_eq!(clock.at_least(Timestamp(4_601_600), 2_100), Timestamp(4_601_600));
        assert_eq!(clock.at_least(Timestamp(0), 2_200), Timestamp(4_601_700));
    }
}
