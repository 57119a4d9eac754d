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
        None => "under way or unknown".to_owned(),
        Some(Outcome::Completed) => "completed".to_owned(),
        Some(Outcome::RolledBack { why }) => format!("rolled back: {why}"),
        Some(Outcome::Aborted { why }) => format!("aborted: {why}"),
        Some(Outcome::Failed { why }) => format!("failed: {why}"),
    }
}

/// The spec of one release against another's.
pub async fn diff(
    args: &Args,
    service: &ServiceName,
    from: ReleaseNumber,
    to: ReleaseNumber,
) -> Result<Success, Failure> {
    let diff = attach(args).await?.diff(service, from, to).await?;
    match args.output {
        Output::Json => table::json(&diff)?,
        Output::Text => table::out(diff.trim_end())?,
    }
    Ok(Success::Done)
}
