//! `gpudeck history` and `gpudeck diff`.

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::table;
use crate::api::{Door, Outcome, ReleaseNumber, ServiceName};

/// The releases of a service, newest first.
pub async fn history(args: &Args, service: &ServiceName) -> Result<Success, Failure> {
    let releases = attach(args).await?.history(service).await?;
    if args.output == Output::Json {
        table::json(&releases)?;
        return Ok(Success::Done);
    }
    let rows: Vec<Vec<String>> = releases
        .iter()
        .map(|r| {
            let outcome = outcome_words(r.outcome.as_ref());
            vec![
                r.number.to_string(),
                r.revision.to_string(),
                r.created.to_string(),
                r.author.clone(),
                outcome,
                r.progress.as_ref().map(|p| p.summary(super::show::now())).unwrap_or_default(),
                r.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::print(&["RELEASE", "REVISION", "WHEN", "WHO", "OUTCOME", "JOURNEY", "WHY"], &rows)?;
    Ok(Success::Done)
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
