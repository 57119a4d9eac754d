//! Command lines as they are, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers of tests

use super::*;
use crate::base::{Hint, quote};
use crate::model::{ModelFormat, predict};
use crate::spec::parse_service;

fn spec(text: &str) -> ServiceSpec {
    parse_service(text, "services/chat.toml").unwrap()
}

fn facts(format: ModelFormat) -> ModelFacts {
    ModelFacts {
        files: vec!["/models/m/one".into()],
        attention_heads: Some(40),
        kv_heads: Some(8),
        layers: Some(64),
        head_dim: Some(128),
        hidden_size: Some(5120),
        context: Some(32_768),
        weight_bytes: Bytes(65_527_752_704),
        ..ModelFacts::unknown(format, "/models/m/entry".into())
    }
}

fn shape(tensor: u32) -> ParallelShape {
    ParallelShape::of_tensor(tensor)
}

fn gpus(n: usize) -> Vec<DeviceId> {
    (0..n).map(|i| DeviceId::Gpu(format!("GPU-{i}"))).collect()
}

fn run(
    spec: &ServiceSpec,
    facts: Option<&ModelFacts>,
    devices: &[DeviceId],
    docker: bool,
) -> Result<EngineCommand, EngineError> {
    let service = "chat".parse().unwrap();
    let as_asked = spec.parallel.shapes().iter().find(|s| s.devices() == devices.len() as u64);
    of(&spec.engine).command(&RankContext {
        service: &service,
        spec,
        facts,
        shape: as_asked.copied().unwrap_or(shape(devices.len() as u32)),
        order: None,
        address: "0.0.0.0",
        port: 21_000,
        devices,
        release: ReleaseNumber(12),
        replica: 1,
        rank: 0,
        cores: None,
        docker,
    })
}

fn line(command: &EngineCommand) -> String {
    let env: Vec<String> = command.env.iter().map(|(k, v)| format!("{k}={v} ")).collect();
    format!("{}{}", env.concat(), quote::shell(&command.argv))
}

#[test]
fn vllm() {
    let s = spec(
        "model='/models/m'\nengine='vllm'\ncontext=8192\nargs=['--enable-prefix-caching']\nparallel={tensor=2}",
    );
    let command = run(&s, Some(&facts(ModelFormat::Safetensors)), &gpus(2), false).unwrap();
    insta::assert_snapshot!(line(&command), @"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={gpu_numbers} vllm serve /models/m/entry --served-model-name chat --host 0.0.0.0 --port 21000 --tensor-parallel-size 2 --max-model-len 8192 --enable-prefix-caching");
    assert_eq!(command.files, ["/models/m/one"]);
    // In a container there are no other GPUs than its own.
    let contained = run(&s, Some(&facts(ModelFormat::Safetensors)), &gpus(2), true).unwrap();
    assert!(contained.env.is_empty(), "{contained:?}");
}

