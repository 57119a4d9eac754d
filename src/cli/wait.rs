//! Waiting for the end of a rollout, telling its events.

mod queued;

use std::time::Duration;

use futures::StreamExt;

use self::queued::{Queued, Turn};
use super::args::{Args, Output};
use super::attach::attach;
use super::events::EventLines;
use super::exit::{Failure, Success};
use super::table;
use crate::api::{
    Client, Delta, Door, Gate, Outcome, ReleaseNumber, ServiceName, ServiceView, Snapshot,
    Timestamp,
};

/// What was accepted is shown within this time.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

/// Which rollout is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That under way, or the last one.
    Present,
    /// That to this release.
    Release(ReleaseNumber),
    /// The one that is queued behind that to this release.
    After {
        /// That release.
        behind: ReleaseNumber,
        /// When the one that is waited for was asked for; none: its controller does not say.
        asked: Option<Timestamp>,
    },
}

/// Waits for the end of a rollout, telling its events.
pub async fn wait(
    args: &Args,
    client: &Client,
    service: &ServiceName,
    what: Awaited,
    timeout: Option<Duration>,
) -> Result<Success, Failure> {
    let waiting = follow(args, client, service, what);
    match timeout {
        None => waiting.await,
        Some(limit) => match tokio::time::timeout(limit, waiting).await {
            Ok(result) => result,
            Err(_) => {
                if args.output == Output::Text {
                    table::out(&format!(
                        "time is up; the rollout goes on (`gpudeck rollout status {service}` shows it)"
                    ))?;
                }
                Ok(Success::TimeIsUp)
            }
        },
    }
}

async fn follow(
    args: &Args,
    client: &Client,
    service: &ServiceName,
    what: Awaited,
) -> Result<Success, Failure> {
    let mut told = EventLines::new(args);
    let mut shown_until = None;
    let mut lost = 0;
    let mut queued = match what {
        Awaited::After { behind, asked } => Some(Queued::new(behind, asked)),
        Awaited::Present | Awaited::Release(_) => None,
    };
    loop {
        // The controller may be replaced in the middle; the rollout does not care, nor do we.
        match client.stream().await {
            Ok(mut deltas) => {
                lost = 0;
                let mut snapshot: Option<Snapshot> = None;
                while let Some(delta) = deltas.next().await {
                    if let Delta::Event { event, .. } = &delta
                        && event.service.as_ref() == Some(service)
                        && shown_until.is_none_or(|t| event.at >= t)
                    {
                        shown_until = Some(event.at);
                        told.show(event)?;
                    }
                    match (&mut snapshot, delta) {
                        (_, Delta::Snapshot(whole)) => snapshot = Some(*whole),
                        (Some(known), delta) => {
                            if !known.apply(delta) {
                                break;
                            }
                        }
                        (None, _) => break,
                    }
                    let Some(known) = &snapshot else { continue };
                    let Some(view) = known.services.get(service) else {
                        // What was just accepted may not be shown yet; what is there now is.
                        if what == Awaited::Present {
                            return Err(no_such_service(service));
                        }
                        continue;
                    };
                    if let Some(queued) = &mut queued {
                        match queued.turn(view) {
                            Turn::Waits => continue,
                            Turn::Begun => {}
                            Turn::Never(why) => return Err(why.failure(service)),
                            Turn::NotShown => {
                                // What was just accepted may not be shown yet: asked once more, a moment later.
                                tokio::time::sleep(SHOWN_WITHIN).await;
                                queued.must_be_shown();
                                let now = client.snapshot().await?;
                                match now.services.get(service).map(|view| queued.turn(view)) {
                                    Some(Turn::Never(why)) => return Err(why.failure(service)),
                                    _ => continue,
                                }
                            }
                        }
                    }
                    if let Some(success) = ended(args, view, what)? {
                        return Ok(success);
                    }
                    if failed_and_held(view, what).is_some()
                        && let Some(why) = still_held(client, service, what).await
                    {
                        return held(args, service, &why);
                    }
                }
            }
            Err(error) if lost >= 40 => return Err(error.into()),
            Err(_) => {
                lost += 1;
                let _ = attach(args).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn no_such_service(service: &ServiceName) -> Failure {
    Failure::other(format!("there is no service {service}"))
        .code(8)
        .with_hint("`gpudeck status` lists them")
}

/// Why the awaited rollout has failed and waits for a person, if it does.
fn failed_and_held(view: &ServiceView, what: Awaited) -> Option<&str> {
    let rollout = view.rollout.as_ref().filter(|r| r.outcome.is_none())?;
    match (what, &rollout.gate) {
        (Awaited::Release(release), _) if release != rollout.to => None,
        (Awaited::After { behind, .. }, _) if rollout.to <= behind => None,
        (_, Some(Gate::Failed { why })) => Some(why),
        _ => None,
    }
}

/// A retry that was just accepted may not be shown yet: asked once more, a moment later.
async fn still_held(client: &Client, service: &ServiceName, what: Awaited) -> Option<String> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let snapshot = client.snapshot().await.ok()?;
    failed_and_held(snapshot.services.get(service)?, what).map(str::to_owned)
}

/// It does not end by itself: who waits for it would wait for ever.
fn held(args: &Args, service: &ServiceName, why: &str) -> Result<Success, Failure> {
    let why = crate::base::text::clean(why, 300);
    match args.output {
        Output::Json => table::json_line(&serde_json::json!({
            "service": service, "failed_and_held": why,
        }))?,
        Output::Text => table::out(&format!(
            "{service}: failed and held: {why}\n`gpudeck rollout retry {service}` tries again, \
             `gpudeck rollout abort {service}` takes it back"
        ))?,
    }
    Ok(Success::TakenBack)
}

fn ended(args: &Args, view: &ServiceView, what: Awaited) -> Result<Option<Success>, Failure> {
    let Some(rollout) = &view.rollout else {
        return Ok((what == Awaited::Present).then_some(Success::Done));
    };
    let (mut to, mut outcome) = (rollout.to, rollout.outcome.as_ref());
    match what {
        // It has ended, and the next one began, while nobody listened.
        Awaited::Release(release) if release < rollout.to => {
            to = release;
            let entry = view.history.iter().find(|entry| entry.number == release);
            outcome = entry.and_then(|entry| entry.outcome.as_ref());
        }
        Awaited::Release(release) if release > rollout.to => return Ok(None),
        _ => {}
    }
    let Some(outcome) = outcome else { return Ok(None) };
    if args.output == Output::Json {
        table::json_line(&serde_json::json!({
            "service": view.name, "release": to, "outcome": outcome,
        }))?;
    }
    // Whoever came late did not see the event that told why.
    if args.output == Output::Text {
        let ended = match outcome {
            Outcome::Completed => None,
            Outcome::RolledBack { why } => Some(format!("was taken back: {why}")),
            Outcome::Aborted { .. } => Some(format!("was {}", outcome.text())),
            Outcome::Failed { why } => Some(format!("failed: {why}")),
        };
        if let Some(how) = ended {
            let how = crate::api::text::clean(&how, 320);
            table::say(&format!("{}: {to} {how}", view.name))?;
        }
    }
    Ok(Some(match outcome {
        Outcome::Completed => Success::Done,
        Outcome::RolledBack { .. } | Outcome::Aborted { .. } | Outcome::Failed { .. } => {
            Success::TakenBack
        }
    }))
}
