//! The door's end: asks the agent of its own session what the controller wants to know.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::message::{self, MAX_MESSAGE_BYTES, REFUSED};
use super::{AgentAnswer, AgentMessage, ToLender};
use crate::api::Client;

/// A key may wait so long for somebody to touch it, or an agent for its owner to confirm.
const PATIENCE: Duration = Duration::from_secs(90);
/// Questions that are asked of the agent at once.
const AT_ONCE: usize = 16;
/// Pauses before the agent is offered again.
const FIRST_AGAIN: Duration = Duration::from_millis(500);
const LONGEST_AGAIN: Duration = Duration::from_secs(10);

/// An agent that is lent until this is dropped.
#[derive(Debug)]
pub struct Lending {
    _task: AbortOnDropHandle<()>,
}

impl Lending {
    /// Lends the agent of this process's environment, if there is one.
    pub(in crate::api) fn of_environment(client: &Client) -> Option<Self> {
        let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty())?;
        Some(Self::begin(client, PathBuf::from(socket)))
    }

    /// Lends the agent behind `socket`, again and again: a controller may be replaced.
    pub(in crate::api) fn begin(client: &Client, socket: PathBuf) -> Self {
        let client = client.clone();
        let task = tokio::spawn(async move {
            let mut pause = FIRST_AGAIN;
            loop {
                if lend(&client, &socket).await {
                    pause = FIRST_AGAIN;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_AGAIN);
            }
        });
        Self { _task: AbortOnDropHandle::new(task) }
    }
}

/// Lends the agent until the controller goes; whether it was taken.
async fn lend(client: &Client, socket: &Path) -> bool {
    // An agent that is gone is not offered.
    if UnixStream::connect(socket).await.is_err() {
        return false;
    }
    let mut asked = match client.asked_of_agent().await {
        Ok(asked) => asked,
        Err(error) => {
            tracing::debug!(%error, "the agent is not lent");
            return false;
        }
    };
    let Some(ToLender::Lent { lease }) = asked.next().await else { return false };
    asked
        .for_each_concurrent(AT_ONCE, |asked| async move {
            let ToLender::Ask { id, message } = asked else { return };
            let message = ask(socket, &message.0).await.map(AgentMessage);
            // A controller that is gone needs no answer.
            let _ = client.agent_answers(&AgentAnswer { lease, id, message }).await;
        })
        .await;
    true
}

/// Asks the agent; a refusal of our own for what is not lent, none when it does not answer.
async fn ask(socket: &Path, request: &[u8]) -> Option<Vec<u8>> {
    let Some(asked) = message::asked(request) else {
        tracing::warn!("the controller asked the agent for something that is not lent");
        return Some(REFUSED.to_vec());
    };
    let answer = tokio::time::timeout(PATIENCE, exchange(socket, request)).await.ok()?.ok()?;
    message::is_answer(asked, &answer).then_some(answer)
}

async fn exchange(socket: &Path, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], request].concat()).await?;
    let length = usize::try_from(stream.read_u32().await?).map_err(io::Error::other)?;
    if length > MAX_MESSAGE_BYTES {
        return Err(io::Error::other("the agent's answer is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
