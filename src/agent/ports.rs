//! Whether a TCP port is free, and who listens there.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use super::process;
use crate::wire::Refusal;

/// Refuses a port on which something listens.
///
/// # Errors
/// [`Refusal::PortInUse`].
pub fn check_free(port: u16) -> Result<(), Refusal> {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(Refusal::PortInUse { port, holder: holder(port) })
        }
        // A privileged port may not be ours to try; the engine will say so itself.
        _ => Ok(()),
    }
}

/// Who listens on a port: `pid 123 llama-server`. Processes of other users cannot be told.
fn holder(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pid = process::pids().find(|pid| {
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().any(|fd| {
            fs::read_link(fd.path())
                .is_ok_and(|to| to.to_str().is_some_and(|to| inodes.iter().any(|i| i == to)))
        })
    })?;
    Some(format!("pid {pid} {}", process::name(pid)))
}

/// Inodes of the sockets that listen on `port`, from /proc/net/tcp (proc(5)).
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let read = |line: &str| -> Option<u64> {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        let (_, hex) = local.rsplit_once(':')?;
        (state == LISTEN && u16::from_str_radix(hex, 16).ok()? == port).then_some(inode)
    };
    table.lines().skip(1).filter_map(read).collect()
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
    fn reads_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0\n   \
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 777 1 0";
        assert_eq!(listening_inodes(table, 8080), [12345]);
        assert!(listening_inodes(table, 8081).is_empty());
    }
}
