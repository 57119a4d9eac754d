//! `gpudeck controller …`: the deck's background process.

use std::time::Duration;

use super::args::{Args, ControllerCommand, Output, Why};
use super::attach::{attach, deck, known, running};
use super::exit::{Failure, Success};
use super::{standing, table};
use crate::api::{Client, Door, ErrorKind, Intent, IntentReply};
use crate::controller::handover::is_same_build;
use crate::controller::{Options, Paths, start_in_process};

/// How long a controller stays with nothing to serve and nobody attached.
const LEAVE_AFTER: Duration = Duration::from_secs(60);
/// A controller that is told to end has ended within this time.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Runs, shows or ends it.
pub async fn run(args: &Args, command: &ControllerCommand) -> Result<Success, Failure> {
    match command {
        ControllerCommand::Run { detached } => run_here(args, *detached).await,
        ControllerCommand::Install { print } => super::install::run(args, *print),
        ControllerCommand::Upgrade => upgrade(args).await,
        ControllerCommand::TakeOver { force, confirm, why } => {
            take_over(args, *force, confirm.as_deref(), why).await
        }
        ControllerCommand::Status => status(args).await,
        ControllerCommand::Stop => stop(args).await,
        ControllerCommand::Restart => {
            stop(args).await?;
            attach(args).await?;
            status(args).await
        }
    }
}

async fn run_here(args: &Args, detached: bool) -> Result<Success, Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GPUDECK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,russh=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        // It would be said on standard error, which is the same file on the same full disk: a panic.
        .log_internal_errors(false)
        .init();
    let (dir, spec) = deck(args)?;
    let paths = Paths::of(spec.id);
    let options = Options {
        deck_dir: Some(dir),
        deck: spec,
        agent_binary: None,
        leave_when_idle: detached.then_some(LEAVE_AFTER),
        in_process: None,
    };
    let mut running = start_in_process(options, &paths).await.map_err(|e| Failure::of(&e))?;
    tracing::info!(socket = %running.socket.display(), "the controller answers");
    let failed = |e: std::io::Error| Failure::other(e.to_string()).unforeseen();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(failed)?;
    tokio::select! {
        () = running.ended() => {}
        _ = terminate.recv() => running.stop().await,
        _ = tokio::signal::ctrl_c() => running.stop().await,
    }
    Ok(Success::Done)
}

async fn status(args: &Args) -> Result<Success, Failure> {
    let paths = Paths::of(known(args)?.id);
    let client = running(args).await?;
    let version = match &client {
        Some(client) => Some(client.version().await?),
        None => None,
    };
    let deck = match &client {
        Some(client) => Some(client.snapshot().await?.deck),
        None => None,
    };
    match args.output {
        Output::Json => table::json(&serde_json::json!({
            "running": version.is_some(), "version": version,
            "conditions": deck.map(|d| d.conditions).unwrap_or_default(),
            "another_build": version.as_ref().is_some_and(|v| !is_same_build(v.pid)),
            "directory": paths.dir, "socket": paths.socket(),
        }))?,
        Output::Text => {
            match version {
                Some(v) => table::out(&format!("gpudeck {} runs with pid {}", v.gpudeck, v.pid))?,
                None => table::out("no controller runs; any command starts one")?,
            }
            if let Some(deck) = &deck {
                standing::print(deck)?;
            }
            table::out(&format!("files in {}", paths.dir.display()))?;
        }
    }
    Ok(Success::Done)
}

