//! Decks for tests: a busy one in the middle of a canary, with everything that can be wrong, and a
//! fleet of any size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::key::Key;
use super::message::{Effect, Message};
use super::state::{Look, State};
use super::update::update;
use crate::api::view::{PlannedRank, PlannedReplica};
use crate::api::{
    Bytes, ClockView, Condition, DeckId, DeckView, Delta, DeviceId, Direction, EventLine, Forecast,
    Gate, Gpu, GpuHealth, GpuProcess, Gpus, HostFacts, HostLinkState, HostName, HostSample,
    HostView, MemoryUse, Outcome, Phase, PlanView, Question, QuestionKind, RankId, RankView,
    ReleaseId, ReleaseNumber, ReleaseView, ReplicaId, ReplicaView, Revision, Rollout, RolloutKind,
    ServiceName, ServiceView, Severity, Snapshot, Stage, Timestamp, TrafficView, Verdict,
    VerdictResult, Window,
};
use crate::api::{
    ContainerEngine, Disk, DiskClass, GpuPath, MigInstance, Nic, NvLinks, PathKind, PcieLink,
    ProcessKind, Xid,
};

/// The time of all fixtures: 2026-01-15 14:05:00 UTC.
pub const NOW: Timestamp = Timestamp(1_768_485_900_000);

/// A moment so many seconds before `NOW`.
pub fn before(seconds: u64) -> Timestamp {
    Timestamp(NOW.0 - seconds * 1_000)
}

fn after(seconds: u64) -> Timestamp {
    Timestamp(NOW.0 + seconds * 1_000)
}

pub fn host_name(name: &str) -> HostName {
    name.parse().expect("a host name")
}

pub fn service_name(name: &str) -> ServiceName {
    name.parse().expect("a service name")
}

fn uuid(text: &str) -> String {
    format!("GPU-{text}")
}

pub fn replica(release: u64, replica: u32) -> ReplicaId {
    format!("r{release}-{replica}-a1").parse().expect("a replica")
}

pub fn rank(service: &str, release: u64, index: u32) -> RankId {
    RankId {
        deck: "0190b8a0-0000-7000-8000-000000000001".parse::<DeckId>().expect("a deck"),
        service: service_name(service),
        release_id: "0190b8a0-0000-7000-8000-000000000002".parse::<ReleaseId>().expect("an id"),
        replica: replica(release, index),
        rank: 0,
    }
}

pub fn gpu(host: &str, index: u32, busy: u32, used_gib: u64) -> Gpu {
    Gpu {
        index,
        uuid: uuid(&format!("{host}-{index}")).into(),
        name: "NVIDIA H100 80GB HBM3".into(),
        health: GpuHealth::Ok,
        pci_bus_id: Some(format!("00000000:{:02X}:00.0", 0x1b + index).into()),
        memory: Some(MemoryUse { used: Bytes::mib(used_gib * 1_024 + 220), total: Bytes::gib(80) }),
        utilisation_percent: Some(busy),
        memory_utilisation_percent: Some(busy / 2),
        temperature_c: Some(34 + busy / 3 + index % 3),
        slowdown_temperature_c: Some(87),
        power_mw: Some(92_000 + busy * 5_400),
        power_limit_mw: Some(700_000),
        fan_percent: None,
        sm_clock_mhz: Some(1_980),
        memory_clock_mhz: Some(2_619),
        pstate: Some("P0".into()),
        throttle_reasons: Some(Vec::new()),
        processes: Some(Vec::new()),
        ecc_uncorrected: Some(0),
        nvlink_peers: (0..8)
            .filter(|i| *i != index)
            .map(|i| uuid(&format!("{host}-{i}")).into())
            .collect(),
        numa_node: Some(index / 4),
        shutdown_temperature_c: Some(92),
        max_sm_clock_mhz: Some(1_980),
        max_memory_clock_mhz: Some(2_619),
        encoder_percent: Some(0),
        decoder_percent: Some(0),
        bar1: Some(MemoryUse { used: Bytes::gib(1), total: Bytes::gib(128) }),
        pcie: PcieLink {
            generation: Some(5),
            max_generation: Some(5),
            width: Some(16),
            max_width: Some(16),
            rx_bytes_per_s: Some(u64::from(busy) * 40_000_000),
            tx_bytes_per_s: Some(u64::from(busy) * 10_000_000),
        },
        nvlink: NvLinks {
            links: Some(18),
            active: Some(18),
            rx_bytes_per_s: Some(u64::from(busy) * 900_000_000),
            tx_bytes_per_s: Some(u64::from(busy) * 900_000_000),
        },
        ecc_enabled: Some(true),
        ecc_corrected: Some(0),
        ecc_uncorrected_aggregate: Some(0),
        ecc_corrected_aggregate: Some(12),
        remapped_rows: Some(0),
        row_remap_pending: Some(false),
        row_remap_failed: Some(false),
        compute_mode: Some("default".into()),
        persistence: Some(true),
        mig: Some(false),
        paths: (0..8)
            .filter(|i| *i != index)
            .map(|i| GpuPath {
                to: uuid(&format!("{host}-{i}")).into(),
                over: match (i / 2 == index / 2, i / 4 == index / 4) {
                    (true, _) => PathKind::Pix,
                    (false, true) => PathKind::Node,
                    (false, false) => PathKind::Sys,
                },
            })
            .collect(),
        ..Gpu::default()
    }
}

