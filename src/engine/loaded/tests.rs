//! Lines as engines printed them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers
#![allow(clippy::unnecessary_wraps)] // as the fields have them
use super::*;

fn gib(n: f64) -> Option<Bytes> {
    Some(Bytes((n * (1u64 << 30) as f64) as u64))
}

fn mib(n: f64) -> Option<Bytes> {
    Some(Bytes((n * (1u64 << 20) as f64) as u64))
}

#[test]
fn vllm_of_today_on_two_ranks() {
    let log = "\
(Worker_TP0 pid=258) INFO 07-01 gpu_model_runner.py:4879] Model loading took 18.5500 GiB memory and 60.297843 seconds
(Worker_TP1 pid=259) INFO 07-01 gpu_model_runner.py:4879] Model loading took 18.5400 GiB memory and 60.311 seconds
(Worker_TP0 pid=258) INFO 07-01 gpu_worker.py:440] Available KV cache memory: 20.16 GiB
(Worker_TP1 pid=259) INFO 07-01 gpu_worker.py:440] Available KV cache memory: 20.21 GiB
(EngineCore_DP0 pid=201) INFO 07-01 kv_cache_utils.py:1708] GPU KV cache size: 132,128 tokens
(EngineCore_DP0 pid=201) INFO 07-01 kv_cache_utils.py:1713] Maximum concurrency for 8,192 tokens per request: 16.13x
(Worker_TP0 pid=258) INFO 07-01 gpu_model_runner.py:5001] Graph capturing finished in 20 secs, took 1.22 GiB
INFO:     Application startup complete.
";
    assert_eq!(
        vllm(log),
        Loaded {
            weights: gib(18.55),
            cache: gib(20.16),
            tokens: Some(132_128),
            graphs: gib(1.22),
            ..Loaded::default()
        }
    );
    let newest = "INFO kv_cache_utils.py:2240] GPU KV cache size: 123,456 tokens, Maximum concurrency for 4,096 tokens per request: 30.14x";
    assert_eq!(vllm(newest).tokens, Some(123_456));
}

#[test]
fn vllm_says_where_its_share_went() {
    let log = "INFO 11-20 [gpu_worker.py:391] Free memory on device (78.6/79.19 GiB) on startup. Desired GPU memory utilization is (0.9, 71.27 GiB). Actual usage is 14.99 GiB for weight, 2.15 GiB for peak activation, 0.21 GiB for non-torch memory, and 0.51 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=5` to fit";
    let loaded = vllm(log);
    assert_eq!((loaded.activation, loaded.graphs), (gib(2.15), gib(0.51)));
    assert!(!loaded.refused);
}

#[test]
fn vllm_before_its_first_version_of_the_engine() {
    let log = "\
INFO 01-10 model_runner.py:1099] Loading model weights took 14.2717 GB
INFO 01-10 worker.py:241] the current vLLM instance can use total_gpu_memory (31.74GiB) x gpu_memory_utilization (0.90) = 28.56GiB
INFO 01-10 worker.py:241] model weights take 14.27GiB; non_torch_memory takes 0.09GiB; PyTorch activation peak memory takes 1.40GiB; the rest of the memory reserved for KV Cache is 12.80GiB.
INFO 01-10 gpu_executor.py:76] # GPU blocks: 14984, # CPU blocks: 4681
";
    assert_eq!(
        vllm(log),
        Loaded {
            weights: gib(14.2717),
            cache: gib(12.80),
            tokens: Some(239_744),
            activation: gib(1.40),
            ..Loaded::default()
        }
    );
}

#[test]
fn vllm_refuses() {
    let log = "\
INFO gpu_worker.py:298] Available KV cache memory: 1.71 GiB
ERROR core.py:708] ValueError: To serve at least one request with the models's max seq len (131072), (4.54 GiB KV cache is needed, which is larger than the available KV cache memory (1.71 GiB). Based on the available memory, the estimated maximum model length is 49360.";
    let loaded = vllm(log);
    assert!(loaded.refused);
    assert_eq!(loaded.cache, gib(1.71));
    let nothing = vllm(
        "Available KV cache memory: -2.14 GiB\nValueError: No available memory for the cache blocks. Try",
    );
    assert!(nothing.refused);
    assert_eq!(nothing.cache, Some(Bytes::ZERO));
}