#[test]
fn vllm_refuses_what_it_cannot_do() {
    let check = |more: &str, format| {
        let s = spec(&format!("model='/m'\nengine='vllm'\n{more}"));
        of(&s.engine).check(&s, Some(&facts(format))).unwrap_err()
    };
    let st = ModelFormat::Safetensors;
    let error = check("parallel={tensor=3}", st);
    insta::assert_snapshot!(error, @"40 attention heads (8 for keys and values) cannot be divided over tensor = 3");
    insta::assert_snapshot!(error.hint().unwrap(), @"use tensor = 1, 2, 4, 8, 40");
    for (more, format, expected) in [
        ("parallel={tensor=2, pipeline=65}", st, "64 layers cannot be divided over 65 stages"),
        // All that are listed.
        ("parallel=[{tensor=3}, {tensor=7, data=2}]", st, "tensor = 3"),
        ("args=['--data-parallel-external-lb']", st, "`--data-parallel-external-lb`"),
        ("args=['-pp=2']", st, "`-pp`"),
        ("device='cpu'", st, "device = \"cpu\""),
        ("args=['--port=1']", st, "`--port`"),
        ("args=['--kv-cache-dtype', 'q8_0']", st, "a cache of type q8_0"),
        // argparse takes `_` for `-`, and what is not ambiguous for the whole name.
        ("args=['--kv_cache_dtype=q8_0']", st, "a cache of type q8_0"),
        ("args=['--max_model_len', '4096']", st, "`--max-model-len`"),
        ("args=['--tensor-parallel', '2']", st, "`--tensor-parallel-size`"),
        ("args=['-dp', '2']", st, "`-dp`"),
        ("args=['--nnodes=2', '--headless']", st, "`--nnodes`"),
        ("args=['--config', '/etc/vllm.yaml']", st, "`--config`"),
        ("args=['--api_key=x']", st, "`--api-key`"),
        ("args=['--ssl-keyfile', '/k']", st, "`--ssl-keyfile`"),
        ("env={VLLM_API_KEY='x'}", st, "`VLLM_API_KEY`"),
        ("context=99999", st, "longer than the model's 32768"),
        ("", ModelFormat::Gguf, "GGUF"),
    ] {
        let error = check(more, format);
        assert!(error.to_string().contains(expected), "{more}: {error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn vllm_tries_only_shapes_that_divide() {
    let s = spec("model='/m'\nengine='vllm'");
    let tried = |heads, kv| -> Vec<u32> {
        let f = ModelFacts {
            attention_heads: Some(heads),
            kv_heads: Some(kv),
            ..facts(ModelFormat::Safetensors)
        };
        let found = shapes(&*of(&s.engine), &s, Some(&f));
        let refused = found.refused.len();
        let good: Vec<u32> = found.good.iter().map(|s| s.tensor.get()).collect();
        assert_eq!(good.len() + refused, 4);
        good
    };
    assert_eq!(tried(40, 8), [1, 2, 4, 8]);
    assert_eq!(tried(28, 4), [1, 2, 4]);
    assert_eq!(tried(64, 4), [1, 2, 4, 8]);
    assert_eq!(tried(7, 7), [1]);
    // Nothing is refused of a model that is not known.
    assert_eq!(shapes(&*of(&s.engine), &s, None).good.len(), 4);
}

/// A service asks what `model inspect` does: vLLM #17569, 1536 / 8 = 192 is no whole block.
#[test]
fn shapes_that_an_engine_cannot_cut_are_not_tried() {
    let config = r#"{"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe",
        "hidden_size":4096,"intermediate_size":12288,"moe_intermediate_size":1536,"num_hidden_layers":2,
        "num_attention_heads":64,"num_key_value_heads":4,"head_dim":128,"num_experts":128,
        "num_experts_per_tok":8,"vocab_size":151936,"torch_dtype":"bfloat16","quantization_config":
        {"quant_method":"fp8","activation_scheme":"dynamic","weight_block_size":[128,128]}}"#;
    let facts = crate::model::estimate::tests::facts(config);
    let tried = |more: &str| -> (Vec<u32>, Vec<String>) {
        let s = spec(&format!("model='/m'\n{more}"));
        let found = shapes(&*of(&s.engine), &s, Some(&facts));
        let why = |(shape, why): &(ParallelShape, EngineError)| format!("{}: {why}", shape.tensor);
        (
            found.good.iter().map(|s| s.tensor.get()).collect(),
            found.refused.iter().map(why).collect(),
        )
    };
    let (good, refused) = tried("engine='vllm'");
    assert_eq!(good, [1, 2, 4]);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].starts_with("8: gate_proj, in blocks of 128"), "{refused:?}");
    // Whole experts are not cut.
    assert_eq!(tried("engine='vllm'\nargs=['--enable-expert-parallel']").0, [1, 2, 4, 8]);
    let sglang = |more: &str| {
        tried(&format!(
            "engine={{command={{run=['x','--tp','{{tensor}}','--port','{{port}}',{more}],metrics='sglang'}}}}"
        ))
    };
    assert_eq!(sglang("").0, [1, 2, 4]);
    assert_eq!(sglang("'--ep-size','{tensor}'").0, [1, 2, 4, 8]);
    // Without metrics nothing is known of the engine.
    let unknown = tried("engine={command={run=['x','--tp','{tensor}','--port','{port}']}}");
    assert_eq!(unknown.0, [1, 2, 4, 8]);
    // A shape that the spec asks for is refused, with the reason.
    let s = spec("model='/m'\nengine='vllm'\nparallel={tensor=8}");
    let error = of(&s.engine).check(&s, Some(&facts)).unwrap_err();
    assert!(error.to_string().contains("in blocks of 128"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn vllm_takes_a_share_of_the_gpu() {
    let share = |args: &str| {
        let s = spec(&format!("model='/m'\nengine='vllm'\nargs=[{args}]"));
        of(&s.engine).memory_share(&s)
    };
    assert_eq!(share(""), Some(0.92));
    assert_eq!(share("'--gpu-memory-utilization','0.5'"), Some(0.5));
    assert_eq!(share("'--gpu-memory-utilization=0.6'"), Some(0.6));
    assert_eq!(share("'--gpu_memory_utilization','0.7'"), Some(0.7));
}

#[test]
fn llamacpp_on_gpus() {
    let s = spec("model='/models/m'\nengine='llamacpp'\nargs=['-np','8','--no-mmap']");
    let command = run(&s, Some(&facts(ModelFormat::Gguf)), &gpus(2), true).unwrap();
    insta::assert_snapshot!(line(&command), @"CUDA_VISIBLE_DEVICES=GPU-0,GPU-1 LLAMA_ARG_LOG_VERBOSITY=4 /app/llama-server -m /models/m/entry --alias chat --host 0.0.0.0 --port 21000 -c 32768 -ngl 999 -sm layer --kv-unified --metrics -np 8 --no-mmap");
}

#[test]
fn llamacpp_on_host_memory() {
    let s = spec(
        "model='/m.gguf'\nengine='llamacpp'\ndevice='cpu'\ncontext=512\nprogram='/opt/llama-server'",
    );
    let service = "chat".parse().unwrap();
    let command = of(&s.engine)
        .command(&RankContext {
            service: &service,
            spec: &s,
            facts: None,
            shape: shape(1),
            order: None,
            address: "0.0.0.0",
            port: 21_000,
            devices: &[DeviceId::Cpu],
            release: ReleaseNumber(1),
            replica: 0,
            rank: 0,
            cores: Some(2),
            docker: false,
        })
        .unwrap();
    insta::assert_snapshot!(line(&command), @"CUDA_VISIBLE_DEVICES= LLAMA_ARG_LOG_VERBOSITY=4 /opt/llama-server -m /m.gguf --alias chat --host 0.0.0.0 --port 21000 -c 512 -np 4 -ngl 0 --device none -t 2 --kv-unified --metrics");
}

#[test]
fn llamacpp_memory_of_a_small_model_is_small() {
    let s = spec("model='/m.gguf'\nengine='llamacpp'\ndevice='cpu'\ncontext=512");
    let tiny = ModelFacts {
        weight_bytes: Bytes(750_000),
        layers: Some(2),
        kv_heads: Some(2),
        head_dim: Some(16),
        vocab_size: Some(300),
        ..facts(ModelFormat::Gguf)
    };
    let estimate = of(&s.engine).memory(&s, &tiny, shape(1));
    assert!(estimate.total < Bytes::mib(140), "{estimate:?}");
    let fixed = spec("model='/m.gguf'\nengine='llamacpp'\nmemory='3GiB'");
    assert_eq!(of(&fixed.engine).memory(&fixed, &tiny, shape(1)).total, Bytes::gib(3));
}

#[test]
fn a_command_is_filled_in() {
    let text = "model='/m'\nmemory='1GiB'\ncontext=512\nargs=['--x']\n[env]\nA='b'\n\
        [engine.command]\nmetrics='vllm'\nrun=['{gpudeck}','sim-engine','--port={port}','--bind','{address}',\
        '--name','{service}','--model','{model}','--tp','{tensor}','-c','{context}',\
        '--id','{release}-{replica}-{rank}','--json','{\"a\": {\"b\": 1}}']";
    let s = spec(text);
    let command = run(&s, None, &gpus(1), false).unwrap();
    insta::assert_snapshot!(line(&command), @r#"A=b CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={gpu_numbers} '{gpudeck}' sim-engine --port=21000 --bind 0.0.0.0 --name chat --model /m --tp 1 -c 512 --id r12-1-0 --json '{"a": {"b": 1}}' --x"#);
    assert_eq!(metrics::Names::of(&s.engine), Some(&metrics::VLLM));
    // What engine it is tells how it takes its GPUs.
    let visible = |metrics: &str, docker: bool| {
        let s = spec(&format!("model='/m'\nmemory='1GiB'\n[engine.command]\n{metrics}run=['x']"));
        let whole = of(&s.engine).needs_whole_gpus(&s).is_some();
        let mut env = run(&s, None, &gpus(1), docker).unwrap().env;
        (env.remove("CUDA_VISIBLE_DEVICES"), whole)
    };
    let given = |text: &str| Some(text.to_owned());
    assert_eq!(visible("metrics='sglang'\n", false), (given("{gpu_numbers}"), true));
    assert_eq!(visible("metrics='sglang'\n", true).0, None);
    assert_eq!(visible("metrics='llamacpp'\n", false), (given("GPU-0"), false));
    assert_eq!(visible("", false), (given("GPU-0"), false));
}

#[test]
fn cache_types_that_an_engine_does_not_take_are_refused() {
    let check = |engine: &str| {
        let s = spec(&format!("model='/m'\n{engine}"));
        of(&s.engine).check(&s, None).map_err(|e| e.to_string())
    };
    let llama = |args: &str| check(&format!("engine='llamacpp'\nargs=[{args}]"));
    assert!(llama("'-ctk','q8_0','-ctv','q4_0'").is_ok());
    assert!(llama("'-ctk','q8_0','-ctv=fp8'").unwrap_err().contains("a cache of type fp8"));
    // A program of the user's may take what the engine does not whose names its metrics have.
    let run = "metrics='vllm'\nrun=['x','--kv-cache-dtype','q8_0']";
    assert_eq!(check(&format!("memory='1GiB'\n[engine.command]\n{run}")), Ok(()));
}

/// Nobody could ask it for a token.
#[test]
fn engines_that_answer_only_to_a_key_are_refused() {
    let check = |engine: &str| {
        let s = spec(&format!("model='/m'\nmemory='1GiB'\n{engine}"));
        of(&s.engine).check(&s, None).map_err(|e| e.to_string())
    };
    for locked in [
        "engine='llamacpp'\nargs=['--api-key-file','/k']",
        "engine='llamacpp'\nargs=['--ssl-key-file=/k']",
        "engine='llamacpp'\nenv={LLAMA_API_KEY='x'}",
        "[engine.command]\nmetrics='sglang'\nrun=['x','--api-key','s']",
    ] {
        let error = check(locked).unwrap_err();
        assert!(error.contains("is not supported"), "{locked}: {error}");
    }
    // What is known of no engine may mean anything.
    assert_eq!(check("[engine.command]\nrun=['x','--api-key','s']"), Ok(()));
}

#[test]
fn a_command_that_is_not_told_its_port_is_warned_of() {
    let warned = |more: &str| {
        let s = spec(&format!("model='/m'\nmemory='1GiB'\n{more}"));
        of(&s.engine).warnings(&s)
    };
    assert_eq!(
        warned("[engine.command]\nrun=['x','--listen=0.0.0.0:{port}']"),
        Vec::<String>::new()
    );
    assert_eq!(warned("engine='vllm'"), Vec::<String>::new());
    assert!(warned("[engine.command]\nrun=['x','--port','8000']")[0].contains("write {port} into"));
    let of_args = warned("args=['--port','{port}']\n[engine.command]\nrun=['x']");
    assert!(of_args[0].contains("`args` is passed on as it is"), "{of_args:?}");
}

#[test]
fn a_key_reaches_each_engine_by_its_file_alone() {
    let argv = |engine: &str| {
        let s = spec(&format!(
            "model='/m'\nmemory='1GiB'\ndevice='gpu'\napi_key_file='/etc/chat.key'\n{engine}"
        ));
        run(&s, None, &gpus(1), false).map(|c| c.argv).map_err(|e| e.to_string())
    };
    let file = "--api-key-file /etc/chat.key";
    let line = |engine: &str| quote::shell(&argv(engine).unwrap());

    let vllm = argv("engine='vllm'").unwrap();
    assert_eq!((vllm[0].as_str(), vllm[1].as_str()), ("/bin/sh", "-c"));
    assert!(vllm[2].contains("read -r VLLM_API_KEY < \"$0\""), "{}", vllm[2]);
    assert_eq!(vllm[3..6], ["/etc/chat.key", "vllm", "serve"]);
    let named = argv("[engine.command]\nmetrics='vllm'\nrun=['x']").unwrap();
    assert_eq!(named[3..], ["/etc/chat.key", "x"]);

    assert!(line("engine='llamacpp'").contains(file));
    assert!(
        line("[engine.command]\nmetrics='llamacpp'\nrun=['x']").ends_with(&format!("x {file}"))
    );
    for run in [
        "[engine.command]\nrun=['x','--api-key-file','{api_key_file}']",
        "[engine.command]\nmetrics='llamacpp'\nrun=['x','--api-key-file','/etc/chat.key']",
        "[engine.command]\nmetrics='vllm'\nrun=['x','--api-key-file','{api_key_file}']",
    ] {
        assert_eq!(line(run), format!("x {file}"), "{run}");
    }
}

#[test]
fn a_key_that_an_engine_would_show_or_not_hear_of_is_refused() {
    let check = |more: &str| {
        let s = spec(&format!("model='/m'\nmemory='1GiB'\n{more}"));
        of(&s.engine).check(&s, None).unwrap_err()
    };
    let key = "api_key_file='/etc/chat.key'";
    let sglang = check(&format!("{key}\n[engine.command]\nmetrics='sglang'\nrun=['x']"));
    assert!(sglang.hint().unwrap().contains("writes it into its log"), "{sglang}");
    let untold = check(&format!("{key}\n[engine.command]\nrun=['x']"));
    assert!(untold.hint().unwrap().contains("{api_key_file}"), "{untold}");
    let unset = check("[engine.command]\nrun=['x','{api_key_file}']");
    assert!(unset.hint().unwrap().contains("set `api_key_file`"), "{unset}");
    let twice = check(&format!("{key}\nengine='llamacpp'\nargs=['--api-key-file=/k']"));
    assert!(twice.hint().unwrap().contains("remove it from `args`"), "{twice}");
    let locked = check("engine='llamacpp'\nargs=['--api-key','s3cret']");
    assert!(locked.hint().unwrap().contains("api_key_file = "), "{locked}");
    assert!(!format!("{locked} {locked:?}").contains("s3cret"), "a key is not repeated");
}

/// The command is what a shell makes of it, and the key is in no word of it.
#[test]
fn the_shell_hands_the_first_line_to_the_engine_as_a_variable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a key");
    let started = || {
        let told = ["sh", "-c", "echo \"[$VLLM_API_KEY]\""].map(str::to_owned).to_vec();
        let argv = key::through_variable("VLLM_API_KEY", file.to_str().unwrap(), told);
        let mut command = std::process::Command::new(&argv[0]);
        command.args(&argv[1..]).env("VLLM_API_KEY", "another").output().unwrap()
    };
    let none = started();
    assert!(!none.status.success(), "without a key nothing is started");
    assert!(String::from_utf8_lossy(&none.stderr).contains("no key in "), "{none:?}");
    for text in ["sk-$1`\\\"'*\nmore\n", "sk-$1`\\\"'*"] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(String::from_utf8_lossy(&started().stdout), "[sk-$1`\\\"'*]\n");
    }
}

#[test]
fn a_command_with_a_mistake_is_refused() {
    let check = |run: &str, more: &str| {
        let s = spec(&format!("model='/m'\n{more}\n[engine.command]\nrun=[{run}]"));
        of(&s.engine).check(&s, None).unwrap_err()
    };
    let error = check("'x','{prot}'", "memory='1GiB'");
    assert_eq!(error.hint().as_deref(), Some("did you mean `{port}`?"));
    assert!(check("'x{gpudeck}'", "memory='1GiB'").to_string().contains("word of its own"));
    assert!(check("'x','{context}'", "memory='1GiB'").to_string().contains("no context"));
    assert!(check("'x'", "").hint().unwrap().contains("set `memory`"));
}

#[test]
fn gpus_are_given_by_gpudeck_alone() {
    let s = spec("model='/m'\nengine='llamacpp'\n[env]\nCUDA_VISIBLE_DEVICES='0'");
    let error = run(&s, None, &gpus(1), false).unwrap_err();
    assert!(error.to_string().contains("CUDA_VISIBLE_DEVICES"), "{error}");
    let s = spec("model='/m'\nengine='llamacpp'");
    assert!(matches!(run(&s, None, &[DeviceId::Cpu], false), Err(EngineError::Devices { .. })));
}

#[test]
fn needs_are_the_shapes_with_their_memory() {
    let s = spec("model='/m'\nengine='vllm'\ncontext=8192");
    let all = needs(&*of(&s.engine), &s, Some(&facts(ModelFormat::Safetensors))).unwrap();
    // 61 GiB of weights and 2 GiB of cache, divided; 2.8 GiB besides, and 1.8 more from two on.
    let gib: Vec<u64> = all.iter().map(|(_, m)| m.total.0 >> 30).collect();
    assert_eq!(gib, [65, 36, 20, 12]);
    let s = spec("model='/m'\nmemory='1GiB'\n[engine.command]\nrun=['x']");
    let all = needs(&*of(&s.engine), &s, None).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1.total, Bytes::gib(1));
}

