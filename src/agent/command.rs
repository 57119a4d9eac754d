//! The command line of the far end. People do not type it; the links do.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::io::AsyncReadExt as _;

use super::serve::{AgentConfig, serve};
use super::{dial, gpu, login_user, supervise};
use crate::base::{DeckId, Epoch};
use crate::wire::DialTarget;

/// The far end of gpudeck: runs on a host and speaks JSON lines.
#[derive(Debug, Parser)]
#[command(name = "gpudeck agent", version)]
struct Arguments {
    /// Where state is kept on this host.
    #[arg(long, global = true)]
    state_dir: Option<PathBuf>,
    /// Requests that come before those of standard input, a line each: who starts it saves a round trip.
    #[arg(long)]
    first: Option<String>,
    #[command(subcommand)]
    form: Option<Form>,
}

#[derive(Debug, Subcommand)]
enum Form {
    /// Splice standard input and output with a socket of this host.
    Dial {
        /// Hold the host's lock for this deck while the stream lives.
        #[arg(long, requires = "epoch")]
        deck: Option<DeckId>,
        /// The epoch that was granted.
        #[arg(long, requires = "deck")]
        epoch: Option<u64>,
        /// `unix:PATH` or `tcp:PORT`.
        #[arg(value_parser = dial::parse_target)]
        target: DialTarget,
    },
    /// Start and watch over the engine process of one rank.
    Supervise {
        /// The rank's directory.
        rank_dir: PathBuf,
    },
    /// Become a user, then a program: what a supervisor that is root starts an engine with.
    AsUser {
        /// The user's number.
        uid: u32,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Read the GPUs through their drivers, a line for a line.
    Sample {
        /// The NVML library.
        #[arg(long)]
        library: Option<PathBuf>,
        /// Where AMD's driver has its files.
        #[arg(long, default_value = "/sys")]
        sysfs: PathBuf,
    },
}

/// `gpudeck agent …`: the far end.
pub fn main(args: &[String]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args.iter().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let state_dir = || {
        arguments.state_dir.clone().ok_or_else(|| {
            eprintln!("gpudeck: --state-dir is needed");
            ExitCode::from(2)
        })
    };
    match arguments.form {
        None => {
            let first = arguments.first.clone().unwrap_or_default();
            state_dir().map_or_else(|code| code, |dir| serve_stdio(dir, first))
        }
        Some(Form::Sample { library, sysfs }) => gpu::child::main(library, sysfs),
        Some(Form::AsUser { uid, program }) => login_user::main(uid, &program),
        Some(Form::Supervise { rank_dir }) => supervise::main(&rank_dir),
        Some(Form::Dial { deck, epoch, target }) => match (deck.zip(epoch), state_dir()) {
            (None, _) => dial::main(std::path::Path::new("/"), None, &target),
            (Some((deck, epoch)), Ok(dir)) => dial::main(&dir, Some((deck, Epoch(epoch))), &target),
            (Some(_), Err(code)) => code,
        },
    }
}

fn serve_stdio(state_dir: PathBuf, first: String) -> ExitCode {
    let served = (|| -> Result<(), Box<dyn std::error::Error>> {
        let config = AgentConfig::from_env(state_dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(32)
            .build()?;
        let requests = std::io::Cursor::new(first.into_bytes()).chain(tokio::io::stdin());
        let result = runtime.block_on(serve(requests, tokio::io::stdout(), config));
        // Standard input is read on a thread that only ends with the process.
        runtime.shutdown_background();
        Ok(result?)
    })();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpudeck agent: {}", crate::base::text::clean(&error.to_string(), 500));
            ExitCode::FAILURE
        }
    }
}
