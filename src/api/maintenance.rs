//! Hosts under maintenance as doors see them: cordons, drains, upgrades.

use serde::{Deserialize, Serialize};

use crate::base::{HostName, ReplicaKey, ServiceName};

use super::plan::PlanPlace;
use super::view::ApiError;

pub use crate::rollout::maintenance::{
    Cordon, CordonedGpu, Drain, Upgrade, UpgradeEntry, UpgradeHost, UpgradeSteer,
};

/// What is done for the maintenance of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Maintenance {
    /// The host or GPUs of it get no new ranks.
    pub cordons: Vec<Cordon>,
    /// It is being emptied, or was and is cordoned still.
    pub drain: Option<Drain>,
    /// How far its upgrade is, while one is under way or after it failed.
    pub upgrade: Option<UpgradeHost>,
}

impl Maintenance {
    /// The cordon of the whole host.
    pub fn host_cordon(&self) -> Option<&Cordon> {
        self.cordons.iter().find(|c| c.gpu.is_none())
    }

    /// In a word or two: `cordoned`, `draining`, `drained`, `GPU 3 cordoned`, `UPGRADE FAILED, cordoned`; none: nothing
    /// is done.
    pub fn word(&self) -> Option<String> {
        let upgrade = self.upgrade.as_ref().filter(|upgrade| **upgrade != UpgradeHost::Done);
        match (upgrade, self.kept_from_use()) {
            // Whatever is being done to it, it gets nothing new meanwhile.
            (Some(upgrade), _) if upgrade.is_under_way() => Some(upgrade.word().to_owned()),
            (Some(upgrade), Some(kept)) => Some(format!("{}, {kept}", upgrade.word())),
            (Some(upgrade), None) => Some(upgrade.word().to_owned()),
            (None, kept) => kept,
        }
    }

    /// Its cordons and its drain.
    fn kept_from_use(&self) -> Option<String> {
        match (&self.drain, self.host_cordon()) {
            (Some(Drain { ended: None, .. }), _) => return Some("draining".to_owned()),
            (Some(Drain { trouble: Some(_), .. }), _) => return Some("NOT drained".to_owned()),
            (Some(_), Some(_)) => return Some("drained".to_owned()),
            (_, Some(_)) => return Some("cordoned".to_owned()),
            _ => {}
        }
        let mut gpus: Vec<u32> =
            self.cordons.iter().filter_map(|c| c.gpu.as_ref()).map(|g| g.index).collect();
        gpus.sort_unstable();
        let list: Vec<String> = gpus.iter().map(ToString::to_string).collect();
        (!list.is_empty()).then(|| format!("GPU {} cordoned", list.join(",")))
    }
}

/// What a drain of a host would do. `GET /v1/hosts/HOST/drain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainPlan {
    /// The host.
    pub host: HostName,
    /// Where each replica goes, in order; those of one service one after the other.
    pub moves: Vec<DrainMove>,
    /// What stops until the host is uncordoned, since there is no other place for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out: Vec<DrainOut>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

impl DrainPlan {
    /// Names what a person agrees to: which replicas leave, where they go, and which stop meanwhile. How long they load
    /// and what is warned of may differ from one look to the next.
    pub fn digest(&self) -> String {
        let places = |to: &[PlanPlace]| -> Vec<_> {
            to.iter().map(|p| (p.host.clone(), p.devices.clone())).collect()
        };
        let moves: Vec<_> =
            self.moves.iter().map(|m| (&m.service, m.replica, places(&m.to))).collect();
        let out: Vec<_> = self.out.iter().map(|o| (&o.service, o.replica)).collect();
        let text = serde_json::to_vec(&(&self.host, moves, out)).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }
}

/// A replica that is out while its host is maintained, as far as its service's floor allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainOut {
    /// The service.
    pub service: ServiceName,
    /// The replica on the host.
    pub replica: ReplicaKey,
    /// Where it is.
    pub from: Vec<PlanPlace>,
}

/// A replica that is moved: its successor starts elsewhere and is ready before it is drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainMove {
    /// The service.
    pub service: ServiceName,
    /// The replica on the host.
    pub replica: ReplicaKey,
    /// The replica that takes its place.
    pub successor: ReplicaKey,
    /// Where it is.
    pub from: Vec<PlanPlace>,
    /// Where it goes.
    pub to: Vec<PlanPlace>,
    /// How long the successor loads, as measured; none: never measured.
    pub load_ms: Option<u64>,
}

/// Which hosts are to be upgraded. `POST /v1/plan-upgrade`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeQuestion {
    /// In order; none: all.
    pub hosts: Vec<HostName>,
    /// So many at a time.
    pub max_parallel: u32,
}