pub fn host(name: &str, gpus: Vec<Gpu>) -> HostView {
    HostView {
        name: host_name(name),
        link: HostLinkState::Up,
        way: vec!["connecting".to_owned(), "logging in".to_owned()],
        facts: Some(HostFacts {
            hostname: name.to_owned(),
            os: "Debian GNU/Linux 12".to_owned(),
            kernel: "6.1.0-28-amd64".to_owned(),
            arch: "x86_64".to_owned(),
            agent_version: "0.1.0".to_owned(),
            user: "ops".to_owned(),
            state_dir: "/var/lib/gpudeck".to_owned(),
            boot_id: "b1".to_owned(),
            cpus: 128,
            memory: Bytes::gib(1_008),
            driver_version: Some("550.54.15".to_owned()),
            cuda_version: Some("12.4".to_owned()),
            simulated: true,
            numa_nodes: Some(2),
            container_engine: Some(ContainerEngine {
                name: "docker".to_owned(),
                version: Some("27.3.1".to_owned()),
            }),
            disks: vec![Disk {
                name: "nvme0n1".to_owned(),
                class: DiskClass::Nvme,
                size: Some(Bytes::gib(3_576)),
                model: None,
                holds_state: true,
            }],
            nics: vec![
                Nic {
                    name: "eth0".to_owned(),
                    up: true,
                    speed_mbit_per_s: Some(25_000),
                    ..Nic::default()
                },
                Nic {
                    name: "ib0".to_owned(),
                    up: true,
                    speed_mbit_per_s: Some(400_000),
                    rdma: Some("mlx5_0".to_owned()),
                    numa_node: Some(0),
                },
            ],
        }),
        sample: Some(Arc::new(HostSample {
            gpu_trouble: None,
            gpus_age_ms: None,
            monotonic_ms: 1_000_000,
            gpus: Gpus::Some(gpus),
            cpu_percent: Some(23.4),
            load_1m: Some(12.04),
            memory: Some(MemoryUse { used: Bytes::gib(210), total: Bytes::gib(1_008) }),
            disk: Some(MemoryUse { used: Bytes::gib(1_230), total: Bytes::gib(3_576) }),
            net_rx_bytes_per_s: Some(1_300_000),
            net_tx_bytes_per_s: Some(3_600_000),
            uptime_s: Some(1_040_400),
        })),
        sampled: Some(before(1)),
        clock: Some(ClockView { offset_ms: 412, round_trip_us: 900 }),
        ranks: Vec::new(),
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        maintenance: crate::api::Maintenance::default(),
        claim: None,
        claim_known: true,
    }
}

fn busy_gpus(name: &str, load: [(u32, u64); 8]) -> Vec<Gpu> {
    (0..).zip(load).map(|(i, (busy, used))| gpu(name, i, busy, used)).collect()
}

fn rank_view(
    service: &str,
    release: u64,
    index: u32,
    host: &str,
    gpus: std::ops::Range<u32>,
) -> RankView {
    RankView {
        rank: rank(service, release, index),
        host: host_name(host),
        devices: gpus.map(|i| DeviceId::Gpu(uuid(&format!("{host}-{i}")))).collect(),
        port: 18_000 + u16::try_from(index).unwrap(),
    }
}

