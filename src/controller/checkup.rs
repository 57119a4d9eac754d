//! `gpudeck doctor HOST`: the host's agent looks. Where another host refuses its connection, that one's agent listens
//! there for a moment: only then is an open port on which nothing listens told from one that a firewall rejects.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::actions::{self, Means};
use super::core::Core;
use super::planning::PortGiver;
use super::world;
use crate::api::{ApiError, CheckupRequest, ErrorKind};
use crate::base::{Hint, HostName};
use crate::fleet::HostLink;
use crate::spec::Transport;
use crate::wire::{Checkup, ProgramSought, Reached, Reply, Request};

/// Hosts that listen at once.
const AT_ONCE: usize = 32;

/// A host listens for so long at most, milliseconds.
const LISTENS_MS: u64 = 8_000;

/// A host has begun to listen within that, or does not. (Who began first listens still when the last one has, and is tried.)
const BEGINS_WITHIN: Duration = Duration::from_secs(2);

/// After so long no more hosts are asked to listen.
const LISTENING: Duration = Duration::from_secs(20);

/// Another host, as one host is to reach it.
#[derive(Clone)]
struct Other {
    name: HostName,
    address: String,
    /// The first engine port.
    first: u16,
    /// An engine port that nothing has; none: all are spoken for.
    spare: Option<u16>,
    /// From the host that looks the address leads to itself.
    is_own: bool,
}

/// What the loop knows for it.
struct Asked {
    others: Vec<Other>,
    programs: Vec<ProgramSought>,
}

impl Asked {
    /// None: there is no such host.
    fn of(core: &Core, host: &HostName) -> Option<Self> {
        core.deck.hosts.contains_key(host).then(|| {
            let mut ports = PortGiver::new(core);
            let is_here = |host| {
                let spec = core.deck.hosts.get(host);
                spec.is_some_and(|spec| spec.transport == Transport::Local)
            };
            let others = core.deck.hosts.keys().filter(|other| *other != host);
            let others = others.map(|other| {
                let address = world::engine_address(&core.deck, other);
                Other {
                    spare: ports.next(other, &address).ok(),
                    first: world::first_port(&core.deck, other),
                    is_own: is_loopback(&address) && !is_here(host),
                    name: other.clone(),
                    address,
                }
            });
            Self { others: others.collect(), programs: core.programs_on(host) }
        })
    }
}

/// Looks at a host.
pub(super) async fn look(means: &Means, request: CheckupRequest) -> Result<Checkup, ApiError> {
    let CheckupRequest { host, disk_bytes } = request;
    let asked = host.clone();
    let ended = || unreachable("the controller is ending".to_owned(), None);
    let asked = means.ask(move |core| Asked::of(core, &asked)).await.ok_or_else(ended)?;
    let Some(Asked { others, programs }) = asked else {
        return Err(ApiError {
            kind: ErrorKind::NotFound,
            message: format!("there is no host {host} in this deck"),
            hint: Some("`gpudeck hosts` lists them".to_owned()),
        });
    };
    let link = actions::link(means, &host).map_err(|e| unreachable(e.to_string(), e.hint()))?;
    let reach = others.iter().map(|other| at(&other.address, other.first)).collect();
    let mut checkup = check_up(&link, Request::CheckUp { reach, disk_bytes, programs }).await?;
    for (other, reached) in others.iter().zip(&mut checkup.reached) {
        if other.is_own {
            let (address, why) = (std::mem::take(&mut reached.address), Some(OWN.to_owned()));
            *reached = Reached { address, why, ..Reached::default() };
        }
    }
    listen_in_turn(means, &link, &others, &mut checkup.reached).await;
    for (other, reached) in others.iter().zip(&mut checkup.reached) {
        reached.address = format!("{} ({})", other.name, reached.address);
    }
    checkup.ssh_notes = means.fleet.ssh_notes(&host);
    Ok(checkup)
}

/// What is said of an address that is every host's own.
const OWN: &str = "there each host reaches itself: the address is every host's own";

fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn at(address: &str, port: u16) -> String {
    let is_v6 = address.contains(':') && !address.starts_with('[');
    if is_v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn unreachable(message: String, hint: Option<String>) -> ApiError {
    ApiError { kind: ErrorKind::Unreachable, message, hint }
}

async fn check_up(link: &Arc<dyn HostLink>, request: Request) -> Result<Checkup, ApiError> {
    match link.request(request).await {
        Ok(Reply::CheckUp(checkup)) => Ok(*checkup),
        Ok(_) => Err(unreachable(
            format!("{} answered something else", link.host()),
            Some("its agent may be of another version: `gpudeck controller restart`".to_owned()),
        )),
        Err(error) => Err(unreachable(error.to_string(), error.hint())),
    }
}

/// Asks the hosts that refused to listen, some at once, and tries them again. What cannot be found out stays as it is.
async fn listen_in_turn(
    means: &Means,
    link: &Arc<dyn HostLink>,
    others: &[Other],
    reached: &mut [Reached],
) {
    let begun = Instant::now();
    let mut refused: Vec<(&Other, &mut Reached)> =
        others.iter().zip(reached).filter(|(_, reached)| reached.refused).collect();
    for some in refused.chunks_mut(AT_ONCE) {
        if begun.elapsed() >= LISTENING {
            return;
        }
        let refused_by: Vec<&Other> = some.iter().map(|(other, _)| *other).collect();
        let asked = refused_by.iter().map(|other| listens(means, other, LISTENS_MS));
        let listening = join_all(asked).await;
        let some = some.iter_mut().zip(listening);
        let mut some: Vec<(&mut Reached, String)> =
            some.filter_map(|((_, reached), to)| Some((&mut **reached, to?))).collect();
        if some.is_empty() {
            continue;
        }
        let reach = some.iter().map(|(_, to)| to.clone()).collect();
        let request = Request::CheckUp { reach, disk_bytes: None, programs: Vec::new() };
        let again = check_up(link, request).await;
        let done = refused_by.iter().map(|other| listens(means, other, 0));
        join_all(done).await;
        let Ok(again) = again else { return };
        for ((before, to), now) in some.iter_mut().zip(again.reached) {
            learn(before, to, now);
        }
    }
}

/// Where the host listens now, if it does.
async fn listens(means: &Means, other: &Other, for_ms: u64) -> Option<String> {
    let port = other.spare?;
    let link = actions::link(means, &other.name).ok()?;
    let request = Request::Listen { port, for_ms };
    let asked = tokio::time::timeout(BEGINS_WITHIN, link.request(request)).await;
    matches!(asked, Ok(Ok(Reply::Done))).then(|| at(&other.address, port))
}

/// What came of the second try, when somebody listened.
fn learn(before: &mut Reached, to: &str, now: Reached) {
    *before = Reached {
        address: to.to_owned(),
        took_us: None,
        listened: true,
        refused: now.refused,
        why: now.why,
    };
    if let Some(took) = now.took_us {
        before.took_us = Some(took);
        before.why = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_a_connection_wants_them() {
        assert_eq!(at("10.0.0.2", 21_000), "10.0.0.2:21000");
        assert_eq!(at("fd00::2", 21_000), "[fd00::2]:21000");
        assert_eq!(at("[fd00::2]", 21_000), "[fd00::2]:21000");
    }
}