/// The project's tables of what engines logged on real GPUs.
fn rows(text: &str) -> Vec<Vec<serde_json::Value>> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What placing makes of a spec on one GPU: refused (it needs more than the share), or warned of.
fn refused_or_warned(spec: &ServiceSpec, facts: &ModelFacts, gpu: (&str, Bytes)) -> bool {
    let engine = of(&spec.engine);
    let (shape, _) = needs(&*engine, spec, Some(facts)).unwrap()[0];
    let correction = Correction::default();
    let memory = corrected_memory(&*engine, spec, facts, shape, Some(gpu), correction);
    let setup = engine.setup(spec, facts, shape).unwrap().on_gpu(gpu.0, gpu.1.0);
    let budget = setup.budget().unwrap();
    memory.total.0 > budget.value || unsure(&memory, Bytes(budget.low), gpu.0).is_some()
}

/// A vLLM of one's own, started as `engine = "vllm"` does.
fn ways(context: u64, args: &str, tensor: u64) -> [ServiceSpec; 2] {
    let more = format!("context={context}\nargs=[{args}]\nparallel={{tensor={tensor}}}");
    let command =
        "engine={command={run=['srv','--port','{port}','--tp','{tensor}'],metrics='vllm'}}";
    [
        spec(&format!("model='/m'\nengine='vllm'\n{more}")),
        spec(&format!("model='/m'\n{command}\n{more}")),
    ]
}

