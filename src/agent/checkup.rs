//! `gpudeck doctor` on the host's side: what samples do not say. Measures only when it is asked.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::error::{blocking, failed};
use super::rank::{self, RankFile};
use super::state::StateDir;
use super::{containers, logout, ports, programs};
use crate::base::RankId;
use crate::base::text::clean;
use crate::wire::{Checkup, ProgramSought, Reached, Refusal};

/// Most addresses that are tried,
const MAX_ADDRESSES: usize = 1024;

/// at once,
const AT_ONCE: usize = 64;

/// and for how long one after the other is begun with: the answer comes before the asker gives it up.
const REACH_WITHIN: Duration = Duration::from_secs(18);

/// One attempt to connect.
const CONNECT: Duration = Duration::from_secs(3);

/// Longest time that somebody listens for, and waits for the host's lock before.
const LISTENING: Duration = Duration::from_secs(10);
const FREE_WITHIN: Duration = Duration::from_secs(1);

/// Who has connected closes the connection within that.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

/// Longest file that is written to measure a disk, and the longest time spent on it.
const MAX_DISK: u64 = 256 << 20;
const DISK_TIME: Duration = Duration::from_secs(5);

/// Looks at the host.
///
/// # Errors
/// The agent is ending.
pub async fn check_up(
    state_dir: PathBuf,
    reach: Vec<String>,
    disk_bytes: Option<u64>,
    programs: Vec<ProgramSought>,
) -> Result<Checkup, Refusal> {
    let disk = async {
        match disk_bytes {
            None => Ok((None, None)),
            Some(bytes) => blocking(move || Ok(write_speed(state_dir, bytes.min(MAX_DISK)))).await,
        }
    };
    let asked = reach.len();
    let ((engine, trouble), reached, disk, programs) = tokio::join!(
        containers::engine(),
        reach_all(reach, REACH_WITHIN),
        disk,
        programs::find_all(programs)
    );
    let (disk_write_bytes_per_s, disk_trouble) = disk?;
    Ok(Checkup {
        container_engine: engine,
        container_engine_trouble: trouble,
        untried: u32::try_from(asked.saturating_sub(reached.len())).unwrap_or(u32::MAX),
        reached,
        disk_write_bytes_per_s,
        disk_trouble,
        programs,
        listening: blocking(|| Ok(ports::listening())).await?,
        logout: blocking(|| Ok(logout::look())).await?,
        ssh_notes: Vec::new(),
    })
}

/// Tries them in their order; those that are not begun with in time are left out.
async fn reach_all(addresses: Vec<String>, within: Duration) -> Vec<Reached> {
    let begun = Instant::now();
    let mut next = addresses.into_iter().take(MAX_ADDRESSES).enumerate();
    let mut tries = JoinSet::new();
    let mut reached = Vec::new();
    loop {
        while tries.len() < AT_ONCE
            && begun.elapsed() < within
            && let Some((at, address)) = next.next()
        {
            tries.spawn(async move { (at, reach(address).await) });
        }
        let Some(tried) = tries.join_next().await else { break };
        reached.extend(tried.ok());
    }
    reached.sort_by_key(|(at, _)| *at);
    reached.into_iter().map(|(_, reached)| reached).collect()
}

async fn reach(address: String) -> Reached {
    let begun = Instant::now();
    let tried = timeout(CONNECT, TcpStream::connect(&address)).await;
    let took = u64::try_from(begun.elapsed().as_micros()).ok();
    let address = clean(&address, 100);
    match tried {
        Err(_) => {
            let why = Some(format!("nothing came back within {} s", CONNECT.as_secs()));
            Reached { address, why, ..Reached::default() }
        }
        Ok(Ok(_)) => Reached { address, took_us: took, ..Reached::default() },
        Ok(Err(error)) => Reached {
            address,
            took_us: None,
            listened: false,
            refused: error.kind() == std::io::ErrorKind::ConnectionRefused,
            why: Some(clean(&error.to_string(), 120)),
        },
    }
}

/// The ports on which the agent listens so that another host can see whether it reaches them. Dropping it ends that.
#[derive(Default)]
pub struct Listeners(Mutex<BTreeMap<u16, JoinHandle<()>>>);

impl Listeners {
    /// Listens on a port for so long at most; see [`crate::wire::Request::Listen`].
    ///
    /// # Errors
    /// The port is not free, or may be that of a rank that does not listen yet; somebody changes the host just now.
    pub async fn listen(
        &self,
        state: StateDir,
        port: u16,
        within: Duration,
    ) -> Result<(), Refusal> {
        self.release(&[port]).await;
        if within.is_zero() {
            return Ok(());
        }
        // A rank that is just being started is seen in its directory from the lock's end on.
        let _nothing_is_started = state.lock(FREE_WITHIN).await?;
        blocking(move || {
            ports::check_free(port)?;
            match rank::list(&state, None)?.into_iter().find(|r| wants(&state, &r.rank, port)) {
                Some(report) => Err(failed(format!("port {port} may be that of {}", report.rank))),
                None => Ok(()),
            }
        })
        .await?;
        let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Ok(listener) => Ok(listener),
            // No IPv6 here.
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        };
        let listener = listener.map_err(|e| failed(format!("port {port}: {e}")))?;
        let listening = tokio::spawn(async move {
            let _ = timeout(within.min(LISTENING), take_all(&listener)).await;
        });
        let before = self.all().insert(port, listening);
        before.iter().for_each(JoinHandle::abort);
        Ok(())
    }

    /// Listens on these ports no more: an engine is to have them.
    pub async fn release(&self, ports: &[u16]) {
        let ended: Vec<JoinHandle<()>> = {
            let mut all = self.all();
            all.retain(|_, listening| !listening.is_finished());
            ports.iter().filter_map(|port| all.remove(port)).collect()
        };
        for listening in ended {
            listening.abort();
            let _ = listening.await;
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u16, JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.all().values().for_each(JoinHandle::abort);
    }
}

