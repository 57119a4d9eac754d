//! What can be wrong: each gives one clear message with the cause and the next step, the documented exit
//! code, and leaves nothing half-done. (Host keys and keys of users: `ssh_real`.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, checkout, has_program, run};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// An engine of the user's that the simulated one plays.
const COMMAND: &str = r#"
model  = "tiny"
engine = { command = { run = ["{gpudeck}", "sim-engine", "--port", "{port}", "--load-time", "50ms"] } }
device = "cpu"
memory = "1MiB"
"#;

/// A deck with this machine as its host `here`; what is left of it is killed at the end.
struct Deck {
    traces: Traces,
    person: Gpudeck,
    port: u16,
}

impl Deck {
    fn new() -> Self {
        let person = Gpudeck::new();
        let traces = Traces::of(&person);
        let port = common::engine_port();
        let deck = Self { traces, person, port };
        deck.run("init").expect_success();
        deck.write("deck.toml", &deck.deck_toml());
        deck
    }

    fn deck_toml(&self) -> String {
        format!(
            "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"bad\"\n\n[hosts.here]\n\
             transport = \"local\"\nfirst_engine_port = {}\n\
             agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
            self.port,
            self.person.home().join("agent").display()
        )
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.person.deck().join(file), text).unwrap();
    }

    fn run(&self, words: &str) -> Finished {
        self.person.run(words.split(' '), DEADLINE)
    }

    /// The command is refused with this code, and the message and the next step have these words; in JSON
    /// it is the same.
    #[track_caller]
    fn refused(&self, words: &str, code: i32, message: &[&str], hint: &[&str]) {
        let finished = self.run(words);
        assert_eq!(finished.code(), Some(code), "{words}: {finished:#?}");
        let (said, next) = finished
            .stderr
            .split_once("\n  → ")
            .unwrap_or_else(|| panic!("{words}: no next step: {finished:#?}"));
        for part in message {
            assert!(said.contains(part), "{words}: `{part}` is not in {said}");
        }
        for part in hint {
            assert!(next.contains(part), "{words}: `{part}` is not in {next}");
        }
        assert!(!said.contains("panicked"), "{said}");

        let json = self.run(&format!("{words} --output json"));
        assert_eq!(json.code(), Some(code), "{words}: {json:#?}");
        let error: Value = serde_json::from_str(json.stderr.trim()).unwrap();
        assert_eq!(error["exit_code"], code, "{error}");
        assert!(error["hint"].is_string() && error["error"].is_string(), "{error}");
    }

    /// No release was made, nothing runs, nothing was committed.
    #[track_caller]
    fn nothing_was_done(&self, service: &str) {
        let history = self.run(&format!("history {service} --output json")).expect_success();
        assert_eq!(history.stdout.trim(), "[]", "a release was made");
        let status = self.run(&format!("status {service} --output json")).expect_success();
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        assert!(status["rollout"].is_null() && status["stable"].is_null(), "{status:#}");
        assert_eq!(status["replicas"], serde_json::json!([]), "{status:#}");
    }

    fn status(&self, service: &str) -> Value {
        let status = self.run(&format!("status {service} --output json")).expect_success();
        serde_json::from_str(&status.stdout).unwrap()
    }
}

impl Drop for Deck {
    fn drop(&mut self) {
        // The rest of what runs goes with the traces.
        drop(self.person.run(["controller", "stop"], Duration::from_secs(15)));
    }
}

