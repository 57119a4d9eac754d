//! `gpudeck rollout …` and `gpudeck stop`.

use std::time::Duration;

use futures::StreamExt;

use super::args::{Args, Output, RetryOptions, RolloutCommand, Why};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{apply, maintenance, show, table};
use crate::api::{
    Client, Delta, Door, Gate, GroupSteer, Intent, IntentReply, Outcome, PLAN_CHANGED,
    ReleaseNumber, ServiceName, ServiceView, Snapshot,
};

/// Watches or steers a rollout.
pub async fn run(args: &Args, command: &RolloutCommand) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let intent = match command {
        RolloutCommand::Status { service, wait: true, timeout } => {
            return wait(args, &client, service, Awaited::Present, *timeout).await;
        }
        RolloutCommand::Status { service, .. } => return show::status(args, Some(service)).await,
        RolloutCommand::Pause { which, why } => match which.service.clone() {
            Some(service) => Intent::Pause { service, reason: why.reason.clone() },
            None => Intent::SteerGroup { what: GroupSteer::Pause, reason: why.reason.clone() },
        },
        RolloutCommand::Resume { which, why } => match which.service.clone() {
            Some(service) => Intent::Resume { service, reason: why.reason.clone() },
            None => Intent::SteerGroup { what: GroupSteer::Resume, reason: why.reason.clone() },
        },
        RolloutCommand::Promote { service, all, step, reason } => {
            let step = match step {
                Some(step) => Some(step.get() - 1),
                None => present_step(&client, service).await?,
            };
            Intent::Promote { service: service.clone(), all: *all, step, reason: reason.clone() }
        }
        RolloutCommand::Retry { service, options } => {
            return retry(args, &client, service, options).await;
        }
        RolloutCommand::Skip { service, reason } => {
            Intent::Skip { service: service.clone(), reason: reason.clone() }
        }
        RolloutCommand::CancelQueued { service, why } => {
            Intent::CancelQueued { service: service.clone(), reason: why.reason.clone() }
        }
        RolloutCommand::Abort { which, reason } => match which.service.clone() {
            Some(service) => Intent::Abort { service, reason: reason.clone() },
            None => Intent::SteerGroup { what: GroupSteer::Abort, reason: reason.clone() },
        },
        RolloutCommand::Undo { service, to, options } => {
            return apply::undo(args, service, *to, options).await;
        }
    };
    if matches!(intent, Intent::SteerGroup { .. }) {
        let reply = client.send(intent).await?;
        let words = "accepted; `gpudeck status` shows how far they are";
        return maintenance::told(args, &reply, words);
    }
    accepted(args, &client, intent).await
}

/// The index of the step at which the rollout under way is.
async fn present_step(client: &Client, service: &ServiceName) -> Result<Option<usize>, Failure> {
    let snapshot = client.snapshot().await?;
    let rollout = snapshot.services.get(service).and_then(|s| s.rollout.as_ref());
    Ok(rollout.filter(|r| r.outcome.is_none()).map(|r| r.step))
}

