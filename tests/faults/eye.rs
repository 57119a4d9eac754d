//! An eye on what each server of the gateway got wrong: HAProxy's own counters, read past SSH.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What one server of the gateway got wrong so far.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// `r2-0-a1`.
    pub name: String,
    /// `h3`.
    pub host: String,
    /// Answers of the 500s, answers that broke off, and clients that gave up.
    pub errors: u64,
    /// Most requests that it had in flight at a time, since [`Eye::forget_peaks`].
    pub peak: u64,
    last: u64,
}

type Servers = Arc<Mutex<BTreeMap<String, Server>>>;

/// Reads the gateway's counters all the time, until dropped: those of a server are gone with it, and a canary that
/// is taken back is removed a moment after its last answer.
pub struct Eye {
    servers: Servers,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Eye {
    pub fn open(host_dir: PathBuf) -> Self {
        let servers: Servers = Arc::default();
        let ended = Arc::new(AtomicBool::new(false));
        let (seen, end) = (Arc::clone(&servers), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                if let Some(text) = stat(&host_dir) {
                    note(&mut seen.lock().unwrap(), &text);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { servers, ended, thread: Some(thread) }
    }

    pub fn forget_peaks(&self) {
        self.servers.lock().unwrap().values_mut().for_each(|server| server.peak = 0);
    }

    pub fn servers(&self) -> Vec<Server> {
        self.servers.lock().unwrap().values().cloned().collect()
    }
}

impl Drop for Eye {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `show stat` at the run-time socket, through the host's root as the machine sees it.
fn stat(host_dir: &std::path::Path) -> Option<String> {
    let pid = std::fs::read_to_string(host_dir.join("init.pid")).ok()?;
    let path = format!("/proc/{}/root/run/haproxy/admin.sock", pid.trim());
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"show stat chat 4 -1\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn note(servers: &mut BTreeMap<String, Server>, text: &str) {
    let mut lines = text.lines();
    let Some(head) = lines.next() else { return };
    let names: Vec<&str> = head.trim_start_matches("# ").split(',').collect();
    let column = |name: &str| names.iter().position(|n| *n == name);
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |name: &str| column(name).and_then(|c| fields.get(c).copied());
        let number = |name: &str| field(name).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        let (Some(name), Some(address)) = (field("svname"), field("addr")) else { continue };
        let Some(last) = address.split(':').next().and_then(|ip| ip.rsplit('.').next()) else {
            continue;
        };
        let Ok(last) = last.parse::<u32>() else { continue };
        let errors = number("hrsp_5xx") + number("eresp") + number("srv_abrt") + number("cli_abrt");
        let server = servers.entry(name.to_owned()).or_default();
        server.name = name.to_owned();
        server.host = format!("h{}", last.saturating_sub(10));
        // Counters begin anew when HAProxy does.
        server.errors += if errors < server.last { errors } else { errors - server.last };
        server.last = errors;
        server.peak = server.peak.max(number("scur"));
    }
}
