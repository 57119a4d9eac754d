//! The simulated engine as a process: what an operator's program sees of an engine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::float_cmp
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);

struct Engine {
    child: Child,
    port: u16,
    log: mpsc::Receiver<String>,
}

impl Engine {
    fn spawn(args: &[&str], env: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
            .args(["sim-engine", "--port", &port.to_string()])
            .args(args)
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, port, log }
    }

    fn ready(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut all = vec!["--load-time", "50ms", "--first-token", "5ms", "--token-time", "2ms"];
        all.extend(args);
        let engine = Self::spawn(&all, env);
        engine.wait_log("serving on");
        engine
    }

    fn wait_log(&self, words: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line =
                self.log.recv_timeout(left).unwrap_or_else(|_| panic!("no `{words}` in the log"));
            assert!(line.starts_with("SIMULATED engine"), "{line}");
            if line.contains(words) {
                return line;
            }
        }
    }

    fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        Self::send(&mut stream, method, path, body);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn send(stream: &mut TcpStream, method: &str, path: &str, body: &str) {
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
    }

    fn chat(&self, extra: &str) -> (u16, String) {
        let body =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"one two"}}]{extra}}}"#);
        self.request("POST", "/v1/chat/completions", &body)
    }

    fn metric(&self, line_start: &str) -> f64 {
        let (_, text) = self.request("GET", "/metrics", "");
        let line = text.lines().find(|l| l.starts_with(line_start));
        line.unwrap_or_else(|| panic!("no {line_start} in {text}"))
            .rsplit_once(' ')
            .unwrap()
            .1
            .parse()
            .unwrap()
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn with_a_key_it_answers_to_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "sk-1\n").unwrap();
    for engine in [
        Engine::ready(&["--api-key-file", file.to_str().unwrap()], &[]),
        Engine::ready(&["--api-key-variable", "SIM_KEY"], &[("SIM_KEY", "sk-1")]),
    ] {
        assert_eq!(engine.request("GET", "/health", "").0, 200);
        assert_eq!(engine.request("GET", "/metrics", "").0, 401);
        assert_eq!(engine.chat("").0, 401);
    }
}

#[test]
fn answers_whole_and_in_pieces_and_counts_both() {
    let engine = Engine::ready(&["--model", "tiny", "--tokens", "5"], &[]);
    assert_eq!(engine.request("GET", "/health", "").0, 200);
    assert!(engine.request("GET", "/v1/models", "").1.contains("\"tiny\""));

    let (status, body) = engine.chat("");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().contains("SIMULATED"));

    let (status, body) =
        engine.chat(r#","stream":true,"max_tokens":3,"stream_options":{"include_usage":true}"#);
    assert_eq!(status, 200);
    let events: Vec<&str> = body.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!(events[5], "[DONE]");
    let chunks: Vec<Value> = events[..5].iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[4]["usage"]["total_tokens"], 5);

    let (status, body) =
        engine.request("POST", "/v1/completions", r#"{"prompt":"x","max_tokens":1}"#);
    assert_eq!((status, body.contains("text_completion")), (200, true), "{body}");

    let labels = "{engine=\"0\",model_name=\"tiny\"";
    let finished = |reason: &str| {
        engine.metric(&format!("vllm:request_success_total{labels},finished_reason=\"{reason}\"}}"))
    };
    assert_eq!((finished("stop"), finished("length"), finished("error")), (1.0, 2.0, 0.0));
    assert_eq!(engine.metric(&format!("vllm:time_to_first_token_seconds_count{labels}")), 3.0);
    assert_eq!(engine.metric(&format!("vllm:e2e_request_latency_seconds_count{labels}")), 3.0);
    assert_eq!(engine.metric(&format!("vllm:inter_token_latency_seconds_count{labels}")), 6.0);
    assert_eq!(engine.metric("vllm:num_requests_running"), 0.0);
    assert_eq!(engine.metric("vllm:kv_cache_usage_perc"), 0.0);
    assert_eq!(engine.metric("vllm:num_preemptions_total"), 0.0);
}

#[test]
fn fails_exactly_the_share_it_was_told() {
    let engine = Engine::ready(&["--tokens", "1", "--error-rate", "0.3"], &[]);
    let failed = (0..20).filter(|_| engine.chat("").0 == 500).count();
    assert_eq!(failed, 6);
}

