//! A Git server over HTTP or HTTPS on loopback: `git http-backend` behind a few lines of HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

/// The repositories below one folder. `/old/…` is said to be at `/…` now, `/away/PORT/…` at that port.
pub struct GitServer {
    pub port: u16,
    /// The server's own certificate, as a file for those who are to trust it.
    pub certificate: Option<PathBuf>,
    /// Requests that said who asks.
    pub told: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Site {
    root: PathBuf,
    /// `USER:PASSWORD` that everybody must say.
    login: Option<String>,
    tls: Option<Arc<ServerConfig>>,
    told: Arc<AtomicUsize>,
}

impl GitServer {
    /// Serves what is below `root`; with TLS, the certificate is written into `certificate_in`.
    pub fn start(root: &Path, login: Option<&str>, certificate_in: Option<&Path>) -> Self {
        let mut certificate = None;
        let tls = certificate_in.map(|dir| {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let file = dir.join("certificate.pem");
            std::fs::write(&file, made.cert.pem()).unwrap();
            certificate = Some(file);
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let provider = Arc::new(crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key);
            Arc::new(config.unwrap())
        });
        let told = Arc::new(AtomicUsize::new(0));
        let login = login.map(str::to_owned);
        let site = Site { root: root.to_owned(), login, tls, told: Arc::clone(&told) };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let site = site.clone();
                std::thread::spawn(move || site.serve(stream.unwrap()));
            }
        });
        Self { port, certificate, told, ended, thread: Some(thread) }
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Site {
    fn serve(&self, stream: TcpStream) {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // Who does not trust us hangs up: no failure of the server's.
        match &self.tls {
            None => drop(self.exchange(stream)),
            Some(config) => {
                let connection = ServerConnection::new(Arc::clone(config)).unwrap();
                drop(self.exchange(StreamOwned::new(connection, stream)));
            }
        }
    }

    fn exchange(&self, stream: impl Read + Write) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut head, mut line) = (Vec::new(), String::new());
        while stream.read_line(&mut line)? > 2 {
            head.push(std::mem::take(&mut line).trim_end().to_owned());
        }
        let header = |name: &str| {
            let mut lines = head.iter().filter_map(|l| l.split_once(": "));
            lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
        };
        let length = header("content-length").map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let mut words = head.first().map(String::as_str).unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let out = stream.get_mut();
        let said = header("authorization");
        self.told.fetch_add(usize::from(said.is_some()), Ordering::Relaxed);
        let wanted = self.login.as_ref().map(|login| {
            use base64::Engine as _;
            format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(login))
        });
        if wanted.is_some() && said != wanted {
            let asks = "www-authenticate: Basic realm=\"decks\"\r\ncontent-length: 0\r\n";
            write!(out, "HTTP/1.1 401 Unauthorized\r\n{asks}connection: close\r\n\r\n")?;
        } else if let Some((port, path)) =
            path.strip_prefix("/away/").and_then(|rest| rest.split_once('/'))
        {
            let there = format!("location: https://localhost:{port}/{path}?{query}\r\n");
            write!(
                out,
                "HTTP/1.1 302 Found\r\n{there}content-length: 0\r\nconnection: close\r\n\r\n"
            )?;
        } else if let Some(path) = path.strip_prefix("/old") {
            let there = format!("location: {path}?{query}\r\ncontent-length: 0\r\n");
            write!(out, "HTTP/1.1 301 Moved\r\n{there}connection: close\r\n\r\n")?;
        } else {
            let kind = header("content-type").unwrap_or_default();
            let answer = self.backend(method, path, query, &kind, &body);
            out.write_all(&answer)?;
        }
        out.flush()
    }

    /// What the CGI program of Git answers, with a status line before it.
    fn backend(&self, method: &str, path: &str, query: &str, kind: &str, body: &[u8]) -> Vec<u8> {
        let mut child = Command::new("git")
            .arg("http-backend")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.root)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "tester")
            .env("REQUEST_METHOD", method)
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("CONTENT_TYPE", kind)
            .env("CONTENT_LENGTH", body.len().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let body = body.to_owned();
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&body)));
        let said = child.wait_with_output().unwrap().stdout;
        feeding.join().unwrap();
        let text = String::from_utf8_lossy(&said[..said.len().min(200)]).into_owned();
        let status = text.lines().find_map(|l| l.strip_prefix("Status: "));
        let status = status.unwrap_or("200 OK");
        let head = said.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let length = said.len() - head;
        let mut answer =
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n")
                .into_bytes();
        answer.extend(said);
        answer
    }
}
