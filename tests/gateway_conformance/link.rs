//! The agent's part: commands to the run-time socket, one connection each.

use async_trait::async_trait;
use gpudeck::base::HostName;
use gpudeck::fleet::{DialStream, HostLink, LinkError};
use gpudeck::wire::{DialAccess, DialTarget, Refusal, Reply, Request, Verb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The agent's part: commands to the socket, one connection each.
pub struct SocketLink {
    pub host: HostName,
    pub epochs: std::sync::Mutex<Vec<u64>>,
}

impl SocketLink {
    pub async fn command(&self, socket: &str, command: &str) -> Result<String, LinkError> {
        let refused = |refusal| LinkError::Refused { host: self.host.clone(), refusal };
        assert!(!command.contains('\n'), "one line a command: {command:?}");
        let mut stream = UnixStream::connect(socket).await.map_err(|e| {
            refused(match e.kind() {
                std::io::ErrorKind::NotFound => Refusal::NoFile { path: socket.to_owned() },
                _ => Refusal::Failed { message: e.to_string() },
            })
        })?;
        let mut text = String::new();
        stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        Ok(text)
    }
}

#[async_trait]
impl HostLink for SocketLink {
    fn host(&self) -> &HostName {
        &self.host
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        match request {
            Request::GatewayShow { socket, command } => {
                assert!(command.starts_with("show "), "only reads: {command}");
                Ok(Reply::Texts(vec![self.command(&socket, &command).await?]))
            }
            Request::Act { epoch, verb: Verb::Gateway { socket, commands }, .. } => {
                self.epochs.lock().unwrap().push(epoch.0);
                let mut texts = Vec::new();
                for command in commands {
                    texts.push(self.command(&socket, &command).await?);
                }
                Ok(Reply::Texts(texts))
            }
            other => panic!("not asked of a gateway's link: {other:?}"),
        }
    }

    async fn dial(&self, _: &DialTarget, _: DialAccess) -> Result<Box<dyn DialStream>, LinkError> {
        panic!("a gateway dials nothing")
    }
}
