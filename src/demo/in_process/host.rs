//! A simulated host: what lies on it and what it says of itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::BigFleetShape;
use crate::base::{Bytes, DeckId, DeviceId, Epoch, HostName, RankId, ServiceName, Timestamp};
use crate::wire::{
    ClaimInfo, Gpu, Gpus, HostFacts, HostSample, HttpReply, MemoryUse, RankReport, RankStart,
    RankStatus, Refusal, Reply,
};

/// Memory of a simulated GPU.
const GPU_MEMORY: Bytes = Bytes::mib(81_559);
/// How long a claim is said to hold.
const LEASE: Duration = Duration::from_secs(30);
/// What its driver keeps.
const RESERVED: Bytes = Bytes::mib(551);

/// One host; it outlives connections to it.
pub(super) struct SimHostState {
    name: HostName,
    number: u16,
    gpus: Vec<Gpu>,
    load_time: Duration,
    busy: bool,
    up_since: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ranks: BTreeMap<RankId, Rank>,
    claims: BTreeMap<DeckId, Claim>,
    saved: BTreeMap<(DeckId, Option<ServiceName>), String>,
}

/// Who may act here; a lease does not end on a simulated host.
struct Claim {
    epoch: Epoch,
    holder: String,
    since: Timestamp,
}

struct Rank {
    start: RankStart,
    since: Instant,
    since_wall: Timestamp,
    stopped: Option<Timestamp>,
}

