//! Whether ready engines still answer, on hosts that do: one that lives and hangs is seen by nobody but its
//! clients. (Of silent hosts `vigil` asks the gateways.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;

use super::actions::{self, Means};
use super::core::{Core, Input};
use super::vigil::{Answer, Key, Vigil};
use crate::base::{HostName, ReplicaId};
use crate::fleet::LinkError;
use crate::rollout::{EventKind, Phase};
use crate::wire::{Refusal, Reply, Request};

/// Each ready replica is asked so often.
const EVERY: Duration = Duration::from_secs(10);

/// So long it may answer nothing: three times in a row and more. Engines answer from a thread that does not
/// compute, but one that reads many long prompts can be late.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time for one answer, milliseconds.
const ASK_MS: u64 = 5_000;

/// Most that are asked at a time.
const AT_ONCE: usize = 32;

/// A ready replica, and where it listens.
struct Ready {
    key: Key,
    host: HostName,
    port: u16,
}

/// Asks for ever.
pub async fn watch(means: Arc<Means>) {
    let mut vigil = Vigil::new(PATIENCE);
    loop {
        tokio::time::sleep(EVERY).await;
        let (reply, answer) = tokio::sync::oneshot::channel();
        let ask = Input::Ask(Box::new(move |core: &mut Core| {
            let _ = reply.send(core.ready_on_our_hosts());
        }));
        if means.inputs.send(ask).await.is_err() {
            return;
        }
        let Ok(ready) = answer.await else { return };
        let asked = ready.into_iter().map(|replica| ask_engine(&means, replica));
        let answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        for ((service, replica), why) in vigil.note(Instant::now(), answers) {
            let kind = EventKind::ReplicaUnready { replica, why };
            if means.inputs.send(Input::Happened { service, kind }).await.is_err() {
                return;
            }
        }
    }
}

async fn ask_engine(means: &Means, ready: Ready) -> (Key, Answer) {
    let Ok(link) = actions::link(means, &ready.host) else { return (ready.key, Answer::Unknown) };
    let request = Request::Http {
        port: ready.port,
        address: None,
        method: "GET".to_owned(),
        // Whatever it answers, it does not hang.
        path: "/health".to_owned(),
        body: None,
        timeout_ms: ASK_MS,
    };
    let answer = match link.request(request).await {
        Ok(Reply::Http(_)) => Answer::Reached,
        Err(LinkError::Refused { refusal: Refusal::NoAnswer { .. }, .. }) => {
            Answer::NotReached(format!("nothing for {} s, though it runs", PATIENCE.as_secs()))
        }
        _ => Answer::Unknown,
    };
    (ready.key, answer)
}

impl Core {
    fn ready_on_our_hosts(&self) -> Vec<Ready> {
        let ours = self.means.claims.ours();
        let mut all = Vec::new();
        for (service, state) in &self.state.services {
            for (key, replica) in &state.replicas {
                let plan = state.releases.get(&key.release).and_then(|r| r.replica(key.replica));
                let Some(first) = plan.and_then(|p| p.ranks.first()) else { continue };
                let asks = replica.phase == Phase::Ready
                    && ours.contains(&first.host)
                    && !self.is_silent(&first.host);
                if asks {
                    let id = ReplicaId {
                        release: key.release,
                        replica: key.replica,
                        attempt: replica.attempt,
                    };
                    let key = (service.clone(), id);
                    all.push(Ready { key, host: first.host.clone(), port: first.port });
                }
            }
        }
        all
    }
}