/// Lets a controller of another build end between two steps and starts this one.
async fn upgrade(args: &Args) -> Result<Success, Failure> {
    let socket = Paths::of(known(args)?.id).socket();
    let client = Client::unchecked(&socket);
    let Ok(version) = tokio::time::timeout(ENDS_WITHIN, client.version()).await else {
        return Err(client.silent().await.into());
    };
    let Ok(before) = version else {
        attach(args).await?;
        return status(args).await;
    };
    if is_same_build(before.pid) {
        if args.output == Output::Text {
            table::out("the controller is of this build already")?;
        }
        return status(args).await;
    }
    if let Err(error) = client.send(Intent::HandOver).await {
        match error.kind {
            // So old that it does not know how: its journal is as good after a plain end.
            ErrorKind::Internal | ErrorKind::Invalid if !error.message.contains("journal") => {
                client.send(Intent::Shutdown).await?;
            }
            _ => return Err(error.into()),
        }
    }
    let gives_way = async {
        while client.version().await.is_ok_and(|v| v.pid == before.pid) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), gives_way).await.is_err() {
        return Err(Failure::other("the old controller did not give way in a minute")
            .with_hint("see what it waits for with `gpudeck events`"));
    }
    attach(args).await?;
    status(args).await
}

/// Takes the hosts over; by force only when the deck was named.
async fn take_over(
    args: &Args,
    force: bool,
    confirm: Option<&str>,
    why: &Why,
) -> Result<Success, Failure> {
    let (_, spec) = deck(args)?;
    let client = attach(args).await?;
    let snapshot = super::show::settle(&client).await?;
    if force {
        let typed = match confirm {
            Some(name) => name.to_owned(),
            None if super::apply::must_ask(args, false) => {
                for condition in &snapshot.deck.conditions {
                    table::out(&format!("! {}: {}", condition.kind.name(), condition.text))?;
                }
                super::apply::ask_text(&format!(
                    "Whoever holds the hosts is cut off in the middle of what it does. To take {} \
                     over all the same, type its name: ",
                    spec.name
                ))
                .await?
            }
            None => {
                return Err(Failure::other("--force cuts another controller off")
                    .with_hint(format!("add --confirm {}", spec.name)));
            }
        };
        if typed.trim() != spec.name {
            return Err(Failure::other("the name is not the deck's: nothing was taken over")
                .with_hint(format!("the deck is {}", spec.name)));
        }
    }
    let reply = client.send(Intent::TakeOver { force, reason: why.reason.clone() }).await?;
    let is_taken = reply != IntentReply::NothingToDo;
    let left_out = match reply {
        IntentReply::TakenOver { left_out } => left_out,
        _ => Vec::new(),
    };
    match args.output {
        Output::Json => {
            table::json_line(&serde_json::json!({ "taken_over": is_taken, "left_out": left_out }))?;
        }
        Output::Text if !is_taken => table::out("this controller holds the hosts")?,
        Output::Text if left_out.is_empty() => {
            table::out("the hosts are taken over; `gpudeck status` shows what goes on")?;
        }
        Output::Text => {
            let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
            table::out(&format!(
                "the hosts that are reached are taken over; `gpudeck status` shows what goes on\n\
                 not reached, and taken over when they are back, unless somebody takes them before: {}",
                names.join(", ")
            ))?;
        }
    }
    Ok(Success::Done)
}

async fn stop(args: &Args) -> Result<Success, Failure> {
    let Some(client) = running(args).await? else {
        match args.output {
            Output::Json => table::json_line(&serde_json::json!({ "stopped": false }))?,
            Output::Text => table::out("no controller runs")?,
        }
        return Ok(Success::Done);
    };
    let ends = async {
        client.send(Intent::Shutdown).await?;
        while client.version().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<(), Failure>(())
    };
    match tokio::time::timeout(ENDS_WITHIN, ends).await {
        Ok(ended) => ended?,
        Err(_) => {
            let hint = client.silent().await.hint.unwrap_or_default();
            let wrong = format!("the controller did not end in {} s", ENDS_WITHIN.as_secs());
            return Err(Failure::other(wrong).with_hint(hint));
        }
    }
    match args.output {
        Output::Json => table::json_line(&serde_json::json!({ "stopped": true }))?,
        Output::Text => table::out("the controller has ended; what serves goes on serving")?,
    }
    Ok(Success::Done)
}
