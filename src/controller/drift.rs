//! What the hosts run against what the releases say: shown, never corrected unasked.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::actions::{Means, reading_runtime, start_of};
use super::core::Core;
use super::deck_ledger::Ledger;
use super::record::DeckState;
use super::{strays, upgrade};
use crate::api::release::{DriftItem, DriftView};
use crate::api::{ApiError, DeckConditionKind, UpgradeEntry, UpgradeHost};
use crate::base::{DeckId, HostName, RankId, ServiceName};
use crate::rollout::Phase;
use crate::runtime::RunningRank;
use crate::runtime::docker::setup::Setup;
use crate::spec::RuntimeSpec;
use crate::wire::RankStart;

/// Time between two looks of the controller itself.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Longest time for one host.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the releases want on a host.
#[derive(Clone, Debug)]
struct Expected {
    host: HostName,
    rank: RankId,
    argv: Vec<String>,
    runtime: RuntimeSpec,
    /// What its container is to be given, where it is one.
    setup: Option<Setup>,
    /// How its process is to be started, where it is one of a release.
    process: Option<RankStart>,
    /// It must run; otherwise it may (it starts, stops, or waits to be started).
    must_run: bool,
}

/// Everything a comparison needs, taken from the loop at one moment.
pub struct Plan {
    deck: DeckId,
    expected: Vec<Expected>,
    /// What each host is asked with: process always, container engines where a release has one.
    runtimes: BTreeMap<HostName, Vec<RuntimeSpec>>,
    /// Hosts of which it is not known here what should run there, and why.
    elsewhere: Vec<String>,
    /// Some of them are another controller's.
    held_elsewhere: bool,
}

fn expected(state: &DeckState) -> Vec<Expected> {
    let mut found = Vec::new();
    for service in state.services.values() {
        for (key, replica) in &service.replicas {
            let Some(release) = service.releases.get(&key.release) else { continue };
            let Some(plan) = release.replica(key.replica) else { continue };
            let must_run = matches!(replica.phase, Phase::Ready | Phase::Loading);
            for (rank, plan) in service.rank_ids(*key).into_iter().zip(&plan.ranks) {
                let start = start_of(release.spec.api_key_file.clone(), &rank, plan);
                let (setup, process) = match &release.spec.runtime {
                    RuntimeSpec::Docker(docker) => (Setup::wanted(&start, docker), None),
                    RuntimeSpec::Process => (None, Some(start)),
                };
                found.push(Expected {
                    host: plan.host.clone(),
                    rank,
                    setup,
                    process,
                    argv: plan.argv.clone(),
                    runtime: release.spec.runtime.clone(),
                    must_run,
                });
            }
        }
    }
    found
}

/// The commands of an upgrade of hosts that are awaited: no release names them, and they are ours.
fn commands(deck: DeckId, ledger: &Ledger) -> Vec<Expected> {
    let Some(upgrade) = &ledger.maintenance.upgrade else { return Vec::new() };
    let runs = |entry: &&UpgradeEntry| matches!(entry.state, UpgradeHost::Running { .. });
    let expected = |entry: &UpgradeEntry| {
        Some(Expected {
            host: entry.host.clone(),
            rank: upgrade::rank_of(deck, upgrade.id, entry.attempt())?,
            argv: upgrade::argv_of(upgrade),
            runtime: RuntimeSpec::Process,
            setup: None,
            process: None,
            must_run: false,
        })
    };
    upgrade.hosts.iter().filter(runs).filter_map(expected).collect()
}

/// The ranks on each of these hosts that nothing wants there, and the ports that they may have.
fn unwanted(
    expected: &[Expected],
    seen: &BTreeMap<HostName, Vec<RunningRank>>,
) -> BTreeMap<HostName, strays::OfHost> {
    let mut all = BTreeMap::new();
    for (host, ranks) in seen {
        let is_wanted = |r: &&RunningRank| expected.iter().any(|e| e.is(host, &r.rank));
        let stray = ranks.iter().filter(|r| !is_wanted(r));
        let ports = |r: &RunningRank| strays::ports_in(r.argv.as_deref().unwrap_or_default());
        all.insert(host.clone(), stray.map(|r| (r.rank.clone(), ports(r))).collect());
    }
    all
}

impl Expected {
    fn is(&self, host: &HostName, rank: &RankId) -> bool {
        self.rank == *rank && self.host == *host
    }
}

impl Plan {
    /// Whether this rank may run there.
    pub fn wants(&self, host: &HostName, rank: &RankId) -> bool {
        self.expected.iter().any(|e| e.is(host, rank))
    }

    /// What a host is asked with.
    pub fn runtimes_on(&self, host: &HostName) -> Vec<RuntimeSpec> {
        self.runtimes.get(host).cloned().unwrap_or_default()
    }
}

impl Core {
    /// The same of one host, also before it is known who holds it: it is only looked at.
    pub(super) fn drift_plan_of(&self, host: &HostName) -> Plan {
        let mut plan = self.drift_plan();
        let asked = plan.runtimes.remove(host).unwrap_or_else(|| vec![RuntimeSpec::Process]);
        plan.runtimes = BTreeMap::from([(host.clone(), asked)]);
        plan
    }

