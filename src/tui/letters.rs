//! Which letter is which service, in the fleet and in the map: it stays the same for as long as the screen is open,
//! whatever services come and go.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{DeviceId, ServiceName, Snapshot};

/// Letters there are: `a` to `z`, then `A` to `Z`.
const LETTERS: usize = 52;

/// The letter at a place; a sign that is no letter behind the last one.
pub fn letter(place: usize) -> char {
    let of = |first: u8, place: usize| u8::try_from(place).map_or('+', |n| char::from(first + n));
    match place {
        0..26 => of(b'a', place),
        26..LETTERS => of(b'A', place - 26),
        _ => '+',
    }
}

/// The places that services have.
#[derive(Clone, Debug, Default)]
pub struct Letters(BTreeMap<ServiceName, usize>);

impl Letters {
    /// The place of a service; none: it is not known.
    pub fn place(&self, service: &ServiceName) -> Option<usize> {
        self.0.get(service).copied()
    }

    /// Gives new services their places: first those that hold GPUs, which take the letter of one that does not where
    /// there are no others left.
    pub fn settle(&mut self, snapshot: &Snapshot) {
        if snapshot.services.keys().all(|name| self.0.contains_key(name)) && self.0.len() <= LETTERS
        {
            return;
        }
        let holders = holders(snapshot);
        let known = snapshot.services.keys().filter(|name| holders.contains(*name));
        let needed: BTreeSet<ServiceName> = known.cloned().collect();
        for name in &needed {
            if self.place(name).is_some_and(|place| place < LETTERS) {
                continue;
            }
            let place = self.free();
            if place < LETTERS {
                self.0.insert(name.clone(), place);
                continue;
            }
            let idle =
                self.0.iter().filter(|(other, at)| !needed.contains(*other) && **at < LETTERS);
            let idle = idle.map(|(other, at)| (other.clone(), *at)).next();
            let place = match idle {
                Some((other, at)) => {
                    self.0.remove(&other);
                    at
                }
                // There is no better one.
                None if self.0.contains_key(name) => continue,
                None => place,
            };
            self.0.entry(name.clone()).and_modify(|at| *at = place).or_insert(place);
        }
        for name in snapshot.services.keys() {
            if !self.0.contains_key(name) {
                let place = self.free();
                self.0.insert(name.clone(), place);
            }
        }
    }

    /// The first place that nobody has.
    fn free(&self) -> usize {
        let taken: BTreeSet<usize> = self.0.values().copied().collect();
        (0..=taken.len()).find(|place| !taken.contains(place)).unwrap_or(usize::MAX)
    }
}

/// The services that hold GPUs.
pub fn holders(snapshot: &Snapshot) -> BTreeSet<ServiceName> {
    let ranks = snapshot.hosts.values().flat_map(|host| &host.ranks);
    let on_gpus = ranks.filter(|rank| rank.devices.iter().any(|d| *d != DeviceId::Cpu));
    on_gpus.map(|rank| rank.rank.service.clone()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::tui::fixture::{calm, service_name};

    /// A deck with services of these names, which hold GPUs or do not.
    fn deck(services: &[(String, bool)]) -> Snapshot {
        let mut snapshot = calm();
        let view = snapshot.services.values().next().unwrap().clone();
        let rank = snapshot.hosts.values().find_map(|h| h.ranks.first()).unwrap().clone();
        snapshot.services.clear();
        let host = snapshot.hosts.values_mut().next().unwrap();
        host.ranks.clear();
        for (name, holds) in services {
            let mut view = view.clone();
            view.name = service_name(name);
            if *holds {
                let mut rank = rank.clone();
                rank.rank.service = view.name.clone();
                host.ranks.push(rank);
            }
            snapshot.services.insert(view.name.clone(), view);
        }
        for host in snapshot.hosts.values_mut().skip(1) {
            host.ranks.clear();
        }
        snapshot
    }

    fn named(names: &[&str]) -> Vec<(String, bool)> {
        names.iter().map(|name| ((*name).to_owned(), true)).collect()
    }

    #[test]
    fn a_service_keeps_its_letter_whatever_comes_and_goes() {
        let mut letters = Letters::default();
        letters.settle(&deck(&named(&["chat", "code"])));
        let of = |letters: &Letters, name: &str| letters.place(&service_name(name)).map(letter);
        assert_eq!((of(&letters, "chat"), of(&letters, "code")), (Some('a'), Some('b')));
        letters.settle(&deck(&named(&["ask", "chat", "code"])));
        assert_eq!((of(&letters, "chat"), of(&letters, "code")), (Some('a'), Some('b')));
        assert_eq!(of(&letters, "ask"), Some('c'));
        letters.settle(&deck(&named(&["code"])));
        assert_eq!(of(&letters, "code"), Some('b'));
    }

    #[test]
    fn where_there_are_too_few_letters_everybody_keeps_the_place_all_the_same() {
        let services: Vec<(String, bool)> =
            (0..54).map(|n| (format!("serves{n:02}"), true)).collect();
        let mut letters = Letters::default();
        letters.settle(&deck(&services));
        let before = letters.0.clone();
        letters.settle(&deck(&services));
        assert_eq!(letters.0, before);
    }

    #[test]
    fn those_that_hold_gpus_have_letters_of_their_own() {
        let mut services: Vec<(String, bool)> =
            (0..60).map(|n| (format!("idle{n:02}"), false)).collect();
        services.extend((0..40).map(|n| (format!("serves{n:02}"), true)));
        let mut letters = Letters::default();
        letters.settle(&deck(&services));
        let of = |n: usize| letters.place(&service_name(&format!("serves{n:02}"))).map(letter);
        let found: BTreeSet<char> = (0..40).filter_map(of).collect();
        assert_eq!(found.len(), 40);
        assert!(!found.contains(&'+'), "{found:?}");
        // One that begins to serve later takes the letter of one that does not.
        let mut letters = letters.clone();
        services[59].1 = true;
        letters.settle(&deck(&services));
        let place = letters.place(&service_name("idle59")).unwrap();
        assert!(place < LETTERS, "{place}");
    }
}
