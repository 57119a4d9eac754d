//! Scenarios for the simulated NVML.

use std::path::PathBuf;

use serde_json::{Value, json};

pub const GIB: u64 = 1 << 30;

fn uuid(index: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{index:012}")
}

/// Eight H100 of an HGX board: all on NVLink, four on each processor, in pairs behind switches.
pub fn h100s(count: usize) -> Vec<Value> {
    let gpu = |index: usize| {
        json!({
            "uuid": uuid(index),
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total": 80 * GIB,
            "memory_reserved": GIB / 2,
            "numa_node": index / 4,
            "nvlink_island": 0,
            "nvlink_kib_per_s": [1_000_000, 2_000_000],
            "pcie_switch": index / 2,
            "pcie": {
                "generation": 5, "max_generation": 5, "width": 16, "max_width": 16,
                "rx_kib_per_s": 2000, "tx_kib_per_s": 1000,
            },
            "shutdown_temperature_c": 92,
            "max_sm_clock_mhz": 1980,
            "max_memory_clock_mhz": 2619,
            "encoder_percent": 0,
            "decoder_percent": 0,
            "bar1_total": 128 * GIB,
            "bar1_used": GIB,
            "thermal_margin_c": 55,
            "fabric": [3, 0],
            "ecc_enabled": true,
            "remapped_rows": 0,
            "row_remap_pending": false,
            "row_remap_failed": false,
            "compute_mode": 0,
            "persistence": true,
            "mig": false,
        })
    };
    (0..count).map(gpu).collect()
}

/// Four L40S on PCI Express, two behind a switch of each processor, without links.
pub fn l40s() -> Vec<Value> {
    let gpu = |index: usize| {
        json!({
            "uuid": uuid(index),
            "name": "NVIDIA L40S",
            "memory_total": 48 * GIB,
            "numa_node": index / 2,
            "pcie_switch": index / 2,
            "fan_percent": 30,
            "pcie": { "generation": 1, "max_generation": 4, "width": 16, "max_width": 16 },
        })
    };
    (0..4).map(gpu).collect()
}

/// A scenario in a folder of its own.
pub struct Scene {
    dir: tempfile::TempDir,
    pub gpus: Vec<Value>,
    pub hang: bool,
    pub hang_init: bool,
    pub init_error: Option<u32>,
}

impl Scene {
    pub fn new(gpus: Vec<Value>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("allocations")).unwrap();
        let scene = Self { dir, gpus, hang: false, hang_init: false, init_error: None };
        scene.write();
        scene
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("scenario.json")
    }

    /// Where the library notes its calls.
    pub fn calls(&self) -> PathBuf {
        self.dir.path().join("calls")
    }

    pub fn uuid(&self, index: usize) -> String {
        self.gpus[index]["uuid"].as_str().unwrap().to_owned()
    }

    /// The kernel's files: on which NUMA node each GPU is.
    pub fn sysfs(&self) -> PathBuf {
        let root = self.dir.path().join("sys");
        for (index, gpu) in self.gpus.iter().enumerate() {
            let device = root.join(format!("bus/pci/devices/0000:{:02x}:00.0", 0x10 + index));
            std::fs::create_dir_all(&device).unwrap();
            let node = gpu["numa_node"].as_i64().unwrap_or(-1);
            std::fs::write(device.join("numa_node"), format!("{node}\n")).unwrap();
        }
        root
    }

    /// Writes the file so that a reader sees the old or the new one.
    pub fn write(&self) {
        let scenario = json!({
            "hang": self.hang,
            "hang_init": self.hang_init,
            "init_error": self.init_error,
            "calls": "calls",
            "xids_told": "xids_told",
            "allocations": "allocations",
            "gpus": self.gpus,
        });
        let temp = self.dir.path().join("scenario.new");
        std::fs::write(&temp, scenario.to_string()).unwrap();
        std::fs::rename(&temp, self.path()).unwrap();
    }

    pub fn change(&mut self, change: impl FnOnce(&mut Vec<Value>)) {
        change(&mut self.gpus);
        self.write();
    }

    /// A process takes memory of a GPU.
    pub fn allocate(&mut self, pid: u32, gpu: usize, bytes: u64) {
        let allocation = json!({ "pid": pid, "gpu": self.uuid(gpu), "bytes": bytes });
        let path = self.dir.path().join(format!("allocations/{pid}-{gpu}.json"));
        std::fs::write(path, allocation.to_string()).unwrap();
    }
}

/// The simulated NVML library, which cargo builds before these tests.
pub fn nvml_sim() -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let library = beside.parent().unwrap().join("libnvidia_ml.so");
    assert!(library.exists(), "{} is missing: cargo build -p nvml-sim", library.display());
    library
}
