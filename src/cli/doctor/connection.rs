//! The way to the host: tried once more if it is not reached, and told phase by phase.

use std::time::Duration;

use super::{Check, Verdict, check};
use crate::api::{
    Client, Door, HostLinkState, HostName, HostView, Intent, Snapshot, Timestamp, time,
};
use crate::cli::exit::Failure;
use crate::cli::show;

/// Longest that an attempt to reach the host is waited for.
const ATTEMPT: Duration = Duration::from_secs(40);

/// An attempt that failed so lately is of now.
const RECENT: Duration = Duration::from_secs(5);

/// A host that is not reached is tried once more, now: what stopped the last attempt may be mended. Others are
/// not waited for.
pub(super) async fn try_anew(client: &Client, host: &HostName) -> Result<(), Failure> {
    let settled = |s: &Snapshot| s.hosts.get(host).is_none_or(show::settled);
    let seen = show::until(client, ATTEMPT, settled).await?;
    let Some(HostLinkState::Down { tried, trying, .. }) = seen.hosts.get(host).map(|h| &h.link)
    else {
        return Ok(());
    };
    client.send(Intent::Reconnect { host: host.clone() }).await?;
    // An attempt that went on already may have begun before it was mended: the one after it counts.
    let mut attempts = vec![*tried];
    if trying.is_some() {
        let ended = |s: &Snapshot| failed_at(s, host) != attempts.first().copied();
        let seen = show::until(client, ATTEMPT, ended).await?;
        attempts.extend(failed_at(&seen, host));
    }
    let last = attempts.last().copied();
    let ended = |s: &Snapshot| failed_at(s, host) != last && settled(s);
    show::until(client, ATTEMPT, ended).await?;
    Ok(())
}

/// When the last attempt to reach the host failed; none: it is reached, or asks something.
fn failed_at(snapshot: &Snapshot, host: &HostName) -> Option<Timestamp> {
    match snapshot.hosts.get(host)?.link {
        HostLinkState::Down { tried, .. } => Some(tried),
        _ => None,
    }
}

/// The phases of the connection, as far as the last attempt came.
pub(super) fn way(host: &HostView, now: Timestamp) -> Vec<Check> {
    let mut checks: Vec<Check> =
        host.way.iter().map(|phase| check("connection", Verdict::Good, phase)).collect();
    match &host.link {
        HostLinkState::Up => checks.push(check("connection", Verdict::Good, "the agent answers")),
        HostLinkState::Limited { why, hint } => {
            let found = format!("only nvidia-smi and /proc are read, no agent: {why}");
            let limited = check("connection", Verdict::Bad, found);
            checks.push(limited.advise(hint.as_deref().unwrap_or("see the host's events")));
        }
        HostLinkState::Asking { question } => {
            let found = format!("question {question} waits for a person");
            let advice = format!("`gpudeck questions`, then `gpudeck answer {question} …`");
            checks.push(check("connection", Verdict::Bad, found).advise(advice));
        }
        HostLinkState::Connecting { phase } => {
            checks.pop();
            let found = format!("still {phase}");
            checks.push(check("connection", Verdict::Bad, found).advise("wait, and run it again"));
        }
        HostLinkState::Down { cause, hint, tried, .. } => {
            let last = checks.pop();
            let phase = last.map(|c| format!("{}: ", c.found)).unwrap_or_default();
            let ago = match now.since(*tried) {
                ago if ago < RECENT => String::new(),
                ago => format!(" (tried {} ago)", time::short(ago)),
            };
            let down = check("connection", Verdict::Bad, format!("{phase}{cause}{ago}"));
            checks.push(match hint {
                Some(hint) => down.advise(hint),
                None => down,
            });
        }
    }
    checks
}
