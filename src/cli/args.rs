//! The grammar of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::snapshot::Format;
use crate::api::{HostName, ReleaseNumber, ServiceName};

/// Run large models on your own GPU machines: no Kubernetes, nothing to install on the hosts.
#[derive(Debug, Parser)]
#[command(name = "gpudeck", version, disable_help_subcommand = true)]
pub struct Args {
    /// The deck's directory; default: the present one or the nearest above it with a deck.toml
    #[arg(long, global = true, env = "GPUDECK_DECK", value_name = "DIR")]
    pub deck: Option<PathBuf>,
    /// Tables for people, or JSON for programs
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// What to do; without it the screen opens
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a deck here: a Git repository with deck.toml and services/
    Init {
        /// Where; default: the present directory
        dir: Option<PathBuf>,
        /// What to call it; default: the directory's name
        #[arg(long)]
        name: Option<String>,
    },
    /// Show gpudeck on a simulated fleet of four hosts with eight GPUs each
    Demo {
        /// Tell the story without a terminal: one JSON line per event, and a summary
        #[arg(long)]
        script: bool,
        /// Keep the demo's files here instead of in a temporary directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Show what an apply would do: exit code 0 nothing, 2 changes, 1 error
    Plan {
        /// Which service
        service: ServiceName,
    },
    /// Commit a service's spec and roll it out
    Apply {
        /// Which service
        service: ServiceName,
        /// How
        #[command(flatten)]
        options: BeginOptions,
    },
    /// Watch and steer rollouts
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Drain and stop all replicas of a service
    Stop {
        /// Which service
        service: ServiceName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Services and their replicas
    #[command(visible_alias = "services")]
    Status {
        /// Only this one, with its replicas
        service: Option<ServiceName>,
    },
    /// Hosts and their GPUs
    Hosts,
    /// How hosts and GPUs do, again and again, as plain lines that are only ever added
    Top {
        /// Only these; default: all
        hosts: Vec<HostName>,
        /// So many rounds; default: until interrupted
        #[arg(short = 'n', long = "rounds", value_name = "N")]
        rounds: Option<u64>,
        /// Between two rounds
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "5s")]
        interval: std::time::Duration,
    },
    /// Hosts and GPUs at this moment, for programs: `--output json|csv|prometheus`
    Snapshot {
        /// The same as `--output`; default: csv
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
    /// Check a host: connection, agent, driver, GPUs, engine, ports, disk, clock, each with what to do
    Doctor {
        /// Which host
        host: HostName,
    },
    /// What happened
    Events {
        /// Go on as it happens
        #[arg(long, short)]
        follow: bool,
    },
    /// The releases of a service
    History {
        /// Which service
        service: ServiceName,
    },
    /// The spec of one release against another's
    Diff {
        /// Which service
        service: ServiceName,
        /// The older release, as r3
        from: ReleaseNumber,
        /// The newer release, as r7
        to: ReleaseNumber,
    },
    /// What a rank logged: SERVICE/REPLICA/RANK, for example chat/0/0
    Logs {
        /// Which rank; /RANK and /REPLICA default to 0
        rank: String,
        /// Go on as it comes
        #[arg(long, short)]
        follow: bool,
        /// Lines from the end to begin with
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: usize,
    },
    /// What waits for a person's answer
    Questions,
    /// Answer a question
    Answer {
        /// Its number
        question: u64,
        /// yes or no; a secret is read from the terminal or from standard input
        answer: Option<String>,
    },
    /// The deck's background process
    #[command(subcommand)]
    Controller(ControllerCommand),
}

/// How a rollout is begun.
#[derive(Clone, Debug, clap::Args)]
pub struct BeginOptions {
    /// Why, for the history
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub reason: Option<String>,
    /// Wait until the rollout is over: exit code 0 completed, 3 taken back, 4 time is up
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
    pub timeout: Option<std::time::Duration>,
    /// Do not ask (nothing is asked without a terminal)
    #[arg(long, short)]
    pub yes: bool,
    /// Go on although no replica will be ready in between
    #[arg(long)]
    pub accept_outage: bool,
}

/// Steering rollouts.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// How the rollout is
    Status {
        /// Which service
        service: ServiceName,
        /// Wait until it is over: exit code 0 completed, 3 taken back, 4 time is up
        #[arg(long)]
        wait: bool,
        /// How long to wait
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
        timeout: Option<std::time::Duration>,
    },
    /// Hold it where it is
    Pause {
        /// Which service
        service: ServiceName,
    },
    /// Go on after a pause
    Resume {
        /// Which service
        service: ServiceName,
    },
    /// Pass the gate or step that holds it
    #[command(visible_alias = "approve")]
    Promote {
        /// Which service
        service: ServiceName,
        /// Skip all that is left
        #[arg(long)]
        all: bool,
    },
    /// Take it back
    Abort {
        /// Which service
        service: ServiceName,
        /// Why, for the history
        #[arg(long, short = 'm', value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Roll out an earlier revision again
    Undo {
        /// Which service
        service: ServiceName,
        /// The release to go back to, as r3; default: the last stable one before the present
        #[arg(long, value_name = "RELEASE")]
        to: Option<ReleaseNumber>,
        /// How
        #[command(flatten)]
        options: BeginOptions,
    },
}

/// The background process.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Run it in the foreground
    Run {
        /// Started by another gpudeck: make a session of its own
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Whether it runs, and where its files are
    Status,
    /// End it; what serves goes on serving
    Stop,
    /// End it and start this version
    Restart,
}