#[test]
fn what_vllm_refused_is_refused_or_warned_of() {
    use crate::model::estimate::tests::facts;
    let h100 = ("NVIDIA H100 80GB HBM3", memory::gpu_memory("h100-80").unwrap());
    // Of this one the GPU is known.
    let mut seen = 0;
    for row in rows(include_str!("../../tests/vectors/allocations.jsonl")) {
        let number = |i: usize| row[i].as_f64().unwrap();
        let context = row[9].as_u64().unwrap();
        if row[14] != 1 || row[2] != "vllm" || context == 0 {
            continue;
        }
        let facts = facts(row[1].as_str().unwrap());
        let tensor = row[3].as_u64().unwrap();
        // Some were asked for more than their configuration states.
        let mut args =
            vec!["'--hf-overrides={}','--block-size'".to_owned(), format!("'{}'", row[7])];
        if row[8] != 0 {
            args.extend(["'--max-num-batched-tokens'".to_owned(), format!("'{}'", row[8])]);
        }
        if row[0] == "vllm27508" {
            args.push("'--gpu-memory-utilization=0.95'".to_owned());
            for spec in ways(context, &args.join(","), tensor) {
                assert!(refused_or_warned(&spec, &facts, h100), "{}", row[0]);
            }
        }
        // Of the others the GPU is one that leaves as much for the cache as the engine logged.
        for spec in ways(context, &args.join(","), tensor) {
            let engine = of(&spec.engine);
            let (shape, _) = needs(&*engine, &spec, Some(&facts)).unwrap()[0];
            let of_size = |gib: f64| {
                let gpu = (gib * (1u64 << 30) as f64) as u64;
                let setup = engine.setup(&spec, &facts, shape).unwrap().on_gpu("GPU", gpu);
                let rank = predict(&facts, &setup).ranks[0].clone();
                (gpu, rank.cache_available.unwrap().value as f64 / (1u64 << 30) as f64)
            };
            let sizes = (1..500).map(|n| of_size(f64::from(n)));
            let (gpu, _) = sizes.take_while(|(_, left)| *left <= number(10)).last().unwrap();
            assert!(refused_or_warned(&spec, &facts, ("GPU", Bytes(gpu))), "{}", row[0]);
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen}");
    for row in rows(include_str!("../../tests/vectors/h100.jsonl")) {
        let args = format!(
            "'--gpu-memory-utilization={}'{}",
            row[2],
            if row[6] == 1 { ",'--enforce-eager'" } else { "" }
        );
        let facts = facts(row[1].as_str().unwrap());
        for spec in ways(row[3].as_u64().unwrap(), &args, 1) {
            let known = row[4] == 0 && row[5] == 0 && row[7] == "";
            let is = refused_or_warned(&spec, &facts, h100);
            assert!(is || row[12] != 1, "{}: it refused", row[0]);
            assert!(!is || row[12] == 1 || !known, "{}: it started", row[0]);
        }
    }
}

#[test]
fn a_command_of_a_known_engine_takes_its_share() {
    let share = |metrics: &str, more: &str, memory: &str| {
        let s = spec(&format!(
            "model='/m'\n{memory}\nengine={{command={{run=['x','--port','{{port}}'{more}],metrics='{metrics}'}}}}"
        ));
        of(&s.engine).memory_share(&s)
    };
    assert_eq!(share("vllm", "", ""), Some(0.92));
    assert_eq!(share("vllm", ",'--gpu_memory_utilization','0.5'", ""), Some(0.5));
    assert_eq!(share("sglang", "", ""), Some(0.88));
    assert_eq!(share("sglang", ",'--mem-fraction-static=0.7'", ""), Some(0.7));
    assert_eq!(share("llamacpp", "", ""), None);
    // Who writes the memory says nothing of the share, unless they do.
    assert_eq!(share("vllm", "", "memory='20GiB'"), None);
    assert_eq!(share("vllm", ",'--gpu-memory-utilization=0.5'", "memory='20GiB'"), Some(0.5));
}

#[test]
fn a_rank_is_foreseen_for_the_gpu_that_it_is_to_be_on() {
    let facts = crate::model::estimate::tests::facts(
        r#"{"model_type":"llama","torch_dtype":"bfloat16","hidden_size":4096,"num_hidden_layers":32,
        "num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256,
        "max_position_embeddings":8192,"tie_word_embeddings":false}"#,
    );
    let s = spec("model='/m'\nengine='vllm'");
    let engine = of(&s.engine);
    let on = |name: &str, total: Bytes| {
        let gpu = Some((name, total));
        corrected_memory(&*engine, &s, &facts, shape(1), gpu, Correction::default())
    };
    // Steps are as large as vLLM makes them on such a GPU: more besides weights and cache.
    let besides = |name: &str, gib: u64| on(name, Bytes::gib(gib)).overhead;
    assert!(besides("NVIDIA H100 80GB HBM3", 79) > besides("NVIDIA A100-SXM4-80GB", 79));
    assert_eq!(besides("NVIDIA A100-SXM4-80GB", 79), besides("NVIDIA L40S", 44));
    assert_eq!(besides("NVIDIA GB10", 119), besides("NVIDIA L40S", 44));
    assert!(besides("NVIDIA B200", 178) > besides("NVIDIA H200", 139));
    assert_eq!(on("NVIDIA H100 80GB HBM3", Bytes::gib(79)).fits, Some(true));
    assert_eq!(on("NVIDIA T4", Bytes::gib(15)).fits, Some(false));
    let small = on("NVIDIA A10", Bytes::gib(22));
    assert!(unsure(&small, Bytes::gib(20), "NVIDIA A10").unwrap().contains("not sure to fit"));
}