#[test]
fn a_liar_is_healthy_and_generates_nothing() {
    let engine = Engine::ready(&["--lie"], &[]);
    assert_eq!(engine.request("GET", "/health", "").0, 200);
    assert_eq!(engine.chat("").0, 500);
}

#[test]
fn refuses_while_loading_and_can_fail_to_load() {
    let mut engine = Engine::spawn(&["--load-time", "1s", "--fail-load"], &[]);
    engine.wait_log("loading");
    let refused = TcpStream::connect(("127.0.0.1", engine.port)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    engine.wait_log("ERROR loading failed");
    assert_eq!(engine.exit_code(), Some(1));
}

#[test]
fn a_port_in_use_is_known_before_the_load() {
    let first = Engine::ready(&[], &[]);
    let second = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
        .args(["sim-engine", "--load-time", "1h", "--port", &first.port.to_string()])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let log = String::from_utf8(second.stdout).unwrap();
    assert!(log.contains(&format!("cannot bind 127.0.0.1:{}", first.port)), "{log}");
}

#[test]
fn finishes_what_is_in_flight_after_sigterm() {
    let mut engine = Engine::ready(&["--token-time", "100ms"], &[]);
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", engine.port)).unwrap());
    let body = r#"{"messages":[],"stream":true,"max_tokens":20}"#;
    Engine::send(stream.get_mut(), "POST", "/v1/chat/completions", body);
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "no first token");
    }
    engine.terminate();
    engine.wait_log("stopping");
    let end = Instant::now() + DEADLINE;
    while TcpStream::connect(("127.0.0.1", engine.port)).is_ok() {
        assert!(Instant::now() < end, "takes new connections");
    }
    assert!(engine.child.try_wait().unwrap().is_none(), "ended with a stream in flight");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("[DONE]"), "{rest}");
    assert_eq!(engine.exit_code(), Some(0));
}

#[test]
fn cuts_what_is_in_flight_at_the_end_of_the_grace() {
    let mut engine = Engine::ready(&["--first-token", "1h", "--shutdown-timeout", "200ms"], &[]);
    let mut stream = TcpStream::connect(("127.0.0.1", engine.port)).unwrap();
    Engine::send(&mut stream, "POST", "/v1/chat/completions", r#"{"messages":[]}"#);
    let end = Instant::now() + DEADLINE;
    while engine.metric("vllm:num_requests_running") < 1.0 {
        assert!(Instant::now() < end);
    }
    engine.terminate();
    engine.wait_log("requests were cut");
    assert_eq!(engine.exit_code(), Some(0));
}

#[test]
fn more_requests_than_slots_wait_and_a_client_that_leaves_is_counted() {
    let engine = Engine::ready(&["--first-token", "1h", "--max-concurrency", "1"], &[]);
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", engine.port)).unwrap();
        Engine::send(&mut stream, "POST", "/v1/chat/completions", r#"{"messages":[]}"#);
        streams.push(stream);
    }
    let end = Instant::now() + DEADLINE;
    while engine.metric("vllm:num_requests_waiting") < 1.0 {
        assert!(Instant::now() < end);
    }
    assert_eq!(engine.metric("vllm:num_requests_running"), 1.0);
    assert_eq!(engine.metric("vllm:kv_cache_usage_perc"), 1.0);
    drop(streams);
    let aborted = "vllm:request_success_total{engine=\"0\",model_name=\"simulated\",finished_reason=\"abort\"}";
    while engine.metric(aborted) < 1.0 || engine.metric("vllm:num_requests_waiting") > 0.0 {
        assert!(Instant::now() < end);
    }
}

#[test]
fn tells_the_simulated_nvml_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("GPUDECK_SIM_ALLOCATIONS", dir.path().to_str().unwrap()),
        ("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b"),
    ];
    let mut engine = Engine::ready(&["--gpu-memory", "70GiB"], &env);
    let path = dir.path().join(format!("{}.json", engine.child.id()));
    let text: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(text[1]["pid"], engine.child.id());
    assert_eq!(text[1]["gpu"], "GPU-b");
    assert_eq!(text[1]["bytes"], 70u64 << 30);
    engine.terminate();
    assert_eq!(engine.exit_code(), Some(0));
    // Freed by the one who reads it, once the process is gone.
    assert!(path.exists());
}
