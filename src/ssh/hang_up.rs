//! Whether a server has hung up while nobody reads what it says: russh does not listen while a signature is
//! waited for, which can take a person a minute.

use std::io;
use std::os::fd::AsFd;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// The end of a TCP connection of ours. It holds the socket open, and is to be dropped with the login.
#[derive(Default)]
pub(super) struct HangUp(Option<TcpStream>);

impl HangUp {
    /// Of this connection.
    pub(super) fn of(socket: &TcpStream) -> Self {
        let own = socket.as_fd().try_clone_to_owned().ok();
        Self(own.and_then(|own| TcpStream::from_std(own.into()).ok()))
    }

    /// Comes back when the other end has hung up; never where that cannot be known.
    pub(super) async fn happened(&self) {
        if let Some(socket) = &self.0 {
            while let Ok(ready) = socket.ready(Interest::READABLE).await {
                if ready.is_read_closed() {
                    return;
                }
                // What it said is read by others: the next is waited for.
                let nothing = || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into());
                let _ = socket.try_io(Interest::READABLE, nothing);
            }
        }
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_end_is_seen_behind_what_nobody_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let hang_up = HangUp::of(&near);
        far.write_all(b"something that is not read").await.unwrap();
        near.readable().await.unwrap();
        let happened = hang_up.happened();
        tokio::pin!(happened);
        tokio::select! {
            biased;
            () = &mut happened => unreachable!("it is still there"),
            () = tokio::task::yield_now() => {}
        }
        drop(far);
        happened.await;
    }
}
