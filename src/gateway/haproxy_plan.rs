//! From the servers a backend has to the servers it should have: the fewest commands, in an order
//! in which the backend never has less to send traffic to than before or after. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::haproxy_text::{Admin, ServerState};
use crate::base::{ReplicaId, TrafficMode, text};

/// A server as it should be, its address resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub address: IpAddr,
    pub port: u16,
    pub weight: u16,
    pub mode: TrafficMode,
}

/// The commands that lead from `have` to `want`, except for the removal of what is not wanted:
/// that is put into drain mode here and removed once it is idle ([`removal`]).
///
/// Order: what adds or raises traffic, then what lowers it, then what takes it away, so that the
/// sum of the weights is never below the smaller of before and after.
pub(super) fn commands(
    backend: &str,
    have: &BTreeMap<ReplicaId, ServerState>,
    want: &BTreeMap<ReplicaId, Wanted>,
) -> Vec<String> {
    let mut raise = Vec::new();
    let mut lower = Vec::new();
    let mut take_away = Vec::new();
    for (replica, wanted) in want {
        let server = format!("{backend}/{replica}");
        let Wanted { address, port, weight, mode } = wanted;
        let Some(state) = have.get(replica) else {
            let address = match address {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("[{v6}]"),
            };
            raise.push(format!("add server {server} {address}:{port} weight {weight}"));
            // A server that was added begins in maintenance.
            raise.push(format!("set server {server} state {}", word(*mode)));
            continue;
        };
        let same_address = state.address.parse() == Ok(*address) && state.port == *port;
        if !same_address {
            raise.push(format!("set server {server} addr {address} port {port}"));
        }
        // The weight of a server without traffic is set before it gets any.
        if *weight > state.weight || (*weight < state.weight && state.admin != Admin::Ready) {
            raise.push(format!("set server {server} weight {weight}"));
        } else if *weight < state.weight {
            lower.push(format!("set server {server} weight {weight}"));
        }
        match (state.admin, mode) {
            (Admin::Ready, TrafficMode::Ready) | (Admin::Drain, TrafficMode::Drain) => {}
            // From maintenance it is a step up even into drain mode: it may finish what it has.
            (_, TrafficMode::Ready) | (Admin::Maint, TrafficMode::Drain) => {
                raise.push(format!("set server {server} state {}", word(*mode)));
            }
            (Admin::Ready, TrafficMode::Drain) => {
                take_away.push(format!("set server {server} state drain"));
            }
        }
    }
    for (replica, state) in have {
        if !want.contains_key(replica) && state.admin == Admin::Ready {
            take_away.push(format!("set server {backend}/{replica} state drain"));
        }
    }
    [raise, lower, take_away].concat()
}

/// How servers that were once as they should be differ from that now, in words: somebody else changed them. Not what is
/// missing where nothing is there: a HAProxy that was restarted has forgotten it.
pub(super) fn changes(
    have: &BTreeMap<ReplicaId, ServerState>,
    want: &BTreeMap<ReplicaId, Wanted>,
) -> Vec<String> {
    let one = |(replica, wanted): (&ReplicaId, &Wanted)| {
        let state = have.get(replica)?;
        let mut found = Vec::new();
        if state.weight != wanted.weight {
            found.push(format!("weight {}, not {}", state.weight, wanted.weight));
        }
        let as_wanted = matches!(
            (state.admin, wanted.mode),
            (Admin::Ready, TrafficMode::Ready) | (Admin::Drain, TrafficMode::Drain)
        );
        if !as_wanted {
            let was = match state.admin {
                Admin::Ready => "ready",
                Admin::Drain => "drain",
                Admin::Maint => "maint",
            };
            found.push(format!("state {was}, not {}", word(wanted.mode)));
        }
        if state.address.parse() != Ok(wanted.address) || state.port != wanted.port {
            let (address, port) = (text::clean(&state.address, 60), state.port);
            found.push(format!("address {address} port {port}"));
        }
        (!found.is_empty()).then(|| format!("{replica} had {}", found.join(" and ")))
    };
    want.iter().filter_map(one).collect()
}

/// The commands that remove an idle server. HAProxy itself refuses the second one while a
/// connection is attached, so a request that slipped in is not cut.
pub(super) fn removal(backend: &str, replica: ReplicaId) -> [String; 2] {
    [
        format!("set server {backend}/{replica} state maint"),
        format!("del server {backend}/{replica}"),
    ]
}