fn traffic(rate: f64, errors: f64, ms: f64) -> TrafficView {
    TrafficView { requests_per_s: Some(rate), error_rate: Some(errors), mean_response_ms: Some(ms) }
}

fn replica_view(
    service: &str,
    release: u64,
    index: u32,
    place: (&str, std::ops::Range<u32>),
    phase: Phase,
    weight: u32,
    seen: TrafficView,
) -> ReplicaView {
    let since = if phase == Phase::Ready { before(7_810) } else { before(34) };
    ReplicaView {
        id: replica(release, index),
        phase,
        since,
        trouble: None,
        silent: false,
        ranks: vec![rank_view(service, release, index, place.0, place.1)],
        weight_percent: weight,
        weight_wanted_percent: None,
        traffic: seen,
    }
}

fn release(number: u64, ago: u64, reason: &str, outcome: Option<Outcome>) -> ReleaseView {
    ReleaseView {
        number: ReleaseNumber(number),
        revision: Revision(
            format!("{number:02x}{}", "c0ffee".repeat(7)).chars().take(40).collect(),
        ),
        created: before(ago),
        author: "ann".to_owned(),
        reason: Some(reason.to_owned()),
        outcome,
        progress: None,
    }
}

/// A rollout of `chat` in the middle of its analysis.
pub fn rollout() -> Rollout {
    Rollout {
        from: Some(ReleaseNumber(11)),
        to: ReleaseNumber(12),
        limits: crate::api::LimitRule::PRESENT,
        kind: RolloutKind::Apply,
        direction: Direction::Forward,
        step: 1,
        step_since: before(80),
        step_settled: Some(before(18)),
        gate: Some(Gate::Analyse { name: "default".to_owned(), until: after(42) }),
        paused: None,
        paused_by: None,
        began: before(190),
        progress: before(18),
        by: "ann".to_owned(),
        measured_new: Window { requests: 214, errors: 62, response_ms_sum: 38_948.0 },
        measured_old: Window { requests: 1_934, errors: 1, response_ms_sum: 350_054.0 },
        analysis: crate::api::AnalysisRun::default(),
        run: None,
        skipped: Vec::new(),
        verdict: None,
        outcome: None,
        ended: None,
    }
}

fn steps() -> Vec<String> {
    ["weight 10 %", "analyse default", "weight 50 %", "approve", "all replicas"]
        .map(str::to_owned)
        .to_vec()
}

fn chat() -> ServiceView {
    ServiceView {
        name: service_name("chat"),
        condition: Condition::Rolling,
        model: "hf://meta-llama/Llama-3.3-70B-Instruct".to_owned(),
        engine: "vllm".to_owned(),
        wanted: 3,
        ready: 3,
        floor: 2,
        stable: Some(ReleaseNumber(11)),
        queued: None,
        queue_trouble: None,
        rollout: Some(rollout()),
        steps: steps(),
        replicas: vec![
            replica_view(
                "chat",
                12,
                0,
                ("node3", 0..4),
                Phase::Ready,
                10,
                traffic(4.3, 0.29, 182.0),
            ),
            replica_view(
                "chat",
                11,
                0,
                ("node1", 0..4),
                Phase::Ready,
                45,
                traffic(18.4, 0.0, 181.0),
            ),
            replica_view(
                "chat",
                11,
                1,
                ("node2", 0..4),
                Phase::Ready,
                45,
                traffic(18.5, 0.0, 180.0),
            ),
            replica_view(
                "chat",
                11,
                2,
                ("node3", 4..8),
                Phase::Draining { deadline: after(240) },
                0,
                traffic(0.0, 0.0, 0.0),
            ),
        ],
        history: vec![
            release(12, 190, "quieter sampler", None),
            release(11, 90_000, "longer context", Some(Outcome::Completed)),
            release(
                10,
                180_000,
                "new tokenizer",
                Some(Outcome::RolledBack { why: "error rate 0.31 (62 of 200) > 0.02".to_owned() }),
            ),
            release(7, 700_000, "first", Some(Outcome::Completed)),
        ],
        pending_change: false,
        url: Some("http://gateway:8000/v1".to_owned()),
        traffic: traffic(41.2, 0.03, 182.0),
        trouble: None,
        progress: None,
        memory: Vec::new(),
    }
}

