//! `gpudeck rollout …` and `gpudeck stop`.

use super::args::{Args, Output, RetryOptions, RolloutCommand, Why};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::wait::{Awaited, wait};
use super::{apply, maintenance, show, table};
use crate::api::{
    Client, Door, GroupSteer, Intent, IntentReply, SeenRollout, ServiceName, ServiceView,
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
            Intent::Skip { service: service.clone(), reason: reason.clone(), seen: None }
        }
        RolloutCommand::CancelQueued { service, why } => {
            Intent::CancelQueued { service: service.clone(), reason: why.reason.clone() }
        }
        RolloutCommand::Abort { which, reason } => match which.service.clone() {
            Some(service) => Intent::Abort { service, reason: reason.clone(), seen: None },
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
        let (mut agreed, mut seen) = (None, None);
        // What is held goes on within its plan; what is over begins anew, with a new one.
        if apply::must_ask(args, options.yes) {
            seen = apply::under_way(client, service).await?;
            if seen.is_none() {
                let plan = client.plan_retry(service).await?;
                if !apply::agreed(&plan).await? {
                    return Ok(Success::Done);
                }
                agreed = Some(plan.digest());
            }
        }
        let intent = Intent::Retry {
            service: service.clone(),
            accept_outage: options.accept_outage,
            reason: options.why.reason.clone(),
            agreed,
            seen: seen.map(|to| SeenRollout { to, step: None }),
        };
        match client.send(intent).await {
            Err(error) if apply::is_other_than_seen(&error) => {
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
    let mut pause = None;
    if let Some(service) = intent.service() {
        let snapshot = client.snapshot().await?;
        let view = snapshot.services.get(service);
        pause = view.and_then(|view| pause_that_ends(view, &intent));
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
        (_, Output::Text) => {
            let pause = pause.unwrap_or_default();
            table::out(&format!("accepted{pause}; {watch}"))?;
        }
    }
    Ok(Success::Done)
}

/// That what is asked for also ends a pause, for whoever does not mean to.
fn pause_that_ends(view: &ServiceView, intent: &Intent) -> Option<String> {
    if !matches!(intent, Intent::Skip { .. } | Intent::Promote { .. } | Intent::Retry { .. }) {
        return None;
    }
    let rollout = view.rollout.as_ref().filter(|r| r.outcome.is_none() && r.paused.is_some())?;
    let by = rollout.paused_by.as_ref().map(|by| format!(" of {by}"));
    let why = rollout.paused_why.as_ref().map(|why| format!(" ({why})"));
    Some(format!(", which ends the pause{}{}", by.unwrap_or_default(), why.unwrap_or_default()))
}