#[test]
fn command_lines_that_are_not_understood() {
    let person = Gpudeck::new();
    for words in [
        &["aply", "chat"][..],
        &["apply"],
        &["apply", "chat", "--timeout", "soon"],
        &["diff", "x", "r2"],
        &["top", "--interval", "0s"],
        &["top", "-n", "0"],
    ] {
        let finished = person.run(words, DEADLINE);
        assert_eq!(finished.code(), Some(64), "{finished:#?}");
        assert!(finished.stderr.contains("error:"), "{finished:#?}");
        for json in [&["--output", "json"][..], &["--output=json"], &["-o", "json"]] {
            let finished = person.run([words, json].concat(), DEADLINE);
            assert_eq!(finished.code(), Some(64), "{finished:#?}");
            let error: Value = serde_json::from_str(finished.stderr.trim()).unwrap();
            assert_eq!(error["exit_code"], 64, "{error}");
        }
    }
    let near = person.run(["aply", "chat"], DEADLINE);
    assert!(near.stderr.contains("apply"), "{near:#?}");
}

/// deck.toml comes first, as on the connections themselves; what is not of the deck is as `ssh` has it.
#[test]
fn how_a_host_of_the_deck_is_reached() {
    let person = Gpudeck::new();
    person.run(["init"], DEADLINE).expect_success();
    let file = person.deck().join("deck.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let host = "\n[hosts.box]\naddress = \"192.0.2.7\"\nport = 2201\nuser = \"ada\"\n\
                identity_files = [\"/keys/one\"]\nknown_hosts = \"/keys/known\"\n";
    std::fs::write(&file, before + host).unwrap();
    let shown = |words: &str| person.run(words.split(' '), DEADLINE).expect_success().stdout;
    let own = shown("ssh-config box");
    for line in [
        "hostname 192.0.2.7",
        "port 2201",
        "user ada",
        "identityfile /keys/one",
        "userknownhostsfile /keys/known",
    ] {
        assert_eq!(own.lines().filter(|l| *l == line).count(), 1, "{line}: {own}");
    }
    assert_eq!(own.lines().filter(|l| l.starts_with("identityfile ")).count(), 1, "{own}");
    for plain in [shown("ssh-config box --plain"), shown("ssh-config other")] {
        assert!(plain.contains("port 22\n") && !plain.contains("/keys/"), "{plain}");
    }
}

/// `gpudeck … | head`, when head has seen enough.
#[test]
fn an_output_that_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
        .args(["model", "inspect"])
        .arg(folder.path())
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(141), &b""[..]), "{ended:?}");

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
        .args(["model", "inspect"])
        .arg(folder.path())
        .stdout(full)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && said.contains("cannot be written"), "{ended:?}");
}

#[test]
fn no_deck_and_a_broken_one() {
    let empty = Gpudeck::new();
    // `plan` has 0, 2 and 1 only.
    for (words, code) in
        [(&["status"][..], 8), (&["plan", "chat"], 1), (&["controller", "status"], 8)]
    {
        let finished = empty.run(words, DEADLINE);
        assert_eq!(finished.code(), Some(code), "{finished:#?}");
        assert!(finished.stderr.contains("there is no deck here"), "{finished:#?}");
        assert!(finished.stderr.contains("→ run `gpudeck init`"), "{finished:#?}");
    }
    let finished = empty.run(["status", "--deck", "/nowhere"], DEADLINE);
    assert_eq!(finished.code(), Some(8), "{finished:#?}");
    assert!(finished.stderr.contains("/nowhere"), "{finished:#?}");
    let finished = empty.run(
        [std::ffi::OsStr::new("hosts"), "--deck".as_ref(), empty.home().as_os_str()],
        DEADLINE,
    );
    assert_eq!(finished.code(), Some(8), "{finished:#?}");
    assert!(finished.stderr.contains("there is no deck in"), "{finished:#?}");
    assert!(finished.stderr.contains("→ `gpudeck init "), "{finished:#?}");
    // The screen is never opened without a terminal.
    let finished = empty.run::<&str>([], DEADLINE);
    assert_eq!(finished.code(), Some(1), "{finished:#?}");
    assert!(finished.stderr.contains("needs a terminal"), "{finished:#?}");

    let deck = Deck::new();
    deck.write("deck.toml", &deck.deck_toml().replace("transport", "trnsport"));
    deck.refused("status", 1, &["deck.toml, line 5", "trnsport"], &["`transport`"]);
    deck.write("deck.toml", "id = \n");
    let finished = deck.run("status");
    assert_eq!(finished.code(), Some(1), "{finished:#?}");
    assert!(finished.stderr.contains("deck.toml, line 1"), "{finished:#?}");
    // No controller was begun on it, and the mended deck is good at once.
    assert!(deck.traces.processes().is_empty(), "{:?}", deck.traces.processes());
    deck.write("deck.toml", &deck.deck_toml());
    deck.run("status").expect_success();
}