fn code() -> ServiceView {
    ServiceView {
        name: service_name("code"),
        condition: Condition::Serving,
        model: "/models/Qwen2.5-Coder-32B-Instruct".to_owned(),
        engine: "vllm".to_owned(),
        wanted: 2,
        ready: 2,
        floor: 1,
        stable: Some(ReleaseNumber(9)),
        queued: None,
        queue_trouble: None,
        rollout: Some(Rollout {
            from: Some(ReleaseNumber(8)),
            to: ReleaseNumber(9),
            gate: None,
            step: 5,
            began: before(500_400),
            outcome: Some(Outcome::Completed),
            ended: Some(before(500_000)),
            verdict: Some(Verdict {
                of: crate::api::VerdictOf::Analysis,
                lines: Vec::new(),
                analysis: "default".to_owned(),
                result: VerdictResult::Success,
                reason: "error rate 0.000 (0 of 812) ≤ 0.02".to_owned(),
                at: before(500_100),
            }),
            ..rollout()
        }),
        steps: steps(),
        replicas: vec![
            replica_view("code", 9, 0, ("node1", 4..6), Phase::Ready, 50, traffic(6.0, 0.0, 95.0)),
            replica_view("code", 9, 1, ("node2", 4..6), Phase::Ready, 50, traffic(6.1, 0.0, 96.0)),
        ],
        history: vec![
            release(9, 500_400, "", Some(Outcome::Completed)),
            release(8, 900_000, "first", Some(Outcome::Completed)),
        ],
        pending_change: true,
        url: Some("http://gateway:8001/v1".to_owned()),
        traffic: traffic(12.1, 0.0, 95.0),
        trouble: None,
        progress: None,
        memory: Vec::new(),
    }
}

fn event(ago: u64, severity: Severity, service: &str, host: &str, text: &str) -> EventLine {
    EventLine {
        at: before(ago),
        severity,
        service: (!service.is_empty()).then(|| service_name(service)),
        host: (!host.is_empty()).then(|| host_name(host)),
        text: text.to_owned(),
    }
}

/// Four healthy hosts of eight GPUs, two services, a canary under analysis.
pub fn calm() -> Snapshot {
    let loads = [
        ("node1", [(87, 61), (91, 61), (88, 61), (90, 61), (61, 38), (58, 38), (0, 0), (0, 0)]),
        ("node2", [(84, 61), (89, 61), (92, 61), (86, 61), (55, 38), (63, 38), (0, 0), (0, 0)]),
        ("node3", [(22, 60), (25, 60), (21, 60), (24, 60), (3, 61), (2, 61), (2, 61), (1, 61)]),
        ("node4", [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]),
    ];
    let mut hosts = BTreeMap::new();
    for (name, load) in loads {
        hosts.insert(host_name(name), host(name, busy_gpus(name, load)));
    }
    let services: BTreeMap<_, _> =
        [chat(), code()].into_iter().map(|s| (s.name.clone(), s)).collect();
    for rank in services.values().flat_map(|s| &s.replicas).flat_map(|r| &r.ranks) {
        hosts.get_mut(&rank.host).unwrap().ranks.push(rank.clone());
    }
    let events = [
        event(192, Severity::Info, "chat", "", "ann applies 0cc0ffee: quieter sampler"),
        event(190, Severity::Info, "chat", "", "rollout r11 → r12 begins, 5 steps"),
        event(188, Severity::Info, "chat", "node3", "r11-2 drains"),
        event(120, Severity::Info, "chat", "node3", "r12-0 starts on GPU 0-3, attempt 1"),
        event(82, Severity::Info, "chat", "node3", "r12-0 is ready: first token after 38s"),
        event(80, Severity::Info, "chat", "", "step 1 of 5 settled: 10% of the traffic to r12"),
        event(18, Severity::Warning, "chat", "", "canary fails 29% of its requests"),
    ];
    Snapshot {
        sequence: 1,
        deck: DeckView {
            name: "lab".to_owned(),
            path: Some("/srv/deck".to_owned()),
            simulated: true,
            version: "0.1.0".to_owned(),
            pid: 4_711,
            trouble: None,
            controller_memory: Some(Bytes::mib(38)),
            upgrade: None,
            group: None,
            conditions: Vec::new(),
        },
        hosts,
        services,
        questions: BTreeMap::new(),
        events: VecDeque::from(events),
    }
}

