//! What text is laid out for: a terminal with its width and the person's time of day, or a pipe, where lines are as long
//! as they are and times are those of RFC 3339.

use std::io::IsTerminal;

use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::api::Timestamp;

/// A terminal that is narrower is written to as if it had so many columns.
const NARROWEST: usize = 40;

/// The columns of the terminal on standard output; none: there is no terminal, or it does not tell.
pub fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col).max(NARROWEST))
}

/// Whether a person reads along.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Tells times in their order.
#[derive(Debug)]
pub struct Clock {
    /// The person's; none: RFC 3339.
    zone: Option<TimeZone>,
    /// The day that was told last.
    day: Option<Date>,
}

/// A moment in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// The day, where it is another one than that of the moment before: for a line of its own.
    pub day: Option<String>,
    /// The time.
    pub time: String,
}

impl Clock {
    /// As who reads standard output wants it.
    pub fn of_stdout() -> Self {
        Self { zone: is_terminal().then(TimeZone::system), day: None }
    }

    /// For a person in this zone.
    #[cfg(test)]
    pub const fn in_zone(zone: TimeZone) -> Self {
        Self { zone: Some(zone), day: None }
    }

    /// The next moment.
    pub fn tell(&mut self, at: Timestamp) -> Told {
        let moment =
            i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let (Some(zone), Some(moment)) = (&self.zone, moment) else {
            return Told { day: None, time: at.to_string() };
        };
        let moment = moment.to_zoned(zone.clone());
        let day = moment.date();
        let is_new = self.day.replace(day) != Some(day);
        Told {
            day: is_new.then(|| day.strftime("%Y-%m-%d").to_string()),
            time: moment.strftime("%H:%M:%S").to_string(),
        }
    }

    /// How wide a time is.
    pub const fn width(&self) -> usize {
        if self.zone.is_some() { "00:00:00".len() } else { "2026-01-01T00:00:00.000Z".len() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_the_day_once_and_a_pipe_everything_each_time() {
        let mut clock = Clock { zone: Some(TimeZone::fixed(jiff::tz::offset(2))), day: None };
        let told = |day: Option<&str>, time: &str| Told {
            day: day.map(str::to_owned),
            time: time.to_owned(),
        };
        let hour = 3_600_000;
        assert_eq!(clock.tell(Timestamp(0)), told(Some("1970-01-01"), "02:00:00"));
        assert_eq!(clock.tell(Timestamp(21 * hour)), told(None, "23:00:00"));
        assert_eq!(clock.tell(Timestamp(22 * hour)), told(Some("1970-01-02"), "00:00:00"));
        let mut piped = Clock { zone: None, day: None };
        for _ in 0..2 {
            assert_eq!(piped.tell(Timestamp(0)), told(None, "1970-01-01T00:00:00.000Z"));
        }
        assert_eq!(piped.width(), piped.tell(Timestamp(0)).time.len());
    }
}