/// What runs can be seen and steered whatever somebody has just typed into deck.toml.
#[test]
fn a_mistake_in_the_deck_locks_nobody_out() {
    let deck = Deck::new();
    deck.write("services/chat.toml", COMMAND);
    deck.run("apply chat --wait --timeout 60s").expect_success();
    let good = deck.deck_toml();
    deck.write("deck.toml", &format!("{good}typo = 1\n"));
    for words in
        ["status", "rollout status chat", "journal", "audit", "controller status", "events"]
    {
        let said = deck.run(words);
        assert_eq!(said.code(), Some(0), "{words}: {said:#?}");
    }
    let warned = deck.run("status");
    assert!(warned.stderr.contains("typo") && warned.stderr.contains("as it was"), "{warned:#?}");
    deck.run("stop chat --yes").expect_success();
    deck.write("deck.toml", &good);
    // Without a controller there is no deck as it was.
    deck.run("controller stop").expect_success();
    deck.write("deck.toml", &format!("{good}typo = 1\n"));
    let refused = deck.run("status");
    assert_eq!(refused.code(), Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("typo"), "{refused:#?}");
    deck.write("deck.toml", &good);
}

#[test]
fn a_deck_within_a_deck_and_words_that_are_no_paths() {
    let deck = Deck::new();
    let nested = deck.run("init services/inner");
    assert_eq!(nested.code(), Some(5), "{nested:#?}");
    assert!(nested.stderr.contains("inside the deck"), "{nested:#?}");
    assert!(!deck.person.deck().join("services/inner").exists());
    let address = deck.run("model inspect hf://meta-llama/Llama-3.3-70B-Instruct");
    assert!(address.stderr.contains("is an address"), "{address:#?}");
    let help = deck.run("help apply");
    assert_eq!(help.code(), Some(0), "{help:#?}");
    let verify = deck.run("journal verify");
    assert!(verify.stdout.contains("nothing was journaled"), "{verify:#?}");
}

#[test]
fn the_world_of_the_documentation_is_one() {
    let text = std::fs::read_to_string(checkout().join("docs/placement.md")).unwrap();
    let begin = text.find("```json\n{\n  \"version\"").unwrap() + "```json\n".len();
    let world = &text[begin..begin + text[begin..].find("```").unwrap()];
    let deck = Deck::new();
    deck.write("world.json", world);
    let answer = deck.run("place world.json --steps 1000 --output json").expect_success().stdout;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["services"][0]["name"], "chat", "{answer}");
}

