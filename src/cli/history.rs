//! `gpudeck history` and `gpudeck diff`.

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::table;
use crate::api::{Door, Outcome, ReleaseNumber, ReleaseView, ServiceName, Stop, Timestamp};

/// The releases of a service and who stopped it, newest first.
pub async fn history(args: &Args, service: &ServiceName) -> Result<Success, Failure> {
    let releases = attach(args).await?.history(service).await?;
    if args.output == Output::Json {
        table::json(&releases)?;
        return Ok(Success::Done);
    }
    let rows = rows(&releases, super::show::now());
    table::print(&["RELEASE", "REVISION", "WHEN", "WHO", "OUTCOME", "JOURNEY", "WHY"], &rows)?;
    for release in releases.iter().filter(|r| r.not_here) {
        let ReleaseView { number, author, .. } = release;
        table::out(&format!(
            "{number}: its commit is only in the deck of {author}, who began it: `gpudeck deck push` there, then \
             `gpudeck deck fetch` here"
        ))?;
    }
    Ok(Success::Done)
}

/// A row for each release, and one for each stop where it comes in time.
fn rows(releases: &[ReleaseView], now: Timestamp) -> Vec<Vec<String>> {
    let mut stops: Vec<&Stop> = releases.iter().filter_map(|r| r.stop.as_ref()).collect();
    stops.sort_by_key(|stop| std::cmp::Reverse(stop.at));
    let mut stops = stops.into_iter().peekable();
    let mut rows = Vec::new();
    for release in releases {
        let later = |stop: &&Stop| stop.at >= release.created || stop.release == release.number;
        while let Some(stop) = stops.next_if(later) {
            rows.push(vec![
                "–".to_owned(),
                "–".to_owned(),
                stop.at.to_string(),
                stop.by.clone(),
                format!("stopped {}", stop.release),
                String::new(),
                stop.reason.clone().unwrap_or_default(),
            ]);
        }
        let journey = release.progress.as_ref().map(|p| p.summary(now));
        rows.push(vec![
            release.number.to_string(),
            release.revision.to_string(),
            release.created.to_string(),
            release.author.clone(),
            outcome_words(release.outcome.as_ref()),
            journey.unwrap_or_default(),
            release.reason.clone().unwrap_or_default(),
        ]);
    }
    rows
}

/// How a rollout ended, in words.
pub fn outcome_words(outcome: Option<&Outcome>) -> String {
    match outcome {
        None => "under way, or its end is not known".to_owned(),
        Some(Outcome::Completed) => "completed".to_owned(),
        Some(Outcome::RolledBack { why }) => format!("rolled back: {why}"),
        Some(Outcome::Aborted { why }) => format!("aborted: {why}"),
        Some(Outcome::Failed { why }) => format!("failed: {why}"),
    }
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
        let rows = rows(&all, Timestamp(100));
        let first: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(first, ["–", "r4", "–", "r3", "r2", "r1"]);
        assert_eq!((rows[2][3].as_str(), rows[2][4].as_str()), ("ada", "stopped r2"));
        assert_eq!(rows[2][6], "too costly");
    }
}