#[test]
fn sglang_with_one_pool_with_two_and_with_a_latent_one() {
    let log = "\
[2025-03-25 16:37:06 TP0] Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=63.48 GB, mem usage=15.11 GB.
[2025-03-25 16:37:06 TP0] KV Cache is allocated. #tokens: 442750, K size: 27.02 GB, V size: 27.02 GB
[2025-03-25 16:37:06 TP0] Memory pool end. avail mem=8.10 GB
[2025-03-25 16:37:09 TP0] Capture cuda graph end. Time elapsed: 3.51 s. mem usage=0.57 GB. avail mem=7.53 GB.
[2025-03-25 16:37:09 TP0] max_total_num_tokens=442750, chunked_prefill_size=8192, max_prefill_tokens=16384, max_running_requests=4096, context_len=131072
";
    let loaded = sglang(log);
    assert_eq!((loaded.weights, loaded.graphs), (gib(15.11), gib(0.57)));
    assert_eq!(loaded.tokens, Some(442_750));
    let both = loaded.cache.unwrap().0.abs_diff(gib(54.04).unwrap().0);
    assert!(both < 10, "{loaded:?}");
    let latent = "[DP0 TP0 EP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 524288, KV size: 17.16 GB";
    assert_eq!((sglang(latent).cache, sglang(latent).tokens), (gib(17.16), Some(524_288)));
    let windows = "\
KV Cache is allocated. #tokens: 100, K size: 1.00 GB, V size: 1.00 GB
KV Cache is allocated. #tokens: 125, K size: 4.00 GB, V size: 4.00 GB
SWAKVPool mem usage: 10.00 GB, swa size: 100, full size: 125";
    assert_eq!(sglang(windows).cache, gib(10.0));
    assert!(sglang("RuntimeError: Not enough memory. Please try to increase").refused);
}

#[test]
fn sglang_tells_of_its_states_apart() {
    let log = "\
[2025-12-01 10:00:00 TP0] Load weight end. type=Qwen3NextForCausalLM, dtype=torch.bfloat16, avail mem=38.00 GB, mem usage=40.00 GB.
[2025-12-01 10:00:01 TP0] Mamba Cache is allocated. max_mamba_cache_size: 83, conv_state size: 0.12GB, ssm_state size: 6.46GB
[2025-12-01 10:00:01 TP0] KV Cache is allocated. #tokens: 165564, K size: 3.65 GB, V size: 3.65 GB
[2025-12-01 10:00:09 TP0] max_total_num_tokens=165564, chunked_prefill_size=8192, context_len=262144
";
    let loaded = sglang(log);
    assert_eq!(loaded.tokens, Some(165_564));
    let near = |found: Option<Bytes>, expected: f64| {
        found.unwrap().0.abs_diff(gib(expected).unwrap().0) < 10
    };
    assert!(near(loaded.cache, 7.30) && near(loaded.states, 6.58), "{loaded:?}");
    assert_eq!(sglang("KV Cache is allocated. #tokens: 1, KV size: 1.00 GB").states, None);
}

#[test]
fn llama_cpp_on_the_processor() {
    // llama.cpp 0c1e570 with LLAMA_ARG_LOG_VERBOSITY=4.
    let log = "\
0.00.040.040 I print_info: n_ctx_train           = 4096
0.00.040.192 I load_tensors:   CPU_Mapped model buffer size =     0.69 MiB
0.00.040.387 I llama_context: n_ctx                 = 4096
0.00.040.387 I llama_context: n_ctx_seq             = 4096
0.00.040.393 I llama_context:        CPU  output buffer size =     0.00 MiB
0.00.040.634 I llama_kv_cache:        CPU KV buffer size =     2.00 MiB
0.00.041.387 I llama_kv_cache: size =    2.00 MiB (  4096 cells,   2 layers,  4/1 seqs), K (f16):    1.00 MiB, V (f16):    1.00 MiB
0.00.045.997 I sched_reserve:        CPU compute buffer size =     6.01 MiB
";
    assert_eq!(
        llama_cpp(log),
        Loaded {
            weights: mib(0.69),
            cache: mib(2.0),
            tokens: Some(4_096),
            activation: mib(6.01),
            ..Loaded::default()
        }
    );
}

