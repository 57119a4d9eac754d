//! The comparison itself.

use std::collections::BTreeMap;

use super::Expected;
use crate::api::release::{DriftItem, DriftKind};
use crate::base::{HostName, RankId};
use crate::runtime::{Difference, RunningRank};
use crate::spec::RuntimeSpec;

/// Compares; `seen` holds only hosts that could be looked at.
pub(super) fn items(
    expected: &[Expected],
    seen: &BTreeMap<HostName, Vec<RunningRank>>,
) -> Vec<DriftItem> {
    let mut items = Vec::new();
    let mut item = |host: &HostName, rank: &RankId, kind, text: String| {
        items.push(DriftItem {
            host: host.clone(),
            rank: rank.clone(),
            release: rank.replica.release,
            kind,
            text: crate::base::text::clean(&text, 400),
            hint: (kind == DriftKind::Unknown).then(|| {
                let service = &rank.service;
                format!("`gpudeck drift {service} --end-unknown --host {host}` ends it; nothing else does")
            }),
        });
    };
    for (host, ranks) in seen {
        for running in ranks {
            let wanted = expected.iter().find(|e| e.is(host, &running.rank));
            let Some(wanted) = wanted else {
                let words = format!(
                    "{} of {} ({}) runs, and no release wants it",
                    running.rank, running.rank.replica.release, running.rank.replica
                );
                item(host, &running.rank, DriftKind::Unknown, words);
                continue;
            };
            if let Some(argv) = running.argv.as_ref().filter(|a| **a != wanted.argv) {
                let words = format!("was started with `{}`", argv.join(" "));
                item(host, &running.rank, DriftKind::Command, words);
            }
            if let RuntimeSpec::Docker(docker) = &wanted.runtime
                && let Some(image) = running.image.as_ref().filter(|i| **i != docker.image)
            {
                let words = format!("has the image {image}, not {}", docker.image);
                item(host, &running.rank, DriftKind::Image, words);
            }
            let container = match (&wanted.setup, &running.setup) {
                (Some(setup), Some(seen)) => setup.differences(seen),
                _ => Vec::new(),
            };
            for difference in container.into_iter().chain(running.told.iter().flatten().cloned()) {
                let (kind, words) = match difference {
                    Difference::Command(words) => (DriftKind::Command, words),
                    Difference::Environment(words) => (DriftKind::Environment, words),
                    Difference::Devices(words) => (DriftKind::Devices, words),
                    Difference::Mounts(words) => (DriftKind::Mounts, words),
                };
                item(host, &running.rank, kind, words);
            }
        }
        for wanted in expected.iter().filter(|e| e.must_run && e.host == *host) {
            if !ranks.iter().any(|r| r.rank == wanted.rank) {
                let words = format!("{} should run and does not", wanted.rank);
                item(host, &wanted.rank, DriftKind::Missing, words);
            }
        }
    }
    items.sort_by(|a, b| (&a.host, &a.rank, a.kind).cmp(&(&b.host, &b.rank, b.kind)));
    items
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::api::{UpgradeEntry, UpgradeHost};
    use crate::base::DeckId;
    use crate::controller::deck_ledger::Ledger;
    use crate::controller::drift::commands;
    use crate::controller::upgrade;

    fn rank(n: u32) -> RankId {
        RankId {
            deck: DeckId(uuid::Uuid::from_u128(1)),
            service: "chat".parse().unwrap(),
            release_id: crate::base::ReleaseId(uuid::Uuid::from_u128(2)),
            replica: "r1-0-a1".parse().unwrap(),
            rank: n,
        }
    }

    fn wanted(n: u32, must_run: bool) -> Expected {
        Expected {
            host: "h1".parse().unwrap(),
            rank: rank(n),
            argv: vec!["serve".to_owned()],
            runtime: RuntimeSpec::Process,
            setup: None,
            process: None,
            must_run,
        }
    }

    #[test]
    fn the_command_of_an_upgrade_is_wanted_while_it_is_awaited() {
        let host: HostName = "h1".parse().unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let state = UpgradeHost::Running { gpus: 0, boot: None, cordoned_before: false };
        let since = crate::base::Timestamp(1);
        let upgrade = crate::api::Upgrade {
            id: crate::base::ReleaseId(uuid::Uuid::from_u128(3)),
            command: "apt-get -y upgrade".to_owned(),
            hosts: vec![UpgradeEntry { state, ..UpgradeEntry::waiting(host.clone(), since) }],
            max_parallel: 1,
            timeout_ms: 1,
            return_ms: 1,
            by: "ada".to_owned(),
            began: since,
            ended: None,
            paused: None,
            stopped: None,
        };
        let rank = upgrade::rank_of(deck, upgrade.id, crate::base::Attempt::FIRST).unwrap();
        let argv = Some(upgrade::argv_of(&upgrade));
        let runs = || {
            vec![RunningRank {
                rank: rank.clone(),
                argv: argv.clone(),
                image: None,
                setup: None,
                told: None,
            }]
        };
        let mut ledger = Ledger::default();
        ledger.maintenance.upgrade = Some(upgrade);
        let drift = |ledger: &Ledger, ranks| {
            let seen = BTreeMap::from([(host.clone(), ranks)]);
            let items = items(&commands(deck, ledger), &seen).into_iter();
            items.map(|i| i.kind).collect::<Vec<DriftKind>>()
        };
        assert_eq!(drift(&ledger, runs()), []);
        assert_eq!(drift(&ledger, vec![]), [], "it may have ended");
        // Given up: nobody looks after it any more.
        let entry = &mut ledger.maintenance.upgrade.as_mut().unwrap().hosts[0];
        entry.state = UpgradeHost::Failed { why: "not back".to_owned() };
        assert_eq!(drift(&ledger, runs()), [DriftKind::Unknown]);
    }

    fn running(n: u32, argv: &str) -> RunningRank {
        RunningRank {
            rank: rank(n),
            argv: Some(vec![argv.to_owned()]),
            image: None,
            setup: None,
            told: None,
        }
    }

    #[test]
    fn tells_unknown_missing_and_changed() {
        let host: HostName = "h1".parse().unwrap();
        let seen = |ranks: Vec<RunningRank>| BTreeMap::from([(host.clone(), ranks)]);
        let kinds = |expected: &[Expected], ranks| -> Vec<DriftKind> {
            items(expected, &seen(ranks)).into_iter().map(|i| i.kind).collect()
        };
        assert_eq!(kinds(&[wanted(0, true)], vec![running(0, "serve")]), []);
        assert_eq!(kinds(&[wanted(0, true)], vec![]), [DriftKind::Missing]);
        assert_eq!(kinds(&[wanted(0, false)], vec![]), []);
        assert_eq!(kinds(&[], vec![running(0, "serve")]), [DriftKind::Unknown]);
        assert_eq!(kinds(&[wanted(0, true)], vec![running(0, "other")]), [DriftKind::Command]);
        assert!(items(&[wanted(0, true)], &BTreeMap::new()).is_empty(), "not seen, not missing");
    }

    #[test]
    fn tells_what_a_host_says_of_its_processes_and_nothing_of_what_is_not_known() {
        let host: HostName = "h1".parse().unwrap();
        let kinds = |told: Option<Vec<Difference>>| -> Vec<(DriftKind, String)> {
            let seen =
                BTreeMap::from([(host.clone(), vec![RunningRank { told, ..running(0, "serve") }])]);
            let items = items(&[wanted(0, true)], &seen).into_iter();
            items.map(|i| (i.kind, i.text)).collect()
        };
        assert_eq!(kinds(None), []);
        assert_eq!(kinds(Some(vec![])), []);
        let told = vec![
            Difference::Devices("has 0, not GPU-1".to_owned()),
            Difference::Environment("MODE is not set".to_owned()),
            Difference::Command("runs without `--fast`".to_owned()),
        ];
        assert_eq!(
            kinds(Some(told)),
            [
                (DriftKind::Command, "runs without `--fast`".to_owned()),
                (DriftKind::Environment, "MODE is not set".to_owned()),
                (DriftKind::Devices, "has 0, not GPU-1".to_owned()),
            ]
        );
    }
}
