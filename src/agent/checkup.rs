//! `gpudeck doctor` on the host's side: what samples do not say. Measures only when it is asked.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::containers;
use super::error::blocking;
use super::logout;
use super::programs;
use crate::base::text::clean;
use crate::wire::{Checkup, ProgramSought, Reached, Refusal};

/// Most addresses that are tried.
const MAX_ADDRESSES: usize = 32;

/// One attempt to connect.
const CONNECT: Duration = Duration::from_secs(3);

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
    let ((engine, trouble), reached, disk, programs) =
        tokio::join!(containers::engine(), reach_all(reach), disk, programs::find_all(programs));
    let (disk_write_bytes_per_s, disk_trouble) = disk?;
    Ok(Checkup {
        container_engine: engine,
        container_engine_trouble: trouble,
        reached,
        disk_write_bytes_per_s,
        disk_trouble,
        programs,
        logout: blocking(|| Ok(logout::look())).await?,
        ssh_notes: Vec::new(),
    })
}

async fn reach_all(addresses: Vec<String>) -> Vec<Reached> {
    let mut tries = JoinSet::new();
    for (at, address) in addresses.into_iter().take(MAX_ADDRESSES).enumerate() {
        tries.spawn(async move { (at, reach(address).await) });
    }
    let mut reached = tries.join_all().await;
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
            Reached { address, took_us: None, refused: false, why }
        }
        Ok(Ok(_)) => Reached { address, took_us: took, refused: false, why: None },
        Ok(Err(error)) => Reached {
            address,
            took_us: None,
            refused: error.kind() == std::io::ErrorKind::ConnectionRefused,
            why: Some(clean(&error.to_string(), 120)),
        },
    }
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

        let gone =
            check_up(dir.path().join("gone"), Vec::new(), Some(1), Vec::new()).await.unwrap();
        assert!(gone.disk_write_bytes_per_s.is_none() && gone.disk_trouble.is_some());
    }
}
