//! The gpudeck binary: parses the command line and picks a door.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    // The far end and the simulated engine are other programs that share this binary.
    match args.get(1).map(String::as_str) {
        Some("agent") => gpudeck::agent::main(&args),
        Some("sim-engine") => gpudeck::demo::engine::main(&args),
        _ => gpudeck::cli::main(&args),
    }
}