impl SimHostState {
    pub(super) fn new(name: &HostName, number: u16, shape: BigFleetShape) -> Self {
        Self {
            name: name.clone(),
            number,
            gpus: (0..shape.gpus).filter_map(|gpu| simulated_gpu(number, gpu)).collect(),
            load_time: shape.load_time,
            busy: shape.busy,
            up_since: Instant::now(),
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn facts(&self) -> HostFacts {
        HostFacts {
            hostname: self.name.to_string(),
            os: "SIMULATED".to_owned(),
            kernel: "6.1.0-simulated".to_owned(),
            arch: "x86_64".to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            user: "demo".to_owned(),
            state_dir: "/nowhere".to_owned(),
            boot_id: format!("simulated-{}", self.number),
            cpus: 128,
            memory: Bytes::gib(1024),
            driver_version: Some("550.54.15-SIMULATED".to_owned()),
            cuda_version: Some("12.4".to_owned()),
            simulated: true,
            ..HostFacts::default()
        }
    }

    pub(super) fn sample(&self) -> Option<HostSample> {
        let used = self.memory_used();
        let elapsed = self.up_since.elapsed();
        let beat = elapsed.as_secs() + u64::from(self.number) * 7;
        let gpus: Vec<Gpu> = self
            .gpus
            .iter()
            .map(|gpu| {
                let taken = used.get(&gpu.device()).copied().unwrap_or(Bytes::ZERO);
                let wave = u32::try_from((beat + u64::from(gpu.index) * 13) % 50).unwrap_or(0);
                let busy = self.busy || taken > Bytes::ZERO;
                Gpu {
                    memory: Some(MemoryUse {
                        used: RESERVED.saturating_add(taken),
                        total: GPU_MEMORY,
                    }),
                    utilisation_percent: Some(if busy { 40 + wave } else { 0 }),
                    temperature_c: Some(if busy { 50 + wave / 4 } else { 33 }),
                    power_mw: Some(if busy { 300_000 + wave * 5_000 } else { 70_000 }),
                    ..gpu.clone()
                }
            })
            .collect();
        // Through the words of the wire, so that a value this fleet does not know is absent.
        let mut sample: HostSample = serde_json::from_value(json!({
            "monotonic_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "gpus": { "some": [] },
            "cpu_percent": 12.5 + f64::from(u32::try_from(beat % 10).unwrap_or(0)),
            "load_1m": 3.5,
            "memory": { "used": Bytes::gib(200).0, "total": Bytes::gib(1024).0 },
            "disk": { "used": Bytes::gib(800).0, "total": Bytes::gib(7000).0 },
            "net_rx_bytes_per_s": beat * 1000 % 1_000_000,
            "net_tx_bytes_per_s": beat * 3000 % 1_000_000,
            "uptime_s": elapsed.as_secs(),
        }))
        .ok()?;
        sample.gpus = Gpus::Some(gpus);
        Some(sample)
    }

    fn memory_used(&self) -> BTreeMap<DeviceId, Bytes> {
        let inner = self.inner();
        let mut used: BTreeMap<DeviceId, Bytes> = BTreeMap::new();
        for need in
            inner.ranks.values().filter(|r| r.stopped.is_none()).flat_map(|r| &r.start.needs)
        {
            let entry = used.entry(need.device.clone()).or_insert(Bytes::ZERO);
            *entry = entry.saturating_add(need.memory);
        }
        used
    }

    pub(super) fn claim(
        &self,
        deck: DeckId,
        asked: Option<Epoch>,
        holder: String,
        force: bool,
    ) -> Result<Reply, Refusal> {
        let mut inner = self.inner();
        let held = inner.claims.get(&deck);
        let epoch = match (held, asked) {
            (Some(held), _) if held.holder != holder && !force => {
                let until = wall().plus(LEASE);
                return Err(Refusal::Held { held: held.epoch, holder: held.holder.clone(), until });
            }
            (Some(held), Some(asked)) if held.epoch == asked => {
                return Ok(Reply::Claimed { epoch: asked });
            }
            (held, _) => Epoch(held.map_or(0, |held| held.epoch.0) + 1),
        };
        inner.claims.insert(deck, Claim { epoch, holder, since: wall() });
        Ok(Reply::Claimed { epoch })
    }

    pub(super) fn show_claim(&self, deck: DeckId) -> Reply {
        Reply::Claim(self.inner().claims.get(&deck).map(|held| ClaimInfo {
            epoch: held.epoch,
            holder: held.holder.clone(),
            since: held.since,
            until: wall().plus(LEASE),
            renewed: Some(wall()),
            now: wall(),
        }))
    }

    pub(super) fn may_act(&self, deck: DeckId, epoch: Epoch) -> Result<(), Refusal> {
        match self.inner().claims.get(&deck) {
            Some(held) if held.epoch == epoch => Ok(()),
            Some(held) => {
                Err(Refusal::Held { held: held.epoch, holder: held.holder.clone(), until: wall() })
            }
            None => Err(failed("nobody has claimed this host")),
        }
    }

    pub(super) fn start(&self, start: RankStart) -> Result<Reply, Refusal> {
        if self.inner().ranks.contains_key(&start.rank) {
            return Ok(Reply::Done);
        }
        let used = self.memory_used();
        for need in &start.needs {
            if !self.gpus.iter().any(|gpu| gpu.device() == need.device) {
                return Err(Refusal::NoDevice { device: need.device.clone() });
            }
            let taken = used.get(&need.device).copied().unwrap_or(Bytes::ZERO);
            let free = GPU_MEMORY.saturating_sub(RESERVED).saturating_sub(taken);
            if free < need.memory {
                return Err(Refusal::MemoryBusy {
                    device: need.device.clone(),
                    free,
                    needed: need.memory,
                    holders: Vec::new(),
                });
            }
        }
        let rank =
            Rank { since: Instant::now(), since_wall: wall(), stopped: None, start: start.clone() };
        self.inner().ranks.insert(start.rank, rank);
        Ok(Reply::Done)
    }

    pub(super) fn stop(&self, rank: &RankId) -> Reply {
        if let Some(rank) = self.inner().ranks.get_mut(rank) {
            rank.stopped.get_or_insert_with(wall);
        }
        Reply::Done
    }

    pub(super) fn remove(&self, rank: &RankId) -> Reply {
        self.inner().ranks.remove(rank);
        Reply::Done
    }

    /// Keeps the state of a service, or that of the deck.
    pub(super) fn save(&self, deck: DeckId, of: Option<ServiceName>, state: String) -> Reply {
        self.inner().saved.insert((deck, of), state);
        Reply::Done
    }

    pub(super) fn load(&self, deck: DeckId, of: Option<ServiceName>) -> Reply {
        Reply::State(self.inner().saved.get(&(deck, of)).cloned())
    }

    pub(super) fn saved_services(&self, deck: DeckId) -> Reply {
        let inner = self.inner();
        let ours = inner.saved.keys().filter(|(of, _)| *of == deck);
        Reply::Texts(ours.filter_map(|(_, service)| Some(service.as_ref()?.to_string())).collect())
    }

    pub(super) fn commands(&self, deck: DeckId) -> Reply {
        let inner = self.inner();
        let ours = inner.ranks.iter().filter(|(rank, _)| rank.deck == deck);
        Reply::Commands(ours.map(|(rank, r)| (rank.clone(), r.start.argv.clone())).collect())
    }

    pub(super) fn ranks(&self) -> Vec<RankReport> {
        let inner = self.inner();
        let report = |(rank, state): (&RankId, &Rank)| RankReport {
            rank: rank.clone(),
            status: match state.stopped {
                None => RankStatus::Running { pid: 1, since: state.since_wall },
                Some(at) => RankStatus::Exited {
                    code: Some(0),
                    signal: None,
                    at,
                    last_lines: "SIMULATED: stopped".to_owned(),
                },
            },
        };
        inner.ranks.iter().map(report).collect()
    }

    /// What the engine on a port answers.
    pub(super) fn http(&self, port: u16) -> Result<Reply, Refusal> {
        let inner = self.inner();
        let rank = inner
            .ranks
            .values()
            .find(|rank| rank.stopped.is_none() && rank.start.ports.contains(&port))
            .ok_or_else(|| failed("nothing listens on that port"))?;
        let reply = if rank.since.elapsed() < self.load_time {
            HttpReply { status: 503, body: "SIMULATED: loading".to_owned(), took_ms: 1 }
        } else {
            let body = json!({
                "choices": [{ "message": { "content": "SIMULATED" }, "finish_reason": "length" }],
                "usage": { "completion_tokens": 1 },
            });
            HttpReply { status: 200, body: body.to_string(), took_ms: 5 }
        };
        Ok(Reply::Http(reply))
    }
}

fn simulated_gpu(host: u16, gpu: u16) -> Option<Gpu> {
    serde_json::from_value(json!({
        "index": gpu,
        "uuid": format!("GPU-51500000-{host:04}-4000-8000-{gpu:012}"),
        "name": "SIMULATED H100 80GB",
        "health": "ok",
        "pci_bus_id": format!("00000000:{:02X}:00.0", 0x1b + 0x10 * (gpu % 12)),
        "power_limit_mw": 700_000,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "pstate": "P0",
        "throttle_reasons": [],
        "nvlink_peers": [],
        "processes": [],
    }))
    .ok()
}

pub(super) fn failed(words: &str) -> Refusal {
    Refusal::Failed { message: format!("SIMULATED: {words}") }
}

fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
