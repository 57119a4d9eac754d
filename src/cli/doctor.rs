//! `gpudeck doctor HOST`: everything that must be well for a host to serve, one check after another,
//! each with what to do.
//!
//! - `connection` — the way there, tried once more.
//! - `facts` — what the snapshot says: the agent, the data, disk space, clock.
//! - `gpus` — the driver and every GPU.
//! - `asked` — what the agent finds out when it is asked: engines, disk, ports, what a logout ends.
//! - `drawing` — the checks for people and programs.

mod asked;
mod connection;
mod drawing;
mod facts;
mod gpus;

use serde::Serialize;

use self::asked::of_checkup;
use self::connection::try_anew;
use self::facts::{of_gateway, of_view};
use super::args::Args;
use super::attach::attach;
use super::exit::{Failure, Success};
use super::show;
use crate::api::{CheckupRequest, Door, HostLinkState, HostName, Looking, text};

/// Bytes that are written to measure the disk.
const DISK_BYTES: u64 = 64 << 20;

/// Where the next step is.
const ADVICE: &str = "do what stands below each BAD check, then ask again";

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It could not be looked at, or does not matter much.
    Note,
    /// It works, and should be better.
    Poor,
    /// It does not work.
    Bad,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// In words.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

fn check(what: &'static str, verdict: Verdict, found: impl AsRef<str>) -> Check {
    Check { what, verdict, found: text::clean(found.as_ref(), 300), advice: None }
}

impl Check {
    fn advise(mut self, advice: impl AsRef<str>) -> Self {
        self.advice = Some(text::clean(advice.as_ref(), 300));
        self
    }
}

/// Looks at a host; exit code 0 when nothing is bad, 1 when something is, 7 when it is not reached.
pub async fn run(args: &Args, host: &HostName) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let known = client.snapshot().await?;
    if !known.hosts.contains_key(host) {
        return Err(Failure::no_host(host, known.hosts.keys()));
    }
    let looking = Looking { detail: Some(host.clone()), ..Looking::default() };
    client.look(&looking).await?;
    try_anew(&client, host).await?;
    let request = CheckupRequest { host: host.clone(), disk_bytes: Some(DISK_BYTES) };
    let checkup = client.check_up(&request).await;
    // The clock is compared soon after the connection; and samples have come meanwhile.
    let snapshot = client.snapshot().await?;
    let Some(view) = snapshot.hosts.get(host) else {
        return Err(Failure::other(format!("{host} has left the deck"))
            .with_hint("it was taken out of deck.toml just now"));
    };
    let mut checks = of_view(view, show::now());
    let gateways = snapshot.deck.gateways.iter().filter(|gateway| gateway.host == *host);
    checks.extend(gateways.map(of_gateway));
    match &checkup {
        Ok(checkup) => checks.extend(of_checkup(view, checkup)),
        Err(error) => {
            // Without an agent nobody can look; one that is there and does not answer is what is wrong.
            let verdict = if view.link == HostLinkState::Up { Verdict::Bad } else { Verdict::Note };
            checks.push(check("engine, ports, disk speed", verdict, &error.message));
        }
    }
    drawing::print(args, &checks)?;
    let bad = checks.iter().filter(|c| c.verdict == Verdict::Bad).count();
    let reached = matches!(view.link, HostLinkState::Up | HostLinkState::Limited { .. });
    match bad {
        0 => Ok(Success::Done),
        _ if !reached => {
            Err(Failure::other(format!("{host} is not reached")).code(7).with_hint(ADVICE))
        }
        1 => Err(Failure::other(format!("one thing is wrong with {host}")).with_hint(ADVICE)),
        n => Err(Failure::other(format!("{n} things are wrong with {host}")).with_hint(ADVICE)),
    }
}
