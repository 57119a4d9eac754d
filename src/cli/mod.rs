//! The command line: one file per command. Tables for people, `--output json` for programs.
//!
//! Commands speak to the controller through `api` only; [`attach`] is where one is found or started.

pub mod apply;
pub mod args;
pub mod attach;
mod attention;
pub mod audit;
mod columns;
pub mod controller;
pub mod deck;
pub mod demo;
pub mod doctor;
mod events;
pub mod exit;
pub mod gateway;
pub mod history;
pub mod hosts;
pub mod init;
pub mod install;
pub mod journal;
pub mod logs;
pub mod maintenance;
pub mod model;
mod no_gpus;
mod page;
pub mod place;
pub mod plan;
pub mod questions;
pub mod rollout;
pub mod screen;
pub mod show;
pub mod snapshot;
pub mod snapshot_csv;
pub mod snapshot_prometheus;
pub mod ssh_config;
pub mod standing;
mod steering;
pub mod table;
pub mod together;
pub mod top;
mod top_details;
pub mod upgrade;
pub mod wait;
pub mod what_if;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command, ControllerCommand, HostsCommand, ModelCommand, RolloutCommand};
use self::exit::{Failure, Success};

/// Every door but the far end.
pub fn main(arguments: &[String]) -> ExitCode {
    let args = match Args::try_parse_from(snapshot::normalise(arguments)) {
        Ok(args) => args,
        Err(error) if error.use_stderr() && wants_json(arguments) => {
            let wrong = Failure::other(what_is_wrong(&error.to_string())).code(exit::USAGE);
            return exit::report_json(
                &wrong.with_hint("`gpudeck help` names the commands, `--help` their options"),
            );
        }
        Err(error) => {
            let _ = error.print();
            // 2 is «there are changes» (see docs/cli.md), so usage errors have a code of their own.
            return if error.use_stderr() {
                ExitCode::from(exit::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    if let Some(Command::Controller(ControllerCommand::Run { detached: true })) = &args.command {
        // A session of its own: the terminal's hangup and Ctrl-C do not reach it.
        let _ = rustix::process::setsid();
    }
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let wrong = Failure::other(format!("no async runtime: {error}"));
                let hint = "free memory, or let the user have more processes (`ulimit -u`)";
                return exit::report(&args, &wrong.with_hint(hint));
            }
        };
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(&args) => result,
            () = interrupted(&args) => Err(Failure::interrupted(begins_something(args.command.as_ref()))),
        }
    });
    if questions::show_again() {
        // What waits for an answer would take the next line from the shell.
        runtime.shutdown_background();
    } else {
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        // Asked at the very end.
        questions::show_again();
    }
    match result {
        Ok(success) => success.into(),
        Err(failure) => exit::report(&args, &failure),
    }
}

/// What is wrong on one line, without the usage that follows it.
fn what_is_wrong(text: &str) -> String {
    // What is missing stands on lines of its own.
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let all = lines.collect::<Vec<_>>().join(" ");
    all.strip_prefix("error: ").map(str::to_owned).unwrap_or(all)
}

/// Whether JSON was asked for, on a command line that was not understood.
fn wants_json(arguments: &[String]) -> bool {
    let joined = |word: &String| matches!(word.as_str(), "--output=json" | "-o=json" | "-ojson");
    let apart = |pair: &[String]| matches!(pair, [name, value] if (name == "-o" || name == "--output") && value == "json");
    arguments.iter().any(joined) || arguments.windows(2).any(apart)
}

