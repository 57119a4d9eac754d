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

/// The slowest answer counts for so long: who the GPUs are, the most that is asked, is asked every minute.
const OF_LATE: Duration = Duration::from_mins(2);

/// How long the answers of one child may take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    slowest: Option<(Duration, Instant)>,
}

impl Patience {
    /// A question was answered at `now`, after so long. The first one of a child, in which the driver is begun, is
    /// not counted.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= OF_LATE;
        if self.slowest.is_none_or(|(slowest, at)| took >= slowest || is_old(at)) {
            self.slowest = Some((took, now));
        }
    }

    /// A question that waits longer than that is not answered: [`WATCHDOG`], and up to [`FIRST`] where the driver is
    /// known to be slow, so that many GPUs or a busy machine are not taken for a hang.
    pub fn limit(&self) -> Duration {
        let slowest = self.slowest.map_or(Duration::ZERO, |(slowest, _)| slowest);
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
        patience.answered(Duration::from_millis(3), start + OF_LATE / 2);
        assert_eq!(patience.limit(), FIRST);
        // time does.
        patience.answered(Duration::from_millis(3), start + OF_LATE);
        assert_eq!(patience.limit(), WATCHDOG);
    }
}
