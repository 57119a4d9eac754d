//! `gpudeck apply SERVICE` and `gpudeck rollout undo SERVICE`.

use std::io::{IsTerminal, Write};

use super::args::{Args, BeginOptions, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{plan, rollout, table};
use crate::api::{Client, Door, Intent, IntentReply, PlanView, ReleaseNumber, ServiceName};

/// Rolls out the spec as it is in the deck.
pub async fn apply(
    args: &Args,
    service: &ServiceName,
    options: &BeginOptions,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    if must_ask(args, options.yes) {
        let planned = client.plan(service).await?;
        if !agreed(&planned)? {
            return Ok(Success::Done);
        }
    }
    let intent = Intent::Apply {
        service: service.clone(),
        reason: options.reason.clone(),
        accept_outage: options.accept_outage,
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
        let planned = client.plan_undo(service, to).await?;
        if !agreed(&planned)? {
            return Ok(Success::Done);
        }
    }
    let intent = Intent::Undo { service: service.clone(), to, reason: options.reason.clone() };
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
        (IntentReply::RolloutBegun { release, .. }, Output::Text) => {
            table::out(&format!("{service}: rolling out {release}"))?;
        }
        (_, Output::Text) => table::out(&format!("{service}: nothing to do"))?,
    }
    match reply {
        IntentReply::RolloutBegun { release, .. } if options.wait => {
            rollout::wait(args, client, service, Some(release), options.timeout).await
        }
        _ => Ok(Success::Done),
    }
}

/// A person is asked only at a terminal.
pub fn must_ask(args: &Args, yes: bool) -> bool {
    !yes && args.output == Output::Text
        && std::io::stdin().is_terminal()
        && std::io::stdout().is_terminal()
}

fn agreed(planned: &PlanView) -> Result<bool, Failure> {
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
