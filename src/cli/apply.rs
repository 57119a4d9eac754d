//! `gpudeck apply SERVICE` and `gpudeck rollout undo SERVICE`.

use std::io::{IsTerminal, Write};

use super::args::{Args, BeginOptions, Concurrency, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{plan, table, wait};
use crate::api::{
    ApiError, Client, ConcurrencyPolicy, Door, Intent, IntentReply, PLAN_CHANGED, PlanView,
    ROLLOUT_CHANGED, ReleaseNumber, SeenRollout, ServiceName,
};

/// Rolls out the spec as it is in the deck.
pub async fn apply(
    args: &Args,
    service: &ServiceName,
    concurrency: Option<Concurrency>,
    options: &BeginOptions,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    let policy = concurrency.map(|policy| match policy {
        Concurrency::Forbid => ConcurrencyPolicy::Forbid,
        Concurrency::Queue => ConcurrencyPolicy::Queue,
        Concurrency::Replace => ConcurrencyPolicy::Replace,
    });
    loop {
        let mut seen = None;
        if must_ask(args, options.yes) {
            let plan = client.plan_behind(service, policy).await?;
            // What is refused whatever the answer is needs no question.
            let is_refused = plan.behind.is_some_and(|behind| behind.refused);
            if !is_refused && !agreed(&plan).await? {
                return Ok(Success::Done);
            }
            seen = Some(plan);
        }
        let intent = Intent::Apply {
            service: service.clone(),
            reason: options.reason.clone(),
            accept_outage: options.accept_outage,
            concurrency: policy,
            agreed: digest(seen.as_ref()),
        };
        if let Some(done) = begin(args, &client, service, intent, (options, seen.as_ref())).await? {
            return Ok(done);
        }
    }
}

/// Rolls out an earlier revision again.
pub async fn undo(
    args: &Args,
    service: &ServiceName,
    to: Option<ReleaseNumber>,
    options: &BeginOptions,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    loop {
        let (mut seen, mut taken_back) = (None, None);
        if must_ask(args, options.yes) {
            taken_back = taken_back_alone(&client, service, to).await?;
            let agreed = if let Some(present) = taken_back {
                agree(&format!("Take the rollout of {service} to {present} back?"))
                    .await
                    .map(|()| true)?
            } else {
                let plan = client.plan_undo(service, to).await?;
                let agreed = agreed(&plan).await?;
                seen = Some(plan);
                agreed
            };
            if !agreed {
                return Ok(Success::Done);
            }
        }
        let intent = Intent::Undo {
            service: service.clone(),
            to,
            reason: options.reason.clone(),
            accept_outage: options.accept_outage,
            agreed: digest(seen.as_ref()),
            seen: taken_back.map(|to| SeenRollout { to, step: None }),
        };
        if let Some(done) = begin(args, &client, service, intent, (options, seen.as_ref())).await? {
            return Ok(done);
        }
    }
}

/// The plan that is agreed to. What comes after a rollout under way is planned again when its turn has come.
fn digest(seen: Option<&PlanView>) -> Option<String> {
    seen.filter(|plan| plan.behind.is_none()).map(PlanView::digest)
}

/// The release of the rollout under way, where an undo takes it back and nothing comes after that.
async fn taken_back_alone(
    client: &Client,
    service: &ServiceName,
    to: Option<ReleaseNumber>,
) -> Result<Option<ReleaseNumber>, Failure> {
    let snapshot = client.snapshot().await?;
    let rollout = snapshot.services.get(service).and_then(|s| s.rollout.as_ref());
    let active = rollout.filter(|r| r.outcome.is_none());
    Ok(active.filter(|r| to.is_none() || r.from == to || Some(r.to) == to).map(|r| r.to))
}

/// Asks for it and waits if that is wanted; none: what was seen or agreed to is not so any more.
async fn begin(
    args: &Args,
    client: &Client,
    service: &ServiceName,
    intent: Intent,
    (options, seen): (&BeginOptions, Option<&PlanView>),
) -> Result<Option<Success>, Failure> {
    let reply = match client.send(intent).await {
        Err(error) if is_other_than_seen(&error) => {
            say_changed()?;
            return Ok(None);
        }
        reply => reply?,
    };
    match (&reply, args.output) {
        (_, Output::Json) => table::json_line(&reply)?,
        (IntentReply::RolloutBegun { release, plan }, Output::Text) => {
            // Whoever was asked has read them in the plan.
            warn(plan, seen);
            table::out(&format!("{service}: rolling out {release}"))?;
        }
        (IntentReply::Queued { behind, replaces: false, .. }, Output::Text) => {
            table::out(&format!("{service}: queued; it begins when the rollout to {behind} ends"))?;
        }
        (IntentReply::Queued { behind, replaces: true, .. }, Output::Text) => {
            table::out(&format!("{service}: {behind} is taken back first, then it begins"))?;
        }
        (IntentReply::Accepted, Output::Text) => {
            table::out(&format!("{service}: the rollout under way is taken back"))?;
        }
        // Answer a promotion, a take-over and a cordon only.
        (
            IntentReply::AlreadyPassed { .. }
            | IntentReply::TakenOver { .. }
            | IntentReply::CordonedBut { .. },
            Output::Text,
        ) => {}
        (IntentReply::NothingToDo, Output::Text) => {
            table::out(&format!("{service}: nothing to do"))?;
        }
    }
    if !options.wait {
        return Ok(Some(Success::Done));
    }
    let what = match reply {
        IntentReply::RolloutBegun { release, .. } => wait::Awaited::Release(release),
        IntentReply::Queued { behind, asked, .. } => wait::Awaited::After { behind, asked },
        IntentReply::Accepted => wait::Awaited::Present,
        IntentReply::NothingToDo
        | IntentReply::AlreadyPassed { .. }
        | IntentReply::TakenOver { .. }
        | IntentReply::CordonedBut { .. } => {
            return Ok(Some(Success::Done));
        }
    };
    let taken_back_is_good = what == wait::Awaited::Present;
    match wait::wait(args, client, service, what, options.timeout).await? {
        Success::TakenBack if taken_back_is_good => Ok(Some(Success::Done)),
        success => Ok(Some(success)),
    }
}

/// Nothing was done since the plan or the rollout is not what the person has seen, who is asked again then. Said only
/// to who told what that was.
pub fn is_other_than_seen(error: &ApiError) -> bool {
    [PLAN_CHANGED, ROLLOUT_CHANGED].contains(&error.message.as_str())
}

/// Says why a plan is shown once more.
pub fn say_changed() -> Result<(), Failure> {
    table::out("The spec, the hosts or what is rolled out have changed meanwhile.\n")
}

/// The release of the rollout under way.
pub async fn under_way(
    client: &Client,
    service: &ServiceName,
) -> Result<Option<ReleaseNumber>, Failure> {
    let snapshot = client.snapshot().await?;
    let rollout = snapshot.services.get(service).and_then(|s| s.rollout.as_ref());
    Ok(rollout.filter(|r| r.outcome.is_none()).map(|r| r.to))
}

/// A person is asked only at a terminal.
pub fn must_ask(args: &Args, yes: bool) -> bool {
    !yes && args.output == Output::Text
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
}

/// Says on standard error what a plan warns of that nobody has read.
pub fn warn(planned: &PlanView, seen: Option<&PlanView>) {
    let is_new = |warning: &&String| seen.is_none_or(|seen| !seen.warnings.contains(warning));
    for warning in planned.warnings.iter().filter(is_new) {
        eprintln!("! {}", crate::api::text::clean(warning, 400));
    }
}

/// Shows a plan and asks whether to go on; false: there is nothing to do.
pub async fn agreed(planned: &PlanView) -> Result<bool, Failure> {
    plan::print(planned)?;
    if planned.nothing_to_do {
        return Ok(false);
    }
    agree("Go on?").await.map(|()| true)
}

/// Asks, and ends the command where the answer is no.
pub async fn agree(question: &str) -> Result<(), Failure> {
    if ask(question).await? { Ok(()) } else { Err(declined()) }
}

/// What a command says and ends with whose question was answered with no.
fn declined() -> Failure {
    Failure::other("nothing was done: the answer was no")
        .code(5)
        .with_hint("answer y to go on; --yes goes on without being asked")
}

/// Asks for a line of text.
pub async fn ask_text(question: &str) -> Result<String, Failure> {
    print!("{question}");
    let _ = std::io::stdout().flush();
    // Aside, so that Ctrl-C is heard meanwhile.
    let read = tokio::task::spawn_blocking(|| {
        let _asked = super::questions::Asked::begin();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = read.await.map_err(|e| Failure::other(e.to_string()).unforeseen())?;
    Ok(answer.map_err(|e| Failure::other(e.to_string()).unforeseen())?.trim().to_owned())
}

/// Asks yes or no; no by default.
pub async fn ask(question: &str) -> Result<bool, Failure> {
    Ok(matches!(ask_text(&format!("{question} [y/N] ")).await?.as_str(), "y" | "Y" | "yes"))
}
