//! Signed releases: by `ssh-keygen` and by `gpg`, and a program that waits for a person holds nothing up but its own release.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{Background, Gpudeck, Traces, has_program, run, wait_until};
use git2::Repository;
use gpudeck::base::{Hint, ReleaseNumber, Revision, ServiceName};
use gpudeck::revision::{DeckRepo, DeckText, ReleaseCommit, RevisionError, SpecText};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

fn chat() -> ServiceName {
    "chat".parse().unwrap()
}

fn write(deck: &DeckRepo, text: &str) {
    std::fs::create_dir_all(deck.root().join("services")).unwrap();
    std::fs::write(deck.root().join("services/chat.toml"), text).unwrap();
}

fn release(deck: &DeckRepo, text: &str) -> Revision {
    write(deck, text);
    let number = deck.next_release().unwrap();
    deck.commit_service(&ReleaseCommit {
        service: &chat(),
        release: number,
        subject: "Apply chat",
        reason: None,
        author: Some("ada"),
        deck: DeckText::WorkTree,
        spec: SpecText::WorkTree,
    })
    .unwrap()
}

#[test]
fn a_release_is_signed_where_git_is_set_up_so() {
    if !has_program("ssh-keygen") || !has_program("git") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    run(
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key),
        DEADLINE,
    )
    .expect_success();
    let deck = DeckRepo::init(&dir.path().join("deck")).unwrap();
    std::fs::write(deck.root().join("deck.toml"), "name = \"test\"\n").unwrap();
    let repo = Repository::open(deck.root()).unwrap();
    let mut config = repo.config().unwrap();
    config.set_str("user.name", "Ada").unwrap();
    config.set_str("user.email", "ada@example.org").unwrap();
    config.set_str("gpg.format", "ssh").unwrap();
    config.set_str("user.signingkey", key.to_str().unwrap()).unwrap();
    config.set_bool("commit.gpgsign", true).unwrap();
    let signers = dir.path().join("signers");
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    std::fs::write(&signers, format!("ada@example.org {public}")).unwrap();
    config.set_str("gpg.ssh.allowedSignersFile", signers.to_str().unwrap()).unwrap();

    for text in ["a = 1\n", "a = 2\n"] {
        let revision = release(&deck, text);
        assert_eq!(deck.head().unwrap(), Some(revision.clone()));
        let mut git = Command::new("git");
        git.arg("-C").arg(deck.root()).args(["verify-commit", &revision.0]);
        let done = run(&mut git, DEADLINE).expect_success();
        assert!(done.stderr.contains("Good \"git\" signature"), "{done:#?}");
    }
    assert_eq!(deck.history(&chat(), 10).unwrap().len(), 2);

    // What cannot be signed is not committed.
    config.set_str("user.signingkey", "/nonexistent/key").unwrap();
    write(&deck, "a = 3\n");
    let error = deck
        .commit_service(&ReleaseCommit {
            service: &chat(),
            release: ReleaseNumber(3),
            subject: "Apply chat",
            reason: None,
            author: None,
            deck: DeckText::WorkTree,
            spec: SpecText::WorkTree,
        })
        .unwrap_err();
    assert!(matches!(error, RevisionError::Signing { .. }), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.starts_with("where the controller runs: unlock the key"), "{hint}");
    assert_eq!(deck.history(&chat(), 10).unwrap().len(), 2);
}

