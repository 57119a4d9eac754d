//! `gpudeck history` and `gpudeck diff`.

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{columns, page, table};
use crate::api::{Door, Outcome, ReleaseNumber, ReleaseView, ServiceName, Stop, Timestamp, time};

/// The releases of a service and who stopped it, newest first.
pub async fn history(args: &Args, service: &ServiceName) -> Result<Success, Failure> {
    let releases = attach(args).await?.history(service).await?;
    if args.output == Output::Json {
        table::json(&releases)?;
        return Ok(Success::Done);
    }
    let lines = lines(&releases, super::show::now());
    if page::is_terminal() {
        short(&lines).iter().try_for_each(|line| table::say_hanging(line, BELOW.len()))?;
    } else {
        let headings = ["RELEASE", "REVISION", "WHEN", "WHO", "OUTCOME", "JOURNEY", "WHY"];
        table::print(&headings, &lines.iter().map(Line::row).collect::<Vec<_>>())?;
    }
    for release in releases.iter().filter(|r| r.not_here) {
        let ReleaseView { number, author, .. } = release;
        table::say(&format!(
            "{number}: its commit is only in the deck of {author}, who began it: `gpudeck deck push` there, then \
             `gpudeck deck fetch` here"
        ))?;
    }
    Ok(Success::Done)
}

/// Before what is said of a release below its row.
const BELOW: &str = "    ";

/// A release, or that somebody stopped the service.
struct Line<'a> {
    number: String,
    revision: String,
    at: Timestamp,
    /// How long ago that is.
    age: String,
    who: &'a str,
    what: What<'a>,
    journey: String,
    why: &'a str,
}

/// What came of a release.
enum What<'a> {
    Ended(Option<&'a Outcome>),
    Stopped(ReleaseNumber),
}

impl Line<'_> {
    /// Everything side by side.
    fn row(&self) -> Vec<String> {
        let what = match self.what {
            What::Ended(outcome) => outcome_words(outcome),
            What::Stopped(release) => format!("stopped {release}"),
        };
        let (number, revision) = (self.number.clone(), self.revision.clone());
        let (at, who) = (self.at.to_string(), self.who.to_owned());
        vec![number, revision, at, who, what, self.journey.clone(), self.why.to_owned()]
    }

    /// What came of it in a word or two, and the reason.
    fn came(&self) -> (String, &str) {
        match self.what {
            What::Ended(None) => ("not ended".to_owned(), ""),
            What::Ended(Some(outcome)) => {
                let (word, why) = outcome.words();
                (word.to_owned(), why)
            }
            What::Stopped(release) => (format!("stopped {release}"), ""),
        }
    }
}

/// A line for each release, and one for each stop where it comes in time.
fn lines(releases: &[ReleaseView], now: Timestamp) -> Vec<Line<'_>> {
    let age = |at: Timestamp| match now.since(at) {
        moment if moment.as_secs() == 0 => "just now".to_owned(),
        age => format!("{} ago", time::short(age)),
    };
    let mut stops: Vec<&Stop> = releases.iter().filter_map(|r| r.stop.as_ref()).collect();
    stops.sort_by_key(|stop| std::cmp::Reverse(stop.at));
    let mut stops = stops.into_iter().peekable();
    let mut lines = Vec::new();
    for release in releases {
        let later = |stop: &&Stop| stop.at >= release.created || stop.release == release.number;
        while let Some(stop) = stops.next_if(later) {
            lines.push(Line {
                number: "–".to_owned(),
                revision: "–".to_owned(),
                at: stop.at,
                age: age(stop.at),
                who: &stop.by,
                what: What::Stopped(stop.release),
                journey: String::new(),
                why: stop.reason.as_deref().unwrap_or_default(),
            });
        }
        lines.push(Line {
            number: release.number.to_string(),
            revision: release.revision.to_string(),
            at: release.created,
            age: age(release.created),
            who: &release.author,
            what: What::Ended(release.outcome.as_ref()),
            journey: release.progress.as_ref().map(|p| p.summary(now)).unwrap_or_default(),
            why: release.reason.as_deref().unwrap_or_default(),
        });
    }
    lines
}

