//! What agents hold: all of them are asked at once, so that one that hangs delays nobody, and each
//! key is there once, with all agents that can sign with it.

use std::io;
use std::time::Duration;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Certificate, PublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::agents::{AgentStream, Source};
use super::endpoint::{ConnectOptions, Endpoint};
use super::identity::Identities;
use super::known_hosts;
use crate::base::text;

/// Time for the agents to list their keys.
const PATIENCE: Duration = Duration::from_secs(5);
/// More keys are not tried: any server would have hung up long before.
const MAX_KEYS: usize = 256;
/// As OpenSSH's `AGENT_MAX_LEN`.
const MAX_MESSAGE: usize = 256 << 10;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
/// In the name of a certificate's kind.
const CERTIFIED: &[u8] = b"-cert-v01@openssh.com";

/// An open agent.
pub(super) type Agent = AgentClient<Box<dyn AgentStream>>;

/// A key or certificate, and who has it.
pub(super) struct Held {
    pub(super) identity: AgentIdentity,
    /// The agents' numbers.
    pub(super) agents: Vec<usize>,
}

/// Asks all agents; those that answer are put into `all`, in their order.
pub(super) async fn all(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    all: &mut Identities,
) -> Vec<Held> {
    let sources = options.agents.sources(&endpoint.agent);
    let asked = sources.iter().map(|source| timeout(PATIENCE, ask(source)));
    let mut held: Vec<Held> = Vec::new();
    let mut fault = None;
    for answer in futures::future::join_all(asked).await {
        match answer {
            Ok(Ok((stream, keys))) => {
                let number = all.agents.len();
                all.agents.push(Some(AgentClient::connect(stream)));
                for identity in keys {
                    let known = held.iter_mut().find(|held| same(&held.identity, &identity));
                    if let Some(known) = known {
                        known.agents.push(number);
                    } else if held.len() < MAX_KEYS {
                        held.push(Held { identity, agents: vec![number] });
                    }
                }
            }
            Ok(Err(error)) => fault = Some(error.to_string()),
            Err(_) => all.notes.push("SSH agent (does not answer)".to_owned()),
        }
    }
    if all.agents.is_empty()
        && let Some(why) = fault
    {
        all.notes.push(format!("SSH agent ({})", text::clean(&why, 120)));
    }
    held
}

fn same(a: &AgentIdentity, b: &AgentIdentity) -> bool {
    match (a, b) {
        (AgentIdentity::PublicKey { key: a, .. }, AgentIdentity::PublicKey { key: b, .. }) => {
            a.key_data() == b.key_data()
        }
        (
            AgentIdentity::Certificate { certificate: a, .. },
            AgentIdentity::Certificate { certificate: b, .. },
        ) => a == b,
        _ => false,
    }
}

async fn ask(source: &Source) -> io::Result<(Box<dyn AgentStream>, Vec<AgentIdentity>)> {
    let mut stream = source.open().await?;
    let keys = list(&mut stream).await?;
    Ok((stream, keys))
}

/// Asks an agent for its keys. A key of a kind that is not known here is left out; russh's own asking
/// fails whole for one such key.
async fn list(stream: &mut Box<dyn AgentStream>) -> io::Result<Vec<AgentIdentity>> {
    stream.write_all(&[0, 0, 0, 1, REQUEST_IDENTITIES]).await?;
    stream.flush().await?;
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("its answer is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(identities(&answer))
}

/// The keys in an agent's answer, as far as it makes sense.
fn identities(answer: &[u8]) -> Vec<AgentIdentity> {
    fn number(rest: &mut &[u8]) -> Option<usize> {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    let Some((&IDENTITIES_ANSWER, mut rest)) = answer.split_first() else { return Vec::new() };
    let Some(count) = number(&mut rest) else { return Vec::new() };
    let mut string = || {
        let length = number(&mut rest)?;
        let (head, tail) = rest.split_at_checked(length)?;
        rest = tail;
        Some(head)
    };
    let pairs = std::iter::from_fn(|| Some((string()?, string()?)));
    let identity = |(blob, comment): (&[u8], &[u8])| {
        let comment = String::from_utf8_lossy(comment).into_owned();
        if known_hosts::is_nested(blob) {
            return None;
        }
        // The kind stands first, with its length.
        let certified = blob.get(4..64.min(blob.len())).unwrap_or_default();
        if certified.windows(CERTIFIED.len()).any(|w| w == CERTIFIED)
            && let Ok(certificate) = Certificate::from_bytes(blob)
        {
            return Some(AgentIdentity::Certificate { certificate, comment });
        }
        let key = PublicKey::from_bytes(blob).ok()?;
        Some(AgentIdentity::PublicKey { key, comment })
    };
    pairs.take(count.min(MAX_KEYS)).filter_map(identity).collect()
}
