//! The same path with containers: a service of an image is deployed, rolled forward and back under load.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lab::{Lab, llama_server, write_gguf, write_image};
use common::operator::Operator;

const IMAGE: &str = "gpudeck-test/llama:1";

fn spec(tokens: u32) -> String {
    format!(
        r#"
model    = "/srv/tiny.gguf"
engine   = "llamacpp"
program  = "/usr/local/bin/llama-server"
runtime  = {{ docker = {{ image = "{IMAGE}" }} }}
replicas = 2
context  = 4096
device   = "cpu"
memory   = "256MiB"
args     = ["-n", "{tokens}", "-t", "1"]

[placement]
hosts = ["h2", "h3"]

[rollout]
steps             = [{{ weight = 50 }}, {{ analyse = "default" }}]
healthy_deadline  = "30s"
progress_deadline = "60s"
drain_deadline    = "20s"
stop_grace        = "5s"

[analysis.default]
# HAProxy gives a new server its first request when its present round of up to 32 requests is over.
duration          = "10s"
min_requests      = 3
max_latency_ratio = 20.0
engine.min_samples = 3
"#
    )
}

/// Names of all containers of a host, ended ones too.
fn containers(operator: &Operator, host: &str) -> Vec<String> {
    let said = operator.lab.lab(&["docker", host, "GET", "/containers/json?all=1"]);
    let list: serde_json::Value = serde_json::from_str(&said).unwrap();
    let list = list.as_array().unwrap().iter();
    list.map(|container| container["Names"][0].as_str().unwrap().to_owned()).collect()
}

#[test]
fn containers_are_rolled_forward_and_back_and_no_request_fails() {
    let Some(lab) = Lab::up(3, &["--haproxy", "1", "--dockerd", "2,3"]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("llama.tar");
    write_image(&tar, &[&llama_server()]);
    for host in ["h2", "h3"] {
        lab.lab(&["image", host, IMAGE, tar.to_str().unwrap()]);
        write_gguf(&lab.disk(host, "/srv/tiny.gguf"), 1, 100);
    }
    let operator = Operator::new(lab);
    let apply = ["apply", "chat", "--wait", "--timeout", "2m", "--yes"];
    operator.write_spec(&spec(600));
    operator.expect(&apply, 0);
    let traffic = operator.load(4.0);
    operator.write_spec(&spec(700));
    operator.expect_while(&apply, 0, |chat| assert!(chat.ready >= chat.floor, "{chat:#?}"));
    traffic.expect_none_failed("after the new revision", 50);
    let undo = ["rollout", "undo", "chat", "--wait", "--timeout", "2m"];
    operator.expect_while(&undo, 0, |chat| assert!(chat.ready >= chat.floor, "{chat:#?}"));
    traffic.expect_none_failed("after the undo", 60);
    operator.expect_history(&[("r1", "completed"), ("r2", "completed"), ("r3", "completed")]);
    for host in ["h2", "h3"] {
        let names = containers(&operator, host);
        assert!(matches!(names.as_slice(), [one] if one.contains("-r3-")), "{host}: {names:?}");
    }
    let log = operator.run(&["logs", "chat/0/0"]).expect_success().stdout;
    assert!(log.contains("/srv/tiny.gguf") || log.contains(" slot "), "{log}");
}
