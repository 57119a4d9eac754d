//! `gpudeck agent sample`: the child process in which drivers are asked. A line on its standard input
//! asks for a reading ([`Want`] is its letter), a reading is one line on its standard output; a line
//! of its own accord says that something has happened to a GPU. It ends with its input, or with its
//! parent, or when it is killed because a call does not come back.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::amd::AmdSource;
use super::nvml::{self, NvmlSource};
use super::roll::Roll;
use super::xids::XidTable;
use super::{DriverVersions, GpuSource, Want, wear};
use crate::wire::{GpuVendor, Gpus};

/// What the child says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildLine {
    /// The answer to a line on its input.
    Sample(Box<SampleLine>),
    /// Something has happened to a GPU: read again.
    Changed {
        /// All Xid errors that are known now.
        #[serde(default)]
        xids: XidTable,
    },
    /// A look at what no event tells of begins or has ended: one that does not end is a hung driver, also where
    /// nobody asks for a reading.
    Looking {
        /// Whose GPUs are looked at.
        vendor: GpuVendor,
        /// It begins.
        begins: bool,
    },
}

/// A reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// The reading.
    pub gpus: Gpus,
    /// Versions of the driver.
    pub versions: DriverVersions,
    /// Why other GPUs cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What an earlier child has found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// Xid errors, which a driver tells once.
    pub xids: XidTable,
    /// The GPUs that were there.
    pub gpus: Roll,
}

/// The line that tells the child what is known already. It is not answered.
pub fn known_line(before: &Before) -> Vec<u8> {
    let mut line = vec![KNOWN];
    line.extend(serde_json::to_vec(before).unwrap_or_default());
    line.push(b'\n');
    line
}

/// How that line begins.
const KNOWN: u8 = b'x';

/// The line that asks for a reading.
pub const fn ask_line(want: Want) -> &'static [u8] {
    match want {
        Want::Due => b"d\n",
        Want::LookedAt => b"l\n",
        Want::Fresh => b"f\n",
    }
}

fn want_of(line: &str) -> Want {
    match line {
        "l" => Want::LookedAt,
        "f" => Want::Fresh,
        _ => Want::Due,
    }
}

/// All drivers of a host.
#[derive(Debug)]
pub struct Drivers {
    nvidia: NvmlSource,
    amd: AmdSource,
    trouble: Option<String>,
}

/// Two makers' GPUs as one list; with why those of NVIDIA are not in it, if their driver is there.
fn together(nvidia: Gpus, amd: Gpus) -> (Gpus, Option<String>) {
    match (nvidia, amd) {
        (Gpus::Some(mut gpus), Gpus::Some(more)) => {
            let first = gpus.iter().map(|gpu| gpu.index + 1).max().unwrap_or(0);
            gpus.extend(more.into_iter().map(|mut gpu| {
                gpu.index += first;
                gpu
            }));
            (Gpus::Some(gpus), None)
        }
        (Gpus::None { why }, Gpus::Some(gpus)) => {
            let trouble = (why != nvml::NO_LIBRARY && why != nvml::NO_GPU).then_some(why);
            (Gpus::Some(gpus), trouble)
        }
        (Gpus::Some(gpus), _) | (_, Gpus::Some(gpus)) => (Gpus::Some(gpus), None),
        (nvidia, _) => (nvidia, None),
    }
}

impl Drivers {
    /// NVIDIA's library at `library` or where it is installed, the kernel's files below `sysfs`.
    pub fn new(library: Option<PathBuf>, sysfs: PathBuf) -> Self {
        Self {
            nvidia: NvmlSource::new(library, sysfs.clone()),
            amd: AmdSource::new(sysfs),
            trouble: None,
        }
    }
}

impl GpuSource for Drivers {
    fn read(&mut self, want: Want) -> Gpus {
        let nvidia = self.nvidia.read(want);
        let (gpus, trouble) = together(nvidia, self.amd.read(want));
        self.trouble = trouble;
        gpus
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.clone()
    }

    fn versions(&self) -> DriverVersions {
        let nvidia = self.nvidia.versions();
        if nvidia.driver.is_some() { nvidia } else { self.amd.versions() }
    }
}

fn say(line: &ChildLine) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}

fn looking(vendor: GpuVendor, begins: bool) {
    // Nobody reads any more: the loop below finds that out as well.
    drop(say(&ChildLine::Looking { vendor, begins }));
}

/// Runs the child.
pub fn main(library: Option<PathBuf>, sysfs: PathBuf) -> ExitCode {
    // A child that hangs in the driver does not notice that its input has ended.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let mut drivers = Drivers::new(library, sysfs.clone());
    // Nobody reads any more: the loop below finds that out as well.
    drivers.nvidia = drivers.nvidia.watching(|xids| drop(say(&ChildLine::Changed { xids })));
    let mut looks = false;
    for asked in io::stdin().lock().lines() {
        let Ok(asked) = asked else { break };
        if let Some(known) = asked.strip_prefix(char::from(KNOWN)) {
            let before: Before = serde_json::from_str(known).unwrap_or_default();
            drivers.nvidia.learn(&before.xids);
            drivers.nvidia.remember(&before.gpus);
            drivers.amd.remember(&before.gpus);
            // An agent, which lives as long as this process does.
            if !std::mem::replace(&mut looks, true) {
                drivers.nvidia.look(|begins| looking(GpuVendor::Nvidia, begins));
                let changed = || drop(say(&ChildLine::Changed { xids: XidTable::default() }));
                wear::watch_amd(sysfs.clone(), changed, |begins| looking(GpuVendor::Amd, begins));
            }
            continue;
        }
        let gpus = drivers.read(want_of(&asked));
        let (versions, trouble) = (drivers.versions(), drivers.trouble());
        let line = SampleLine { gpus, versions, trouble };
        if say(&ChildLine::Sample(Box::new(line))).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Gpu;

    #[test]
    fn a_display_gpu_of_another_maker_does_not_hide_why_nvidias_are_missing() {
        let none = |why: &str| Gpus::None { why: why.to_owned() };
        let amd = || Gpus::Some(vec![Gpu::default()]);
        let mismatch = "Driver/library version mismatch";
        assert_eq!(together(none(mismatch), amd()), (amd(), Some(mismatch.to_owned())));
        // Where there is nothing of NVIDIA, nothing is missing.
        assert_eq!(together(none(nvml::NO_LIBRARY), amd()), (amd(), None));
        assert_eq!(together(none(nvml::NO_GPU), amd()), (amd(), None));
        assert_eq!(together(none("a"), none("b")), (none("a"), None));
        let (both, trouble) = together(amd(), amd());
        assert_eq!((both.list().len(), trouble), (2, None));
    }
}