/// Ctrl-C ends a command; the screen and the controller handle it themselves.
async fn interrupted(args: &Args) {
    match args.command {
        None | Some(Command::Demo { .. } | Command::Controller(ControllerCommand::Run { .. })) => {
            std::future::pending::<()>().await;
        }
        Some(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

/// Whether a command begins something that goes on without it.
fn begins_something(command: Option<&Command>) -> bool {
    matches!(
        command,
        Some(
            Command::Hosts { command: Some(_), .. }
                | Command::Apply { .. }
                | Command::Rollout(_)
                | Command::Move(_)
                | Command::Stop { .. }
                | Command::Drain { .. }
                | Command::Uncordon { .. }
                | Command::Drift { .. }
                | Command::Reconnect { .. }
                | Command::Controller(_)
        )
    )
}

async fn run(args: &Args) -> Result<Success, Failure> {
    let Some(command) = &args.command else { return screen::open(args).await };
    match command {
        Command::Init { dir, name } => init::run(args, dir.as_deref(), name.as_deref()),
        Command::Demo { script, dir } => demo::run(args, *script, dir.as_deref()).await,
        Command::Controller(command) => controller::run(args, command).await,
        Command::Place { world, time_limit, steps, explain } => {
            place::run(args, world, *time_limit, *steps, *explain)
        }
        Command::Model(ModelCommand::Inspect { path, options }) => {
            model::inspect(args, path, options).await
        }
        Command::Gateway(command) => gateway::run(args, command).await,
        Command::SshConfig { host, plain, file } => {
            ssh_config::run(args, host, *plain, file.as_deref())
        }
        Command::Plan { services, options } => {
            let planned = match services.as_slice() {
                [service] if !options.asks() => plan::run(args, service).await,
                several @ [_, _, ..] if !options.asks() => together::plan(args, several).await,
                services => what_if::plan(args, services, options).await,
            };
            planned.map_err(Failure::of_a_plan)
        }
        Command::Move(options) => what_if::move_replica(args, options).await,
        Command::Apply { services, atomic, concurrency_policy, options } => {
            match services.as_slice() {
                [service] => apply::apply(args, service, *concurrency_policy, options).await,
                _ if concurrency_policy.is_some() => {
                    Err(exit::Failure::other("--concurrency-policy is for one service at a time")
                        .with_hint("leave it out, or apply them one after the other"))
                }
                services => together::apply(args, services, *atomic, options).await,
            }
        }
        Command::Rollout(RolloutCommand::Undo { service, to, options }) => {
            apply::undo(args, service, *to, options).await
        }
        Command::Rollout(command) => rollout::run(args, command).await,
        Command::Stop { service, why, yes } => rollout::stop(args, service, why, *yes).await,
        Command::Status { service } => show::status(args, service.as_ref()).await,
        Command::Hosts { command: None, hosts } => hosts::hosts(args, hosts).await,
        Command::Hosts { command: Some(HostsCommand::Upgrade(options)), .. } => {
            upgrade::run(args, options).await
        }
        Command::Cordon { target, reason } => {
            maintenance::cordon(args, target, reason.as_deref()).await
        }
        Command::Uncordon { target, why } => maintenance::uncordon(args, target, why).await,
        Command::Reconnect { hosts } => maintenance::reconnect(args, hosts).await,
        Command::Drain { host, options } => maintenance::drain(args, host, options).await,
        Command::Top { hosts, details, rounds, interval } => {
            let show = top::Show { hosts, details: *details };
            top::run(args, show, *rounds, *interval).await
        }
        Command::Snapshot { format } => snapshot::run(args, *format).await,
        Command::Doctor { host } => doctor::run(args, host).await,
        Command::Events { follow } => show::events(args, *follow).await,
        Command::History { service } => history::history(args, service).await,
        Command::Diff { from, to } => history::diff(args, *from, *to).await,
        Command::Show { release } => deck::show(args, *release).await,
        Command::Blame { service } => deck::blame(args, service).await,
        Command::Drift { service, end_unknown: false, .. } => {
            deck::drift(args, service.as_ref()).await
        }
        Command::Drift { service, host, yes, .. } => {
            deck::end_unknown(args, service.as_ref(), host.as_ref(), *yes).await
        }
        Command::Deck(command) => deck::run(args, command).await,
        Command::Logs { rank, lines, previous: true, .. } => {
            logs::previous(args, rank, *lines).await
        }
        Command::Logs { rank, follow, lines, .. } => logs::run(args, rank, *follow, *lines).await,
        Command::Journal { command, options } => {
            journal::run(args, command.as_ref(), options).await
        }
        Command::Audit { command } => audit::run(args, command.as_ref()),
        Command::Questions => questions::list(args).await,
        Command::Answer { question, answer } => {
            questions::answer(args, *question, answer.as_deref()).await
        }
    }
}
