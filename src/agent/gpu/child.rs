//! `gpudeck agent sample`: the child process in which NVML runs. Every line on its standard input
//! asks for a reading, every reading is one line on its standard output. It ends with its input, or
//! with its parent, or when it is killed because a call does not come back.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::nvml::NvmlSource;
use super::{DriverVersions, GpuSource};
use crate::wire::Gpus;

/// One answer of the child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// The reading.
    pub gpus: Gpus,
    /// Versions of the driver.
    pub versions: DriverVersions,
}

/// Runs the child.
pub fn main(library: Option<PathBuf>) -> ExitCode {
    // A child that hangs in the driver does not notice that its input has ended.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let mut source = NvmlSource::new(library);
    let mut out = io::stdout().lock();
    for asked in io::stdin().lock().lines() {
        if asked.is_err() {
            break;
        }
        let gpus = source.read();
        let line = SampleLine { gpus, versions: source.versions() };
        let Ok(mut text) = serde_json::to_vec(&line) else { return ExitCode::FAILURE };
        text.push(b'\n');
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}
