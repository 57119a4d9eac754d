//! A real OpenSSH server on the loopback interface, with its own keys in a directory of its own.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Whether the tests with a real sshd can run here; says why not.
pub fn lab() -> bool {
    let root = rustix::process::geteuid().is_root();
    let missing = if !root {
        "root"
    } else if !Path::new("/usr/sbin/sshd").exists() {
        "openssh-server"
    } else if Command::new("ssh-keygen").arg("-?").output().is_err() {
        "openssh-client"
    } else {
        return true;
    };
    assert!(std::env::var_os("GPUDECK_LAB").is_none_or(|v| v != "1"), "this test needs {missing}");
    println!("skipped: needs {missing}");
    false
}

/// Runs a program to its end and returns what it printed.
pub fn tool(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {stdout}{stderr}");
    stdout.into_owned()
}

/// Makes a key pair.
pub fn keygen(file: &Path, kind: &str, passphrase: &str) {
    let bits: &[&str] = match kind {
        "rsa" => &["-b", "2048"],
        _ => &[],
    };
    let file = file.to_str().unwrap();
    let args = [&["-q", "-t", kind, "-N", passphrase, "-C", kind, "-f", file], bits].concat();
    tool("ssh-keygen", &args);
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for `done`, at most `limit`.
pub async fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether somebody takes connections at this socket: its file is there a moment sooner.
pub fn listens(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Waits for an agent.
pub async fn until_listens(socket: &Path) {
    until("the agent listens", Duration::from_secs(30), || listens(socket)).await;
}

/// An ssh-agent that ends with the test.
pub struct Agent {
    pub socket: PathBuf,
    child: Child,
}

impl Agent {
    pub async fn start(socket: &Path) -> Self {
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { socket: socket.to_owned(), child };
        until_listens(socket).await;
        agent
    }

    pub fn add(&self, key: &Path) {
        let out =
            Command::new("ssh-add").arg(key).env("SSH_AUTH_SOCK", &self.socket).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Sshd {
    pub dir: TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Sshd {
    /// A server with one ed25519 host key that lets root in with `user_key`.
    pub fn start() -> Self {
        Self::with_host_keys(&["ed25519"])
    }

    pub fn with_host_keys(kinds: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("gpudeck-sshd-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        for kind in kinds {
            keygen(&dir.path().join(format!("host_{kind}")), kind, "");
        }
        keygen(&dir.path().join("user_key"), "ed25519", "");
        let mut server = Self { dir, port: free_port(), child: None };
        server.authorize(&server.user_key());
        let mut text = format!(
            "Port {}\nListenAddress 127.0.0.1\nPidFile none\nUsePAM no\nUseDNS no\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             AuthorizedKeysFile {}\nMaxStartups 200\nRekeyLimit 16M 3s\n\
             SetEnv HOME={}\n",
            server.port,
            server.path("authorized_keys").display(),
            // Start-up files of the machine's own root must not run: killed half-way they leave
            // locks behind, and some take seconds.
            server.dir.path().display()
        );
        for kind in kinds {
            let file = server.path(&format!("host_{kind}"));
            text.extend(["HostKey ", file.to_str().unwrap(), "\n"]);
        }
        fs::write(server.path("sshd_config"), text).unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        server.up();
        server
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn user_key(&self) -> PathBuf {
        self.path("user_key")
    }

    /// Lets the owner of `key` in.
    pub fn authorize(&self, key: &Path) {
        let public = fs::read_to_string(format!("{}.pub", key.display())).unwrap();
        let file = self.path("authorized_keys");
        let before = fs::read_to_string(&file).unwrap_or_default();
        fs::write(&file, before + &public).unwrap();
    }

    /// A `known_hosts` line for one of its keys.
    pub fn known_hosts_line(&self, kind: &str) -> String {
        let public = fs::read_to_string(self.path(&format!("host_{kind}.pub"))).unwrap();
        format!("[127.0.0.1]:{} {public}", self.port)
    }

    /// Writes its keys into a new `known_hosts` file.
    pub fn known_hosts(&self, kind: &str) -> PathBuf {
        let file = self.path("known_hosts");
        fs::write(&file, self.known_hosts_line(kind)).unwrap();
        file
    }

    pub fn up(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = child.try_wait().unwrap();
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "sshd: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
    }

    /// How many processes serve its connections.
    pub fn sessions(&self) -> usize {
        self.child.as_ref().map_or(0, |child| descendants(child.id()).len())
    }

    /// Kills it with all connections it serves. What has left its session for good stays, as it does when a
    /// service manager restarts sshd.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let all = descendants(child.id());
        let _ = child.kill();
        let _ = child.wait();
        for pid in all {
            if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        // One that was just forked is not among them, and takes connections a moment longer.
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn descendants(pid: u32) -> Vec<u32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(file).unwrap_or_default();
    let mut all = Vec::new();
    for child in children.split_whitespace().filter_map(|p| p.parse().ok()) {
        let command = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains("\0supervise\0") {
            continue;
        }
        all.push(child);
        all.extend(descendants(child));
    }
    all
}

/// A listener that takes connections and never says a word.
pub struct Tarpit {
    pub port: u16,
    _listener: TcpListener,
}

impl Tarpit {
    pub fn start() -> Self {
        // The kernel completes connections for the backlog; nobody ever answers them.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { port: listener.local_addr().unwrap().port(), _listener: listener }
    }
}

/// A way to a port of this machine that can be frozen: what goes over it then gets no further, as over a flow that a
/// firewall has forgotten, and what comes anew is let through.
pub struct Relay {
    pub port: u16,
    frozen: tokio::sync::watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub async fn to(port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (frozen, watch) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut watch = watch.clone();
                watch.mark_unchanged();
                tokio::spawn(async move {
                    let far = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                    let Ok(mut far) = far else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = watch.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { port: own, frozen, task }
    }

    /// Nothing of what is open now goes on.
    pub fn freeze(&self) {
        self.frozen.send_modify(|n| *n += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}
