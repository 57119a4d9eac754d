//! How rollouts are begun and steered.

use clap::{Subcommand, ValueEnum};

use super::Why;
use crate::api::{ReleaseNumber, ServiceName};

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
        /// Do not ask (nothing is asked without a terminal)
        #[arg(long, short)]
        yes: bool,
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
        /// Do not ask (nothing is asked without a terminal)
        #[arg(long, short)]
        yes: bool,
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
