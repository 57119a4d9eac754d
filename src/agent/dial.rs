//! `gpudeck agent dial`: splices standard input and output with a socket on the host. To change
//! something through it, the host's lock is held while the stream lives and the epoch is checked; such a stream ends
//! when nothing moves in it any more, and soon after another epoch has become the host's.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::claim;
use super::error::io_refusal;
use super::state::{HostLock, LOCK_WAIT, StateDir};
use crate::base::{DeckId, Epoch};
use crate::wire::{DialTarget, Refusal};

/// Exit code when another epoch is the host's, or its lock could not be had.
const REFUSED: u8 = 3;

/// Exit code when the socket cannot be connected to.
const NOT_CONNECTED: u8 = 4;

/// A stream that acts is given up when nothing has moved for so long: its operator's network is gone, and nobody
/// would ever end it. A container engine may be silent while it creates or starts a container; controllers wait two
/// minutes for that.
const IDLE: Duration = Duration::from_mins(3);

/// What was begun before the host was taken by force may go on for so long: less than [`LOCK_WAIT`], so that
/// whoever takes it gets it.
const TAKEN: Duration = Duration::from_secs(5);

/// Time between looks at whether a stream has to end.
const LOOK: Duration = Duration::from_millis(100);

/// Connects and splices until both directions have ended.
pub fn main(state_dir: &Path, act: Option<(DeckId, Epoch)>, target: &DialTarget) -> ExitCode {
    let acting = act.map(|(deck, epoch)| begin(state_dir, deck, epoch)).transpose();
    let (lock, bounds) = match acting {
        Ok(acting) => acting.unzip(),
        Err(refusal) => {
            eprintln!("gpudeck: {refusal}");
            return ExitCode::from(REFUSED);
        }
    };
    let socket = match Socket::connect(target) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("gpudeck: {}: {error}", name(target));
            return ExitCode::from(NOT_CONNECTED);
        }
    };
    let result = take_stdout().and_then(|out| splice(&socket, io::stdin(), out, bounds.as_ref()));
    drop(lock);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpudeck: {}: {error}", name(target));
            ExitCode::FAILURE
        }
    }
}