    /// What is to be compared.
    pub(super) fn drift_plan(&self) -> Plan {
        let mut expected = expected(&self.state);
        expected.extend(commands(self.deck.id, &self.state.ledger));
        let mut runtimes: BTreeMap<HostName, Vec<RuntimeSpec>> = BTreeMap::new();
        let mut elsewhere = Vec::new();
        let others = self.means.claims.others();
        for host in self.deck.hosts.keys() {
            match others.get(host) {
                Some(other) => elsewhere.push(format!(
                    "{host} is held by {}: what should run there is known to that controller",
                    other.holder
                )),
                None if !self.means.claims.was_asked(host) => {
                    elsewhere.push(format!("{host} has not said yet who holds it"));
                }
                None => {
                    runtimes.insert(host.clone(), vec![RuntimeSpec::Process]);
                }
            }
        }
        let gone = expected.iter().filter(|e| e.must_run && !self.deck.hosts.contains_key(&e.host));
        elsewhere.extend(gone.map(|e| {
            format!("{} should run on {}, which is not in deck.toml any more", e.rank, e.host)
        }));
        for release in self.state.services.values().flat_map(|s| s.releases.values()) {
            if release.spec.runtime == RuntimeSpec::Process {
                continue;
            }
            for rank in release.replicas.iter().flat_map(|r| &r.ranks) {
                let Some(asked) = runtimes.get_mut(&rank.host) else { continue };
                if !asked.contains(&release.spec.runtime) {
                    asked.push(release.spec.runtime.clone());
                }
            }
        }
        let held_elsewhere = self.deck.hosts.keys().any(|host| others.contains_key(host));
        Plan { deck: self.deck.id, expected, runtimes, elsewhere, held_elsewhere }
    }
}

/// Looks at the hosts and compares, of one service or of all.
pub async fn look(
    means: &Arc<Means>,
    plan: Plan,
    service: Option<&ServiceName>,
) -> Result<DriftView, ApiError> {
    let expected = &plan.expected;
    let looks = plan.runtimes.iter().map(|(host, runtimes)| async move {
        let mut found = Vec::new();
        for spec in runtimes {
            let asked = async {
                let runtime =
                    reading_runtime(means, spec, host).await.map_err(|e| e.to_string())?;
                let mut ranks = runtime.running().await.map_err(|e| e.to_string())?;
                for running in &mut ranks {
                    let wanted = expected.iter().find(|e| e.is(host, &running.rank));
                    let Some(start) = wanted.and_then(|e| e.process.as_ref()) else { continue };
                    let told = runtime.differences(start).await;
                    running.told = told.map_err(|e| e.to_string())?;
                }
                Ok::<_, String>(ranks)
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(ranks)) => found.extend(ranks),
                Ok(Err(why)) => return Err(why),
                Err(_) => return Err(format!("{host} did not answer in time")),
            }
        }
        Ok((host.clone(), found))
    });
    let mut view = DriftView {
        held_elsewhere: plan.held_elsewhere,
        not_seen: plan.elsewhere,
        ..DriftView::default()
    };
    let mut seen = BTreeMap::new();
    for result in futures::future::join_all(looks).await {
        match result {
            Ok((host, ranks)) => {
                let mut known = BTreeSet::new();
                let ours = ranks.into_iter().filter(|r| r.rank.deck == plan.deck);
                // Several settings of one container engine list the same containers.
                let ranks = ours.filter(|r| known.insert(r.rank.clone())).collect();
                seen.insert(host, ranks);
            }
            Err(why) => view.not_seen.push(why),
        }
    }
    view.looked_at = seen.len();
    let strays = unwanted(&plan.expected, &seen);
    // A loop that has ended gives no ports out.
    let _ = means.ask(move |core| core.note_strays(strays)).await;
    view.items = compare::items(&plan.expected, &seen);
    if let Some(service) = service {
        view.items.retain(|i| i.rank.service == *service);
    }
    Ok(view)
}

/// Looks again and again, so that drift is seen without being asked for.
pub async fn watch(means: Arc<Means>) {
    // What is seen twice is drift; once it may be a start or a stop on its way.
    let mut before: Vec<DriftItem> = Vec::new();
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let Some(plan) = means.ask(|core| core.drift_plan()).await else { return };
        let Ok(view) = look(&means, plan, None).await else { continue };
        let lasting = view.items.iter().filter(|i| before.contains(i)).count();
        before = view.items;
        let holds = (lasting > 0).then(|| {
            let noun = if lasting == 1 { "rank differs" } else { "ranks differ" };
            (
                format!("{lasting} {noun} on the hosts from what the releases say"),
                Some("`gpudeck drift` lists them; nothing is corrected unasked".to_owned()),
            )
        });
        let tell = move |core: &mut Core| core.set_condition(DeckConditionKind::Drift, holds);
        if means.ask(tell).await.is_none() {
            return;
        }
    }
}
