//! What is asked of placement: plans with a question, and moves by hand.

use std::path::PathBuf;

use crate::api::{HostName, NewHosts, ServiceName};

/// What a plan is asked about.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PlanOptions {
    /// As if this host were lost; may be repeated
    #[arg(long, value_name = "HOST")]
    pub without: Vec<HostName>,
    /// As if there were a host with two H200 (`2xh200`), or three with eight (`3x8xh200`); may be repeated
    #[arg(long, value_name = "[HOSTSx]GPUSxMODEL")]
    pub add: Vec<NewHosts>,
    /// The moves that free N GPUs for a gang, and what they cost; without N: the largest gang of any service
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
