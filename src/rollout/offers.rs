//! Which replicas a lender is asked for. A replica of the borrower fits on one host, so what helps is room on one
//! host: replicas of a lender that lie side by side there, whatever their numbers are.

use std::collections::BTreeMap;

use crate::base::HostName;

/// Choices that are looked at of each number of replicas on a host, and over several.
const MOST_OF_A_KIND: usize = 256;

/// A replica that could be lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its index.
    pub replica: u32,
    /// How many GPUs it has on which host.
    pub gpus: BTreeMap<HostName, usize>,
}

/// The order of two sets: makes no room, how many, of several hosts, which of its kind.
type Rank = (bool, usize, bool, usize);

/// Sets of at most `most` replicas in the order in which they are to be tried: those that make room for one more
/// replica of `needed` GPUs on each host that they are taken from (where so many are `free` already), the fewest
/// first, of one host before of several, and of every host one before another of the same; then the others.
pub fn choices(
    offers: &[Offer],
    free: &BTreeMap<HostName, usize>,
    needed: usize,
    most: usize,
) -> Vec<Vec<u32>> {
    let mut by_host: BTreeMap<Vec<&HostName>, Vec<&Offer>> = BTreeMap::new();
    for offer in offers {
        by_host.entry(offer.gpus.keys().collect()).or_default().push(offer);
    }
    let all: Vec<&Offer> = offers.iter().collect();
    let makes_room = |set: &[&Offer]| {
        let mut given: BTreeMap<&HostName, usize> = BTreeMap::new();
        for (host, gpus) in set.iter().flat_map(|offer| &offer.gpus) {
            *given.entry(host).or_default() += gpus;
        }
        given.iter().all(|(host, gpus)| {
            let free = free.get(*host).copied().unwrap_or(0);
            let needed = needed.max(1);
            (free + gpus) / needed > free / needed
        })
    };
    let mut found: Vec<(Rank, Vec<u32>)> = Vec::new();
    for size in 1..=most.min(offers.len()) {
        for here in by_host.values() {
            for (nth, set) in subsets(here, size).into_iter().enumerate() {
                found.push(((!makes_room(&set), size, false, nth), indexes(&set)));
            }
        }
        let over_several = subsets(&all, size).into_iter().filter(|set| {
            set.windows(2).any(|two| matches!(two, [a, b] if !a.gpus.keys().eq(b.gpus.keys())))
        });
        for (nth, set) in over_several.enumerate() {
            found.push(((!makes_room(&set), size, true, nth), indexes(&set)));
        }
    }
    // Stable: of those alike the host's name decides.
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, set)| set).collect()
}

fn indexes(set: &[&Offer]) -> Vec<u32> {
    set.iter().map(|offer| offer.replica).collect()
}

/// The sets of this size in the order of their members, the first of them only if there are very many.
fn subsets<'a>(of: &[&'a Offer], size: usize) -> Vec<Vec<&'a Offer>> {
    let mut found = Vec::new();
    let mut at: Vec<usize> = (0..size).collect();
    while size <= of.len() && found.len() < MOST_OF_A_KIND {
        found.push(at.iter().filter_map(|i| of.get(*i).copied()).collect());
        // The last member that can move on does, and those after it follow.
        let moves = (0..size).rev().find(|i| at.get(*i).is_some_and(|v| *v < of.len() - size + i));
        let Some(first) = moves else { break };
        let from = at.get(first).map_or(0, |v| v + 1);
        for (next, place) in at.iter_mut().skip(first).enumerate() {
            *place = from + next;
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn offer(replica: u32, gpus: &[(&str, usize)]) -> Offer {
        let gpus = gpus.iter().map(|(host, n)| (host.parse().unwrap(), *n)).collect();
        Offer { replica, gpus }
    }

    fn free(of: &[(&str, usize)]) -> BTreeMap<HostName, usize> {
        of.iter().map(|(host, n)| (host.parse().unwrap(), *n)).collect()
    }

    #[test]
    fn replicas_that_alternate_over_two_hosts_are_chosen_by_host() {
        let offers: Vec<Offer> =
            (0..4).map(|i| offer(i, &[(if i % 2 == 0 { "h1" } else { "h2" }, 1)])).collect();
        // Nothing is free: two of the same host make room for a replica of two GPUs.
        let tried = choices(&offers, &free(&[]), 2, 2);
        assert_eq!(tried[..2], [vec![0, 2], vec![1, 3]]);
        // One GPU of h2 is free: one replica there is enough, and fewer go first.
        let tried = choices(&offers, &free(&[("h2", 1)]), 2, 2);
        assert_eq!(tried[..3], [vec![1], vec![3], vec![0, 2]]);
        // One on each host, where two replicas of one GPU each are wanted; never more than may be lent.
        let tried = choices(&offers, &free(&[]), 1, 2);
        assert_eq!(tried[..4], [vec![0], vec![1], vec![2], vec![3]]);
        assert!(tried.contains(&vec![0, 1]) && tried.iter().all(|set| set.len() <= 2));
        assert!(choices(&offers, &free(&[]), 1, 0).is_empty());
    }

    #[test]
    fn of_many_replicas_every_host_has_its_turn() {
        let offers: Vec<Offer> =
            (0..400).map(|i| offer(i, &[(&format!("h{}", i % 50), 1)])).collect();
        let tried = choices(&offers, &free(&[("h7", 1)]), 3, 3);
        assert_eq!(tried[0], [7, 57], "two make room where one is free");
        let three = tried.iter().position(|set| set.len() == 3).unwrap();
        let next: Vec<u32> = tried[three..].iter().take(50).map(|set| set[0] % 50).collect();
        let distinct: std::collections::BTreeSet<&u32> = next.iter().collect();
        assert!(distinct.len() >= 49, "{next:?}");
    }
}