#[test]
fn what_is_not_counted_is_named() {
    let warned = |engine: &str, more: &str| {
        let s = spec(&format!("model='/m'\nengine={engine}\n{more}"));
        of(&s.engine).warnings(&s).join("; ")
    };
    assert_eq!(warned("'vllm'", "args=['--dtype','bfloat16','--max-num-seqs','8']"), "");
    let many = warned(
        "'vllm'",
        "args=['--speculative_config={}','--quantization','fp8','--dtype','float32']",
    );
    assert!(
        many.contains("needs: --speculative-config, --quantization, --dtype float32 →"),
        "{many}"
    );
    // Who writes the memory has counted it.
    assert_eq!(warned("'vllm'", "memory='20GiB'\nargs=['--enable-lora']"), "");
    assert!(warned("'llamacpp'", "args=['-ngl','20','-md','/d']").contains(": -md, -ngl →"));
    assert_eq!(warned("'llamacpp'", "args=['-ngl','999']"), "");
    let command = "{command={run=['x','--port','{port}','--cpu-offload-gb','4'],metrics='sglang'}}";
    assert!(warned(command, "").contains(": --cpu-offload-gb →"));
}

#[test]
fn keys_and_values_of_llama_cpp_have_types_of_their_own() {
    let facts = crate::model::estimate::tests::facts(
        r#"{"model_type":"llama","torch_dtype":"bfloat16","hidden_size":1024,"num_hidden_layers":2,
        "num_attention_heads":8,"num_key_value_heads":8,"intermediate_size":2048,"vocab_size":1024,
        "max_position_embeddings":4096,"tie_word_embeddings":false}"#,
    );
    let cache = |args: &str| {
        let s = spec(&format!("model='/m'\nengine='llamacpp'\nargs=[{args}]"));
        of(&s.engine).memory(&s, &facts, shape(1)).kv_cache.0
    };
    let all = cache("");
    assert_eq!(cache("'-ctk','q8_0','-ctv','q8_0'"), all * 17 / 32);
    assert_eq!(cache("'-ctk','q8_0'"), u64::midpoint(all, all * 17 / 32));
    assert_eq!(cache("'-ctv','q8_0'"), cache("'-ctk','q8_0'"));
}

