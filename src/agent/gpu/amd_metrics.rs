//! The table `gpu_metrics` of AMD's driver: why clocks are lowered, and the traffic over XGMI and PCI Express.
//!
//! Layouts are those of the kernel's `drivers/gpu/drm/amd/include/kgd_pp_interface.h` (`gpu_metrics_v1_0` to
//! `gpu_metrics_v1_8`: little endian, naturally aligned, a size and a revision before everything), the bits of
//! `indep_throttle_status` those of `drivers/gpu/drm/amd/pm/swsmu/inc/amdgpu_smu.h`. Other revisions (processors with
//! graphics have 2 and 3) tell nothing here, and the driver fills what it does not know with ones.

use std::time::Instant;

use smol_str::SmolStr;

use crate::wire::Gpu;

/// Most of the file that is read: what is of use lies in its first 300 bytes.
pub const MOST: u64 = 4 << 10;

/// Links in a table (`NUM_XGMI_LINKS`), eight bytes each way for each.
const LINKS: usize = 8;

/// Clocks that were lowered for at least this part of the time between two tables are lowered.
const PART: u64 = 10;

/// Over fewer ticks than this a part of the time says nothing: one tick would be a tenth of ten.
const LEAST_TICKS: u32 = 50;

/// Where a revision has what; bytes from the table's beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Layout {
    /// `indep_throttle_status`: bits that mean the same on all GPUs.
    independent: Option<usize>,
    /// `throttle_status`: bits of this kind of GPU.
    dependent: Option<usize>,
    /// `accumulation_counter` and, right after it, the time in which each of [`REASONS`] has lowered clocks.
    residencies: Option<usize>,
    /// `pcie_bandwidth_inst`, GB/s.
    pcie: Option<usize>,
    /// `xgmi_read_data_acc` and, right after it, `xgmi_write_data_acc`; KB.
    xgmi: Option<usize>,
    /// `xgmi_link_status`.
    links: Option<usize>,
}

/// The layout of a format and content revision, if it is known.
fn layout(format: u8, content: u8) -> Option<Layout> {
    if format != 1 {
        return None;
    }
    let none = Layout::default();
    Some(match content {
        0..=2 => Layout { dependent: Some(68), ..none },
        3 => Layout { independent: Some(112), dependent: Some(68), ..none },
        4 => Layout { dependent: Some(40), pcie: Some(72), xgmi: Some(104), ..none },
        5 => Layout { dependent: Some(104), pcie: Some(136), xgmi: Some(176), ..none },
        6 => Layout { residencies: Some(32), pcie: Some(88), xgmi: Some(128), ..none },
        7 | 8 => Layout {
            residencies: Some(40),
            pcie: Some(96),
            xgmi: Some(136),
            links: Some(264),
            ..none
        },
        _ => return None,
    })
}

/// Whose time is counted, in the table's order: PROCHOT, the power limit, the package's heat, the regulators' and the
/// memory's.
const REASONS: [&str; 5] = [
    "hw_thermal_slowdown",
    "sw_power_cap",
    "sw_thermal_slowdown",
    "sw_thermal_slowdown",
    "sw_thermal_slowdown",
];

/// What a table says of clocks that are lowered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Slowed {
    /// Nothing.
    #[default]
    Untold,
    /// For these reasons now (`SMU_THROTTLER_…`).
    Now(u64),
    /// Ticks of the counter, and those in which each of [`REASONS`] has lowered them.
    Since { counter: u32, of: [u32; REASONS.len()] },
}

/// A table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    slowed: Slowed,
    /// GB/s.
    pcie: Option<u64>,
    /// KB read and written over all links ever.
    xgmi: Option<(u64, u64)>,
    /// Links that are up.
    links: Option<u32>,
}

fn bytes<const N: usize>(table: &[u8], at: usize) -> Option<[u8; N]> {
    table.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    bytes(table, at).map(u16::from_le_bytes).filter(|value| *value != u16::MAX)
}

fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    bytes(table, at).map(u32::from_le_bytes).filter(|value| *value != u32::MAX)
}

fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    bytes(table, at).map(u64::from_le_bytes).filter(|value| *value != u64::MAX)
}

