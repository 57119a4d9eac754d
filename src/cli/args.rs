//! The grammar of the command line: the commands here, the words of each kind below.

mod hosts;
mod keeping;
mod model;
mod placement;
mod rollout;

pub use hosts::{DrainOptions, HostsCommand, UpgradeOptions};
pub use keeping::{AuditCommand, ControllerCommand, DeckCommand, GatewayCommand, JournalCommand};
pub(super) use model::memory_size;
pub use model::{InspectOptions, ModelCommand};
pub use placement::{GpuList, MoveOptions, PlanOptions};
pub use rollout::{BeginOptions, Concurrency, RetryOptions, RolloutCommand, SteerWhich};

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::snapshot::Format;
use crate::api::{HostName, ReleaseNumber, ServiceName};

/// Run large models on your own GPU machines: no Kubernetes, nothing to set up on the hosts.
#[derive(Debug, Parser)]
#[command(name = "gpudeck", version)]
pub struct Args {
    /// The deck's directory; default: the present one or the nearest above it with a deck.toml
    #[arg(long, global = true, env = "GPUDECK_DECK", value_name = "DIR")]
    pub deck: Option<PathBuf>,
    /// Tables for people, or JSON for programs; `snapshot` also knows csv and prometheus
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
        /// Keep the demo's files here instead of in a temporary directory. Meanwhile
        /// `GPUDECK_HOME=DIR/home gpudeck --deck DIR/deck status` looks at it from another terminal
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Place the services of a world in a JSON file, without hosts or a controller
    Place {
        /// The world, as docs/placement.md has it; - is standard input
        world: PathBuf,
        /// How long to search for better placements
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "500ms")]
        time_limit: std::time::Duration,
        /// End after so many attempts: with a generous time limit the answer is the same everywhere
        #[arg(long, value_name = "N")]
        steps: Option<u64>,
        /// Name every host that was passed over, not just some
        #[arg(long)]
        explain: bool,
    },
    /// Show how a host is reached, in the format of `ssh -G`
    ///
    /// Of a host of the deck here with what deck.toml says of it; of any other as `ssh` would reach it.
    SshConfig {
        /// As `ssh` takes it: [USER@]HOST
        host: String,
        /// Without what deck.toml says
        #[arg(long)]
        plain: bool,
        /// Read this file instead of ~/.ssh/config and the system's
        #[arg(short = 'F', value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show what an apply would do: exit code 0 nothing, 2 changes, 1 error
    ///
    /// For one service: the rollout of its spec. For several: the rollout of each, in the order of their `after`, as
    /// those before leave the hosts. For all, or with any of the options: where every replica would be. Nothing is
    /// touched.
    Plan {
        /// Which services; none: all
        services: Vec<ServiceName>,
        /// What if
        #[command(flatten)]
        options: PlanOptions,
    },
    /// Move one replica of what is served to other GPUs, by the rules of placement
    Move(MoveOptions),
    /// Commit a service's spec and roll it out
    Apply {
        /// Which service; several are rolled out one after the other, in the order of their `after`
        #[arg(required = true)]
        services: Vec<ServiceName>,
        /// If one of several fails, take back those already rolled out
        #[arg(long)]
        atomic: bool,
        /// While another rollout of the service is under way; default: what its spec says
        #[arg(long, value_enum, value_name = "POLICY")]
        concurrency_policy: Option<Concurrency>,
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
        /// Why
        #[command(flatten)]
        why: Why,
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
    #[command(args_conflicts_with_subcommands = true)]
    Hosts {
        /// Only these; default: all
        hosts: Vec<HostName>,
        /// What to do with them; without it they are listed
        #[command(subcommand)]
        command: Option<HostsCommand>,
    },
    /// No new ranks on a host or GPU; what runs there goes on
    Cordon {
        /// HOST, or HOST/GPU for one GPU, for example node1/3
        target: String,
        /// Why
        #[arg(long, short = 'm', value_name = "TEXT")]
        reason: Option<String>,
    },
    /// New ranks are welcome again; ends a drain
    Uncordon {
        /// HOST or HOST/GPU
        target: String,
        /// Why
        #[command(flatten)]
        why: Why,
    },
    /// Cordon a host and move away what runs there, one replica at a time
    Drain {
        /// Which host
        host: HostName,
        /// How
        #[command(flatten)]
        options: DrainOptions,
    },
    /// Try now to reach hosts that are away: after something was mended there
    Reconnect {
        /// Which hosts
        #[arg(required = true)]
        hosts: Vec<HostName>,
    },
    /// How hosts and GPUs do, again and again, as plain lines that are only ever added
    Top {
        /// Only these; default: all
        hosts: Vec<HostName>,
        /// Also what the host's details on the screen show: a line each for a GPU's clocks, links,
        /// memory errors, instances and processes, for the system, disks and interfaces
        #[arg(long)]
        details: bool,
        /// So many rounds; default: until interrupted
        #[arg(short = 'n', long = "rounds", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        rounds: Option<u64>,
        /// Between two rounds, at least 200 ms
        #[arg(long, value_name = "DURATION", value_parser = interval, default_value = "5s")]
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
        /// The older release, as r3
        from: ReleaseNumber,
        /// The newer release, as r7
        to: ReleaseNumber,
    },
    /// One release: who, why, how it ended, and its spec
    Show {
        /// Which, as r3
        release: ReleaseNumber,
    },
    /// Which release last changed each line of a service's spec
    Blame {
        /// Which service
        service: ServiceName,
    },
    /// What the hosts run against what the releases say: exit code 0 the same, 2 it differs
    Drift {
        /// Only this service
        service: Option<ServiceName>,
        /// End the ranks that run and that no release wants
        #[arg(long)]
        end_unknown: bool,
        /// Only on this host
        #[arg(long, requires = "end_unknown")]
        host: Option<HostName>,
        /// Do not ask
        #[arg(long, short, requires = "end_unknown")]
        yes: bool,
    },
    /// The deck's repository and its remote
    #[command(subcommand)]
    Deck(DeckCommand),
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
        /// Of the start before this one, which has ended and was replaced, as long as its host keeps it
        #[arg(long, short, conflicts_with = "follow")]
        previous: bool,
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
    /// What a model is and the memory it takes
    #[command(subcommand)]
    Model(ModelCommand),
    /// The gateways in front of the replicas
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// The deck's background process
    #[command(subcommand)]
    Controller(ControllerCommand),
    /// What was decided and done, as the journal has it; needs no running controller
    #[command(args_conflicts_with_subcommands = true)]
    Journal {
        /// What to do with it; default: show it
        #[command(subcommand)]
        command: Option<JournalCommand>,
        /// What to show
        #[command(flatten)]
        options: super::journal::JournalOptions,
    },
    /// Who asked for what, when, why, and what came of it; needs no running controller
    Audit {
        /// What to do with it; default: show it
        #[command(subcommand)]
        command: Option<AuditCommand>,
    },
}

/// Shorter than this a round would only cost.
const SHORTEST_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

fn interval(text: &str) -> Result<std::time::Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if interval < SHORTEST_INTERVAL {
        return Err("at least 200ms".to_owned());
    }
    Ok(interval)
}

/// Why something is asked for.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Why {
    /// Why, for the audit trail
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub reason: Option<String>,
}
