//! What agents hold: all of them are asked at once, and each key is there once, with all agents that can
//! sign with it. One that does not answer, be it that it hangs or that it waits for somebody to touch a
//! key, delays nobody for long: where there are other keys, or what it has listed before, it is left to
//! answer in its own time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Certificate, PublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::agents::{AgentStream, Agents, Source};
use super::endpoint::{ConnectOptions, Endpoint};
use super::identity::Identities;
use super::known_hosts;
use crate::base::text;

/// Time for the agents to list their keys.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where there are keys, and it is known that an agent is slow or what it holds.
const GRACE: Duration = Duration::from_millis(500);
/// An answer that no login waits for is heard for so long.
const LONGEST: Duration = Duration::from_secs(30);
/// Of so many lent agents that hold a key the newest are used: more doors mostly lend the same one.
const MAX_LENT: usize = 8;
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

/// An agent's stream, on which nothing is outstanding, and its keys.
type Opened = (Box<dyn AgentStream>, Vec<AgentIdentity>);

/// Asks all agents; those that hold something are put into `all`, in their order.
pub(super) async fn all(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    all: &mut Identities,
) -> Vec<Held> {
    let sources = options.agents.sources(&endpoint.agent);
    let mut held: Vec<Held> = Vec::new();
    let mut fault = None;
    let mut lent = 0;
    for (source, answer) in sources.iter().zip(ask_all(&options.agents, &sources).await) {
        match answer {
            Some(Ok((stream, keys))) => {
                // One without a key takes nobody's place.
                if keys.is_empty() || source.is_lent() && lent == MAX_LENT {
                    continue;
                }
                lent += usize::from(source.is_lent());
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
            Some(Err(error)) => fault = Some(error.to_string()),
            None => all.notes.push("SSH agent (does not answer)".to_owned()),
        }
    }
    if all.agents.is_empty()
        && let Some(why) = fault
    {
        all.notes.push(format!("SSH agent ({})", text::clean(&why, 120)));
    }
    held
}

/// What each agent answers; none: it does not, and nothing is known of it.
async fn ask_all(agents: &Arc<Agents>, sources: &[Source]) -> Vec<Option<io::Result<Opened>>> {
    let known: Vec<_> = sources.iter().map(|source| agents.known(source)).collect();
    let mut answers: Vec<Option<io::Result<Opened>>> = sources.iter().map(|_| None).collect();
    let mut asked = FuturesUnordered::new();
    let mut flags = Vec::new();
    for (number, (source, known)) in sources.iter().zip(&known).enumerate() {
        let has_answered = Arc::new(AtomicBool::new(false));
        flags.push(Arc::clone(&has_answered));
        if known.is_late && known.keys.is_some() {
            // Another question beside the one that it has not answered yet tells nothing.
            continue;
        }
        let answer = in_its_own_time(agents, source, has_answered);
        asked.push(async move { (number, answer.await) });
    }
    let begin = Instant::now();
    loop {
        let missing = || answers.iter().zip(&known).filter(|(answer, _)| answer.is_none());
        let has_keys = answers.iter().flatten().flatten().any(|(_, keys)| !keys.is_empty())
            || missing().any(|(_, known)| known.keys.as_ref().is_some_and(|k| !k.is_empty()));
        let are_known = missing().all(|(_, known)| known.is_late || known.keys.is_some());
        let limit = if has_keys && are_known { GRACE } else { PATIENCE };
        match timeout_at(begin + limit, asked.next()).await {
            Ok(Some((number, answer))) => {
                if let Some(place) = answers.get_mut(number) {
                    *place = answer.ok();
                }
            }
            Ok(None) | Err(_) => break,
        }
    }
    let missing = sources.iter().zip(&known).zip(answers.iter_mut().zip(&flags));
    let missing = missing.filter(|(_, (answer, _))| answer.is_none());
    let again = missing.map(|((source, known), (answer, has_answered))| async move {
        agents.given_up(source, || has_answered.load(Ordering::Acquire));
        let Some(keys) = &known.keys else { return };
        // On the stream that it was asked on its answer is outstanding.
        if let Ok(opened) = timeout(GRACE, source.open()).await {
            *answer = Some(opened.map(|stream| (stream, keys.clone())));
        }
    });
    futures::future::join_all(again).await;
    answers
}

/// Asks an agent in a task of its own: what it answers is remembered also when nobody waits for it.
fn in_its_own_time(
    agents: &Arc<Agents>,
    source: &Source,
    has_answered: Arc<AtomicBool>,
) -> oneshot::Receiver<io::Result<Opened>> {
    let (answer, answered) = oneshot::channel();
    let (agents, source) = (Arc::clone(agents), source.clone());
    tokio::spawn(async move {
        let late = || Err(io::Error::from(io::ErrorKind::TimedOut));
        let opened = timeout(LONGEST, ask(&source)).await.unwrap_or_else(|_| late());
        has_answered.store(true, Ordering::Release);
        agents.answered(&source, opened.as_ref().ok().map(|(_, keys)| keys.as_slice()));
        let _ = answer.send(opened);
    });
    answered
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

async fn ask(source: &Source) -> io::Result<Opened> {
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
    if answer.first() != Some(&IDENTITIES_ANSWER) {
        return Err(io::Error::other("it does not list its keys"));
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    use super::super::agents::LentAgent;
    use super::*;

    /// A key of so many, without a private half.
    fn blob(n: u8) -> Vec<u8> {
        let string =
            |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        [string(b"ssh-ed25519"), string(&[n; 32])].concat()
    }

    /// An agent that lists these keys for each permit that it gets.
    struct Played {
        keys: Vec<u8>,
        may: Arc<Semaphore>,
        opened: Mutex<usize>,
    }

    impl Played {
        fn with(keys: &[u8], may: usize) -> Arc<Self> {
            let may = Arc::new(Semaphore::new(may));
            Arc::new(Self { keys: keys.to_vec(), may, opened: Mutex::default() })
        }

        fn opened(&self) -> usize {
            *self.opened.lock().unwrap()
        }
    }

    #[async_trait]
    impl LentAgent for Played {
        async fn open(&self) -> io::Result<Box<dyn AgentStream>> {
            *self.opened.lock().unwrap() += 1;
            let (near, mut far) = tokio::io::duplex(1 << 16);
            let string =
                |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
            let mut list = vec![IDENTITIES_ANSWER];
            list.extend(u32::try_from(self.keys.len()).unwrap().to_be_bytes());
            for key in &self.keys {
                list.extend([string(&blob(*key)), string(b"k")].concat());
            }
            let may = Arc::clone(&self.may);
            tokio::spawn(async move {
                let mut question = [0; 5];
                if far.read_exact(&mut question).await.is_ok() {
                    may.acquire().await.unwrap().forget();
                    let _ = far.write_all(&string(&list)).await;
                    // Until the other end goes.
                    let _ = far.read_u8().await;
                }
            });
            Ok(Box::new(near))
        }
    }

    /// How many keys there are, how many agents, and what is noted.
    async fn gathered(options: &ConnectOptions) -> (usize, usize, usize) {
        let target = super::super::Target { name: "box".to_owned(), ..Default::default() };
        let endpoint = Endpoint::resolve(&target, options).unwrap();
        let mut found = Identities::default();
        let held = all(&endpoint, options, &mut found).await;
        (held.len(), found.agents.len(), found.notes.len())
    }

    fn options() -> ConnectOptions {
        let mut options = ConnectOptions::from_env(None);
        options.config = super::super::ConfigFiles::Text("".into());
        options.agents = Arc::new(Agents::new(None));
        options
    }

    #[tokio::test]
    async fn an_agent_that_waits_for_a_touch_is_not_waited_for_by_everybody() {
        let options = options();
        let quick = Played::with(&[1], Semaphore::MAX_PERMITS);
        let slow = Played::with(&[2], 1);
        let _leases = [options.agents.lend(slow.clone()), options.agents.lend(quick)];
        assert_eq!(gathered(&options).await, (2, 2, 0));
        // It does not answer any more: what it has listed before counts, on a stream of its own.
        assert_eq!(gathered(&options).await, (2, 2, 0));
        assert_eq!(slow.opened(), 3);
        // And it is not asked again before it has answered.
        assert_eq!(gathered(&options).await, (2, 2, 0));
        assert_eq!(slow.opened(), 4);
        slow.may.add_permits(1);
        let source = options.agents.sources(&super::super::agents::IdentityAgent::Usual);
        let slows = source.last().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while options.agents.known(slows).is_late {
            assert!(Instant::now() < deadline, "late for ever");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn an_agent_that_has_never_answered_is_waited_for_once() {
        let options = options();
        let quick = Played::with(&[1], Semaphore::MAX_PERMITS);
        let mute = Played::with(&[2], 0);
        let _leases = [options.agents.lend(mute.clone()), options.agents.lend(quick)];
        let begin = Instant::now();
        assert_eq!(gathered(&options).await, (1, 1, 1));
        assert!(begin.elapsed() >= PATIENCE);
        // Its answer is heard all the same, and counts for the next login.
        mute.may.add_permits(1);
        let source = options.agents.sources(&super::super::agents::IdentityAgent::Usual);
        let mutes = source.last().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while options.agents.known(mutes).keys.is_none() {
            assert!(Instant::now() < deadline, "not heard");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(gathered(&options).await, (2, 2, 0));
    }

    #[tokio::test]
    async fn agents_without_a_key_hide_none_that_has_one() {
        let options = options();
        let mut leases = vec![options.agents.lend(Played::with(&[1], Semaphore::MAX_PERMITS))];
        for _ in 0..20 {
            leases.push(options.agents.lend(Played::with(&[], Semaphore::MAX_PERMITS)));
        }
        assert_eq!(gathered(&options).await, (1, 1, 0));
        // Of those with a key the newest count.
        for n in 0..10 {
            leases.push(options.agents.lend(Played::with(&[10 + n], Semaphore::MAX_PERMITS)));
        }
        assert_eq!(gathered(&options).await, (MAX_LENT, MAX_LENT, 0));
    }
}