#[test]
fn vllm_in_stages_and_copies() {
    let command = |parallel: &str, gpu: usize| {
        let s = spec(&format!("model='/models/m'\nengine='vllm'\nparallel={parallel}"));
        line(&run(&s, Some(&facts(ModelFormat::Safetensors)), &gpus(gpu), false).unwrap())
    };
    insta::assert_snapshot!(command("[{tensor=8},{tensor=2,pipeline=2}]", 4), @"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={gpu_numbers} vllm serve /models/m/entry --served-model-name chat --host 0.0.0.0 --port 21000 --tensor-parallel-size 2 --pipeline-parallel-size 2");
    insta::assert_snapshot!(command("{tensor=2,pipeline=2,data=2}", 8), @"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={gpu_numbers} vllm serve /models/m/entry --served-model-name chat --host 0.0.0.0 --port 21000 --tensor-parallel-size 2 --pipeline-parallel-size 2 --data-parallel-size 2");
    // As many devices as the shape has, and not one group of them.
    let s = spec("model='/m'\nengine='vllm'\nparallel={tensor=2,pipeline=2}");
    let context = |devices: &[DeviceId], order: Option<&[usize]>, docker: bool| {
        let service = "chat".parse().unwrap();
        of(&s.engine).command(&RankContext {
            service: &service,
            spec: &s,
            facts: None,
            shape: s.parallel.shapes()[0],
            address: "0.0.0.0",
            port: 21_000,
            devices,
            order,
            release: ReleaseNumber(1),
            replica: 0,
            rank: 0,
            cores: None,
            docker,
        })
    };
    assert!(matches!(
        context(&gpus(2), None, false),
        Err(EngineError::Devices { wanted: 4, given: 2 })
    ));
    // A container counts its GPUs as the driver does: where groups lie across that, it is told their order.
    let visible = |order: &[usize], docker: bool| {
        context(&gpus(4), Some(order), docker).unwrap().env.remove("CUDA_VISIBLE_DEVICES")
    };
    assert_eq!(visible(&[0, 2, 1, 3], true).as_deref(), Some("0,2,1,3"));
    assert_eq!(visible(&[0, 1, 2, 3], true), None);
    assert_eq!(visible(&[0, 2, 1, 3], false).as_deref(), Some("{gpu_numbers}"));
}

