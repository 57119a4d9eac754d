//! Whether ready engines still serve, on hosts that do: one that lives and hangs, or answers nothing but errors, is
//! seen by nobody but its clients. (Of silent hosts `vigil` asks the gateways.)

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;

use super::actions::{self, Asked, Means};
use super::core::{Core, Input};
use super::engine_at::EngineAt;
use super::vigil::{Answer, Key, Vigil};
use crate::base::HostName;
use crate::engine;
use crate::fleet::{HostLink, LinkError};
use crate::rollout::{EventKind, Phase};
use crate::spec::EngineSpec;
use crate::wire::{Refusal, Reply};

/// Each ready replica is asked so often.
const EVERY: Duration = Duration::from_secs(10);

/// The replicas are shared out to so many rounds, one behind the other: hundreds are not asked at once.
const ROUNDS: u32 = 10;

/// So long it may answer nothing: three times in a row and more. Engines answer from a thread that does not
/// compute, but one that reads many long prompts can be late.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time for one answer, milliseconds.
const ASK_MS: u64 = 5_000;

/// Most that are asked at a time in one round.
const AT_ONCE: usize = 32;

/// A ready replica, and where it listens.
struct Ready {
    key: Key,
    host: HostName,
    at: EngineAt,
    engine: EngineSpec,
}

/// Asks for ever.
pub async fn watch(means: Arc<Means>) {
    futures::future::join_all((0..ROUNDS).map(|round| again_and_again(&means, round))).await;
}

async fn again_and_again(means: &Means, round: u32) {
    let mut vigil = Vigil::new(PATIENCE);
    let first = tokio::time::Instant::now() + EVERY + EVERY / ROUNDS * round;
    let mut times = tokio::time::interval_at(first, EVERY);
    // One that waited long for answers does not fall in with the others.
    times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        times.tick().await;
        let Some(ready) = means.ask(move |core| core.ready_of_round(round)).await else { return };
        let asked = ready.into_iter().map(|replica| ask_engine(means, replica));
        let answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        for ((service, replica), why) in vigil.note(Instant::now(), answers) {
            let kind = EventKind::ReplicaUnready { replica, why };
            if means.inputs.send(Input::Happened { service, kind }).await.is_err() {
                return;
            }
        }
    }
}

/// The round in which a replica is asked: always the same one, which remembers its silence.
fn round_of(key: &Key) -> u32 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    u32::try_from(hasher.finish() % u64::from(ROUNDS)).unwrap_or(0)
}

async fn ask_engine(means: &Means, ready: Ready) -> (Key, Answer) {
    let Ok(link) = actions::link(means, &ready.host) else { return (ready.key, Answer::Unknown) };
    let answer = match link.request(ready.at.get("/health", ASK_MS)).await {
        // vLLM whose core has died, say: its port answers on, and nothing is generated any more.
        Ok(Reply::Http(reply)) if reply.status >= 500 => {
            ask_for_token(link.as_ref(), &ready, reply.status).await
        }
        // Whatever else it answers, it does not hang: not every engine has that path.
        Ok(Reply::Http(_)) => Answer::Reached,
        Ok(_) => Answer::Unknown,
        Err(error) => unanswered(&error),
    };
    (ready.key, answer)
}

/// `/health` alone is not believed, in either direction: who still generates tokens serves.
async fn ask_for_token(link: &dyn HostLink, ready: &Ready, status: u16) -> Answer {
    let (service, _) = &ready.key;
    let asks = engine::of(&ready.engine).token_requests(service);
    match actions::generates(link, &asks, &ready.at).await {
        Ok(Asked::Token) => Answer::Reached,
        Ok(Asked::NoToken { .. }) => {
            let seconds = PATIENCE.as_secs();
            Answer::NotReached(format!("{status} from /health and no token for {seconds} s"))
        }
        Err(error) => unanswered(&error),
    }
}

fn unanswered(error: &LinkError) -> Answer {
    match error {
        LinkError::Refused { refusal: Refusal::NoAnswer { .. }, .. } => {
            Answer::NotReached(format!("nothing for {} s, though it runs", PATIENCE.as_secs()))
        }
        _ => Answer::Unknown,
    }
}

impl Core {
    /// The ready replicas of a round, on hosts that answer.
    fn ready_of_round(&self, round: u32) -> Vec<Ready> {
        let mut all = Vec::new();
        for (service, state) in &self.state.services {
            for (key, replica) in state.replicas.iter().filter(|(_, r)| r.phase == Phase::Ready) {
                let id = replica.id(*key);
                let asked = (service.clone(), id);
                let release =
                    state.releases.get(&key.release).filter(|_| round_of(&asked) == round);
                let Some(release) = release else { continue };
                let plan = release.replica(key.replica);
                let Some(first) = plan.and_then(|p| p.ranks.first()) else { continue };
                if self.means.claims.holds(&first.host) && !self.is_silent(&first.host) {
                    all.push(Ready {
                        key: asked,
                        host: first.host.clone(),
                        at: EngineAt::of(&release.spec, first),
                        engine: release.spec.engine.clone(),
                    });
                }
            }
        }
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, ReleaseNumber, ReplicaId};

    #[test]
    fn every_round_has_its_share_of_the_replicas() {
        let key = |replica| -> Key {
            let id = ReplicaId { release: ReleaseNumber(2), replica, attempt: Attempt::FIRST };
            ("chat".parse().unwrap(), id)
        };
        let mut of_round = [0_u32; 10];
        for replica in 0..500 {
            *of_round.get_mut(round_of(&key(replica)) as usize).unwrap() += 1;
        }
        assert!(of_round.iter().all(|n| (25..=75).contains(n)), "{of_round:?}");
    }
}