/// Reads a table; none where it is no table, or of a revision that is not known.
pub fn parse(file: &[u8]) -> Option<Metrics> {
    let size = usize::from(u16_at(file, 0)?);
    let (format, content) = (*file.get(2)?, *file.get(3)?);
    let layout = layout(format, content)?;
    let table = file.get(..size.min(file.len()))?;
    Some(Metrics {
        slowed: slowed(table, layout).unwrap_or_default(),
        pcie: layout.pcie.and_then(|at| u64_at(table, at)),
        xgmi: layout.xgmi.and_then(|at| Some((sum(table, at)?, sum(table, at + LINKS * 8)?))),
        links: layout.links.and_then(|at| links(table, at)),
    })
}

fn slowed(table: &[u8], layout: Layout) -> Option<Slowed> {
    if let Some(at) = layout.residencies {
        let counter = u32_at(table, at)?;
        let mut of = [0; REASONS.len()];
        for (n, ticks) in of.iter_mut().enumerate() {
            *ticks = u32_at(table, at + 4 + 4 * n)?;
        }
        return Some(Slowed::Since { counter, of });
    }
    if let Some(bits) = layout.independent.and_then(|at| u64_at(table, at)) {
        return Some(Slowed::Now(bits));
    }
    // What a bit means there only the driver knows, but not what none means.
    let bits = layout.dependent.and_then(|at| u32_at(table, at))?;
    (bits == 0).then_some(Slowed::Now(0))
}

/// The sum over all links that tell.
fn sum(table: &[u8], at: usize) -> Option<u64> {
    let of = (0..LINKS).filter_map(|link| u64_at(table, at + 8 * link));
    of.fold(None, |sum: Option<u64>, value| Some(sum.unwrap_or(0).saturating_add(value)))
}

/// How many links are up. Which of the others is down and which is none the table does not say.
fn links(table: &[u8], at: usize) -> Option<u32> {
    let states = || (0..LINKS).filter_map(|link| u16_at(table, at + 2 * link));
    states().next()?;
    u32::try_from(states().filter(|state| *state != 0).count()).ok()
}

/// The names of `SMU_THROTTLER_…` bits, in the words that NVIDIA's driver has for the same.
fn names(bits: u64) -> Vec<SmolStr> {
    // Power and current, the firmware's own limits, 0 to 31 and 56 on; heat 32 to 43; what sensors and regulators ask
    // for over a wire, 44 to 47.
    let groups: [(&str, u64); 3] = [
        ("sw_power_cap", 0xff00_0000_ffff_ffff),
        ("sw_thermal_slowdown", 0x0000_0fff_0000_0000),
        ("hw_thermal_slowdown", 0x0000_f000_0000_0000),
    ];
    let set = groups.iter().filter(|(_, mask)| bits & mask != 0);
    set.map(|(name, _)| SmolStr::new_static(name)).collect()
}

/// The tables of one GPU, one after the other.
#[derive(Debug, Default)]
pub struct Tables {
    before: Option<(Instant, Metrics)>,
    /// What the reasons are reckoned from.
    slowed: Option<Slowed>,
    reasons: Option<Vec<SmolStr>>,
}

impl Tables {
    /// Takes the table that was read at `now` and puts what it says into `gpu`; traffic only where it is wanted.
    pub fn take(&mut self, table: Option<Metrics>, now: Instant, traffic: bool, gpu: &mut Gpu) {
        let Some(table) = table else {
            *self = Self::default();
            return;
        };
        let before = self.before.replace((now, table));
        if !self.slowed.is_some_and(|was| is_too_soon(was, table.slowed)) {
            self.reasons = reasons(self.slowed.replace(table.slowed), table.slowed);
        }
        gpu.throttle_reasons.clone_from(&self.reasons);
        gpu.nvlink.active = table.links;
        if !traffic {
            return;
        }
        gpu.pcie.bytes_per_s = table.pcie.and_then(|gb| gb.checked_mul(1_000_000_000));
        let rates = before.and_then(|(then, was)| {
            let millis = u64::try_from(now.saturating_duration_since(then).as_millis()).ok()?;
            let ((read, written), (read_was, written_was)) = (table.xgmi?, was.xgmi?);
            let rate = |new: u64, old: u64| {
                new.checked_sub(old).map(|kb| kb.saturating_mul(1_024_000) / millis.max(1))
            };
            Some((rate(read, read_was)?, rate(written, written_was)?))
        });
        (gpu.nvlink.rx_bytes_per_s, gpu.nvlink.tx_bytes_per_s) = rates.unzip();
    }
}