/// For a terminal: short rows, and below each what there is to say of it.
fn short(lines: &[Line<'_>]) -> Vec<String> {
    let row = |line: &Line<'_>| {
        let (word, _) = line.came();
        let (number, age, who) = (line.number.clone(), line.age.clone(), line.who.to_owned());
        vec![number, line.revision.clone(), age, who, word]
    };
    let rows: Vec<Vec<String>> = lines.iter().map(row).collect();
    let headings = ["RELEASE", "REVISION", "AGE", "WHO", "OUTCOME"];
    let laid = columns::laid(&headings, &rows, None, columns::Fit::default());
    let mut laid = laid.into_iter();
    let mut out: Vec<String> = laid.next().into_iter().collect();
    for (row, line) in laid.zip(lines) {
        out.push(row);
        let said = [line.why, line.came().1, &line.journey];
        out.extend(said.iter().filter(|s| !s.is_empty()).map(|said| format!("{BELOW}{said}")));
    }
    out
}

/// How a rollout ended, in words.
pub fn outcome_words(outcome: Option<&Outcome>) -> String {
    outcome.map_or_else(|| "under way, or its end is not known".to_owned(), Outcome::text)
}

/// The spec of one release against another's. Their numbers are the deck's, so they name the service.
pub async fn diff(args: &Args, from: ReleaseNumber, to: ReleaseNumber) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let (older, newer) = (client.release(from).await?, client.release(to).await?);
    if older.service != newer.service {
        let message = format!(
            "{from} is a release of {}, {to} one of {}: they have no spec in common",
            older.service, newer.service
        );
        let hint = format!("`gpudeck history {}` lists its releases", newer.service);
        return Err(Failure::other(message).with_hint(hint));
    }
    let diff = client.diff(&newer.service, from, to).await?;
    match args.output {
        Output::Json => table::json(&diff)?,
        Output::Text => table::out(diff.trim_end())?,
    }
    Ok(Success::Done)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_has_a_line_of_its_own_where_it_comes_in_time() {
        let mut releases =
            crate::tui::fixture::rich().services.into_values().next().unwrap().history;
        releases.truncate(1);
        let stop = |release, at: u64| Stop {
            release: ReleaseNumber(release),
            at: Timestamp(at),
            by: "ada".to_owned(),
            reason: Some("too costly".to_owned()),
        };
        let release = |number, at: u64, stop| ReleaseView {
            number: ReleaseNumber(number),
            created: Timestamp(at),
            stop,
            ..releases[0].clone()
        };
        let all = [
            release(4, 70, Some(stop(4, 80))),
            release(3, 50, None),
            // Stopped while r3 was on its way.
            release(2, 30, Some(stop(2, 60))),
            release(1, 10, None),
        ];
        let lines = lines(&all, Timestamp(3_600_100));
        let rows: Vec<Vec<String>> = lines.iter().map(Line::row).collect();
        let first: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(first, ["–", "r4", "–", "r3", "r2", "r1"]);
        assert_eq!((rows[2][3].as_str(), rows[2][4].as_str()), ("ada", "stopped r2"));
        assert_eq!(rows[2][6], "too costly");
        let told = short(&lines[2..3]);
        assert_eq!(told[1..], ["–        –         1h00m ago  ada  stopped r2", "    too costly"]);
    }

    #[test]
    fn a_reason_stands_below_its_row_and_widens_no_column() {
        let why = "the replica failed, and failed again, and nobody knows why ".repeat(3);
        let mut releases =
            crate::tui::fixture::rich().services.into_values().next().unwrap().history;
        releases.truncate(2);
        releases[0].outcome = Some(Outcome::Failed { why: why.clone() });
        let told = short(&lines(&releases, Timestamp(0)));
        assert!(told[1].ends_with("  failed"), "{told:#?}");
        assert!(told.iter().any(|line| *line == format!("    {why}")), "{told:#?}");
        let aborted = |why: &str| outcome_words(Some(&Outcome::Aborted { why: why.to_owned() }));
        assert_eq!(aborted("aborted by ada: too late"), "aborted by ada: too late");
        assert_eq!(aborted("no reason known"), "aborted: no reason known");
    }
}
