//! The grammar of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::snapshot::Format;
use crate::api::{HostName, NewHosts, ReleaseNumber, ServiceName};

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
    /// For one service: the rollout of its spec. For several or all, or with any of the options: where every
    /// replica would be. Nothing is touched.
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

/// The deck's repository and its remote.
#[derive(Clone, Debug, Subcommand)]
pub enum DeckCommand {
    /// Send the branch, the releases and how they ended; refused if the remote went another way
    Push {
        /// Which remote; default: that of deck.toml, of the branch, or the only one
        remote: Option<String>,
    },
    /// Fetch them, and move forward where nothing of one's own is in the way
    Fetch {
        /// Which remote
        remote: Option<String>,
    },
    /// What is not committed, not sent, or lacking here
    Status {
        /// Which remote
        remote: Option<String>,
    },
}

/// What can be done with the journal.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum JournalCommand {
    /// Check its chain, its checksums and its tail: exit code 0 good, 1 damaged
    Verify,
}

/// What can be done with the audit trail.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum AuditCommand {
    /// Check its chain: exit code 0 good, 1 with the first line that was changed, moved or removed
    Verify,
}

/// Models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Read the headers of a model's files and foresee its memory; needs no deck
    Inspect {
        /// A directory or file of this machine, or `HOST:/PATH` on a host of the deck
        path: String,
        /// How it is to be served
        #[command(flatten)]
        options: Box<InspectOptions>,
    },
}

/// What a plan is asked about.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PlanOptions {
    /// As if this host were lost; may be repeated
    #[arg(long, value_name = "HOST")]
    pub without: Vec<HostName>,
    /// As if there were a host with two H200 (`2xh200`), or three with eight (`3x8xh200`); may be repeated
    #[arg(long, value_name = "[HOSTSx]GPUSxMODEL")]
    pub add: Vec<NewHosts>,
    /// The moves that free N joined GPUs, and what they cost; without N: the largest gang of any service
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    pub defrag: Option<u32>,
    /// Name every host that was passed over, and those that stay
    #[arg(long)]
    pub explain: bool,
    /// Write the world to this file, for `gpudeck place`; `-`: standard output
    #[arg(long, value_name = "FILE")]
    pub world: Option<PathBuf>,
}

impl PlanOptions {
    /// Whether it asks about placement, and not about a rollout.
    pub fn asks(&self) -> bool {
        !self.without.is_empty()
            || !self.add.is_empty()
            || self.defrag.is_some()
            || self.explain
            || self.world.is_some()
    }
}

/// Which replica goes where.
#[derive(Clone, Debug, clap::Args)]
pub struct MoveOptions {
    /// Which service
    pub service: ServiceName,
    /// The replica's number in its release, as `status` shows it
    pub replica: u32,
    /// The host it goes to
    pub host: HostName,
    /// The GPUs there: `0-3` or `4,5`
    pub gpus: GpuList,
    /// Only say what speaks against it
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Why, for the events
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Indices of GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuList(pub Vec<u32>);

impl std::str::FromStr for GpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || format!("`{text}` is no list of GPUs; write 0-3 or 4,5");
        let mut list = Vec::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let number = |t: &str| t.trim().parse::<u32>().ok().filter(|n| *n < 1024);
            let (from, to) = (number(from).ok_or_else(bad)?, number(to).ok_or_else(bad)?);
            list.extend(from..=to);
        }
        list.sort_unstable();
        list.dedup();
        if list.is_empty() { Err(bad()) } else { Ok(Self(list)) }
    }
}

