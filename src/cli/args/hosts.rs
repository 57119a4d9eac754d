//! How hosts are drained and upgraded.

use clap::Subcommand;

use super::Why;
use crate::api::HostName;

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
    /// Host after host: drain it, run a command there, wait until it is back, uncordon it. Without --run: how far it is
    Upgrade(UpgradeOptions),
}

/// How hosts are upgraded.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("wish").args(["run", "pause", "resume", "retry", "skip", "stop"])))]
pub struct UpgradeOptions {
    /// The command, for `sh -c` on each host; a reboot is waited for
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,
    /// Only show what --run would do, in which order and beside what: exit code 0 nothing, 2 hosts would be upgraded, 1 it
    /// would be refused
    #[arg(long, requires = "run")]
    pub dry_run: bool,
    /// Begin no further host for the time being; those that are begun are finished
    #[arg(long)]
    pub pause: bool,
    /// Go on after a pause
    #[arg(long)]
    pub resume: bool,
    /// Try this host again, which failed; those that were left out because of it have their turn after it
    #[arg(long, value_name = "HOST")]
    pub retry: Option<HostName>,
    /// Leave this host out, whose turn has not come or which failed (it stays cordoned then); needs --reason
    #[arg(long, value_name = "HOST", requires = "reason")]
    pub skip: Option<HostName>,
    /// Begin no further host of the upgrade under way; those that are begun are finished
    #[arg(long)]
    pub stop: bool,
    /// Which hosts, in order; default: all
    #[arg(long, value_name = "HOST,…", value_delimiter = ',', requires = "run")]
    pub hosts: Vec<HostName>,
    /// So many hosts at a time, as far as no service falls under its floor by it
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
