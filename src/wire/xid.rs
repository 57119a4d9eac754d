//! What Xid errors mean. The numbers and their causes are those of NVIDIA's "Xid Errors" catalogue.

use super::Xid;

/// Whose fault an Xid error is, for what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// A program's own: the GPU is good.
    Program,
    /// The GPU should be reset when its work is drained.
    Reset,
    /// The GPU needs a look: hardware, power, cabling.
    Hardware,
    /// Worth knowing, nothing is wrong yet.
    Notice,
}

/// What an Xid number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// In a few words.
    pub words: &'static str,
    /// Whose fault.
    pub blame: Blame,
}

impl Meaning {
    /// The GPU should not be trusted with new work.
    pub const fn degrades(self) -> bool {
        matches!(self.blame, Blame::Reset | Blame::Hardware)
    }

    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        match self.blame {
            Blame::Program => "look at the program's log; the GPU itself is good",
            Blame::Reset => {
                "drain the GPU and reboot the host, or reset it (nvidia-smi --gpu-reset) and remove xids.json from the agent's directory"
            }
            Blame::Hardware => {
                "drain the host; look at the GPU, its power and its seat; run nvidia-bug-report.sh"
            }
            Blame::Notice => "nothing to do now; watch whether it comes again",
        }
    }
}

/// Looks up an Xid number. Numbers that are not in the table are taken for notices, so that an
/// unknown one never empties a host.
pub const fn meaning(code: u64) -> Meaning {
    let (words, blame) = match code {
        8 => ("a kernel ran into the time limit", Blame::Program),
        13 => ("graphics engine exception", Blame::Program),
        31 => ("illegal memory access by a program", Blame::Program),
        32 => ("invalid or corrupted push buffer", Blame::Program),
        43 => ("a program was stopped after its own error", Blame::Program),
        45 => ("a program was ended while it ran on the GPU", Blame::Program),
        68 => ("video processor exception", Blame::Program),
        38 => ("driver firmware error", Blame::Reset),
        46 => ("the GPU stopped processing", Blame::Reset),
        48 => ("uncorrectable memory error", Blame::Reset),
        56 => ("display engine error", Blame::Reset),
        57 | 58 => ("memory interface error", Blame::Hardware),
        61 | 62 => ("internal micro-controller halted", Blame::Reset),
        63 => ("a memory page or row was taken out of use", Blame::Notice),
        64 => ("a memory page or row could not be taken out of use", Blame::Hardware),
        69 => ("graphics engine class error", Blame::Program),
        74 => ("NVLink error", Blame::Hardware),
        78 => ("vGPU start error", Blame::Reset),
        79 => ("the GPU has fallen off the bus", Blame::Hardware),
        92 => ("many corrected memory errors", Blame::Notice),
        94 => ("contained memory error: one program was ended", Blame::Reset),
        95 => ("uncontained memory error", Blame::Reset),
        109 => ("context switch ran into the time limit", Blame::Reset),
        110 => ("security fault", Blame::Hardware),
        119 | 120 => ("the GPU's system processor (GSP) does not answer", Blame::Reset),
        121 => ("link to the processor is corrected again and again", Blame::Notice),
        122 | 123 => ("the GPU's flash memory cannot be read", Blame::Hardware),
        136 => ("link training failed", Blame::Hardware),
        137 => ("NVLink fault caused by a program", Blame::Program),
        140 => ("unrecovered memory error", Blame::Reset),
        143 => ("the GPU failed to start", Blame::Reset),
        144..=150 => ("NVLink error", Blame::Hardware),
        151 | 152 => ("key rotation error", Blame::Reset),
        154 => ("the GPU asks for a recovery action", Blame::Reset),
        _ => ("an error that gpudeck does not know", Blame::Notice),
    };
    Meaning { words, blame }
}

/// How much an Xid error says against a GPU, for comparing: 0 nothing, 1 it should be reset, 2 it needs
/// a look, 3 it has fallen off the bus.
pub const fn gravity(code: u64) -> u8 {
    match meaning(code).blame {
        _ if code == 79 => 3,
        Blame::Hardware => 2,
        Blame::Reset => 1,
        Blame::Program | Blame::Notice => 0,
    }
}

/// The graver of two; the first of two that are equal, because what follows is mostly its
/// consequence. None: neither degrades the GPU.
pub fn graver(before: Option<Xid>, after: Option<Xid>) -> Option<Xid> {
    let weight = |xid: &Option<Xid>| xid.map_or(0, |x| gravity(x.code));
    let graver = if weight(&after) > weight(&before) { after } else { before };
    graver.filter(|x| gravity(x.code) > 0)
}

/// `Xid 79: the GPU has fallen off the bus`.
pub fn describe(code: u64) -> String {
    format!("Xid {code}: {}", meaning(code).words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_fault_does_not_degrade_a_gpu() {
        assert!(!meaning(31).degrades() && !meaning(13).degrades());
        assert!(meaning(79).degrades() && meaning(48).degrades() && meaning(74).degrades());
        assert!(!meaning(9_999).degrades(), "an unknown number empties no host");
        assert_eq!(describe(79), "Xid 79: the GPU has fallen off the bus");
    }

    #[test]
    fn the_gravest_stays() {
        let gravest = |codes: &[u64]| {
            let xids = codes.iter().map(|code| Xid { code: *code, monotonic_ms: 1, count: 1 });
            xids.fold(None, |grave, xid| graver(grave, Some(xid))).map(|x| x.code)
        };
        assert_eq!(gravest(&[48, 45]), Some(48));
        assert_eq!(gravest(&[79, 45]), Some(79));
        assert_eq!(gravest(&[119, 154, 45]), Some(119));
        assert_eq!(gravest(&[48, 74, 79, 74, 63]), Some(79));
        assert_eq!(gravest(&[13, 45, 63]), None);
    }
}