/// How a model is to be served.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectOptions {
    /// Tensor parallelism
    #[arg(long, alias = "tensor", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub tp: u32,
    /// Pipeline parallelism
    #[arg(long, alias = "pipeline", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub pp: u32,
    /// Data parallelism inside the replica
    #[arg(long, alias = "data", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub dp: u32,
    /// Ranks that whole experts are divided over; 1: no expert parallelism
    #[arg(long, alias = "expert", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ep: u32,
    /// Longest sequence in tokens, such as 32k; default: what the model says
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    pub context: Option<u64>,
    /// The GPU: h100-80, a100-40, l40s, …, its name as nvidia-smi prints it, or its memory, such as 80GiB
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Share of the GPU that the engine may use; default: the engine's
    #[arg(long, alias = "utilization", value_name = "SHARE")]
    pub utilisation: Option<f64>,
    /// Type of cached values: auto, bf16, fp8, `q8_0`, …
    #[arg(long, value_name = "TYPE")]
    pub kv_dtype: Option<String>,
    /// Tokens of a block of the cache; default: the engine's
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub block_size: Option<u32>,
    /// vllm, sglang or llamacpp; default: llamacpp for GGUF, else vllm
    #[arg(long)]
    pub engine: Option<String>,
    /// Memory for the cache on each rank, where the engine has said it
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub kv_available: Option<crate::api::Bytes>,
    /// Requests at a time; default: the engine's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_seqs: Option<u32>,
    /// Tokens of one step; default: the engine's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: Option<u32>,
    /// No graphs are captured
    #[arg(long)]
    pub enforce_eager: bool,
}

/// A size of memory. `8.11` would be eight bytes, which nobody means: 0, or a size with its unit.
pub(super) fn memory_size(text: &str) -> Result<crate::api::Bytes, String> {
    use crate::api::Bytes;
    let size = text.parse::<Bytes>().map_err(|e| e.to_string())?;
    let text = text.trim();
    if size == Bytes::ZERO {
        return Ok(size);
    }
    if !text.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(format!("it has no unit: write for example `{text}GiB`"));
    }
    if size < Bytes::mib(1) {
        return Err(format!("{size} is less than any GPU has left: write for example `8.11GiB`"));
    }
    Ok(size)
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

/// A number of tokens: `32768`, `32k` (× 1024), `1M`.
fn tokens(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) = match lower.strip_suffix('k') {
        Some(number) => (number, 1 << 10),
        None => match lower.strip_suffix('m') {
            Some(number) => (number, 1 << 20),
            None => (lower.as_str(), 1),
        },
    };
    let number: u64 =
        number.parse().map_err(|_| "write a number of tokens, such as 32768 or 32k")?;
    if number == 0 {
        return Err("at least 1".to_owned());
    }
    number.checked_mul(factor).filter(|n| *n <= 1 << 40).ok_or_else(|| "too many".to_owned())
}

/// Gateways.
#[derive(Debug, Subcommand)]
pub enum GatewayCommand {
    /// Our part of HAProxy's configuration for a service, as it would be written now
    Config {
        /// Which service
        service: ServiceName,
    },
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

/// How a host is drained.
#[derive(Clone, Debug, clap::Args)]
pub struct DrainOptions {
    /// Only show what would move where: exit code 0 nothing, 2 moves
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until the host is empty: exit code 0 drained, 3 not, 4 time is up
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
    pub timeout: Option<std::time::Duration>,
    /// Why
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub reason: Option<String>,
    /// Do not ask (nothing is asked without a terminal)
    #[arg(long, short)]
    pub yes: bool,
}

/// What is done with hosts.
#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// Host after host: drain it, run a command there, wait until it is back, uncordon it
    Upgrade(UpgradeOptions),
}

/// How hosts are upgraded.
#[derive(Clone, Debug, clap::Args)]
pub struct UpgradeOptions {
    /// The command, for `sh -c` on each host; a reboot is waited for
    #[arg(long, value_name = "COMMAND", required_unless_present = "stop")]
    pub run: Option<String>,
    /// Begin no further host of the upgrade under way; those that are begun are finished
    #[arg(long, conflicts_with_all = ["run", "hosts"])]
    pub stop: bool,
    /// Which hosts, in order; default: all
    #[arg(long, value_name = "HOST,…", value_delimiter = ',')]
    pub hosts: Vec<HostName>,
    /// So many hosts at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub max_parallel: u32,
    /// Longest the command may run
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "30m")]
    pub timeout: std::time::Duration,
    /// Longest a host may be away afterwards
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "15m")]
    pub return_timeout: std::time::Duration,
    /// Do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
    /// Do not ask (nothing is asked without a terminal)
    #[arg(long, short)]
    pub yes: bool,
    /// Why
    #[command(flatten)]
    pub why: Why,
}