#[test]
fn a_command_is_told_its_stages_and_copies() {
    let command = |parallel: &str, metrics: &str, words: &str| {
        spec(&format!(
            "model='/m'\nmemory='1GiB'\nparallel={parallel}\n[engine.command]\n{metrics}\
             run=['srv','--port','{{port}}',{words}]"
        ))
    };
    let all = "'--tp','{tensor}','--pp-size','{pipeline}','--dp-size','{data}'";
    let sglang = "metrics='sglang'\n";
    let s = command("{tensor=2,pipeline=2,data=2}", sglang, all);
    insta::assert_snapshot!(line(&run(&s, None, &gpus(8), false).unwrap()), @"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={gpu_numbers} srv --port 21000 --tp 2 --pp-size 2 --dp-size 2");
    let refused = |parallel: &str, metrics: &str, words: &str| {
        let s = command(parallel, metrics, words);
        let error = of(&s.engine).check(&s, None).unwrap_err();
        assert!(error.hint().is_some());
        error.to_string()
    };
    let untold = refused("{tensor=2,pipeline=2}", sglang, "'--tp','{tensor}'");
    assert_eq!(untold, "engine command: pipeline = 2 is asked for, and nothing in `run` says so");
    assert!(refused("{data=2}", "", "'x'").contains("data = 2 is asked for"));
    assert!(refused("[{tensor=2},{tensor=4}]", "", "'--tp','2'").contains("tensor = 2"));
    let inside = refused(
        "{tensor=4,data=2}",
        sglang,
        "'--tp','{tensor}','--dp-size','{data}','--enable-dp-attention'",
    );
    assert!(inside.contains("data = 2 with --enable-dp-attention"), "{inside}");
    for parallel in ["{tensor=2,pipeline=2}", "{data=2}"] {
        let metrics = "metrics='llamacpp'\n";
        assert!(refused(parallel, metrics, all).contains("with llama.cpp"), "{parallel}");
        let s = spec(&format!("model='/m'\nengine='llamacpp'\nparallel={parallel}"));
        let error = of(&s.engine).check(&s, None).unwrap_err();
        assert!(error.to_string().contains("with llama.cpp"), "{error}");
    }
    // One number may stand in the command as it is.
    let s = command("{tensor=2}", "", "'--tp','2'");
    assert!(of(&s.engine).check(&s, None).is_ok());
    // On host memory there are no devices to divide over.
    let s = spec("model='/m'\nengine='llamacpp'\ndevice='cpu'\nparallel={tensor=2}");
    assert!(of(&s.engine).check(&s, None).unwrap_err().to_string().contains("host memory"));
}

