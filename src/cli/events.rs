//! Events in lines, as they come.

use super::args::{Args, Output};
use super::exit::Failure;
use super::page::Clock;
use super::table;
use crate::api::{EventLine, Severity};

/// Tells events one after the other.
pub struct EventLines {
    clock: Clock,
    is_json: bool,
}

impl EventLines {
    /// As who reads standard output wants them.
    pub fn new(args: &Args) -> Self {
        Self { clock: Clock::of_stdout(), is_json: args.output == Output::Json }
    }

    /// The next one.
    pub fn show(&mut self, event: &EventLine) -> Result<(), Failure> {
        if self.is_json {
            return table::json_line(event);
        }
        let (day, line) = text(event, &mut self.clock);
        day.iter().try_for_each(|day| table::out(day))?;
        // What goes on begins where the service stands.
        table::say_hanging(&line, self.clock.width() + 3)
    }
}

/// An event for people, after the day where that is another one.
fn text(event: &EventLine, clock: &mut Clock) -> (Option<String>, String) {
    let mark = match event.severity {
        Severity::Info => " ",
        Severity::Warning => "!",
        Severity::Error => "✗",
    };
    let service = event.service.as_ref().map(ToString::to_string);
    let about = service.or_else(|| event.host.as_ref().map(ToString::to_string));
    let told = clock.tell(event.at);
    let about = about.unwrap_or_default();
    (told.day, format!("{} {mark} {about:<12} {}", told.time, event.text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::Timestamp;

    #[test]
    fn a_person_is_told_the_time_and_the_day_when_it_changes() {
        let event = EventLine {
            at: Timestamp(0),
            severity: Severity::Warning,
            service: Some("chat".parse().unwrap()),
            host: None,
            text: "r1-0 waits: no room".to_owned(),
        };
        let mut clock = Clock::in_zone(jiff::tz::TimeZone::UTC);
        let line = "00:00:00 ! chat         r1-0 waits: no room".to_owned();
        assert_eq!(text(&event, &mut clock), (Some("1970-01-01".to_owned()), line.clone()));
        assert_eq!(text(&event, &mut clock), (None, line));
    }
}