#[test]
fn llama_cpp_on_several_devices_tells_of_the_fullest() {
    let log = "\
load_tensors:   CPU_Mapped model buffer size =   682.03 MiB
load_tensors: RPC0[192.168.1.60:50052] model buffer size =  6011.49 MiB
load_tensors:      Vulkan0 model buffer size =  4615.84 MiB
load_tensors:      Vulkan1 model buffer size =  5035.55 MiB
llama_kv_cache: RPC0[192.168.1.60:50052] KV buffer size =  2304.00 MiB
llama_kv_cache:    Vulkan0 KV buffer size =  1380.00 MiB
llama_kv_cache:    Vulkan1 KV buffer size =  1020.00 MiB
llama_memory_recurrent: RPC0[192.168.1.60:50052] RS buffer size =    96.00 MiB
";
    let loaded = llama_cpp(log);
    assert_eq!((loaded.weights, loaded.cache), (mib(6011.49), mib(2400.0)));
    let old = "\
llm_load_tensors:        CPU buffer size =  1640.62 MiB
llm_load_tensors:      CUDA0 buffer size =  5434.38 MiB
llama_kv_cache_init:      CUDA0 KV buffer size =  1536.00 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   672.01 MiB";
    let loaded = llama_cpp(old);
    assert_eq!(loaded.weights, mib(5434.38));
    assert_eq!((loaded.cache, loaded.activation), (mib(1536.0), mib(672.01)));
    assert!(llama_cpp("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9 MiB on device 0: cudaMalloc failed: out of memory").refused);
}

#[test]
fn an_unknown_engine_is_read_by_whoever_understands_it() {
    assert_eq!(any("Model loading took 1.12 GiB memory", None).weights, gib(1.12));
    assert!(any("Load weight end. type=X, mem usage=2.00 GB.", None).weights.is_some());
    assert!(any("load_tensors: CUDA0 model buffer size = 5.0 MiB", None).weights.is_some());
    assert!(any("a quiet engine", None).is_empty());
    assert!(any("ValueError: No available memory for the cache blocks. Try", None).refused);
}

#[test]
fn nonsense_is_left_out() {
    for line in [
        "Model loading took GiB",
        "Model loading took 1e400 GiB memory",
        "Model loading took 99999999999999999999 GiB memory",
        "Model loading took 12 parsecs",
        "Model loading took ..,, GiB",
        "GPU KV cache size: 99999999999999999999999 tokens",
        "GPU KV cache size: -1 tokens",
        "GPU KV cache size: tokens",
    ] {
        assert!(vllm(line).is_empty(), "{line}: {:?}", vllm(line));
    }
    let long = format!("{}Model loading took 1.0 GiB memory", "x".repeat(MAX_LINE));
    assert!(vllm(&long).is_empty());
    let late = format!("{}Model loading took 1.0 GiB memory", "é\n".repeat(MAX_LOG));
    assert!(vllm(&late).is_empty());
    let many: String =
        (0..100_000).map(|n| format!("load_tensors: D{n} model buffer size = 1 MiB\n")).collect();
    assert_eq!(llama_cpp(&many).weights, mib(1.0));
}

/// Until 0.7 vLLM counted blocks, whose size it printed among its arguments.
#[test]
fn blocks_have_as_many_tokens_as_they_were_asked_to() {
    let blocks = "INFO 01-10 gpu_executor.py:76] # GPU blocks: 14984, # CPU blocks: 4681\n";
    assert_eq!(vllm(blocks).tokens, Some(14_984 * 16));
    assert_eq!(vllm_in_blocks(blocks, Some(32)).tokens, Some(14_984 * 32));
    assert_eq!(vllm_in_blocks(blocks, Some(0)).tokens, Some(14_984 * 16));
    assert_eq!(vllm_in_blocks(blocks, Some(u64::MAX)).tokens, Some(14_984 << 20));
    let arguments = format!(
        "INFO 01-10 api_server.py:651] args: Namespace(host=None, {}pipeline_parallel_size=1, block_size=8, seed=0)\n{blocks}",
        "x=None, ".repeat(400)
    );
    assert_eq!(vllm(&arguments).tokens, Some(14_984 * 8));
    let none = format!("args: Namespace(port=1, block_size=None, seed=0)\n{blocks}");
    assert_eq!(vllm(&none).tokens, Some(14_984 * 16));
}
