//! Lists that last: copies of them share one.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list within samples that hardly ever changes from one to the next. The ways between eight GPUs
/// are more than a hundred strings, and every sample is copied before a change is applied to it.
#[derive(Debug)]
pub struct Lasting<T>(Option<Arc<Vec<T>>>);

impl<T> Lasting<T> {
    /// The list as one's own, copied if others share it.
    pub fn into_vec(self) -> Vec<T>
    where
        T: Clone,
    {
        self.0.map(Arc::unwrap_or_clone).unwrap_or_default()
    }

    /// As `Vec::is_empty`, for serde.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl<T> From<Vec<T>> for Lasting<T> {
    fn from(list: Vec<T>) -> Self {
        Self((!list.is_empty()).then(|| Arc::new(list)))
    }
}

impl<T> FromIterator<T> for Lasting<T> {
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        Vec::from_iter(iter).into()
    }
}

impl<T> Deref for Lasting<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl<T> Default for Lasting<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Clone for Lasting<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: PartialEq> PartialEq for Lasting<T> {
    fn eq(&self, other: &Self) -> bool {
        let one = matches!((&self.0, &other.0), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        one || **self == **other
    }
}

impl<T: Serialize> Serialize for Lasting<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lasting<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Vec::deserialize(from).map(Self::from)
    }
}