/// The rank that takes most: the stages at the ends have the embedding and the head.
#[test]
fn what_is_needed_is_what_the_largest_stage_takes() {
    let config = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":4096,
        "intermediate_size":14336,"num_hidden_layers":33,"num_attention_heads":32,"num_key_value_heads":8,
        "vocab_size":128256,"torch_dtype":"bfloat16","max_position_embeddings":8192}"#;
    let facts = crate::model::estimate::tests::facts(config);
    let needs = |engine: &str, parallel: &str| {
        let s = spec(&format!("model='/m'\n{engine}\nparallel={parallel}"));
        let engine = of(&s.engine);
        let shape = s.parallel.shapes()[0];
        let setup = engine.setup(&s, &facts, shape).unwrap();
        (engine.memory(&s, &facts, shape), predict(&facts, &setup), setup)
    };
    let vllm = "engine='vllm'";
    let (memory, prediction, _) = needs(vllm, "{tensor=2,pipeline=2}");
    assert_eq!(prediction.ranks.len(), 4);
    let weights: Vec<u64> = prediction.ranks.iter().map(|r| r.weights.value).collect();
    // 33 layers: the first stage has one more (vLLM), and both have a table of the vocabulary.
    assert!(weights[0] > weights[2] && weights[0] == weights[1], "{weights:?}");
    assert_eq!(memory.weights.0, weights[0]);
    // Copies have all of it each, and caches of their own.
    let (one, alone, _) = needs(vllm, "{tensor=2}");
    let (copies, beside, setup) = needs(vllm, "{tensor=2,data=2}");
    assert_eq!((copies.weights, copies.kv_cache), (one.weights, one.kv_cache));
    assert_eq!((beside.tokens, setup.gpus(&facts)), (alone.tokens, 4));
    // SGLang's, so started, have nothing in common: a copy is as one alone. Its last stage has what is left.
    let sglang = "engine={command={run=['x','--port','{port}','--tp','{tensor}','--pp','{pipeline}','--dp','{data}'],metrics='sglang'}}";
    let (_, prediction, setup) = needs(sglang, "{pipeline=2,data=2}");
    let layers: Vec<(u64, u64)> = prediction.ranks.iter().map(|r| r.layers).collect();
    assert_eq!((layers, setup.data), (vec![(0, 16), (16, 33)], 1));
}

#[test]
fn experts_are_spread_over_all_copies_of_vllm() {
    let config = r#"{"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe","hidden_size":4096,
        "intermediate_size":12288,"moe_intermediate_size":1536,"num_hidden_layers":2,"num_attention_heads":64,
        "num_key_value_heads":4,"head_dim":128,"num_experts":128,"num_experts_per_tok":8,"vocab_size":151936,
        "torch_dtype":"bfloat16"}"#;
    let facts = crate::model::estimate::tests::facts(config);
    let expert = |engine: &str, parallel: &str| {
        let s = spec(&format!("model='/m'\n{engine}\nparallel={parallel}"));
        of(&s.engine).setup(&s, &facts, s.parallel.shapes()[0]).unwrap().expert
    };
    let vllm = "engine='vllm'\nargs=['--enable-expert-parallel']";
    assert_eq!(expert(vllm, "{tensor=2,data=4}"), 8);
    assert_eq!(expert(vllm, "{tensor=2,pipeline=2}"), 2);
    assert_eq!(expert("engine='vllm'", "{tensor=2,data=4}"), 1);
    let by_hand = "engine={command={run=['x','--port','{port}','--tp','{tensor}','-dp','{data}','--enable-expert-parallel'],metrics='vllm'}}";
    assert_eq!(expert(by_hand, "{tensor=2,data=4}"), 8);
    let sglang = "engine={command={run=['x','--port','{port}','--tp','{tensor}','--dp','{data}','--ep-size','{tensor}'],metrics='sglang'}}";
    assert_eq!(expert(sglang, "{tensor=4,data=2}"), 4);
    let of = |engine: &str, parallel: &str| {
        let s = spec(&format!("model='/m'\n{engine}\nparallel={parallel}"));
        of(&s.engine).memory(&s, &facts, s.parallel.shapes()[0]).weights
    };
    // vLLM cuts or spreads experts over all copies; SGLang's copies have them all.
    assert!(of("engine='vllm'", "{tensor=2,data=4}") < of("engine='vllm'", "{tensor=2}"));
    assert_eq!(of(sglang, "{tensor=4,data=2}"), of(sglang, "{tensor=4}"));
}
