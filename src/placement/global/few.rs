//! The hosts of one replica: mostly one, seldom many, and copied with every attempt of the search.

use std::ops::Deref;

/// So many lie in the list itself.
const HERE: usize = 4;

/// A short list of hosts; no memory is asked for unless it is long.
#[derive(Clone, Debug, Default)]
pub(super) struct Few {
    count: usize,
    here: [u32; HERE],
    /// All of them, once they are too many.
    all: Vec<u32>,
}

impl Few {
    pub fn push(&mut self, host: u32) {
        match self.here.get_mut(self.count) {
            Some(place) => *place = host,
            None => {
                if self.all.is_empty() {
                    self.all.extend_from_slice(&self.here);
                }
                self.all.push(host);
            }
        }
        self.count += 1;
    }
}

impl Deref for Few {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        if self.all.is_empty() { self.here.get(..self.count).unwrap_or(&[]) } else { &self.all }
    }
}

impl PartialEq for Few {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Few {}

impl Extend<u32> for Few {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, hosts: I) {
        hosts.into_iter().for_each(|host| self.push(host));
    }
}

impl FromIterator<u32> for Few {
    fn from_iter<I: IntoIterator<Item = u32>>(hosts: I) -> Self {
        let mut few = Self::default();
        few.extend(hosts);
        few
    }
}

impl<'a> IntoIterator for &'a Few {
    type Item = &'a u32;
    type IntoIter = std::slice::Iter<'a, u32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_lists() {
        let mut few = Few::default();
        assert!(few.is_empty());
        for n in 0..9 {
            few.push(n);
            assert_eq!(*few, (0..=n).collect::<Vec<u32>>()[..]);
        }
        assert_eq!(few, (0..9).collect());
        assert_ne!(few, (0..4).collect());
        assert_eq!((&few).into_iter().sum::<u32>(), 36);
    }
}