/// Everything that can be wrong, and names that would like to steer the terminal.
pub fn rich() -> Snapshot {
    let mut snapshot = calm();
    snapshot.deck.trouble = Some("services/code.toml:4: unknown key `replcas`".to_owned());
    let evil = "\u{1b}[31mevil\u{1b}[0m\u{202e}name\u{7}";

    let node2 = snapshot.hosts.get_mut(&host_name("node2")).unwrap();
    if let Some(Gpus::Some(gpus)) = node2.sample.as_mut().map(|s| &mut Arc::make_mut(s).gpus) {
        gpus[5] = Gpu {
            index: 5,
            uuid: gpus[5].uuid.clone(),
            name: gpus[5].name.clone(),
            pci_bus_id: gpus[5].pci_bus_id.clone(),
            health: GpuHealth::Lost,
            xid: Some(Xid { code: 79, monotonic_ms: 930_000, count: 2 }),
            ..Gpu::default()
        };
        gpus[6].ecc_uncorrected = Some(2);
        gpus[6].row_remap_pending = Some(true);
        gpus[7].mig = Some(true);
        gpus[7].mig_instances = vec![MigInstance {
            uuid: "MIG-node2-7-1".into(),
            name: "NVIDIA H100 80GB HBM3 MIG 3g.40gb".into(),
            memory: Some(MemoryUse { used: Bytes::gib(3), total: Bytes::gib(40) }),
        }];
        gpus[0].processes = Some(vec![GpuProcess {
            pid: 4_711,
            name: "python3".into(),
            command: Some("python3 -m vllm.entrypoints.openai.api_server --port 18001".into()),
            user: Some("llm".into()),
            container: Some("gpudeck-chat-r11-1-a1-0".into()),
            kind: Some(ProcessKind::Compute),
            memory: Some(Bytes::gib(61)),
            sm_percent: Some(82),
            cpu_percent: Some(104.0),
            host_memory: Some(Bytes::mib(7_300)),
            running_s: Some(90_100),
            ..GpuProcess::default()
        }]);
        gpus[6].health = GpuHealth::Degraded { why: "2 uncorrected errors".to_owned() };
        gpus[7].name = evil.to_owned().into();
        gpus[7].utilisation_percent = None;
        gpus[7].memory = None;
        gpus[7].temperature_c = None;
        gpus[7].power_mw = None;
        gpus[7].processes = Some(vec![GpuProcess {
            pid: 999,
            name: evil.to_owned().into(),
            user: Some(evil.to_owned().into()),
            memory: Some(Bytes::gib(3)),
            ..GpuProcess::default()
        }]);
    }
    let node3 = snapshot.hosts.get_mut(&host_name("node3")).unwrap();
    node3.sampled = Some(before(12));
    let node4 = snapshot.hosts.get_mut(&host_name("node4")).unwrap();
    node4.link = HostLinkState::Down {
        kind: crate::api::DownCause::Refused,
        cause: "connection refused".to_owned(),
        hint: Some("is sshd running on node4?".to_owned()),
        since: before(125),
        tried: before(2),
        retry_at: Some(after(8)),
        trying: None,
    };
    let mut hung = host("node5", Vec::new());
    Arc::make_mut(hung.sample.as_mut().unwrap()).gpus = Gpus::Hung { for_ms: 45_000 };
    snapshot.hosts.insert(hung.name.clone(), hung);
    let mut none = host("bastion", Vec::new());
    Arc::make_mut(none.sample.as_mut().unwrap()).gpus =
        Gpus::None { why: "libnvidia-ml.so.1 not found".to_owned() };
    snapshot.hosts.insert(none.name.clone(), none);
    for (name, link) in [
        ("node6", HostLinkState::Connecting { phase: "authenticating".to_owned() }),
        ("node7", HostLinkState::Asking { question: 3 }),
    ] {
        let mut host = host(name, Vec::new());
        (host.link, host.sample, host.sampled, host.facts) = (link, None, None, None);
        snapshot.hosts.insert(host.name.clone(), host);
    }

    let mut embed = code();
    embed.name = service_name("embed");
    embed.condition = Condition::Down;
    embed.model = evil.to_owned();
    (embed.ready, embed.stable, embed.rollout) = (0, None, None);
    embed.traffic = TrafficView::default();
    embed.url = None;
    embed.trouble = Some(format!("no host has 4 free GPUs {evil}"));
    embed.replicas = vec![replica_view(
        "embed",
        3,
        0,
        ("node5", 0..1),
        Phase::Failed { cause: format!("exit code 1: {evil}") },
        0,
        TrafficView::default(),
    )];
    embed.history = vec![release(3, 1_000, evil, None)];
    snapshot.services.insert(embed.name.clone(), embed);
    snapshot.events.push_back(event(2, Severity::Error, "embed", "node5", evil));
    snapshot
}