/// The same by gpg, with a key and a home of its own.
#[test]
fn a_release_is_signed_by_gpg_too() {
    use std::os::unix::fs::PermissionsExt;
    if !has_program("gpg") || !has_program("git") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("gpg");
    std::fs::create_dir(&home).unwrap();
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
    let program = dir.path().join("own-gpg");
    let text = format!("#!/bin/sh\nexec gpg --homedir '{}' \"$@\"\n", home.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut make = Command::new(&program);
    make.args(["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]);
    make.args(["--quick-generate-key", "ada@example.org", "ed25519", "sign", "never"]);
    run(&mut make, DEADLINE).expect_success();
    let deck = DeckRepo::init(&dir.path().join("deck")).unwrap();
    std::fs::write(deck.root().join("deck.toml"), "name = \"test\"\n").unwrap();
    let mut config = Repository::open(deck.root()).unwrap().config().unwrap();
    config.set_str("user.name", "Ada").unwrap();
    config.set_str("user.email", "ada@example.org").unwrap();
    config.set_str("user.signingkey", "ada@example.org").unwrap();
    config.set_str("gpg.program", program.to_str().unwrap()).unwrap();
    config.set_bool("commit.gpgsign", true).unwrap();
    let revision = release(&deck, "a = 1\n");
    let mut git = Command::new("git");
    git.arg("-C").arg(deck.root()).args(["verify-commit", &revision.0]);
    let done = run(&mut git, DEADLINE).expect_success();
    assert!(done.stderr.contains("Good signature from"), "{done:#?}");
    let mut end = Command::new("gpgconf");
    run(end.args(["--homedir"]).arg(&home).args(["--kill", "all"]), DEADLINE).expect_success();
}

/// A deck on this machine with two services, whose releases a program signs that waits for a person.
struct Signed {
    person: Gpudeck,
}

impl Signed {
    fn new() -> Self {
        let person = Gpudeck::new();
        person.run(["init"], DEADLINE).expect_success();
        let file = person.deck().join("deck.toml");
        let before = std::fs::read_to_string(&file).unwrap();
        let host = format!(
            "\n[hosts.here]\ntransport = \"local\"\nfirst_engine_port = {}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
            common::engine_port(),
            person.home().join("agent").display()
        );
        std::fs::write(&file, before + &host).unwrap();
        let spec = r#"
model  = "tiny"
engine = { command = { run = ["{gpudeck}", "sim-engine", "--port", "{port}", "--load-time", "100ms"] } }
device = "cpu"
memory = "1MiB"
"#;
        for service in ["chat", "code"] {
            std::fs::write(person.deck().join(format!("services/{service}.toml")), spec).unwrap();
        }
        let signed = Self { person };
        // It gives up by itself: nothing waits for ever when the test has ended.
        let program = signed.person.home().join("signs");
        let text = format!(
            "#!/bin/sh\ncat >/dev/null\n: >'{asked}'\nfor i in $(seq 300); do\n  if [ -e '{go}' ]; then\n    printf '%s\\n' '[GNUPG:] SIG_CREATED D' >&2\n    printf '%s\\n' '-----BEGIN PGP SIGNATURE-----' 'x' '-----END PGP SIGNATURE-----'\n    exit 0\n  fi\n  sleep 0.1\ndone\nexit 1\n",
            asked = signed.asked().display(),
            go = signed.go().display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = Repository::open(signed.person.deck()).unwrap().config().unwrap();
        config.set_str("user.name", "Ada").unwrap();
        config.set_str("user.email", "ada@example.org").unwrap();
        config.set_str("gpg.program", program.to_str().unwrap()).unwrap();
        config.set_bool("commit.gpgsign", true).unwrap();
        signed
    }

    /// Is there while the program waits.
    fn asked(&self) -> PathBuf {
        self.person.home().join("asked")
    }

    /// Lets the program sign.
    fn go(&self) -> PathBuf {
        self.person.home().join("go")
    }

    fn run(&self, words: &str) -> common::Finished {
        self.person.run(words.split(' '), DEADLINE)
    }

    fn is_asked(&self) {
        wait_until("the program that signs", DEADLINE, || self.asked().exists());
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.run(words).stdout).unwrap()
    }
}

fn ended(child: &mut Background) -> Option<i32> {
    let mut code = None;
    wait_until("its end", DEADLINE, || {
        code = child.0.try_wait().unwrap();
        code.is_some()
    });
    code.and_then(|c| c.code())
}

#[test]
fn while_somebody_signs_all_else_goes_on() {
    let signed = Signed::new();
    let traces = Traces::of(&signed.person);
    let mut chat = signed.person.spawn(["apply", "chat", "--yes"]);
    signed.is_asked();
    // The next one waits its turn; what does not commit waits for nothing.
    let mut code = signed.person.spawn(["apply", "code", "--yes"]);
    let plan = signed.run("plan code");
    assert_eq!(plan.code(), Some(2), "{plan:#?}");
    signed.run("cordon here").expect_success();
    signed.run("uncordon here").expect_success();
    assert!(!signed.go().exists());
    std::fs::write(signed.go(), "").unwrap();
    assert_eq!((ended(&mut chat), ended(&mut code)), (Some(0), Some(0)));
    for service in ["chat", "code"] {
        signed.run(&format!("rollout status {service} --wait --timeout 60s")).expect_success();
    }
    let numbers: Vec<Value> = ["chat", "code"]
        .map(|s| signed.json(&format!("status {s} --output json"))["stable"].clone())
        .into();
    assert_eq!(numbers, [1, 2]);
    for service in ["chat", "code"] {
        signed.run(&format!("stop {service} --yes")).expect_success();
        wait_until("the stop", DEADLINE, || {
            signed.json(&format!("status {service} --output json"))["condition"] == "stopped"
        });
    }
    signed.run("controller stop").expect_success();
    traces.expect_none(&signed.person);
}

/// The plan was made before the key was found: what has changed since then counts.
#[test]
fn what_has_become_impossible_while_somebody_signed_does_not_begin() {
    let signed = Signed::new();
    let traces = Traces::of(&signed.person);
    let mut chat = signed.person.spawn(["apply", "chat", "--yes"]);
    signed.is_asked();
    signed.run("cordon here").expect_success();
    std::fs::write(signed.go(), "").unwrap();
    assert_ne!(ended(&mut chat), Some(0));
    let history = signed.json("history chat --output json");
    let outcome = &history[0]["outcome"];
    assert!(outcome.to_string().contains("cordoned"), "{history:#}");
    let status = signed.json("status chat --output json");
    assert_eq!(
        (&status["condition"], &status["replicas"]),
        (&"stopped".into(), &serde_json::json!([]))
    );
    // Its number is used up, and the next one is whole.
    signed.run("uncordon here").expect_success();
    signed.run("apply chat --yes --wait --timeout 60s").expect_success();
    assert_eq!(signed.json("status chat --output json")["stable"], 2);
    signed.run("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || {
        signed.json("status chat --output json")["condition"] == "stopped"
    });
    signed.run("controller stop").expect_success();
    traces.expect_none(&signed.person);
}
