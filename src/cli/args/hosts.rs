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