/// A question of each kind.
pub fn question(id: u64, kind: QuestionKind) -> Question {
    let text = match kind {
        QuestionKind::HostKey => {
            "The authenticity of node7 (10.0.0.7) cannot be established. Its ED25519 key is \
             SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM. Trust it?"
        }
        QuestionKind::Secret => "Passphrase for /home/ann/.ssh/id_ed25519",
    };
    Question { id, host: Some(host_name("node7")), kind, text: text.to_owned(), asked: before(5) }
}

/// A fleet of `count` hosts of eight GPUs, nothing on them.
pub fn fleet(count: usize) -> Snapshot {
    let mut snapshot = calm();
    snapshot.hosts = (0..count)
        .map(|i| {
            let name = format!("node{i:03}");
            let load = [50, 60, 70, 80, 90, 20, 10, 0].map(|b| (b, u64::from(b) * 3 / 4));
            (host_name(&name), host(&name, busy_gpus(&name, load)))
        })
        .collect();
    snapshot
}

/// What applying `chat` would do.
pub fn plan(service: &str, outage: bool) -> PlanView {
    let stage = |title: &str, weight, ready, lowest| Stage {
        title: title.to_owned(),
        starts: vec![replica(13, 0)],
        stops: vec![replica(12, 2)],
        new_weight_percent: weight,
        ready_after: ready,
        lowest_ready: lowest,
        ..Stage::default()
    };
    PlanView {
        service: service_name(service),
        nothing_to_do: false,
        from: Some(ReleaseNumber(9)),
        to: ReleaseNumber(13),
        diff: "--- r9\n+++ deck\n@@ -6,3 +6,3 @@\n context = 32768\n-args = [\"--seed=1\"]\n+args = [\"--seed=2\"]\n".to_owned(),
        replicas: (0..2)
            .map(|i| PlannedReplica {
                replica: i,
                in_place_of: Vec::new(),
                ranks: vec![PlannedRank {
                    host: host_name("node4"),
                    devices: vec![DeviceId::Gpu(uuid("node4-0"))],
                    devices_text: format!("GPU {}-{}", i * 2, i * 2 + 1),
                    memory_per_device: Bytes::mib(38_400),
                    free_per_device: Some(Bytes::gib(79)),
                    argv: vec!["vllm".to_owned(), "serve".to_owned()],
                }],
            })
            .collect(),
        reasons: vec![
            "node4: 8 free GPUs, the most of all".to_owned(),
            "node1 passed over: 2 free GPUs, spread over hosts".to_owned(),
        ],
        borrows: Vec::new(),
        model: vec!["qwen2, 64 layers, 61.0 GiB of weights".to_owned(), "context 32768".to_owned()],
        forecast: Forecast {
            stages: vec![
                stage("weight 10 %", 10, 2, if outage { 0 } else { 2 }),
                stage("analyse default (1m)", 10, 2, 2),
                stage("all replicas", 100, 2, 1),
            ],
            lowest_ready: u32::from(!outage),
            floor: 1,
            outage,
            remedy: None,
        },
        steps: Vec::new(),
        total: crate::api::PlanTime::default(),
        warnings: if outage {
            vec!["OUTAGE: one host only, code stops serving for about 2m".to_owned()]
        } else {
            Vec::new()
        },
    }
}

/// A state of this size that has just received `snapshot`.
pub fn state(snapshot: Snapshot, size: (u16, u16)) -> State {
    let mut state = State::new(Look::default(), size, NOW);
    update(&mut state, Message::Delta(Box::new(Delta::Snapshot(Box::new(snapshot)))));
    state
}

/// Presses keys written as `jj/gpu<enter>`; returns all effects.
pub fn press(state: &mut State, keys: &str) -> Vec<Effect> {
    let keys = Key::parse(keys).expect("keys");
    keys.into_iter().flat_map(|k| update(state, Message::Key(k))).collect()
}