/// How a failed rollout is tried again.
#[derive(Clone, Debug, clap::Args)]
pub struct RetryOptions {
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Wait until the rollout is over: exit code 0 completed, 3 taken back, 4 time is up
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
    pub timeout: Option<std::time::Duration>,
    /// Go on although no replica will be ready in between
    #[arg(long)]
    pub accept_outage: bool,
    /// Why
    #[command(flatten)]
    pub why: Why,
}

/// What an apply does while another rollout of the service is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Concurrency {
    /// It is refused
    Forbid,
    /// It begins when the present one has ended; the latest wish counts
    Queue,
    /// The present one is taken back first
    Replace,
}

/// Why something is asked for.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Why {
    /// Why, for the audit trail
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub reason: Option<String>,
}

/// One service's rollout, or that of several.
#[derive(Clone, Debug, clap::Args)]
pub struct SteerWhich {
    /// Which service
    #[arg(required_unless_present = "together", conflicts_with = "together")]
    pub service: Option<ServiceName>,
    /// All of the services that are being rolled out together
    #[arg(long)]
    pub together: bool,
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
        /// Which
        #[command(flatten)]
        which: SteerWhich,
        /// Why
        #[command(flatten)]
        why: Why,
    },
    /// Go on after a pause
    Resume {
        /// Which
        #[command(flatten)]
        which: SteerWhich,
        /// Why
        #[command(flatten)]
        why: Why,
    },
    /// Pass the gate or step that holds it
    #[command(visible_alias = "approve")]
    Promote {
        /// Which service
        service: ServiceName,
        /// Skip all that is left
        #[arg(long)]
        all: bool,
        /// Only this step, as `rollout status` numbers it; without it, the one that is present now
        #[arg(long, value_name = "NUMBER")]
        step: Option<std::num::NonZeroUsize>,
        /// Why, for the history and the audit trail
        #[arg(long, short = 'm', value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Try again what failed: in the rollout that is held, or, after it was taken back, by a new one
    /// of the same revision
    Retry {
        /// Which service
        service: ServiceName,
        /// How, if it takes a new rollout
        #[command(flatten)]
        options: RetryOptions,
    },
    /// Do not wait for the gate that holds it
    Skip {
        /// Which service
        service: ServiceName,
        /// Why, for the history and the audit trail
        #[arg(long, short = 'm', value_name = "TEXT")]
        reason: String,
    },
    /// Do not begin the rollout that is queued
    CancelQueued {
        /// Which service
        service: ServiceName,
        /// Why
        #[command(flatten)]
        why: Why,
    },
    /// Take it back
    Abort {
        /// Which
        #[command(flatten)]
        which: SteerWhich,
        /// Why, for the history
        #[arg(long, short = 'm', value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Roll out an earlier revision again; in mid-rollout: take that back first
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
    /// Write a systemd unit that runs it from boot on, and check lingering
    Install {
        /// Print the unit instead
        #[arg(long)]
        print: bool,
    },
    /// Hand over to this version between two steps; rollouts go on
    Upgrade,
    /// Take the deck's hosts over from another controller whose lease has ended, and go on from
    /// what it left there
    TakeOver {
        /// Also while its lease runs, and although hosts are not reached; asks for the deck's name
        #[arg(long)]
        force: bool,
        /// The deck's name, instead of typing it at the terminal
        #[arg(long, value_name = "DECK", requires = "force")]
        confirm: Option<String>,
        /// Why
        #[command(flatten)]
        why: Why,
    },
}
