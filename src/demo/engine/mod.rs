//! A simulated OpenAI-compatible engine: a real process with a port, a load time and the metrics
//! of vLLM, and no model. It says SIMULATED in its log and in every answer.

mod api;
mod metrics;

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

use crate::base::Bytes;

/// Where GPU allocations are told to the simulated NVML: a directory.
pub const ALLOCATIONS_ENV: &str = "GPUDECK_SIM_ALLOCATIONS";

/// Plays an inference engine for demonstrations and tests. Generates filler words. Of an option
/// given twice the last counts. SIGUSR1: everything is answered with a 503 from now on, as by an engine
/// whose core has died; the next one ends that.
#[derive(Clone, Debug, Parser)]
#[command(name = "gpudeck sim-engine", args_override_self = true)]
pub(crate) struct Args {
    /// Port to serve on.
    #[arg(long)]
    port: u16,
    /// Address to serve on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Name of the model that is played.
    #[arg(long, default_value = "simulated")]
    model: String,
    /// Time from the start until requests are served.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    load_time: Duration,
    /// Time from a request to its first token.
    #[arg(long, default_value = "80ms", value_parser = humantime::parse_duration)]
    first_token: Duration,
    /// Time between two tokens.
    #[arg(long, default_value = "15ms", value_parser = humantime::parse_duration)]
    token_time: Duration,
    /// Tokens of an answer that asks for no number.
    #[arg(long, default_value_t = 16)]
    tokens: u32,
    /// Share of requests answered with a 500, 0 to 1; evenly spread, not by chance.
    #[arg(long, default_value_t = 0.0, value_parser = parse_share)]
    error_rate: f64,
    /// End with an error after the load time.
    #[arg(long)]
    fail_load: bool,
    /// GPU memory to take on each of `CUDA_VISIBLE_DEVICES`.
    #[arg(long)]
    gpu_memory: Option<Bytes>,
    /// Requests generated at once; more wait.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_concurrency: u32,
    /// Chooses the filler words.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Be healthy by all appearances and fail every generation.
    #[arg(long)]
    lie: bool,
    /// Answer only to who has the key in the first line of this file, but for `/health`.
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// The same with the key in this variable.
    #[arg(long, conflicts_with = "api_key_file")]
    api_key_variable: Option<String>,
    /// After SIGTERM, how long requests in flight may take.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    shutdown_timeout: Duration,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("use 0.0 to 1.0".to_owned()) }
}

/// `gpudeck sim-engine …`; `args` are the process's own, so the words from the third on are ours.
pub fn main(args: &[String]) -> ExitCode {
    let words =
        std::iter::once("gpudeck sim-engine").chain(args.iter().skip(2).map(String::as_str));
    let args = match Args::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log(&format!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(code) => code,
        Err(error) => {
            log(&format!("ERROR {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A line of the engine's log. A reader that is gone is no reason to end.
fn log(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "SIMULATED engine: {line}");
    let _ = out.flush();
}

async fn run(args: Args) -> io::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut turned = signal(SignalKind::user_defined1())?;
    log(&format!(
        "no model, filler words only; playing {} (pid {})",
        args.model,
        std::process::id()
    ));
    // The port is taken at once and served after the load, as vLLM does it: connections are
    // refused until then, and a port in use is known before minutes of loading.
    let socket = bind(&args)?;
    if let Some(memory) = args.gpu_memory {
        allocate(memory)?;
    }
    log(&format!("loading weights (takes {})", humantime::format_duration(args.load_time)));
    tokio::select! {
        () = tokio::time::sleep(args.load_time) => {}
        _ = terminate.recv() => return Ok(stopped("while loading")),
        _ = interrupt.recv() => return Ok(stopped("while loading")),
    }
    if args.fail_load {
        log("ERROR loading failed: shard 3 of 4: header too large: file is truncated");
        log("engine core initialization failed, see the error above");
        return Ok(ExitCode::FAILURE);
    }
    let listener: TcpListener = socket.listen(1024)?;
    log(&format!("serving on http://{}:{}", args.address, args.port));
    let grace = args.shutdown_timeout;
    let key = key_of(&args)?;
    if key.is_some() {
        log("answering only to who has the key");
    }
    let state = Arc::new(api::Engine::new(args, key));
    let (told, mut ended) = tokio::sync::watch::channel(false);
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log("stopping: no new requests");
        let _ = told.send(true);
    };
    let overdue = async move {
        // An error is the end of the server itself, which the other branch sees.
        if ended.wait_for(|told| *told).await.is_ok() {
            tokio::time::sleep(grace).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let patient = Arc::clone(&state);
    let turns = async move {
        while turned.recv().await.is_some() {
            let how =
                if patient.turn() { "everything is answered with a 503" } else { "well again" };
            log(how);
        }
        std::future::pending::<()>().await;
    };
    let server =
        axum::serve(listener, api::router(Arc::clone(&state))).with_graceful_shutdown(shutdown);
    tokio::select! {
        result = async { server.await } => {
            result?;
            Ok(stopped("all requests finished"))
        }
        () = turns => Ok(stopped("no signals come any more")),
        () = overdue => Ok(stopped("requests were cut at the end of the grace")),
    }
}

/// What clients must show, if anything.
fn key_of(args: &Args) -> io::Result<Option<String>> {
    let (text, place) = match (&args.api_key_file, &args.api_key_variable) {
        (Some(file), _) => (std::fs::read_to_string(file)?, file.display().to_string()),
        (None, Some(name)) => (std::env::var(name).unwrap_or_default(), name.clone()),
        (None, None) => return Ok(None),
    };
    match text.lines().next().filter(|key| !key.is_empty()) {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(io::Error::other(format!("no key in {place}"))),
    }
}

fn stopped(why: &str) -> ExitCode {
    log(&format!("stopped ({why})"));
    ExitCode::SUCCESS
}

fn bind(args: &Args) -> io::Result<TcpSocket> {
    let socket = if args.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind((args.address, args.port).into()).map_err(|e| {
        io::Error::new(e.kind(), format!("cannot bind {}:{}: {e}", args.address, args.port))
    })?;
    Ok(socket)
}

/// Tells the simulated NVML what this process holds. Never taken back here: the memory is free
/// when the process is gone, however it went.
fn allocate(memory: Bytes) -> io::Result<()> {
    let Some(directory) = std::env::var_os(ALLOCATIONS_ENV).map(PathBuf::from) else {
        log(&format!("{ALLOCATIONS_ENV} is not set: {memory} of GPU memory are not simulated"));
        return Ok(());
    };
    let devices = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let pid = std::process::id();
    let held: Vec<serde_json::Value> = devices
        .split(',')
        .map(str::trim)
        .filter(|uuid| !uuid.is_empty())
        .map(|uuid| {
            serde_json::json!({ "pid": pid, "gpu": uuid, "bytes": memory.0, "name": "sim-engine" })
        })
        .collect();
    log(&format!("taking {memory} on each of {} GPUs", held.len()));
    let text = serde_json::Value::from(held).to_string();
    write_whole(&directory.join(format!("{pid}.json")), &text)
}

/// Written beside and renamed, so that a reader sees all of it or nothing.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}