/// Takes whoever connects.
async fn take_all(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        // Closed without a word: a port that lingers would be in an engine's way for a minute.
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        // The other side closes once it knows that it is connected; who hangs up before has not been reached.
        let _ = timeout(CLOSED_WITHIN, stream.read(&mut [0])).await;
    }
}

/// The rank's command line names the port.
fn wants(state: &StateDir, of: &RankId, port: u16) -> bool {
    let port = port.to_string();
    let argv = RankFile::read(&state.rank(of)).map(|file| file.argv).unwrap_or_default();
    argv.iter().any(|word| word.split(|c: char| !c.is_ascii_digit()).any(|number| number == port))
}

/// Writes a file, synchronises it and removes it.
fn write_speed(dir: PathBuf, bytes: u64) -> (Option<u64>, Option<String>) {
    let measure = || -> std::io::Result<u64> {
        let mut file = tempfile::Builder::new().prefix(".doctor-").tempfile_in(dir)?;
        // Not zeros: some disks and file systems make nothing of those.
        let block: Vec<u8> =
            (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let begun = Instant::now();
        let mut written = 0_u64;
        while written < bytes && begun.elapsed() < DISK_TIME {
            file.write_all(&block)?;
            // Otherwise only the page cache is measured until the end.
            file.as_file().sync_data()?;
            written += block.len() as u64;
        }
        let micros = begun.elapsed().as_micros().max(1);
        Ok(u64::try_from(u128::from(written) * 1_000_000 / micros).unwrap_or(u64::MAX))
    };
    match measure() {
        Ok(speed) => (Some(speed), None),
        Err(error) => (None, Some(clean(&error.to_string(), 160))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_are_tried_some_at_once_and_those_left_out_are_counted() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let many = vec![open.clone(); 300];
        let dir = tempfile::tempdir().unwrap();
        let found = check_up(dir.path().to_owned(), many.clone(), None, Vec::new()).await.unwrap();
        assert_eq!((found.reached.len(), found.untried), (300, 0));
        assert!(found.reached.iter().all(|r| r.took_us.is_some()), "{found:?}");
        assert_eq!(reach_all(many, Duration::ZERO).await, []);
        let too_many = vec![open; MAX_ADDRESSES + 7];
        let found = check_up(dir.path().to_owned(), too_many, None, Vec::new()).await.unwrap();
        assert_eq!((found.reached.len(), found.untried), (MAX_ADDRESSES, 7));
    }

    #[tokio::test]
    async fn listens_for_a_moment_and_leaves_the_port_to_engines() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let spare = || {
            let socket = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
            socket.local_addr().unwrap().port()
        };
        let port = spare();
        let listeners = Listeners::default();
        let listen = |port, within| listeners.listen(state.clone(), port, within);
        listen(port, Duration::from_secs(5)).await.unwrap();
        drop(state.lock(Duration::ZERO).await.unwrap());
        // Not hung up on before the other side knows that it is there; and a second one finds it as well.
        let address = format!("127.0.0.1:{port}");
        for _ in 0..2 {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let kept = timeout(Duration::from_millis(300), stream.read(&mut [0])).await;
            assert!(kept.is_err(), "{kept:?}");
        }
        // A rank is to be started there: it need not wait.
        listeners.release(&[port]).await;
        assert!(reach(format!("127.0.0.1:{port}")).await.refused);
        // An engine binds without `SO_REUSEADDR` as well: nothing of it lingers.
        assert_eq!(ports::check_free(port), Ok(()));

        // The other host has seen enough.
        listen(port, Duration::from_secs(5)).await.unwrap();
        listen(port, Duration::ZERO).await.unwrap();
        assert!(reach(format!("127.0.0.1:{port}")).await.refused);

        // Nobody comes.
        listen(port, Duration::from_millis(100)).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !reach(format!("127.0.0.1:{port}")).await.refused {
            assert!(Instant::now() < deadline, "it listens for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = listen(port, Duration::from_secs(5)).await;
        assert!(matches!(refused, Err(Refusal::PortInUse { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn measures_and_reaches() {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shut = closed.local_addr().unwrap().to_string();
        drop(closed);
        let reach = vec![open.clone(), shut, "nonsense".to_owned()];
        let found = check_up(dir.path().to_owned(), reach, Some(1), Vec::new()).await.unwrap();
        assert!(found.disk_write_bytes_per_s.is_some_and(|s| s > 0), "{found:?}");
        assert_eq!((found.reached[0].address.clone(), found.reached[0].why.clone()), (open, None));
        assert!(found.reached[0].took_us.is_some() && found.reached[1].refused);
        assert!(!found.reached[2].refused && found.reached[2].why.is_some());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");

        assert_eq!(found.untried, 0);

        let gone =
            check_up(dir.path().join("gone"), Vec::new(), Some(1), Vec::new()).await.unwrap();
        assert!(gone.disk_write_bytes_per_s.is_none() && gone.disk_trouble.is_some());
    }
}
