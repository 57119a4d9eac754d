//! What is not there: hosts, container engines, ports, gateways, room on the disk.

use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use super::{COMMAND, DEADLINE, Deck};
use crate::common::{has_program, run, wait_until};

#[test]
fn a_host_that_is_not_reached() {
    let deck = Deck::new();
    // Bound and then closed: nobody listens there.
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    deck.write(
        "deck.toml",
        &format!("{}\n[hosts.far]\naddress = \"127.0.0.1\"\nport = {closed}\n", deck.deck_toml()),
    );
    // While it is tried again that is said, too.
    wait_until("why it is down", DEADLINE, || {
        let hosts = deck.run("hosts").expect_success();
        let far = hosts.stdout.lines().find(|line| line.starts_with("far")).unwrap();
        assert!(far.contains("down") && far.contains("refuses the connection"), "{far}");
        far.contains("refuses the connection → start sshd")
    });
    deck.write("services/chat.toml", &format!("{COMMAND}[placement]\nhosts = [\"far\"]\n"));
    deck.refused("apply chat", 6, &["far", "refuses"], &[""]);
    deck.nothing_was_done("chat");
}

/// Nothing is stopped for a container that nobody could make.
#[test]
fn containers_where_no_engine_is() {
    let sockets = ["/var/run/docker.sock", "/run/podman/podman.sock"];
    if sockets.iter().any(|socket| std::path::Path::new(socket).exists()) {
        return;
    }
    let deck = Deck::new();
    let spec = format!("{COMMAND}runtime = {{ docker = {{ image = \"x\" }} }}\n");
    deck.write("services/chat.toml", &spec);
    deck.refused("apply chat", 6, &["no container engine is there"], &[]);
    deck.nothing_was_done("chat");
}

#[test]
fn a_port_in_use() {
    let deck = Deck::new();
    // Bound, and nobody listens: no table of the kernel names it, so that the plan cannot know of it.
    let taken = crate::common::bound(deck.port);
    deck.write(
        "services/chat.toml",
        &format!("{COMMAND}[rollout]\nhealthy_deadline = \"8s\"\nprogress_deadline = \"20s\"\n"),
    );
    let applied = deck.run("apply chat --wait --timeout 50s");
    assert_eq!(applied.code(), Some(3), "{applied:#?}");
    let port = deck.port.to_string();
    assert!(applied.stdout.contains(&port), "the port is not named: {applied:#?}");
    let status = deck.status("chat");
    assert!(status["stable"].is_null(), "{status:#}");
    // Free again: the same apply succeeds.
    drop(taken);
    deck.run("apply chat --wait --timeout 50s").expect_success();
}

#[test]
fn the_gateway_is_gone() {
    let deck = Deck::new();
    let socket = deck.person.home().join("gone.sock");
    deck.write(
        "deck.toml",
        &format!(
            "{}\n[gateways.main]\nhost = \"here\"\nsocket = \"{}\"\n",
            deck.deck_toml(),
            socket.display()
        ),
    );
    deck.write("services/chat.toml", COMMAND);
    // Its HAProxy forgets what it is told when it reloads: nothing is begun until somebody accepts that.
    for verb in ["plan", "apply"] {
        let hints = ["config = ", "runtime_only = true"];
        deck.refused(&format!("{verb} chat"), 1, &["main", "`config`"], &hints);
    }
    deck.nothing_was_done("chat");
    let accepted = std::fs::read_to_string(deck.person.deck().join("deck.toml")).unwrap();
    deck.write("deck.toml", &(accepted + "runtime_only = true\n"));
    let applied = deck.run("apply chat --wait --timeout 6s");
    assert_eq!(applied.code(), Some(4), "{applied:#?}");
    assert!(applied.stdout.contains("gone.sock"), "{applied:#?}");
    assert!(applied.stdout.contains("the rollout goes on"), "{applied:#?}");
    let status = deck.status("chat");
    assert!(status["stable"].is_null(), "it is not stable without traffic: {status:#}");
    assert_ne!(status["condition"], "serving", "{status:#}");
    // It can be taken back without the gateway.
    deck.run("rollout abort chat -m no-gateway").expect_success();
}

#[test]
fn a_full_disk_at_home() {
    if !rustix::process::geteuid().is_root() || !has_program("unshare") {
        println!("skipped: needs root");
        return;
    }
    let deck = Deck::new();
    // Larger than what is left of a page of the journal that is in use already.
    let spec = format!("{COMMAND}env = {{ LONG = \"{}\" }}\n", "x".repeat(9_000));
    deck.write("services/chat.toml", &spec);
    let full = deck.person.home().join("full");
    std::fs::create_dir(&full).unwrap();
    // The mount is this shell's alone, so it goes with it. First there is room for a controller; then
    // there is none for its journal.
    let script = format!(
        "mount -t tmpfs -o size=1m none {full} && export GPUDECK_HOME={full}\n\
         {gpudeck} status >/dev/null || exit 90\n\
         dd if=/dev/zero of={full}/ballast bs=4k 2>/dev/null\n\
         {gpudeck} apply chat; echo code $?\n\
         rm {full}/ballast\n\
         {gpudeck} status chat --output json\n\
         {gpudeck} apply chat --wait --timeout 30s; echo then $?\n\
         {gpudeck} controller stop >/dev/null\n",
        full = full.display(),
        gpudeck = env!("CARGO_BIN_EXE_gpudeck"),
    );
    let mut inner = deck.person.command(["--version"]);
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
    command.current_dir(deck.person.deck()).env_clear();
    for (name, value) in inner.stdin(std::process::Stdio::null()).get_envs() {
        command.env(name, value.unwrap());
    }
    let finished = run(&mut command, DEADLINE);
    assert!(finished.stdout.contains("code 1\n"), "{finished:#?}");
    assert!(
        finished.stderr.contains("the audit trail cannot be written, so nothing was done"),
        "{finished:#?}"
    );
    assert!(finished.stderr.contains("no space left"), "{finished:#?}");
    assert!(finished.stderr.contains("  → "), "{finished:#?}");
    let status = finished.stdout.split_once("code 1\n").unwrap().1;
    let status = status.split_once("\nchat: rolling out").unwrap().0;
    let status: Value = serde_json::from_str(status).unwrap();
    assert!(status["rollout"].is_null(), "{status:#}");
    assert_eq!(status["replicas"], serde_json::json!([]), "{status:#}");
    // The wish is written down before anything is done about it, so nothing was committed either.
    assert_eq!(status["history"], serde_json::json!([]), "{status:#}");
    // With room again the same command does it.
    assert!(finished.stdout.contains("then 0\n"), "{finished:#?}");
}
