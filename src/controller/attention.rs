//! How closely each host is followed: as closely as somebody looks at it, or as what runs there asks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::actions::Means;
use super::company::hosts_of;
use super::core::Core;
use crate::api::Looking;
use crate::base::HostName;
use crate::fleet::Attention;

/// A door that has said nothing for so long does not look any more.
const PATIENCE: Duration = Duration::from_secs(15);

/// A host that ran something of ours is followed closely for so long after: memory becomes free.
const AFTERWARDS: Duration = Duration::from_mins(1);

/// Most hosts that one door can look at.
const MAX_HOSTS: usize = 1024;

/// Who looks at what, until when.
#[derive(Debug, Default)]
pub struct Attentions {
    looks: Mutex<BTreeMap<HostName, (Attention, Instant)>>,
}

impl Attentions {
    /// A door looks at these hosts.
    pub fn look(&self, looking: Looking) {
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = looking.detail.into_iter().map(|host| (host, Attention::LookedAt));
        let screen = looking.hosts.into_iter().take(MAX_HOSTS);
        for (host, attention) in screen.map(|h| (h, Attention::OnScreen)).chain(detail) {
            raise(&mut looks, host, attention, now, now + PATIENCE);
        }
    }

    /// Something of ours runs there.
    fn uses(&self, host: &HostName) {
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        raise(&mut looks, host.clone(), Attention::Runs, now, now + AFTERWARDS);
    }

    /// What runs there is being judged, by its GPUs too.
    fn judges(&self, host: &HostName) {
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        raise(&mut looks, host.clone(), Attention::OnScreen, now, now + PATIENCE);
    }

    /// What hosts get now that get more than the least; ended looks are forgotten.
    fn all(&self) -> BTreeMap<HostName, Attention> {
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|_, (_, until)| *until > now);
        looks.iter().map(|(host, (attention, _))| (host.clone(), *attention)).collect()
    }
}

/// A closer look wins; one that has ended counts for nothing.
fn raise(
    looks: &mut BTreeMap<HostName, (Attention, Instant)>,
    host: HostName,
    attention: Attention,
    now: Instant,
    until: Instant,
) {
    let held = looks.entry(host).or_insert((attention, until));
    if held.1 <= now || held.0 < attention {
        *held = (attention, until);
    } else if held.0 == attention {
        held.1 = held.1.max(until);
    }
}

impl Means {
    /// Follows all hosts as closely as they are looked at.
    pub fn pay_attention(&self) {
        self.fleet.follow(self.attention.all());
    }
}

impl Core {
    /// Once a second: what nobody looks at any more is followed less closely.
    pub(super) fn pay_attention(&self) {
        for state in self.state.services.values() {
            for host in hosts_of(state, &self.deck) {
                self.means.attention.uses(&host);
                if state.analysing().is_some() {
                    self.means.attention.judges(&host);
                }
            }
        }
        self.means.pay_attention();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_look_counts() {
        let attentions = Attentions::default();
        let host = |name: &str| -> HostName { name.parse().unwrap() };
        let look = |hosts, detail| attentions.look(Looking { hosts, detail, door: None });
        look(vec![host("a"), host("b")], Some(host("b")));
        look(vec![host("b")], None);
        attentions.uses(&host("c"));
        attentions.uses(&host("e"));
        attentions.judges(&host("e"));
        let all = attentions.all();
        let of = |name: &str| all.get(&host(name)).copied();
        assert_eq!(of("a"), Some(Attention::OnScreen));
        assert_eq!(of("b"), Some(Attention::LookedAt), "another door still does");
        assert_eq!(of("c"), Some(Attention::Runs));
        assert_eq!(of("e"), Some(Attention::OnScreen));
        assert_eq!(of("d"), None);
    }

    #[test]
    fn a_look_that_has_ended_counts_for_nothing() {
        let (now, name): (_, HostName) = (Instant::now(), "a".parse().unwrap());
        let mut looks = BTreeMap::from([(name.clone(), (Attention::LookedAt, now))]);
        raise(&mut looks, name.clone(), Attention::OnScreen, now, now + PATIENCE);
        assert_eq!(looks.get(&name).unwrap().0, Attention::OnScreen);
    }
}
