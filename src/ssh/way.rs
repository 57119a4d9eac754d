//! How the bytes get to a server: by TCP, over another server, or by a command.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::channel::RusshConnection;
use super::config::{AddressFamily, Route};
use super::connection::{Phase, timed_out};
use super::endpoint::{ConnectOptions, Endpoint};
use super::exec::Stderr;
use super::hang_up::HangUp;
use super::pace::{Doors, Lookup, Pace};
use super::prompt::{AtOnce, Prompt};
use super::{Questions, SshError};
use crate::base::{quote, text};

/// Any byte stream.
pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

/// What must live as long as the stream.
#[derive(Default)]
pub(super) struct Kept {
    jump: Option<Arc<RusshConnection>>,
    child: Option<Proxy>,
    /// Held for its end alone.
    link: Option<AbortOnDropHandle<()>>,
}

impl Kept {
    /// From now on, what goes over a jump host ends with it: a channel of a connection that is
    /// gone does not say so by itself.
    pub(super) fn end_together(
        &mut self,
        cut: CancellationToken,
        end: watch::Sender<Option<String>>,
    ) {
        let Some(jump) = &self.jump else { return };
        // Not the connection itself: it would be held for ever.
        let mut lost = jump.end();
        let link = tokio::spawn(async move {
            let why = match lost.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_default(),
                Err(_) => String::new(),
            };
            end.send_if_modified(|end| {
                let first = end.is_none();
                end.get_or_insert_with(|| format!("the jump host was lost: {why}"));
                first
            });
            cut.cancel();
        });
        self.link = Some(AbortOnDropHandle::new(link));
    }

    /// What a proxy command that ended has written to its standard error; where it was silent and nothing came by it
    /// either (`nothing_came`), how it ended.
    pub(super) async fn said(&mut self, nothing_came: bool) -> Option<String> {
        let proxy = self.child.as_mut()?;
        // It comes in beside the end of its output.
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut proxy.draining).await;
        let said = text::clean(proxy.stderr.tail().trim(), 200);
        if !said.is_empty() || !nothing_came {
            return (!said.is_empty()).then_some(said);
        }
        let ended = tokio::time::timeout(Duration::from_millis(200), proxy.child.wait()).await;
        let status = ended.ok()?.ok()?;
        Some(format!("it ended without a word ({status})"))
    }
}

/// A way that is open.
pub(super) struct Way {
    pub(super) stream: Box<dyn Bytes>,
    pub(super) kept: Kept,
    /// The server is on this very machine.
    pub(super) loopback: bool,
    /// Where the way is a TCP connection of ours.
    pub(super) at_once: AtOnce,
    /// The same.
    pub(super) hang_up: HangUp,
}

/// Opens the way to `endpoint`.
pub(super) async fn open(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    questions: &dyn Questions,
    on_phase: &(dyn Fn(Phase) + Send + Sync),
    doors: &Doors,
) -> Result<Way, SshError> {
    let config = &endpoint.config;
    let pace = &options.pace;
    match &config.route {
        Route::Direct => {
            pace.enter(&endpoint.address(), doors).await;
            let socket = tcp(endpoint, pace, endpoint.timeouts(options).tcp).await?;
            let loopback = socket.peer_addr().is_ok_and(|a| a.ip().is_loopback());
            let (at_once, hang_up) = (AtOnce::default(), HangUp::of(&socket));
            let stream = Box::new(Prompt::new(socket, at_once.clone()));
            Ok(Way { stream, kept: Kept::default(), loopback, at_once, hang_up })
        }
        Route::Jump { .. } => {
            let Some(jump) = endpoint.over(options).await? else {
                return Err(SshError::closed("no place to jump over"));
            };
            on_phase(Phase::Jump);
            let over = |error: SshError| SshError::Jump {
                via: text::clean(&jump.name, 120),
                error: Box::new(error),
            };
            let connection = options.jumps.get(&jump, options, questions).await.map_err(over)?;
            pace.enter(&endpoint.address(), doors).await;
            let stream = connection.tunnel(&config.host_name, config.port).await.map_err(over)?;
            let kept = Kept { jump: Some(connection), ..Kept::default() };
            let stream = Box::new(stream);
            let (at_once, hang_up) = (AtOnce::default(), HangUp::default());
            Ok(Way { stream, kept, loopback: false, at_once, hang_up })
        }
        Route::Command { line, written } => {
            // Our own `HostName` is printed as `ssh` prints it, and no shell reads it.
            if !quote::is_plain_host(&config.host_name) {
                return Err(SshError::UnsafeName { name: text::clean(&config.host_name, 120) });
            }
            // Which server it goes over only the command knows; hosts with the same one share it.
            pace.enter_by(written, &endpoint.address(), doors).await;
            let (stream, child) = proxy(line)?;
            let kept = Kept { child: Some(child), ..Kept::default() };
            let (at_once, hang_up) = (AtOnce::default(), HangUp::default());
            Ok(Way { stream, kept, loopback: false, at_once, hang_up })
        }
    }
}