/// What an upgrade of hosts would do, each host in the world that those before it leave. Nothing is touched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpgradePlan {
    /// So many at a time, at most.
    pub max_parallel: u32,
    /// The hosts in order.
    pub hosts: Vec<UpgradePlanHost>,
    /// The services that miss something on the way, at their lowest points.
    pub lowest: Vec<ServiceLow>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// One host of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpgradePlanHost {
    /// The host.
    pub host: HostName,
    /// Those of one batch are away at the same time; from 1, and 0 where it would be refused.
    pub batch: usize,
    /// Of the first one of a batch that could be larger: why it does not go beside those before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What moves away from it, and what stops meanwhile.
    pub drain: DrainPlan,
    /// How many replicas are left of each service that has something there, while it and what is beside it is away.
    pub capacity: Vec<ServiceLow>,
    /// Why it could not be emptied, with the smallest change by which it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ApiError>,
}

/// The fewest ready replicas of a service on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceLow {
    /// The service.
    pub service: ServiceName,
    /// Replicas that it wants.
    pub wanted: u32,
    /// No action of ours goes below.
    pub floor: u32,
    /// Ready before.
    pub ready: u32,
    /// The fewest.
    pub lowest_ready: u32,
}

impl UpgradePlan {
    /// Names what a person agrees to: the hosts in their batches, what leaves each, and the capacity left on the way.
    pub fn digest(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(|h| (h.batch, h.drain.digest())).collect();
        let lowest: Vec<_> = self.lowest.iter().map(|l| (&l.service, l.lowest_ready)).collect();
        let text = serde_json::to_vec(&(self.max_parallel, hosts, lowest)).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }

    /// Why it is not begun: at this host it would end.
    pub fn refusal(&self) -> Option<&ApiError> {
        self.hosts.iter().find_map(|host| host.refused.as_ref())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{DeviceId, Timestamp};

    fn cordon(gpu: Option<CordonedGpu>) -> Cordon {
        Cordon { gpu, by: "ada".to_owned(), reason: None, since: Timestamp(1) }
    }

    #[test]
    fn a_digest_names_where_replicas_go_and_not_how_long_they_load() {
        let key = |replica| ReplicaKey { release: crate::base::ReleaseNumber(1), replica };
        let place = |host: &str| PlanPlace {
            host: host.parse().unwrap(),
            devices: vec![DeviceId::Cpu],
            devices_text: "CPU".to_owned(),
        };
        let of = |to: &str, load_ms, out: &[u32]| DrainPlan {
            host: "h1".parse().unwrap(),
            moves: vec![DrainMove {
                service: "chat".parse().unwrap(),
                replica: key(0),
                successor: key(2),
                from: vec![place("h1")],
                to: vec![place(to)],
                load_ms,
            }],
            out: out
                .iter()
                .map(|replica| DrainOut {
                    service: "chat".parse().unwrap(),
                    replica: key(*replica),
                    from: Vec::new(),
                })
                .collect(),
            warnings: Vec::new(),
        };
        let plan = of("h2", None, &[]);
        assert_eq!(plan.digest(), of("h2", Some(1), &[]).digest());
        assert_ne!(plan.digest(), of("h3", None, &[]).digest());
        assert_ne!(plan.digest(), of("h2", None, &[1]).digest());
        let upgrade = |batch, drain| UpgradePlan {
            max_parallel: 2,
            hosts: vec![UpgradePlanHost {
                host: "h1".parse().unwrap(),
                batch,
                after: None,
                drain,
                capacity: Vec::new(),
                refused: None,
            }],
            lowest: Vec::new(),
            warnings: Vec::new(),
        };
        let first = upgrade(1, of("h2", None, &[])).digest();
        assert_eq!(first, upgrade(1, of("h2", Some(1), &[])).digest());
        assert_ne!(first, upgrade(2, of("h2", None, &[])).digest());
        assert_ne!(first, upgrade(1, of("h3", None, &[])).digest());
    }

    /// Whoever wonders why nothing is placed there finds it in the same word.
    #[test]
    fn a_failed_upgrade_does_not_hide_the_cordon() {
        let failed = || Some(UpgradeHost::Failed { why: "exit code 1".to_owned() });
        let word = |cordons, upgrade| {
            let maintenance = Maintenance { cordons, drain: None, upgrade };
            maintenance.word()
        };
        assert_eq!(word(vec![cordon(None)], failed()).unwrap(), "UPGRADE FAILED, cordoned");
        assert_eq!(word(Vec::new(), failed()).unwrap(), "UPGRADE FAILED");
        let gpu = CordonedGpu { device: DeviceId::Cpu, index: 3 };
        let gpu = vec![cordon(Some(gpu))];
        let skipped = Some(UpgradeHost::Skipped { behind: None, why: None });
        assert_eq!(word(gpu.clone(), skipped).unwrap(), "not upgraded, GPU 3 cordoned");
        assert_eq!(word(gpu, Some(UpgradeHost::Done)).unwrap(), "GPU 3 cordoned");
        let draining = Some(UpgradeHost::Draining { cordoned_before: true });
        assert_eq!(word(vec![cordon(None)], draining).unwrap(), "draining");
        assert_eq!(word(Vec::new(), None), None);
    }
}