/// Takes the host's lock for `epoch`, and says what bounds its stream.
fn begin(state_dir: &Path, deck: DeckId, epoch: Epoch) -> Result<(HostLock, Bounds), Refusal> {
    let state = StateDir::open(state_dir).map_err(|e| io_refusal(&e, "open", state_dir))?;
    let lock = state.lock_blocking(LOCK_WAIT)?;
    claim::check(&state, deck, epoch)?;
    let is_taken = move || matches!(claim::check(&state, deck, epoch), Err(Refusal::Held { .. }));
    Ok((lock, Bounds { idle: IDLE, last: TAKEN, is_taken: Box::new(is_taken) }))
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

/// What bounds the life of a stream that acts: the host's lock is held as long.
struct Bounds {
    /// It ends when nothing has moved in either direction for so long.
    idle: Duration,
    /// After the host was taken by another epoch, what was begun may go on for so long.
    last: Duration,
    /// Whether the host was taken.
    is_taken: Box<dyn Fn() -> bool>,
}

/// What two directions tell their watcher.
struct Moves {
    begun: Instant,
    /// When something moved last, in milliseconds since then.
    last: AtomicU64,
    /// Nothing more is taken from standard input.
    shut: AtomicBool,
}

impl Moves {
    fn moved(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn idle(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

enum End {
    In,
    Out(io::Result<()>),
}

/// Copies in both directions. The end of one is passed on at once and does not end the other.
///
/// Neither thread is joined: one may wait for a standard input that never ends while the socket is gone, the
/// other for somebody to read what nobody reads any more. They end with the process.
fn splice(
    socket: &Socket,
    from: impl Read + Send + 'static,
    to: impl Write + Send + 'static,
    bounds: Option<&Bounds>,
) -> io::Result<()> {
    let (ended, end) = mpsc::sync_channel(2);
    let moves = Arc::new(Moves {
        begun: Instant::now(),
        last: AtomicU64::new(0),
        shut: AtomicBool::new(false),
    });
    let (to_socket, tell, of_in) = (socket.try_clone()?, ended.clone(), Arc::clone(&moves));
    std::thread::Builder::new().name("in".to_owned()).spawn(move || {
        copy(from, &to_socket, &of_in);
        to_socket.end_writing();
        let _ = tell.send(End::In);
    })?;
    let (from_socket, of_out) = (socket.try_clone()?, Arc::clone(&moves));
    std::thread::Builder::new().name("out".to_owned()).spawn(move || {
        // The far end says nothing more when this is done, and our output says so by being closed.
        let _ = ended.send(End::Out(copy_out(&from_socket, to, &of_out)));
    })?;
    let (mut in_ended, mut out_ended) = (false, false);
    let mut taken: Option<Instant> = None;
    while !(in_ended && out_ended) {
        // Without anything to look at it waits for what is told.
        let patience = if bounds.is_some() || out_ended { LOOK } else { Duration::from_hours(1) };
        match end.recv_timeout(patience) {
            Ok(End::In) => in_ended = true,
            Ok(End::Out(result)) => {
                result?;
                out_ended = true;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) if out_ended && socket.is_hung_up() => {
                return Ok(());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let Some(bounds) = bounds else { continue };
        let idle = moves.idle();
        if idle >= bounds.idle {
            let idle = crate::base::time::short(idle);
            return Err(io::Error::other(format!("nothing has moved for {idle}: given up")));
        }
        if taken.is_none() && (bounds.is_taken)() {
            moves.shut.store(true, Ordering::Relaxed);
            taken = Some(Instant::now());
        }
        if taken.is_some_and(|since| since.elapsed() >= bounds.last) {
            return Err(io::Error::other("the host was taken by another controller: given up"));
        }
    }
    Ok(())
}

/// Standard output as the only handle to it, so that it can be closed before the process ends.
fn take_stdout() -> io::Result<std::fs::File> {
    let out: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(out.into())
}

/// Copies until the source ends, the socket takes no more, or nothing more is to be taken.
fn copy(mut from: impl Read, mut to: &Socket, moves: &Moves) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if moves.shut.load(Ordering::Relaxed) {
            return;
        }
        moves.moved();
        if to.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
            return;
        }
        moves.moved();
    }
}

/// Copies until the socket ends; when nobody reads our output any more, that is its end too.
fn copy_out(mut from: &Socket, mut to: impl Write, moves: &Moves) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        moves.moved();
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        moves.moved();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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

    fn pair() -> (Socket, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Socket::Unix(near), far)
    }

    fn bounds(idle: Duration, is_taken: impl Fn() -> bool + 'static) -> Bounds {
        Bounds { idle, last: Duration::from_millis(10), is_taken: Box::new(is_taken) }
    }

    #[test]
    fn a_stream_that_acts_ends_when_nothing_moves_in_it() {
        let (socket, _far) = pair();
        // An operator's network that is gone: nothing comes, and nothing ends.
        let (input, _open) = UnixStream::pair().unwrap();
        let bounds = bounds(Duration::from_millis(50), || false);
        let ended = splice(&socket, input, io::sink(), Some(&bounds));
        assert!(ended.unwrap_err().to_string().contains("nothing has moved"));
    }

    #[test]
    fn a_stream_that_acts_ends_when_nobody_reads_what_it_says() {
        let (socket, mut far) = pair();
        let (input, _open) = UnixStream::pair().unwrap();
        let (output, _unread) = UnixStream::pair().unwrap();
        let talking = std::thread::spawn(move || while far.write_all(&[0; 4096]).is_ok() {});
        let bounds = bounds(Duration::from_millis(500), || false);
        let ended = splice(&socket, input, output, Some(&bounds));
        assert!(ended.unwrap_err().to_string().contains("nothing has moved"));
        // The thread that writes to nobody keeps its half until the process ends.
        drop(talking);
    }

    #[test]
    fn a_stream_that_acts_ends_when_its_host_is_taken_and_passes_nothing_more_on() {
        let (socket, mut far) = pair();
        let (input, mut operator) = UnixStream::pair().unwrap();
        let bounds = bounds(Duration::from_secs(60), || true);
        let ended = splice(&socket, input, io::sink(), Some(&bounds));
        assert!(ended.unwrap_err().to_string().contains("taken"));
        operator.write_all(b"DELETE /containers/x").unwrap();
        drop(socket);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).unwrap();
        assert!(heard.is_empty(), "something began after the host was taken");
    }
}
