//! Signs for one identity, whoever holds its key.

use std::time::Duration;

use russh::keys::HashAlg;
use russh::keys::agent::AgentIdentity;
use tokio::sync::watch;
use tokio::time::timeout;

use super::agent_keys::Agent;
use super::identity::{Holder, Identity, sign};

/// How long agents may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// One after which another can be asked.
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
        while let Some(number) = left.pop() {
            // Put back when it has answered, and only then.
            let Some(mut agent) = self.agents.get_mut(number).and_then(Option::take) else {
                continue;
            };
            let limit = if left.is_empty() { self.patience.last } else { self.patience.first };
            let signing = timeout(limit, with_agent(&mut agent, identity, hash, &data));
            let signed = tokio::select! {
                signed = signing => signed,
                _ = self.ended.wait_for(Option::is_some) => {
                    self.outcome = Outcome::HungUp;
                    return Err(NoSignature);
                }
            };
            let Ok(signed) = signed else {
                self.outcome = Outcome::Late;
                continue;
            };
            if let Some(place) = self.agents.get_mut(number) {
                *place = Some(agent);
            }
            if let Some(signed) = signed {
                return Ok(signed);
            }
        }
        Err(NoSignature)
    }
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
