//! Signs for one identity, whoever holds its key.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use russh::keys::HashAlg;
use russh::keys::agent::AgentIdentity;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::agent_keys::Agent;
use super::hang_up::HangUp;
use super::identity::{Holder, Identity, sign};

/// How long agents may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// One beside which another can then be asked.
    pub(super) first: Duration,
    /// The last: a person may have to touch a key, to type a PIN or to confirm.
    pub(super) last: Duration,
}

impl Patience {
    /// For a key that so many agents hold.
    pub(super) fn whole(self, agents: usize) -> Duration {
        let others = u32::try_from(agents.saturating_sub(1)).unwrap_or(u32::MAX);
        if agents == 0 { Duration::ZERO } else { self.last + self.first.saturating_mul(others) }
    }
}

/// Signs for one identity.
pub(super) struct Signer<'a> {
    pub(super) identity: &'a Identity,
    pub(super) agents: &'a mut [Option<Agent>],
    pub(super) patience: Patience,
    /// Why the connection ended, once it has.
    pub(super) ended: watch::Receiver<Option<String>>,
    /// The server's end of the connection, which russh does not look at meanwhile.
    pub(super) hang_up: &'a HangUp,
    /// What came of it.
    pub(super) outcome: Outcome,
}

/// Why there is no signature, where that is worth a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there, or was refused.
    #[default]
    Answered,
    /// An agent did not answer in time.
    Late,
    /// The way to the server ended before.
    HungUp,
    /// The server would take the key, and nobody has given its passphrase.
    Locked,
}

/// There is no signature.
#[derive(Debug)]
pub(super) struct NoSignature;

impl From<russh::SendError> for NoSignature {
    fn from(_: russh::SendError) -> Self {
        Self
    }
}

impl russh::Signer for Signer<'_> {
    type Error = NoSignature;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        hash: Option<HashAlg>,
        data: Vec<u8>,
    ) -> Result<Vec<u8>, Self::Error> {
        let identity = self.identity;
        let numbers = match &identity.holder {
            Holder::Us(key) => return sign(key, hash, data).map_err(|_| NoSignature),
            Holder::Agents(numbers) => numbers,
            Holder::Locked(_) => {
                self.outcome = Outcome::Locked;
                return Err(NoSignature);
            }
        };
        let there = |n: &&usize| self.agents.get(**n).is_some_and(Option::is_some);
        let mut left: Vec<usize> = numbers.iter().filter(there).copied().collect();
        left.reverse();
        let mut asked = FuturesUnordered::new();
        let mut until = Instant::now();
        let mut ask_next = true;
        loop {
            if std::mem::take(&mut ask_next)
                && let Some(number) = left.pop()
                // Put back when it has answered, and only then.
                && let Some(agent) = self.agents.get_mut(number).and_then(Option::take)
            {
                asked.push(ask(number, agent, identity, hash, &data));
                let limit = if left.is_empty() { self.patience.last } else { self.patience.first };
                until = Instant::now() + limit;
            }
            let answer = tokio::select! {
                answer = timeout_at(until, asked.next()) => answer,
                _ = self.ended.wait_for(Option::is_some) => {
                    self.outcome = Outcome::HungUp;
                    return Err(NoSignature);
                }
                () = self.hang_up.happened() => {
                    self.outcome = Outcome::HungUp;
                    return Err(NoSignature);
                }
            };
            match answer {
                Ok(Some((number, agent, signed))) => {
                    if let Some(place) = self.agents.get_mut(number) {
                        *place = Some(agent);
                    }
                    if let Some(signed) = signed {
                        self.outcome = Outcome::Answered;
                        return Ok(signed);
                    }
                    ask_next = true;
                }
                Ok(None) if left.is_empty() => return Err(NoSignature),
                Ok(None) => ask_next = true,
                // Whoever is silent is heard on beside the next.
                Err(_) => {
                    self.outcome = Outcome::Late;
                    if left.is_empty() {
                        return Err(NoSignature);
                    }
                    ask_next = true;
                }
            }
        }
    }
}

/// Asks an agent, and gives it back.
async fn ask(
    number: usize,
    mut agent: Agent,
    identity: &Identity,
    hash: Option<HashAlg>,
    data: &[u8],
) -> (usize, Agent, Option<Vec<u8>>) {
    let signed = with_agent(&mut agent, identity, hash, data).await;
    (number, agent, signed)
}

/// None: it will not.
async fn with_agent(
    agent: &mut Agent,
    identity: &Identity,
    hash: Option<HashAlg>,
    data: &[u8],
) -> Option<Vec<u8>> {
    if let Some(certificate) = &identity.certificate {
        let whole = AgentIdentity::from(certificate.clone());
        if let Ok(signed) = agent.sign_request(&whole, hash, data.to_vec()).await {
            return Some(signed);
        }
    }
    // An agent that holds only the plain key signs for its certificate as well.
    let plain = AgentIdentity::from(identity.key.clone());
    agent.sign_request(&plain, hash, data.to_vec()).await.ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use russh::Signer as _;
    use russh::keys::PublicKey;
    use russh::keys::agent::client::AgentClient;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;

    use super::super::agents::AgentStream;
    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// An agent that notes that it was asked, and signs once it may.
    fn agent(asked: Arc<Semaphore>, may: Arc<Semaphore>) -> Agent {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let length = far.read_u32().await.unwrap();
            far.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
            asked.add_permits(1);
            may.acquire().await.unwrap().forget();
            let signature = [string(b"ssh-ed25519"), string(&[7; 64])].concat();
            let answer = [&[14][..], &string(&signature)].concat();
            far.write_all(&string(&answer)).await.unwrap();
            let _ = far.read_u8().await;
        });
        let stream: Box<dyn AgentStream> = Box::new(near);
        AgentClient::connect(stream)
    }

    #[tokio::test]
    async fn an_agent_that_somebody_touches_late_is_still_heard() {
        let blob = [string(b"ssh-ed25519"), string(&[1; 32])].concat();
        let identity = Identity {
            key: PublicKey::from_bytes(&blob).unwrap(),
            certificate: None,
            holder: Holder::Agents(vec![0, 1]),
            label: "key".to_owned(),
        };
        let (first_asked, second_asked) =
            (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (touched, never) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let mut agents = [
            Some(agent(first_asked, Arc::clone(&touched))),
            Some(agent(Arc::clone(&second_asked), never)),
        ];
        let (_end, ended) = watch::channel(None);
        // The second is asked at once, and never answers.
        let patience = Patience { first: Duration::ZERO, last: Duration::from_mins(10) };
        let hang_up = HangUp::default();
        let mut signer = Signer {
            identity: &identity,
            agents: &mut agents,
            patience,
            ended,
            hang_up: &hang_up,
            outcome: Outcome::default(),
        };
        let key = AgentIdentity::from(identity.key.clone());
        let touch = async {
            second_asked.acquire().await.unwrap().forget();
            touched.add_permits(1);
        };
        let (signed, ()) = tokio::join!(signer.auth_sign(&key, None, vec![1]), touch);
        assert!(signed.unwrap().ends_with(&[7; 64]));
        assert_eq!(signer.outcome, Outcome::Answered);
        let back: Vec<bool> = agents.iter().map(Option::is_some).collect();
        assert_eq!(back, [true, false], "who was not heard is asked nothing more");
    }
}
