//! `gpudeck rollout …` and `gpudeck stop`.

use super::args::{Args, Output, RetryOptions, RolloutCommand, Why};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::wait::{Awaited, wait};
use super::{apply, maintenance, show, steering, table};
use crate::api::{
    Client, Door, GroupSteer, Intent, IntentReply, ROLLOUT_CHANGED, Rollout, SeenRollout,
    ServiceName, ServiceView, text,
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
        RolloutCommand::Promote { service, all, step, reason, yes } => {
            let view = client.snapshot().await?.services.remove(service);
            let rollout = view.as_ref().and_then(steering::under_way);
            let present = rollout.map(|rollout| rollout.step);
            let step = step.map_or(present, |step| Some(step.get() - 1));
            if apply::must_ask(args, *yes)
                && let (Some(view), Some(rollout), Some(step)) = (&view, rollout, step)
                // One that is passed already is only told so.
                && step >= rollout.step
            {
                agree_to(&steering::promote(view, rollout, *all, step)).await?;
                still_as_shown(&client, service, rollout).await?;
            }
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
        RolloutCommand::Abort { which, reason, yes } => {
            let asks = apply::must_ask(args, *yes);
            match &which.service {
                Some(service) => {
                    return abort(args, &client, service, reason.as_deref(), asks).await;
                }
                None => {
                    let group = client.snapshot().await?.deck.group;
                    if let Some(group) = group.filter(|g| asks && g.ended.is_none()) {
                        agree_to(&steering::abort_together(&group)).await?;
                    }
                    Intent::SteerGroup { what: GroupSteer::Abort, reason: reason.clone() }
                }
            }
        }
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

/// Takes a rollout back: the one that was shown, and no other.
async fn abort(
    args: &Args,
    client: &Client,
    service: &ServiceName,
    reason: Option<&str>,
    asks: bool,
) -> Result<Success, Failure> {
    loop {
        let mut seen = None;
        if asks {
            let view = client.snapshot().await?.services.remove(service);
            let rollout = view.as_ref().and_then(steering::under_way);
            // What is refused whatever the answer is needs no question.
            if let (Some(view), Some(rollout)) = (&view, rollout) {
                agree_to(&steering::abort(view, rollout)).await?;
                seen = Some(SeenRollout { to: rollout.to, step: None });
            }
        }
        let reason = reason.map(str::to_owned);
        let intent = Intent::Abort { service: service.clone(), reason, seen };
        match accepted(args, client, intent).await {
            Err(failure) if asks && failure.message == ROLLOUT_CHANGED => apply::say_changed()?,
            ended => return ended,
        }
    }
}

/// That the rollout under way is where it was when it was shown: what was agreed to is meant for no other.
async fn still_as_shown(
    client: &Client,
    service: &ServiceName,
    shown: &Rollout,
) -> Result<(), Failure> {
    let view = client.snapshot().await?.services.remove(service);
    let present = view.as_ref().and_then(steering::under_way);
    if present.is_some_and(|present| present.to == shown.to && present.step == shown.step) {
        return Ok(());
    }
    let hint = format!("nothing was done; look again: `gpudeck rollout status {service}`");
    Err(Failure::other(ROLLOUT_CHANGED).code(5).with_hint(hint))
}

/// Says what is about to be done, and asks.
async fn agree_to(words: &[String]) -> Result<(), Failure> {
    words.iter().try_for_each(|line| table::say(&text::clean(line, 400)))?;
    apply::agree("Go on?").await
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

/// Stops a service, after it was said what that takes away.
pub async fn stop(
    args: &Args,
    service: &ServiceName,
    why: &Why,
    yes: bool,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    if apply::must_ask(args, yes) {
        let snapshot = show::settle(&client).await?;
        let Some(view) = snapshot.services.get(service) else {
            return Err(show::no_such_service(&client, service).await);
        };
        let words = steering::stop(view, snapshot.deck.group.as_deref());
        if !words.is_empty() {
            agree_to(&words).await?;
        }
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
    let pause = steering::pause_that_ends(steering::under_way(view)?)?;
    Some(format!(", which ends the pause{pause}"))
}