#[test]
fn specs_with_mistakes() {
    let deck = Deck::new();
    deck.write("services/chat.toml", &COMMAND.replace("memory =", "memry ="));
    for verb in ["plan", "apply"] {
        deck.refused(
            &format!("{verb} chat"),
            1,
            &["services/chat.toml, line 5", "memry"],
            &["`memory`"],
        );
    }
    deck.nothing_was_done("chat");
    let status = deck.status("chat");
    assert!(status["trouble"].as_str().unwrap().contains("memry"), "{status:#}");
    // What is asked of all leaves it out, and says so.
    deck.refused("plan chat --explain", 1, &["services/chat.toml, line 5"], &["`memory`"]);
    let all = deck.run("plan --output json");
    let all: Value = serde_json::from_str(&all.stdout).unwrap();
    assert!(all["left_out"]["chat"].as_str().unwrap_or_default().contains("memry"), "{all:#}");

    // A service that is not there: the nearest one is named, whatever is asked of it.
    deck.write("services/chat.toml", COMMAND);
    for verb in ["plan", "apply", "status", "history", "stop", "rollout pause", "rollout status"] {
        let code = if verb == "plan" { 1 } else { 8 };
        deck.refused(&format!("{verb} chta"), code, &["no service chta"], &["`chat`"]);
    }
    deck.refused("logs chat/0/0", 8, &["chat has no rank 0/0"], &["gpudeck status"]);
    deck.refused("rollout pause nothing", 8, &["no service nothing"], &["chat"]);

    // A host that is not in the deck.
    deck.write("services/chat.toml", &format!("{COMMAND}[placement]\nhosts = [\"heer\"]\n"));
    deck.refused("apply chat", 1, &["services/chat.toml", "heer"], &["`here`"]);
    deck.nothing_was_done("chat");

    // A gateway that is not in the deck, or on a host that is not.
    deck.write("services/chat.toml", &format!("gateway = \"mian\"\n{COMMAND}"));
    deck.write(
        "deck.toml",
        &format!(
            "{}\n[gateways.main]\nhost = \"here\"\nsocket = \"/nowhere.sock\"\n",
            deck.deck_toml()
        ),
    );
    deck.refused("apply chat", 1, &["services/chat.toml", "mian"], &["`main`"]);
    deck.nothing_was_done("chat");
    deck.write(
        "deck.toml",
        &format!(
            "{}\n[gateways.main]\nhost = \"heer\"\nsocket = \"/nowhere.sock\"\n",
            deck.deck_toml()
        ),
    );
    for verb in ["plan", "apply"] {
        deck.refused(&format!("{verb} chat"), 1, &["heer"], &["here"]);
    }
}

#[test]
fn models_that_cannot_be_served() {
    if !has_program("python3") {
        return;
    }
    let deck = Deck::new();
    let folder = deck.person.home();
    let spec = |file: &str| {
        format!(
            "model = \"{}\"\nengine = \"llamacpp\"\ndevice = \"cpu\"\n",
            folder.join(file).display()
        )
    };
    deck.write("services/chat.toml", &spec("missing.gguf"));
    deck.refused(
        "apply chat",
        1,
        &["the model of chat cannot be served", "here", "missing.gguf"],
        &[""],
    );
    deck.nothing_was_done("chat");

    run(
        Command::new("python3")
            .arg(checkout().join("tests/engines/make-gguf.py"))
            .arg(folder.join("half.gguf"))
            .args(["--truncate", "60%"]),
        DEADLINE,
    )
    .expect_success();
    deck.write("services/chat.toml", &spec("half.gguf"));
    for verb in ["plan", "apply"] {
        deck.refused(&format!("{verb} chat"), 1, &["here", "half.gguf", "truncated"], &["copy"]);
    }
    deck.nothing_was_done("chat");

    std::fs::write(folder.join("rubbish.gguf"), b"this is no model").unwrap();
    deck.write("services/chat.toml", &spec("rubbish.gguf"));
    deck.refused("apply chat", 1, &["here", "rubbish.gguf"], &[""]);
    deck.nothing_was_done("chat");
}

