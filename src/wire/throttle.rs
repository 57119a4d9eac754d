//! Why a driver lowers the clocks of a GPU, as NVML numbers it. An idle GPU, and clocks that somebody has
//! set, are no throttling and not among them.

use smol_str::SmolStr;

/// Names and bits (`nvmlClocksEventReasons`).
pub const REASONS: [(&str, u64); 6] = [
    ("sw_power_cap", 0x4),
    ("hw_slowdown", 0x8),
    ("sync_boost", 0x10),
    ("sw_thermal_slowdown", 0x20),
    ("hw_thermal_slowdown", 0x40),
    ("hw_power_brake", 0x80),
];

/// The names of the bits that are set.
pub fn names(bits: u64) -> Vec<SmolStr> {
    let set = REASONS.iter().filter(|(_, bit)| bits & bit != 0);
    set.map(|(name, _)| SmolStr::new_static(name)).collect()
}
