//! The SSH agents that doors lend: each is one more in the ring of agents that connections ask, and
//! goes from it with its door.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::actions::Means;
use crate::api::lend::message::{self, Asked, LIST, MAX_MESSAGE_BYTES, REFUSED};
use crate::api::lend::{AgentAnswer, AgentMessage, ToLender};
use crate::api::{ApiError, ErrorKind};
use crate::ssh::agents::{AgentStream, Lease, LentAgent};

/// More doors than this lend nothing.
const MAX_DOORS: usize = 64;
/// Questions of one door that wait for its agent.
const MAX_WAITING: usize = 128;
/// An answer is waited for so long: a key may want to be touched.
const PATIENCE: Duration = Duration::from_secs(90);

/// All agents that are lent now.
#[derive(Default)]
pub struct LentAgents {
    doors: Mutex<HashMap<Uuid, Arc<Door>>>,
}

/// Who waits for an answer of which kind, by the question's number.
type Askers = HashMap<u64, (Asked, oneshot::Sender<Vec<u8>>)>;

/// One door's agent.
struct Door {
    calls: mpsc::Sender<ToLender>,
    waiting: Mutex<Askers>,
    last: AtomicU64,
}

/// Takes an agent from the ring when its door goes.
struct Lent {
    id: Uuid,
    of: Weak<LentAgents>,
    _lease: Lease,
    _greeting: AbortOnDropHandle<()>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(all) = self.of.upgrade()
            && let Some(door) = all.doors().remove(&self.id)
        {
            // Whoever waits for an answer waits no longer.
            door.waiting().clear();
        }
    }
}

impl LentAgents {
    fn doors(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Door>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A door lends its agent until the stream is dropped. Where a login is lost it is tried again,
    /// once the agent has said that it holds a key.
    pub fn borrow(
        self: &Arc<Self>,
        means: &Arc<Means>,
    ) -> Result<BoxStream<'static, ToLender>, ApiError> {
        let (calls, asked) = mpsc::channel(32);
        let door = Arc::new(Door { calls, waiting: Mutex::default(), last: AtomicU64::new(0) });
        let id = Uuid::new_v4();
        {
            let mut doors = self.doors();
            if doors.len() >= MAX_DOORS {
                return Err(ApiError {
                    kind: ErrorKind::Conflict,
                    message: format!("{MAX_DOORS} doors lend their agents already"),
                    hint: Some("close a screen or a command that is not needed".to_owned()),
                });
            }
            doors.insert(id, Arc::clone(&door));
        }
        let greeting = {
            let (door, means) = (Arc::clone(&door), Arc::clone(means));
            tokio::spawn(async move {
                let list = door.ask(&LIST).await.unwrap_or_default();
                let keys: BTreeSet<_> = message::keys(&list).into_iter().collect();
                if !keys.is_empty() {
                    means.fleet.try_lost_logins(&keys);
                }
            })
        };
        let lent = Lent {
            id,
            of: Arc::downgrade(self),
            _lease: means.fleet.lend(Arc::new(DoorAgent(door))),
            _greeting: AbortOnDropHandle::new(greeting),
        };
        let first = futures::stream::once(async move { ToLender::Lent { lease: id } });
        let rest = futures::stream::unfold((asked, lent), |(mut asked, lent)| async move {
            asked.recv().await.map(|call| (call, (asked, lent)))
        });
        Ok(first.chain(rest).boxed())
    }

    /// An answer of a door. What is no answer to what was asked is taken for silence.
    pub fn answered(&self, answer: AgentAnswer) -> Result<(), ApiError> {
        let door = self.doors().get(&answer.lease).cloned();
        let waiting = door.and_then(|door| door.waiting().remove(&answer.id));
        let Some((asked, asker)) = waiting else {
            return Err(ApiError {
                kind: ErrorKind::NotFound,
                message: "nobody asked the agent that (or waits any more)".to_owned(),
                hint: Some("it was too late: nothing has to be done".to_owned()),
            });
        };
        if let Some(AgentMessage(message)) = answer.message
            && message::is_answer(asked, &message)
        {
            let _ = asker.send(message);
        }
        Ok(())
    }
}

/// Forgets a question however the waiting for its answer ends.
struct Waiting<'a>(&'a Door, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

impl Door {
    fn waiting(&self) -> MutexGuard<'_, Askers> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the door's agent; none: it does not answer, or it is nothing that is lent.
    async fn ask(&self, request: &[u8]) -> Option<Vec<u8>> {
        let asked = message::asked(request)?;
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (asker, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                return None;
            }
            waiting.insert(id, (asked, asker));
        }
        let _waiting = Waiting(self, id);
        let exchange = async {
            let message = AgentMessage(request.to_vec());
            self.calls.send(ToLender::Ask { id, message }).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(PATIENCE, exchange).await.ok()?
    }
}

/// A door's agent as connections see it: a stream of the agent's protocol.
struct DoorAgent(Arc<Door>);

#[async_trait]
impl LentAgent for DoorAgent {
    async fn open(&self) -> io::Result<Box<dyn AgentStream>> {
        if self.0.calls.is_closed() {
            return Err(io::Error::other("the door that lent its agent is gone"));
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        let relay = tokio::spawn(relay(Arc::clone(&self.0), far));
        Ok(Box::new(Relayed { near, _relay: AbortOnDropHandle::new(relay) }))
    }
}

/// Carries whole messages between a stream and the door, one after the other as the protocol has it.
async fn relay(door: Arc<Door>, mut stream: DuplexStream) {
    while let Ok(length) = stream.read_u32().await {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE_BYTES {
            return;
        }
        let mut request = vec![0; length];
        if stream.read_exact(&mut request).await.is_err() {
            return;
        }
        let answer = door.ask(&request).await.unwrap_or_else(|| REFUSED.to_vec());
        let Ok(length) = u32::try_from(answer.len()) else { return };
        if stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.is_err() {
            return;
        }
    }
}

/// A stream and the task behind it.
struct Relayed {
    near: DuplexStream,
    _relay: AbortOnDropHandle<()>,
}

impl AsyncRead for Relayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_read(cx, buf)
    }
}

impl AsyncWrite for Relayed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.near).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_shutdown(cx)
    }
}