/// Too little time is between two tables to say anything; none, where the driver answers from the one that it gave before.
fn is_too_soon(was: Slowed, is: Slowed) -> bool {
    match (was, is) {
        (Slowed::Since { counter: was, .. }, Slowed::Since { counter: is, .. }) => {
            is.wrapping_sub(was) < LEAST_TICKS
        }
        _ => false,
    }
}

/// Why clocks are lowered, from two tables after each other.
fn reasons(was: Option<Slowed>, is: Slowed) -> Option<Vec<SmolStr>> {
    let (counter, of) = match is {
        Slowed::Untold => return None,
        Slowed::Now(bits) => return Some(names(bits)),
        Slowed::Since { counter, of } => (counter, of),
    };
    let Some(Slowed::Since { counter: counter_was, of: of_was }) = was else { return None };
    let ticks = u64::from(counter.wrapping_sub(counter_was));
    if ticks > u64::from(u32::MAX / 2) {
        // Back, not on: it counts anew after a reset.
        return None;
    }
    let mut names: Vec<SmolStr> = Vec::new();
    for ((name, of), of_was) in REASONS.into_iter().zip(of).zip(of_was) {
        let slowed = u64::from(of.wrapping_sub(of_was));
        if slowed > 2 * ticks {
            // Longer than the time that has passed: no such counter.
            return None;
        }
        if slowed * PART >= ticks && !names.iter().any(|known| known == name) {
            names.push(SmolStr::new_static(name));
        }
    }
    Some(names)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::throttle;

    /// A table of a revision in which the driver has filled nothing yet.
    fn table(content: u8, size: u16) -> Vec<u8> {
        let mut table = vec![0xff; size.into()];
        table[..2].copy_from_slice(&size.to_le_bytes());
        table[2..4].copy_from_slice(&[1, content]);
        table
    }

    fn put(table: &mut [u8], at: usize, value: &[u8]) {
        table[at..at + value.len()].copy_from_slice(value);
    }

    /// What a GPU shows after tables that were read a second after each other.
    fn shown(tables: &[&[u8]]) -> Gpu {
        let (start, mut all) = (Instant::now(), Tables::default());
        let mut gpu = Gpu::default();
        for (n, table) in (0..).zip(tables) {
            gpu = Gpu::default();
            all.take(parse(table), start + Duration::from_secs(n), true, &mut gpu);
        }
        gpu
    }

    fn words(gpu: &Gpu) -> Option<Vec<&str>> {
        Some(gpu.throttle_reasons.as_ref()?.iter().map(SmolStr::as_str).collect())
    }

    #[test]
    fn what_the_driver_has_not_filled_is_absent() {
        for (content, size) in
            [(0, 80), (1, 96), (2, 104), (3, 120), (4, 288), (5, 360), (6, 1_024), (8, 2_048)]
        {
            let table = table(content, size);
            assert_eq!(parse(&table), Some(Metrics::default()), "revision 1.{content}");
            assert_eq!(shown(&[&table, &table]), Gpu::default(), "revision 1.{content}");
        }
    }

    #[test]
    fn a_radeon_says_why_it_is_slowed() {
        let mut table = table(3, 120);
        put(&mut table, 68, &0x10_u32.to_le_bytes());
        put(&mut table, 112, &0_u64.to_le_bytes());
        assert_eq!(words(&shown(&[&table])), Some(Vec::new()));
        // PPT0, the hot spot, PROCHOT.
        put(&mut table, 112, &(1_u64 | 1 << 36 | 1 << 47).to_le_bytes());
        let all = ["sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown"];
        assert_eq!(words(&shown(&[&table])), Some(all.to_vec()));
        for name in all.into_iter().chain(REASONS) {
            assert!(throttle::REASONS.iter().any(|(known, _)| *known == name), "{name}");
        }
    }

    #[test]
    fn bits_of_one_kind_of_gpu_say_whether_but_not_why() {
        let mut table = table(1, 96);
        put(&mut table, 68, &0_u32.to_le_bytes());
        assert_eq!(words(&shown(&[&table])), Some(Vec::new()));
        put(&mut table, 68, &4_u32.to_le_bytes());
        assert_eq!(words(&shown(&[&table])), None);
    }

    /// An MI300X with 1,000 more ticks in each table, slowed by its power limit for so many of them.
    fn mi300(n: u32, by_power: u32) -> Vec<u8> {
        let mut table = table(7, 2_048);
        let counter = (u32::MAX - 1_500).wrapping_add(1_000 * n);
        let ticks = [counter, 7, by_power, 3, 9, 9];
        for (at, value) in (40..).step_by(4).zip(ticks) {
            put(&mut table, at, &value.to_le_bytes());
        }
        put(&mut table, 96, &12_u64.to_le_bytes());
        for link in 0..7 {
            put(&mut table, 136 + 8 * link, &(1_000_000 * u64::from(n)).to_le_bytes());
            put(&mut table, 200 + 8 * link, &(2_000_000 * u64::from(n)).to_le_bytes());
            put(&mut table, 264 + 2 * link, &u16::from(link != 3).to_le_bytes());
        }
        table
    }

    #[test]
    fn an_mi300_tells_time_and_traffic_since_the_table_before() {
        let first = mi300(0, 5);
        let gpu = shown(&[&first]);
        assert_eq!((words(&gpu), gpu.nvlink.rx_bytes_per_s), (None, None), "nothing is before it");
        assert_eq!((gpu.nvlink.links, gpu.nvlink.active), (None, Some(6)));
        assert_eq!(gpu.pcie.bytes_per_s, Some(12_000_000_000));
        // Over the counter's end; for half of the time, then for next to none of it.
        let (second, third) = (mi300(1, 505), mi300(2, 520));
        let gpu = shown(&[&first, &second]);
        assert_eq!(words(&gpu), Some(vec!["sw_power_cap"]));
        assert_eq!(gpu.nvlink.rx_bytes_per_s, Some(7 * 1_000_000 * 1_024));
        assert_eq!(gpu.nvlink.tx_bytes_per_s, Some(14 * 1_000_000 * 1_024));
        assert_eq!(words(&shown(&[&first, &second, &second])), Some(vec!["sw_power_cap"]));
        assert_eq!(words(&shown(&[&first, &second, &third])), Some(Vec::new()));
        // A look that comes right after another one says nothing new, and is not what the next one is reckoned from.
        let mut soon = first.clone();
        put(&mut soon, 40, &(u32::MAX - 1_490).to_le_bytes());
        put(&mut soon, 48, &15_u32.to_le_bytes());
        assert_eq!(words(&shown(&[&first, &soon])), None);
        assert_eq!(words(&shown(&[&first, &soon, &second])), Some(vec!["sw_power_cap"]));
        // After a reset everything counts anew, and a table that cannot be read says nothing.
        assert_eq!(words(&shown(&[&third, &first])), None);
        assert_eq!(words(&shown(&[&first, &[], &second])), None);
    }

    #[test]
    fn earlier_instincts_have_other_places() {
        for (content, pcie, xgmi) in [(4, 72, 104), (5, 136, 176), (6, 88, 128)] {
            let of = |kb: u64| {
                let mut table = table(content, 400);
                put(&mut table, pcie, &3_u64.to_le_bytes());
                put(&mut table, xgmi, &kb.to_le_bytes());
                put(&mut table, xgmi + 64, &(2 * kb).to_le_bytes());
                table
            };
            let gpu = shown(&[&of(1), &of(1_001)]);
            assert_eq!(gpu.pcie.bytes_per_s, Some(3_000_000_000), "revision 1.{content}");
            assert_eq!(gpu.nvlink.rx_bytes_per_s, Some(1_000 * 1_024), "revision 1.{content}");
            assert_eq!(gpu.nvlink.tx_bytes_per_s, Some(2_000 * 1_024), "revision 1.{content}");
        }
    }

    #[test]
    fn whatever_the_file_holds_nothing_breaks() {
        let whole = mi300(1, 5);
        for length in 0..300 {
            let read = parse(&whole[..length]);
            assert_eq!(read.is_some(), length >= 4, "{length} bytes");
        }
        for (format, content) in [(0, 0), (1, 9), (1, 255), (2, 3), (3, 0), (255, 255)] {
            let mut table = whole.clone();
            table[2..4].copy_from_slice(&[format, content]);
            assert_eq!(parse(&table), None, "revision {format}.{content}");
        }
        // A size that does not fit: what lies behind it is not the table's.
        let mut short = whole.clone();
        short[..2].copy_from_slice(&40_u16.to_le_bytes());
        assert_eq!(parse(&short), Some(Metrics::default()));
        let mut seed = 7_u64;
        for _ in 0..20_000 {
            let mut table = whole[..300].to_vec();
            for _ in 0..8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = usize::try_from(seed >> 33).unwrap() % table.len();
                table[at] = seed.to_le_bytes()[7];
            }
            shown(&[&table, &whole, &table]);
        }
    }
}