/// A proxy command. It is killed with its children when this goes.
struct Proxy {
    child: Child,
    group: Option<Pid>,
    stderr: Stderr,
    draining: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.draining.abort();
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn proxy(command: &str) -> Result<(Box<dyn Bytes>, Proxy), SshError> {
    let failed = |why: String| SshError::ProxyCommand { why: text::clean(&why, 200) };
    let shell =
        std::env::var_os("SHELL").filter(|s| !s.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let mut child = Command::new(shell)
        .arg("-c")
        // As OpenSSH has it: the shell is gone once the command runs.
        .arg(format!("exec {command}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(mut errors)) = pipes else {
        return Err(failed("no pipes to it".to_owned()));
    };
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let stderr = Stderr::default();
    let kept = stderr.clone();
    let draining = tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = errors.read(&mut buffer).await {
            kept.push(buffer.get(..n).unwrap_or_default());
        }
    });
    let stream = tokio::io::join(stdout, stdin);
    Ok((Box::new(stream), Proxy { child, group, stderr, draining }))
}

/// What a name stands for.
async fn addresses(turn: Lookup, name: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = name.to_owned();
    turn.with(move || Ok((name.as_str(), port).to_socket_addrs()?.collect())).await
}

async fn tcp(endpoint: &Endpoint, pace: &Pace, limit: Duration) -> Result<TcpStream, SshError> {
    let config = &endpoint.config;
    let not_found = || SshError::NameNotFound { host: text::clean(&config.host_name, 120) };
    // Waiting for a turn of our own is none of the host's time.
    let turn = pace.lookup(&config.host_name).await;
    let deadline = tokio::time::Instant::now() + limit;
    let lookup = addresses(turn, &config.host_name, config.port);
    let addresses: Vec<_> = match tokio::time::timeout_at(deadline, lookup).await {
        Err(_) => return Err(timed_out(endpoint, Phase::Tcp, limit)),
        Ok(Err(_)) => return Err(not_found()),
        Ok(Ok(found)) => found
            .into_iter()
            .filter(|address| match config.address_family {
                AddressFamily::Any => true,
                AddressFamily::Inet => address.is_ipv4(),
                AddressFamily::Inet6 => address.is_ipv6(),
            })
            .take(8)
            .collect(),
    };
    let mut last = not_found();
    let count = addresses.len();
    for (before, address) in addresses.into_iter().enumerate() {
        let now = tokio::time::Instant::now();
        let until = now + share(deadline.saturating_duration_since(now), count - before);
        let connecting = connect_from(pace, config.bind_address.as_deref(), address);
        match tokio::time::timeout_at(until, connecting).await {
            Err(_) => last = timed_out(endpoint, Phase::Tcp, limit),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                last = SshError::Refused { address: endpoint.address() };
            }
            Ok(Err(error)) => {
                last = SshError::Unreachable {
                    address: endpoint.address(),
                    why: text::clean(&error.to_string(), 120),
                };
            }
            Ok(Ok(socket)) => {
                // Small messages back and forth: waiting to fill packets costs 40 ms each.
                let _ = socket.set_nodelay(true);
                let _ = rustix::net::sockopt::set_socket_keepalive(&socket, config.tcp_keep_alive);
                return Ok(socket);
            }
        }
    }
    Err(last)
}

/// What the next of so many addresses may take of the time that is left: one that is silent must not use up
/// that of the others, and what one has not used is theirs.
fn share(left: Duration, addresses: usize) -> Duration {
    left / u32::try_from(addresses.max(1)).unwrap_or(u32::MAX)
}

async fn connect_from(
    pace: &Pace,
    from: Option<&str>,
    to: SocketAddr,
) -> std::io::Result<TcpStream> {
    let Some(from) = from else { return TcpStream::connect(to).await };
    let own = addresses(pace.lookup(from).await, from, 0).await?;
    let Some(own) = own.into_iter().find(|a| a.is_ipv4() == to.is_ipv4()) else {
        return Err(std::io::Error::other(format!("BindAddress {from} has no such address")));
    };
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(own)?;
    socket.connect(to).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{ConfigFiles, NoQuestions, Target};
    use super::*;

    #[test]
    fn time_that_one_address_has_not_used_is_the_others() {
        let s = Duration::from_secs;
        // Two that refuse at once, and one that takes its time.
        assert_eq!([share(s(9), 3), share(s(9), 2), share(s(9), 1)], [s(3), s(9) / 2, s(9)]);
        assert_eq!([share(s(9), 3), share(s(6), 2), share(s(3), 1)], [s(3); 3]);
        assert_eq!(share(s(9), 0), s(9));
    }

    #[tokio::test]
    async fn a_host_name_that_a_shell_could_misread_starts_no_command() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("ran");
        let text = format!("HostName a;x\nProxyCommand touch {}; echo %h\n", mark.display());
        let mut options = ConnectOptions::from_env(None);
        options.config = ConfigFiles::Text(text.as_str().into());
        let target = Target { name: "box".to_owned(), ..Target::default() };
        let endpoint = Endpoint::resolve(&target, &options).unwrap();
        let done = super::super::connect(&endpoint, &options, &NoQuestions, &|_| ()).await;
        let error = done.err().unwrap();
        assert!(matches!(error, SshError::UnsafeName { .. }), "{error}");
        assert!(!mark.exists());
    }

    #[tokio::test]
    async fn small_messages_are_sent_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for more in ["", " TCPKeepAlive no\n", " BindAddress 127.0.0.2\n"] {
            let text = format!("Host box\n HostName 127.0.0.1\n Port {port}\n{more}");
            let options = ConnectOptions {
                config: ConfigFiles::Text(text.into()),
                ..ConnectOptions::from_env(None)
            };
            let target = Target { name: "box".to_owned(), ..Target::default() };
            let endpoint = Endpoint::resolve(&target, &options).unwrap();
            let socket = tcp(&endpoint, &options.pace, Duration::from_secs(5)).await.unwrap();
            assert!(socket.nodelay().unwrap(), "{more}");
            let keeps_alive = rustix::net::sockopt::socket_keepalive(&socket).unwrap();
            assert_eq!(keeps_alive, more != " TCPKeepAlive no\n");
        }
    }
}
