//! What integration tests share: waiting with a deadline, running programs that cannot hang the suite,
//! gpudeck with a home of its own, the simulated fleet, and the lab of test hosts.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod git_server;
pub mod lab;
pub mod operator;
pub mod sim_fleet;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Folder of this checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A socket that has the port and does not listen.
pub fn bound(port: u16) -> std::os::fd::OwnedFd {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use rustix::net::{AddressFamily, SocketType, bind, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).unwrap();
    socket
}

/// The first of fifty TCP ports for engines on this machine's loopback. They lie outside of the range from which
/// the kernel takes the near ends of connections (32768 to 60999): a port in that one is taken by whatever
/// connection comes along, and for a minute after its end.
pub fn engine_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    const FIRST: u32 = 10_000;
    const BLOCKS: u32 = 220;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let user = rustix::process::getuid().as_raw();
    let locks = std::env::temp_dir().join(format!("gpudeck-test-ports-{user}"));
    std::fs::create_dir_all(&locks).unwrap();
    loop {
        let given = u32::from(GIVEN.fetch_add(1, Ordering::Relaxed));
        assert!(given < BLOCKS, "no free ports from {FIRST} on");
        let block = (std::process::id() * 4 + given) % BLOCKS;
        // A block is one test process's for as long as it lives; what is in use by others is passed over.
        let lock = File::create(locks.join(block.to_string())).unwrap();
        if lock.try_lock().is_err() {
            continue;
        }
        let first = u16::try_from(FIRST + block * 50).unwrap();
        let free = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).is_ok();
        if (first..first + 50).all(free) {
            HELD.lock().unwrap().push(lock);
            return first;
        }
    }
}

/// Whether this run has root and the programs that the lab needs (tests/run sees to that).
pub fn lab_is_wanted() -> bool {
    std::env::var("GPUDECK_LAB").as_deref() == Ok("1")
}

/// True if `program` is there. If not: says what is skipped, or panics where it must be there (`GPUDECK_LAB=1`).
pub fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    if places.iter().any(|place| place.join(program).is_file()) {
        return true;
    }
    assert!(!lab_is_wanted(), "GPUDECK_LAB=1, and there is no `{program}` on this machine");
    println!("skipped: needs {program}");
    false
}

/// Waits until `look` gives something, looking every 20 ms, less often if the look itself is work (as a program that
/// is run for it), so that who waits takes little from whom it waits for; panics at the deadline with what was awaited.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        let began = Instant::now();
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain for {what}");
        let pause = began.elapsed().clamp(Duration::from_millis(20), Duration::from_millis(200));
        std::thread::sleep(pause);
    }
}

/// A pause between looks for a journal's next record that is shorter than what it takes to write one durably: few more
/// come unseen, and who looks does not take a processor for itself.
pub fn glance() {
    std::thread::sleep(Duration::from_micros(100));
}

/// The same for a plain condition.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, deadline, || holds().then_some(()));
}

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended; `None` if it was killed at the deadline.
    pub status: Option<ExitStatus>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Finished {
    /// The exit code, if it ended by itself.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }

    /// Panics with everything it said unless it ended with 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(self.code() == Some(0), "expected success: {self:#?}");
        self
    }
}

/// Runs a program to its end with nothing on its standard input, killing it at the deadline.
pub fn run(command: &mut Command, deadline: Duration) -> Finished {
    run_with_input(command, b"", deadline)
}

/// The same with something on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8], deadline: Duration) -> Finished {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A program that does not read its input is no failure.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // A background process that was left with our pipe must not hold the test up.
    let text = |receiver: std::sync::mpsc::Receiver<Vec<u8>>| {
        let mut all = Vec::new();
        while let Ok(piece) = receiver.recv_timeout(Duration::from_secs(1)) {
            all.extend(piece);
        }
        String::from_utf8_lossy(&all).into_owned()
    };
    Finished { status, stdout: text(stdout), stderr: text(stderr) }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut stream = stream.unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if sender.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The gpudeck binary with a home, a runtime folder and a working folder (the deck) of its own. Nothing of the
/// person who runs the tests is seen or touched.
pub struct Gpudeck {
    home: tempfile::TempDir,
}

impl Default for Gpudeck {
    fn default() -> Self {
        Self::new()
    }
}

impl Gpudeck {
    /// A home with an empty deck folder.
    pub fn new() -> Self {
        // Short: sockets live below it, and their paths may not exceed 108 bytes.
        let home = tempfile::Builder::new().prefix("gd").tempdir_in("/tmp").unwrap();
        for folder in ["deck", "run", "home", "scratch"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
        }
        std::fs::set_permissions(home.path().join("run"), std::fs::Permissions::from_mode(0o700))
            .unwrap();
        Self { home }
    }

    /// The deck's folder; commands run there.
    pub fn deck(&self) -> PathBuf {
        self.home.path().join("deck")
    }

    /// The home folder that gpudeck sees.
    pub fn home(&self) -> PathBuf {
        self.home.path().join("home")
    }

    /// A folder for temporary files (`TMPDIR`), empty at first.
    pub fn scratch(&self) -> PathBuf {
        self.home.path().join("scratch")
    }

    /// A command of the binary, ready to be started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
        command.args(arguments).current_dir(self.deck()).env_clear();
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home())
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
            .env("USER", "tester")
            .env("LANG", "C.UTF-8")
            .env("TERM", "xterm-256color")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("RUST_BACKTRACE", "1");
        command
    }

    /// Runs `gpudeck …` to its end.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        deadline: Duration,
    ) -> Finished {
        run(&mut self.command(arguments), deadline)
    }

    /// Starts `gpudeck …` in the background; it is killed when the guard is dropped.
    pub fn spawn<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Background {
        let log = std::fs::File::create(self.home.path().join("background.log")).unwrap();
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Background(command.spawn().unwrap())
    }
}

/// The processes that come of one [`Gpudeck`], however they were detached: they name its folder in their
/// environment or on their command line. Those that are left are killed when this is dropped.
pub struct Traces(PathBuf);

impl Traces {
    /// Of this one.
    pub fn of(gpudeck: &Gpudeck) -> Self {
        Self(gpudeck.home.path().to_owned())
    }

    /// Those that are alive, with their command lines.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let wanted = self.0.to_str().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            // A process may end while it is looked at: then it has no such file any more.
            let read = |file: &str| {
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let line = read("cmdline");
            if pid != own && (line.contains(wanted) || read("environ").contains(wanted)) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Panics if a process is still there after some seconds, or a temporary file.
    #[track_caller]
    pub fn expect_none(&self, gpudeck: &Gpudeck) {
        let started = Instant::now();
        while !self.processes().is_empty() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "left behind: {:#?}",
                self.processes()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let files: Vec<_> =
            std::fs::read_dir(gpudeck.scratch()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(files.is_empty(), "left behind: {files:?}");
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A program in the background, killed and reaped when this is dropped.
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
