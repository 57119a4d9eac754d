//! `gpudeck agent dial`: streams to sockets of the host, with and without its lock.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpudeck::base::Epoch;
use gpudeck::wire::{Reply, Verb};

use super::harness::{Agent, DECK, State};

fn dial(state: &Path, epoch: Option<Epoch>, target: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
    command.args(["agent", "dial", "--state-dir"]).arg(state);
    if let Some(Epoch(epoch)) = epoch {
        command.args(["--deck", &DECK.to_string(), "--epoch", &epoch.to_string()]);
    }
    command
        .arg(target)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until it has ended; one that does not is killed.
fn ends(child: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            child.kill().unwrap();
            panic!("the dial does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that answers, at the end of what it is sent, with all of it: a client that could not
/// end its half would wait for ever.
fn echo_server(dir: &Path) -> (String, std::thread::JoinHandle<()>) {
    let path = dir.join("echo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    (format!("unix:{}", path.display()), thread)
}

#[test]
fn carries_both_directions_and_the_end_of_each() {
    let state = State::new();
    let (target, server) = echo_server(state.path());
    let mut child = dial(state.path(), None, &target);
    let sent: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    child.stdin.take().unwrap().write_all(&sent).unwrap();
    let out = child.wait_with_output().unwrap();
    server.join().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stdout == sent, "{} of {} bytes", out.stdout.len(), sent.len());
}

#[test]
fn a_far_end_that_ends_first_is_told_at_once_and_still_written_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp:{}", listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        rest
    });
    let state = State::new();
    let mut child = dial(state.path(), None, &target);
    let mut text = String::new();
    // Ends although our half is still open.
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    child.stdin.take().unwrap().write_all(b"late words").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(server.join().unwrap(), "late words");
}

#[test]
fn ends_when_the_far_end_is_gone_though_nobody_closes_its_input() {
    let state = State::new();
    let path = state.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = dial(state.path(), None, &format!("unix:{}", path.display()));
    drop(listener.accept().unwrap());
    let _open = child.stdin.take();
    ends(&mut child);
}

#[test]
fn a_stream_that_acts_holds_the_lock_and_an_old_epoch_gets_none() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let old = agent.claim(None, "test", false).unwrap();
    let epoch = agent.claim(None, "test", false).unwrap();
    assert!(epoch > old);
    let path = state.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let target = format!("unix:{}", path.display());

    let mut refused = dial(state.path(), Some(old), &target);
    ends(&mut refused);
    let refused = refused.wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(3));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("held by test"), "{told}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it connected with an old epoch");
    listener.set_nonblocking(false).unwrap();

    let mut child = dial(state.path(), Some(epoch), &target);
    let (mut stream, _) = listener.accept().unwrap();
    // While the stream lives, another action waits; its own claim can be renewed.
    let id = agent.send(gpudeck::wire::Request::Act {
        deck: DECK,
        epoch,
        verb: Verb::SaveState { state: "x".to_owned(), age: (0, 0) },
    });
    assert_eq!(agent.claim(Some(epoch), "test", false), Ok(epoch));
    assert_eq!(
        agent.ask(gpudeck::wire::Request::LoadState { deck: DECK }),
        Ok(Reply::State(None)),
        "an action went on beside a stream that acts"
    );
    stream.write_all(b"bye").unwrap();
    drop(stream);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(agent.answer(id), Ok(Reply::Done));
}

#[test]
fn a_stream_that_acts_and_that_nobody_ends_does_not_keep_the_host_from_who_takes_it_by_force() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let old = agent.claim(None, "gone", false).unwrap();
    let path = state.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = dial(state.path(), Some(old), &format!("unix:{}", path.display()));
    // A container engine that keeps an idle connection, and an operator whose network is gone.
    let (_engine, _) = listener.accept().unwrap();
    let _operator = child.stdin.take();
    let new = agent.claim(None, "taker", true).expect("the host is taken");
    assert!(new > old);
    ends(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn says_what_it_cannot_reach() {
    let state = State::new();
    let out = dial(state.path(), None, "unix:/nonexistent.sock").wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nonexistent.sock"));
}
