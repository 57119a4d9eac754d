//! `gpudeck apply SERVICE` and `gpudeck rollout undo SERVICE`.

use std::io::{IsTerminal, Write};

use super::args::{Args, BeginOptions, Concurrency, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{plan, rollout, table};
use crate::api::{
    Client, ConcurrencyPolicy, Door, Intent, IntentReply, PlanView, ReleaseNumber, ServiceName,
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
    if must_ask(args, options.yes) {
        let agreed = match under_way(&client, service).await? {
            Some(present) => agreed_to_queue(service, present)?,
            None => agreed(&client.plan(service).await?)?,
        };
        if !agreed {
            return Ok(Success::Done);
        }
    }
    let intent = Intent::Apply {
        service: service.clone(),
        reason: options.reason.clone(),
        accept_outage: options.accept_outage,
        concurrency: concurrency.map(|policy| match policy {
            Concurrency::Forbid => ConcurrencyPolicy::Forbid,
            Concurrency::Queue => ConcurrencyPolicy::Queue,
            Concurrency::Replace => ConcurrencyPolicy::Replace,
        }),
    };
    begin(args, &client, service, intent, options).await
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
    if must_ask(args, options.yes) {
        let agreed = match under_way(&client, service).await? {
            Some(present) => ask(&format!("Take the rollout of {service} to {present} back?"))?,
            None => agreed(&client.plan_undo(service, to).await?)?,
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
    };
    begin(args, &client, service, intent, options).await
}

async fn begin(
    args: &Args,
    client: &Client,
    service: &ServiceName,
    intent: Intent,
    options: &BeginOptions,
) -> Result<Success, Failure> {
    let reply = client.send(intent).await?;
    match (&reply, args.output) {
        (_, Output::Json) => table::json_line(&reply)?,
        (IntentReply::RolloutBegun { release, plan }, Output::Text) => {
            // Whoever was asked has read them in the plan.
            if !must_ask(args, options.yes) {
                warn(plan);
            }
            table::out(&format!("{service}: rolling out {release}"))?;
        }
        (IntentReply::Queued { behind, replaces: false }, Output::Text) => {
            table::out(&format!("{service}: queued; it begins when the rollout to {behind} ends"))?;
        }
        (IntentReply::Queued { behind, replaces: true }, Output::Text) => {
            table::out(&format!("{service}: {behind} is taken back first, then it begins"))?;
        }
        (IntentReply::Accepted, Output::Text) => {
            table::out(&format!("{service}: the rollout under way is taken back"))?;
        }
        // Answers a promotion only.
        (IntentReply::AlreadyPassed { .. }, Output::Text) => {}
        (IntentReply::NothingToDo, Output::Text) => {
            table::out(&format!("{service}: nothing to do"))?;
        }
    }
    if !options.wait {
        return Ok(Success::Done);
    }
    let what = match reply {
        IntentReply::RolloutBegun { release, .. } => rollout::Awaited::Release(release),
        IntentReply::Queued { behind, .. } => rollout::Awaited::After(behind),
        IntentReply::Accepted => rollout::Awaited::Present,
        IntentReply::NothingToDo | IntentReply::AlreadyPassed { .. } => return Ok(Success::Done),
    };
    let taken_back_is_good = what == rollout::Awaited::Present;
    match rollout::wait(args, client, service, what, options.timeout).await? {
        Success::TakenBack if taken_back_is_good => Ok(Success::Done),
        success => Ok(success),
    }
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

fn agreed_to_queue(service: &ServiceName, present: ReleaseNumber) -> Result<bool, Failure> {
    table::out(&format!(
        "A rollout of {service} to {present} is under way: a plan is made after it."
    ))?;
    ask("Go on?")
}

/// A person is asked only at a terminal.
pub fn must_ask(args: &Args, yes: bool) -> bool {
    !yes && args.output == Output::Text
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
}

/// Says on standard error what a plan warns of that nobody has read.
pub fn warn(planned: &PlanView) {
    for warning in &planned.warnings {
        eprintln!("! {}", crate::api::text::clean(warning, 400));
    }
}

/// Shows a plan and asks whether to go on.
pub fn agreed(planned: &PlanView) -> Result<bool, Failure> {
    plan::print(planned)?;
    Ok(!planned.nothing_to_do && ask("Go on?")?)
}

/// Asks for a line of text.
pub fn ask_text(question: &str) -> Result<String, Failure> {
    print!("{question}");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| Failure::other(e.to_string()))?;
    Ok(answer.trim().to_owned())
}

/// Asks yes or no; no by default.
pub fn ask(question: &str) -> Result<bool, Failure> {
    print!("{question} [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|e| Failure::other(e.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