/// Tries again what failed.
async fn retry(
    args: &Args,
    client: &Client,
    service: &ServiceName,
    options: &RetryOptions,
) -> Result<Success, Failure> {
    show::settle(client).await?;
    let reply = loop {
        let mut seen = None;
        // What is held goes on within its plan; what is over begins anew, with a new one.
        if apply::must_ask(args, options.yes) && apply::under_way(client, service).await?.is_none()
        {
            let plan = client.plan_retry(service).await?;
            if !apply::agreed(&plan).await? {
                return Ok(Success::Done);
            }
            seen = Some(plan.digest());
        }
        let is_agreed = seen.is_some();
        let intent = Intent::Retry {
            service: service.clone(),
            accept_outage: options.accept_outage,
            reason: options.why.reason.clone(),
            agreed: seen,
        };
        match client.send(intent).await {
            Err(error) if is_agreed && error.message == PLAN_CHANGED => {
                apply::say_changed()?;
            }
            reply => break reply?,
        }
    };
    match (&reply, args.output) {
        (_, Output::Json) => table::json_line(&reply)?,
        (IntentReply::RolloutBegun { release, plan }, Output::Text) => {
            if !apply::must_ask(args, options.yes) {
                apply::warn(plan, None);
            }
            table::out(&format!("{service}: rolling out {release}"))?;
        }
        (IntentReply::NothingToDo, Output::Text) => {
            table::out(&format!("{service}: nothing to do"))?;
        }
        (_, Output::Text) => table::out("accepted")?,
    }
    let what = match reply {
        IntentReply::RolloutBegun { release, .. } => Awaited::Release(release),
        IntentReply::NothingToDo => return Ok(Success::Done),
        _ => Awaited::Present,
    };
    if options.wait {
        return wait(args, client, service, what, options.timeout).await;
    }
    Ok(Success::Done)
}

/// Stops a service.
pub async fn stop(
    args: &Args,
    service: &ServiceName,
    why: &Why,
    yes: bool,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    if apply::must_ask(args, yes) {
        apply::agree(&format!("Drain and stop all replicas of {service}?")).await?;
    }
    let (service, reason) = (service.clone(), why.reason.clone());
    accepted(args, &client, Intent::Stop { service, reason }).await
}

async fn accepted(args: &Args, client: &Client, intent: Intent) -> Result<Success, Failure> {
    let watch = intent.service().map_or_else(
        || "`gpudeck status` shows what comes of it".to_owned(),
        |service| format!("`gpudeck status {service}` shows what comes of it"),
    );
    if let Some(service) = intent.service() {
        let snapshot = client.snapshot().await?;
        let view = snapshot.services.get(service);
        // That nothing runs is only said when the hosts have told whether another controller runs it.
        if view.is_none_or(|v| v.replicas.is_empty() && v.rollout.is_none()) {
            show::settle(client).await?;
        }
    }
    let reply = client.send(intent).await?;
    match (&reply, args.output) {
        (_, Output::Json) => table::json_line(&reply)?,
        (IntentReply::AlreadyPassed { step }, Output::Text) => {
            table::out(&format!("step {step} is already passed"))?;
        }
        (_, Output::Text) => table::out(&format!("accepted; {watch}"))?,
    }
    Ok(Success::Done)
}

/// Which rollout is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// That under way, or the last one.
    Present,
    /// That to this release.
    Release(ReleaseNumber),
    /// The one that is queued behind that to this release.
    After(ReleaseNumber),
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
                    table::out(
                        "time is up; the rollout goes on (`gpudeck rollout status` shows it)",
                    )?;
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
    let mut shown_until = None;
    let mut lost = 0;
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
                        match args.output {
                            Output::Json => table::json_line(event)?,
                            Output::Text => show::event_line(event)?,
                        }
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
        (Awaited::After(behind), _) if rollout.to <= behind => None,
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
        Awaited::After(behind) if rollout.to <= behind => {
            let why = view.queue_trouble.as_deref().unwrap_or("it was cancelled");
            return match &view.queued {
                Some(_) => Ok(None),
                None => Err(Failure::other(format!("the queued rollout did not begin: {why}"))
                    .with_hint("`gpudeck audit` shows who did what")),
            };
        }
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
            Outcome::RolledBack { why } => Some(("was taken back", why)),
            Outcome::Aborted { why } => Some(("was aborted", why)),
            Outcome::Failed { why } => Some(("failed", why)),
        };
        if let Some((how, why)) = ended {
            let why = crate::base::text::clean(why, 300);
            table::out(&format!("{}: {to} {how}: {why}", view.name))?;
        }
    }
    Ok(Some(match outcome {
        Outcome::Completed => Success::Done,
        Outcome::RolledBack { .. } | Outcome::Aborted { .. } | Outcome::Failed { .. } => {
            Success::TakenBack
        }
    }))
}
