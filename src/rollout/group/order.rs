//! The order in which services that belong together are rolled out.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{Hint, ServiceName};

/// Services that wait for each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the services wait for each other: {}", .0.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" after "))]
pub struct Cycle(pub Vec<ServiceName>);

impl Hint for Cycle {
    fn hint(&self) -> Option<String> {
        Some("take one of them out of the other's `after` in [rollout]".to_owned())
    }
}

/// Orders services so that each comes after those in its `after`; otherwise by name. Services that are not
/// among them do not count.
///
/// # Errors
/// When some wait for each other.
pub fn order(after: &BTreeMap<ServiceName, Vec<ServiceName>>) -> Result<Vec<ServiceName>, Cycle> {
    let mut placed: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut ordered = Vec::new();
    let waits_for = |service: &ServiceName, placed: &BTreeSet<&ServiceName>| {
        let of = after.get(service).map(Vec::as_slice).unwrap_or_default();
        of.iter().find(|s| after.contains_key(*s) && !placed.contains(s)).cloned()
    };
    while placed.len() < after.len() {
        let next = after.keys().find(|s| !placed.contains(s) && waits_for(s, &placed).is_none());
        let Some(next) = next else {
            // Everybody who is left waits for somebody who is left: following them leads around.
            let mut path: Vec<ServiceName> = Vec::new();
            let mut at = after.keys().find(|s| !placed.contains(s)).cloned();
            while let Some(service) = at {
                if let Some(start) = path.iter().position(|p| *p == service) {
                    path.drain(..start);
                    path.push(service);
                    return Err(Cycle(path));
                }
                at = waits_for(&service, &placed);
                path.push(service);
            }
            return Err(Cycle(path));
        };
        placed.insert(next);
        ordered.push(next.clone());
    }
    Ok(ordered)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<ServiceName> {
        text.split_whitespace().map(|n| n.parse().unwrap()).collect()
    }

    fn services(lines: &[&str]) -> BTreeMap<ServiceName, Vec<ServiceName>> {
        lines
            .iter()
            .map(|line| {
                let mut all = names(line);
                (all.remove(0), all)
            })
            .collect()
    }

    #[test]
    fn each_comes_after_those_it_waits_for() {
        let found = order(&services(&["chat draft router", "draft", "router draft elsewhere"]));
        assert_eq!(found.unwrap(), names("draft router chat"));
        assert_eq!(order(&services(&["b", "a"])).unwrap(), names("a b"));
    }

    #[test]
    fn a_circle_is_refused_and_named() {
        let error = order(&services(&["a b", "b c", "c b", "d"])).unwrap_err();
        assert_eq!(error.to_string(), "the services wait for each other: b after c after b");
        let error = order(&services(&["a a"])).unwrap_err();
        assert_eq!(error.0, names("a a"));
    }
}