const fn word(mode: TrafficMode) -> &'static str {
    match mode {
        TrafficMode::Ready => "ready",
        TrafficMode::Drain => "drain",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn have(weight: u16, admin: Admin) -> ServerState {
        ServerState { address: "10.0.0.1".to_owned(), port: 8000, weight, admin }
    }

    fn want(weight: u16, mode: TrafficMode) -> Wanted {
        Wanted { address: "10.0.0.1".parse().unwrap(), port: 8000, weight, mode }
    }

    fn id(text: &str) -> ReplicaId {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_to_do_is_no_command() {
        let state = [(id("r1-0-a1"), have(100, Admin::Ready))].into();
        let wanted = [(id("r1-0-a1"), want(100, TrafficMode::Ready))].into();
        assert!(commands("chat", &state, &wanted).is_empty());
    }

    #[test]
    fn adds_and_raises_before_it_lowers_and_drains() {
        let state = [
            (id("r1-0-a1"), have(100, Admin::Ready)),
            (id("r1-1-a1"), have(100, Admin::Ready)),
            (id("r0-0-a1"), have(100, Admin::Ready)),
        ]
        .into();
        let wanted = [
            (id("r1-0-a1"), want(10, TrafficMode::Ready)),
            (id("r1-1-a1"), want(100, TrafficMode::Drain)),
            (id("r2-0-a1"), want(90, TrafficMode::Ready)),
        ]
        .into();
        assert_eq!(
            commands("chat", &state, &wanted),
            [
                "add server chat/r2-0-a1 10.0.0.1:8000 weight 90",
                "set server chat/r2-0-a1 state ready",
                "set server chat/r1-0-a1 weight 10",
                "set server chat/r1-1-a1 state drain",
                "set server chat/r0-0-a1 state drain",
            ]
        );
    }

    #[test]
    fn what_somebody_else_changed_is_told_and_what_was_forgotten_is_not() {
        let wanted = [
            (id("r1-0-a1"), want(100, TrafficMode::Ready)),
            (id("r1-1-a1"), want(100, TrafficMode::Drain)),
            (id("r1-2-a1"), want(100, TrafficMode::Ready)),
        ]
        .into();
        let as_wanted = [
            (id("r1-0-a1"), have(100, Admin::Ready)),
            (id("r1-1-a1"), have(100, Admin::Drain)),
            (id("r7-0-a1"), have(100, Admin::Ready)),
        ]
        .into();
        assert!(changes(&as_wanted, &wanted).is_empty());
        let elsewhere = ServerState { address: "10.0.0.9".to_owned(), ..have(100, Admin::Ready) };
        let changed = [
            (id("r1-0-a1"), have(5, Admin::Maint)),
            (id("r1-1-a1"), have(100, Admin::Ready)),
            (id("r1-2-a1"), elsewhere),
        ]
        .into();
        assert_eq!(
            changes(&changed, &wanted),
            [
                "r1-0-a1 had weight 5, not 100 and state maint, not ready",
                "r1-1-a1 had state ready, not drain",
                "r1-2-a1 had address 10.0.0.9 port 8000",
            ]
        );
    }

    proptest! {
        // Replays the commands on a model of the backend and watches the traffic they leave.
        #[test]
        fn traffic_never_falls_below_both_ends(
            before in proptest::collection::btree_map(0u32..5, (0u16..=256, 0u8..3), 0..5),
            after in proptest::collection::btree_map(0u32..5, (0u16..=256, any::<bool>()), 0..5),
        ) {
            let name = |i: u32| id(&format!("r1-{i}-a1"));
            let mode = |ready| if ready { TrafficMode::Ready } else { TrafficMode::Drain };
            let admin = [Admin::Ready, Admin::Drain, Admin::Maint];
            let mut state: BTreeMap<_, _> = before.iter()
                .map(|(i, (w, a))| (name(*i), have(*w, admin[usize::from(*a)]))).collect();
            let wanted: BTreeMap<_, _> =
                after.iter().map(|(i, (w, r))| (name(*i), want(*w, mode(*r)))).collect();
            let sum = |s: &BTreeMap<ReplicaId, ServerState>| -> u32 {
                s.values().filter(|s| s.admin == Admin::Ready).map(|s| u32::from(s.weight)).sum()
            };
            let lines = commands("chat", &state, &wanted);
            let goal: u32 = wanted.values().filter(|w| w.mode == TrafficMode::Ready)
                .map(|w| u32::from(w.weight)).sum();
            let floor = sum(&state).min(goal);
            for line in &lines {
                let words: Vec<&str> = line.split(' ').collect();
                let replica = id(words[2].strip_prefix("chat/").unwrap());
                match (words[0], words[3]) {
                    ("add", _) => {
                        state.insert(replica, have(words[5].parse().unwrap(), Admin::Maint));
                    }
                    ("set", "weight") => state.get_mut(&replica).unwrap().weight = words[4].parse().unwrap(),
                    ("set", "state") => state.get_mut(&replica).unwrap().admin = match words[4] {
                        "ready" => Admin::Ready, "drain" => Admin::Drain, _ => Admin::Maint,
                    },
                    _ => prop_assert!(false, "unexpected {line}"),
                }
                prop_assert!(sum(&state) >= floor, "{line}: {} < {floor}", sum(&state));
            }
            prop_assert_eq!(sum(&state), goal);
            state.retain(|replica, _| wanted.contains_key(replica));
            prop_assert!(commands("chat", &state, &wanted).is_empty());
        }
    }
}