/// What is asked or told of a model that cannot be is never answered with "it fits".
#[test]
fn models_and_divisions_that_cannot_be() {
    let person = Gpudeck::new();
    let folder = tempfile::tempdir().unwrap();
    let model = |name: &str, change: &[(&str, Value)]| {
        let mut config = serde_json::json!({
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "num_local_experts": 8,
            "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
        });
        for (key, value) in change {
            config[*key] = value.clone();
        }
        let dir = folder.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    };
    let ask = |dir: &std::path::Path, words: &str| {
        let inspect = ["model", "inspect", dir.to_str().unwrap(), "--gpu", "h100-80", "-o", "json"];
        person.run(inspect.into_iter().chain(words.split_whitespace()), DEADLINE)
    };
    let json =
        |done: Finished| -> Value { serde_json::from_str(&done.expect_success().stdout).unwrap() };
    let good = model("good", &[]);

    // Experts are on GPUs that are there.
    let spread = json(ask(&good, "--tp 4 --ep 8"));
    assert_eq!((&spread["data"], &spread["gpus"]), (&2.into(), &8.into()), "{spread:#}");
    let whole = json(ask(&good, "--tp 4 --ep 4"));
    assert_eq!((&whole["data"], &whole["gpus"]), (&1.into(), &4.into()));
    for (words, part) in [
        ("--tp 4 --ep 3", "cannot be divided"),
        ("--tp 4 --dp 2 --ep 16", "cannot be divided"),
        ("--tp 4 --ep 8 --engine sglang", "cannot be divided"),
        ("--tp 1024 --pp 1024", "too much"),
    ] {
        let refused = ask(&good, words);
        assert_eq!(refused.code(), Some(1), "{words}: {refused:#?}");
        assert!(refused.stderr.contains(part), "{words}: {refused:#?}");
    }

    for (name, key, value) in [
        ("five", "num_key_value_heads", 5),
        ("none", "num_key_value_heads", 0),
        ("flat", "head_dim", 0),
    ] {
        let dir = model(name, &[(key, value.into())]);
        let told = ask(&dir, "--tp 2");
        if told.code() == Some(0) {
            let told = json(told);
            assert_eq!(told["fits"], false, "{name}: {told:#}");
            assert!(told["refused"].is_string(), "{name}: {told:#}");
        }
    }

    // Two tensors are no model of 32 layers.
    let torn = model("torn", &[]);
    let header =
        r#"{"model.embed_tokens.weight":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[0; 16]);
    std::fs::write(torn.join("model.safetensors"), file).unwrap();
    let told = json(ask(&torn, "--tp 2"));
    assert_eq!(told["certainty"], "guess", "{told:#}");
    assert!(told.to_string().contains("a part is missing"), "{told:#}");
}

#[test]
fn no_gpu_is_large_enough() {
    let deck = Deck::new();
    let scenario = deck.person.home().join("scenario.json");
    std::fs::write(
        &scenario,
        r#"{ "gpus": [{ "uuid": "GPU-00000000-0000-4000-8000-000000000000",
            "name": "NVIDIA L4", "memory_total": 25769803776 }] }"#,
    )
    .unwrap();
    let deck_toml = deck.deck_toml().replace(
        "agent_env = { ",
        &format!("agent_env = {{ GPUDECK_SCENARIO = \"{}\", ", scenario.display()),
    );
    deck.write("deck.toml", &deck_toml);
    let on_gpu = COMMAND.replace("\"cpu\"", "\"gpu\"");
    deck.write("services/chat.toml", &on_gpu.replace("1MiB", "40GiB"));
    for (verb, code) in [("plan", 1), ("apply", 6)] {
        deck.refused(&format!("{verb} chat"), code, &["chat", "here", "40", "24"], &[""]);
    }
    deck.nothing_was_done("chat");
    // What fits is planned.
    deck.write("services/chat.toml", &on_gpu.replace("1MiB", "20GiB"));
    assert_eq!(deck.run("plan chat").code(), Some(2));
}

#[test]
fn a_host_that_is_not_reached() {
    let deck = Deck::new();
    // Bound and then closed: nobody listens there.
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    deck.write(
        "deck.toml",
        &format!("{}\n[hosts.far]\naddress = \"127.0.0.1\"\nport = {closed}\n", deck.deck_toml()),
    );
    let hosts = deck.run("hosts").expect_success();
    let far = hosts.stdout.lines().find(|line| line.starts_with("far")).unwrap();
    assert!(far.contains("down") && far.contains("refuses the connection → start sshd"), "{far}");
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
    let taken = TcpListener::bind(("0.0.0.0", deck.port)).unwrap();
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
