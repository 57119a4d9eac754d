//! `gpudeck agent dial`: splices standard input and output with a socket on the host. To change
//! something through it, the host's lock is held while the stream lives and the epoch is checked.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::claim;
use super::state::{LOCK_WAIT, StateDir};
use crate::base::{DeckId, Epoch};
use crate::wire::DialTarget;

/// Exit code when another epoch is the host's, or its lock could not be had.
const REFUSED: u8 = 3;

/// Exit code when the socket cannot be connected to.
const NOT_CONNECTED: u8 = 4;

/// Connects and splices until both directions have ended.
pub fn main(state_dir: &Path, act: Option<(DeckId, Epoch)>, target: &DialTarget) -> ExitCode {
    let mut lock = None;
    if let Some((deck, epoch)) = act {
        let claimed = StateDir::open(state_dir)
            .map_err(|e| super::error::io_refusal(&e, "open", state_dir))
            .and_then(|state| {
                lock = Some(state.lock_blocking(LOCK_WAIT)?);
                claim::check(&state, deck, epoch)
            });
        if let Err(refusal) = claimed {
            eprintln!("gpudeck: {refusal}");
            return ExitCode::from(REFUSED);
        }
    }
    let socket = match Socket::connect(target) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("gpudeck: {}: {error}", name(target));
            return ExitCode::from(NOT_CONNECTED);
        }
    };
    let result = splice(&socket);
    drop(lock);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpudeck: {}: {error}", name(target));
            ExitCode::FAILURE
        }
    }
}

fn name(target: &DialTarget) -> String {
    match target {
        DialTarget::Unix(path) => crate::base::text::clean(path, 200),
        DialTarget::Tcp(port) => format!("port {port}"),
    }
}

/// Reads `unix:PATH` or `tcp:PORT`.
///
/// # Errors
/// It is neither; how to write it.
pub fn parse_target(text: &str) -> Result<DialTarget, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|p| p.starts_with('/')) {
        return Ok(DialTarget::Unix(path.to_owned()));
    }
    let port = text.strip_prefix("tcp:").and_then(|p| p.parse().ok()).filter(|p| *p != 0);
    port.map(DialTarget::Tcp).ok_or_else(|| "write unix:/absolute/path or tcp:PORT".to_owned())
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn connect(target: &DialTarget) -> io::Result<Self> {
        match target {
            DialTarget::Unix(path) => UnixStream::connect(path).map(Self::Unix),
            DialTarget::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    fn end_writing(&self) {
        // Fails only if the other side is gone, which reading tells.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
        }
    }

    /// Neither direction can carry anything any more.
    fn is_hung_up(&self) -> bool {
        let fd = match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
        let _ = poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
        fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => (&*stream).read(buffer),
            Socket::Tcp(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => (&*stream).write(buffer),
            Socket::Tcp(stream) => (&*stream).write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies in both directions. The end of one is passed on at once and does not end the other.
fn splice(socket: &Socket) -> io::Result<()> {
    let to_socket = socket.try_clone()?;
    let (ended, end) = mpsc::channel();
    // Not joined: it may wait for a standard input that never ends, while the socket is gone.
    std::thread::Builder::new().name("in".to_owned()).spawn(move || {
        copy(io::stdin().lock(), &to_socket);
        to_socket.end_writing();
        let _ = ended.send(());
    })?;
    let mut out = take_stdout()?;
    copy_out(socket, &mut out)?;
    // The far end says nothing more, and our standard output says so by being closed.
    drop(out);
    loop {
        match end.recv_timeout(Duration::from_millis(100)) {
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) if socket.is_hung_up() => return Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Standard output as the only handle to it, so that it can be closed before the process ends.
fn take_stdout() -> io::Result<std::fs::File> {
    let out: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(out.into())
}

/// Copies until the source ends or the socket takes no more.
fn copy(mut from: impl Read, mut to: &Socket) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if to.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
            return;
        }
    }
}

/// Copies until the socket ends; when nobody reads our output any more, that is its end too.
fn copy_out(mut from: &Socket, to: &mut std::fs::File) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..n).unwrap_or_default())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_targets() {
        assert_eq!(parse_target("unix:/run/x.sock"), Ok(DialTarget::Unix("/run/x.sock".into())));
        assert_eq!(parse_target("tcp:8080"), Ok(DialTarget::Tcp(8080)));
        for bad in ["unix:relative", "tcp:0", "tcp:70000", "udp:1", ""] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }
}
