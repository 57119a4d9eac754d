//! Models, and GPUs for them.

use std::process::Command;

use serde_json::Value;

use super::{COMMAND, DEADLINE, Deck};
use crate::common::{Finished, Gpudeck, checkout, has_program, run};

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

/// Before anything is touched, and not when an engine ends at once.
#[test]
fn what_an_engine_needs_on_its_hosts_and_is_not_there() {
    let deck = Deck::new();
    let spec = |program: &str, more: &str| {
        format!(
            "model = \"tiny\"\ndevice = \"cpu\"\nmemory = \"1MiB\"\n{more}\n[engine.command]\n\
             run = [\"{program}\", \"{{port}}\", \"{{api_key_file}}\"]\n"
        )
    };
    let key = deck.person.home().join("chat.key");
    let key_file = format!("api_key_file = \"{}\"", key.display());
    deck.write("services/chat.toml", &spec("sh", &key_file));
    for (verb, code) in [("plan", 1), ("apply", 6)] {
        let words = ["here", "the key of its engine", "chat.key"];
        deck.refused(&format!("{verb} chat"), code, &words, &[]);
    }
    std::fs::write(&key, "sk-1\n").unwrap();
    let plan = deck.run("plan chat");
    assert_eq!(plan.code(), Some(2), "{plan:#?}");
    for (program, named) in
        [("/nowhere/engine", "no program /nowhere/engine"), ("nowhere-engine", "on the path of")]
    {
        deck.write("services/chat.toml", &spec(program, &key_file));
        deck.refused("plan chat", 1, &["here", named], &[]);
    }
    deck.nothing_was_done("chat");
}

/// Without a host nobody can tell how much memory something needs; that is not what is missing.
#[test]
fn a_deck_without_hosts_has_no_place() {
    let deck = Deck::new();
    deck.write("deck.toml", "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"bad\"\n");
    deck.write(
        "services/chat.toml",
        "model = \"tiny\"\n[engine.command]\nrun = [\"sleep\", \"9\"]\n",
    );
    deck.refused("plan chat", 1, &["the deck has no hosts"], &["[hosts.NAME]"]);
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
