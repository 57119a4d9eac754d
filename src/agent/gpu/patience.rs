//! How long a driver may be silent before it hangs. Pure: times are handed in.

use std::time::{Duration, Instant};

/// A driver that has begun and does not answer for so long hangs. With the second until the next look (or the next
/// sample of a host on a screen) a hang is known within 3 seconds.
pub const WATCHDOG: Duration = Duration::from_millis(1_900);

/// The same for its first answer, and the most that any other may have.
pub const FIRST: Duration = Duration::from_secs(3);

/// A driver without persistence mode initialises every GPU when it is first asked. A child after one
/// that was killed before its first answer gets so long for its own: killed as soon, none would ever
/// answer.
pub const FIRST_AGAIN: Duration = Duration::from_secs(30);

/// An answer may take so many times as long as the slowest of late.
const TIMES: u32 = 2;

/// The slowest answers of this time and of the one before it count: who the GPUs are, the most that is asked, is asked
/// every minute.
const OF_LATE: Duration = Duration::from_secs(90);

/// How long the answers of a driver may take, whichever child asks it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    since: Option<Instant>,
    slowest: Duration,
    slowest_before: Duration,
}

impl Patience {
    /// A question was answered at `now`, after so long, or given up. The first one of a child, in which the driver is
    /// begun, is not counted.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let past = now.saturating_duration_since(since);
        if past >= OF_LATE {
            let is_just_before = past < OF_LATE * 2;
            self.slowest_before = if is_just_before { self.slowest } else { Duration::ZERO };
            (self.since, self.slowest) = (Some(now), Duration::ZERO);
        }
        self.slowest = self.slowest.max(took);
    }

    /// A question that waits longer than that is not answered: [`WATCHDOG`], and up to [`FIRST`] where the driver is
    /// known to be slow, so that many GPUs or a busy machine are not taken for a hang.
    pub fn limit(&self) -> Duration {
        let slowest = self.slowest.max(self.slowest_before);
        slowest.saturating_mul(TIMES).clamp(WATCHDOG, FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wear;
    use super::*;

    #[test]
    fn a_hang_is_known_within_three_seconds() {
        // It begins right after a look; the next one does not come back.
        let known = wear::EVERY + Patience::default().limit();
        assert!(known < Duration::from_secs(3), "{known:?}");
    }

    #[test]
    fn a_driver_that_is_slow_of_late_has_longer() {
        let start = Instant::now();
        let mut patience = Patience::default();
        // Sixteen GPUs with their traffic, two counters of 21 ms each.
        patience.answered(Duration::from_millis(700), start);
        assert_eq!(patience.limit(), WATCHDOG);
        patience.answered(Duration::from_millis(1_200), start);
        assert_eq!(patience.limit(), Duration::from_millis(2_400));
        patience.answered(Duration::from_millis(1_800), start);
        assert_eq!(patience.limit(), FIRST, "never longer than that");
        // Answers that cost less do not make it forget,
        let at = |part: u32| start + OF_LATE / 2 * part;
        patience.answered(Duration::from_millis(3), at(1));
        patience.answered(Duration::from_millis(1_400), at(2));
        assert_eq!(patience.limit(), FIRST);
        // time does, what was slow last the latest.
        patience.answered(Duration::from_millis(3), at(4));
        assert_eq!(patience.limit(), Duration::from_millis(2_800));
        patience.answered(Duration::from_millis(3), at(6));
        assert_eq!(patience.limit(), WATCHDOG);
        patience.answered(Duration::from_millis(1_400), at(6));
        patience.answered(Duration::from_millis(3), at(99));
        assert_eq!(patience.limit(), WATCHDOG);
    }
}
