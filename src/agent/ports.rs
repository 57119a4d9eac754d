//! Whether a TCP port is free, and who listens there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use super::process;
use crate::wire::Refusal;

/// Refuses a port that cannot be bound.
///
/// # Errors
/// [`Refusal::PortInUse`] where something listens (or is about to), [`Refusal::PortLingers`] where the
/// port is just the near end of a connection that the host made, or of one in `TIME_WAIT`.
pub fn check_free(port: u16) -> Result<(), Refusal> {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let sockets: Vec<Socket> =
                tables().iter().flat_map(|table| sockets_on(table, port)).collect();
            if !sockets.is_empty() && sockets.iter().all(|s| !s.listens) {
                return Err(Refusal::PortLingers { port });
            }
            Err(Refusal::PortInUse { port, holder: holder(&sockets) })
        }
        // A privileged port may not be ours to try; the engine will say so itself.
        _ => Ok(()),
    }
}

/// Most ports that [`listening`] names, the lowest.
const MAX_LISTENING: usize = 8192;

/// The TCP ports on which something listens, whoever it is, in their order.
pub fn listening() -> Vec<u16> {
    let ports: BTreeSet<u16> = tables().iter().flat_map(|table| listeners(table)).collect();
    ports.into_iter().take(MAX_LISTENING).collect()
}

/// `/proc/net/tcp` and its twin, as far as they can be read.
fn tables() -> Vec<String> {
    let paths = ["/proc/net/tcp", "/proc/net/tcp6"];
    paths.iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
}

/// A TCP socket whose near end is the port.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    listens: bool,
    inode: u64,
}

/// Who listens on a port: `pid 123 llama-server`. Processes of other users cannot be told.
fn holder(sockets: &[Socket]) -> Option<String> {
    let inodes: Vec<String> =
        sockets.iter().filter(|s| s.listens).map(|s| format!("socket:[{}]", s.inode)).collect();
    let pid = process::pids().find(|pid| {
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|to| to.to_str().is_some_and(|to| inodes.iter().any(|i| i == to)))
        })
    })?;
    Some(format!("pid {pid} {}", process::name(pid)))
}

/// The sockets on `port`, from `/proc/net/tcp` (proc(5)); those in `TIME_WAIT` are among them.
fn sockets_on(table: &str, port: u16) -> Vec<Socket> {
    sockets(table).filter(|(at, _)| *at == port).map(|(_, socket)| socket).collect()
}

/// The ports on which a socket of the table listens.
fn listeners(table: &str) -> impl Iterator<Item = u16> {
    sockets(table).filter(|(_, socket)| socket.listens).map(|(port, _)| port)
}

/// The sockets of `/proc/net/tcp` (proc(5)), with the port of their near end.
fn sockets(table: &str) -> impl Iterator<Item = (u16, Socket)> {
    const LISTEN: &str = "0A";
    let read = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        let (_, hex) = local.rsplit_once(':')?;
        let port = u16::from_str_radix(hex, 16).ok()?;
        Some((port, Socket { listens: state == LISTEN, inode }))
    };
    table.lines().skip(1).filter_map(read)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_who_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let Err(Refusal::PortInUse { port: refused, holder }) = check_free(port) else {
            panic!("a port in use was called free")
        };
        assert_eq!(refused, port);
        let expected = format!("pid {} ", std::process::id());
        assert!(holder.as_ref().is_some_and(|h| h.starts_with(&expected)), "{holder:?}");
        drop(listener);
        assert_eq!(check_free(port), Ok(()));
    }

    #[test]
    fn names_the_ports_at_which_something_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening().contains(&port));
        drop(listener);
        assert!(!listening().contains(&port));
    }

    /// What took an engine's port in a suite of tests: the kernel gives such ports to whoever connects, and
    /// keeps them for a minute after the connection's end. No reason to give a release up.
    #[test]
    fn a_connections_near_end_is_free_soon() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let port = near.local_addr().unwrap().port();
        assert_eq!(check_free(port), Err(Refusal::PortLingers { port }));
        // Who closes first keeps the port in `TIME_WAIT`.
        drop(near);
        drop(far);
        assert_eq!(check_free(port), Err(Refusal::PortLingers { port }));
    }

    #[test]
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0\n   \
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 777 1 0";
        let seen = sockets_on(table, 8080);
        assert_eq!(
            seen,
            [Socket { listens: true, inode: 12345 }, Socket { listens: false, inode: 777 }]
        );
        assert!(sockets_on(table, 8081).is_empty());
        assert_eq!(listeners(table).collect::<Vec<_>>(), [8080]);
    }
}
