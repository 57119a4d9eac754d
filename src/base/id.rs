//! Names and ids, checked when they are made.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use uuid::Uuid;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a {what}: use 1 to {max} of `a-z A-Z 0-9 - _ .`, starting with a letter or digit"
)]
pub struct BadName {
    name: String,
    what: &'static str,
    max: usize,
}

fn check_name(name: &str, what: &'static str, max: usize) -> Result<(), BadName> {
    let good = name.len() <= max
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if good { Ok(()) } else { Err(BadName { name: super::text::clean(name, 60), what, max }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "SmolStr", into = "SmolStr")]
        pub struct $name(SmolStr);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                check_name(text, $what, $max)?;
                Ok(Self(text.into()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }
        impl TryFrom<SmolStr> for $name {
            type Error = BadName;
            fn try_from(text: SmolStr) -> Result<Self, BadName> {
                check_name(&text, $what, $max)?;
                Ok(Self(text))
            }
        }
        impl From<$name> for SmolStr {
            fn from(name: $name) -> Self {
                name.0
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// A host's name in the deck; what `ssh` would be given unless the deck says otherwise.
    HostName, "host name", 253
);
name_type!(
    /// A service's name: the file name of its spec without `.toml`.
    ServiceName, "service name", 48
);

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_type!(
    /// The identity of a deck, written in `deck.toml` when it is made.
    DeckId
);
uuid_type!(
    /// The identity of a release: a time-ordered UUID (v7).
    ReleaseId
);

/// A release's number within its deck, shown as `r12`. Read from a number, or from its digits as they are
/// written where it is a map's key: inside of a tagged enum serde hands those over as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u64);

impl<'de> Deserialize<'de> for ReleaseNumber {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Digits;
        impl serde::de::Visitor<'_> for Digits {
            type Value = ReleaseNumber;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a release's number")
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(ReleaseNumber(number))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
                u64::try_from(number).map(ReleaseNumber).map_err(E::custom)
            }
            fn visit_str<E: serde::de::Error>(self, digits: &str) -> Result<Self::Value, E> {
                digits.parse().map(ReleaseNumber).map_err(E::custom)
            }
        }
        from.deserialize_any(Digits)
    }
}

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r{}", self.0))
    }
}

impl FromStr for ReleaseNumber {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('r').unwrap_or(text);
        digits.parse().map(Self).map_err(|_| {
            format!("`{}` is not a release; write for example `r12`", super::text::clean(text, 40))
        })
    }
}

/// A commit of the deck's Git repository, as 40 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub String);

impl Revision {
    /// The first eight digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.short())
    }
}

/// Counts the starts of one replica of one release, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub NonZeroU32);

impl Attempt {
    /// The first start.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The start after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The fencing number of the controller that may act on a host. Grows, never shrinks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// One start of one replica: what ports, rendezvous names, labels and unit names carry, so that
/// ranks of two starts never meet. Written `r12-0-a1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicaId {
    /// The release.
    pub release: ReleaseNumber,
    /// Which replica of it, from 0.
    pub replica: u32,
    /// Which start of it.
    pub attempt: Attempt,
}

impl ReplicaId {
    /// The replica, whichever start.
    pub const fn key(&self) -> ReplicaKey {
        ReplicaKey { release: self.release, replica: self.replica }
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}-a{}", self.release, self.replica, self.attempt))
    }
}

impl FromStr for ReplicaId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.strip_prefix('r')?.splitn(3, '-');
            let release = ReleaseNumber(parts.next()?.parse().ok()?);
            let replica = parts.next()?.parse().ok()?;
            let attempt = Attempt(parts.next()?.strip_prefix('a')?.parse().ok()?);
            Some(Self { release, replica, attempt })
        };
        parse().ok_or_else(|| {
            format!(
                "`{}` is not a replica; one looks like `r12-0-a1`",
                super::text::clean(text, 40)
            )
        })
    }
}

/// A replica of a release, whichever start of it. Written `r12-0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicaKey {
    /// The release.
    pub release: ReleaseNumber,
    /// Which replica of it, from 0.
    pub replica: u32,
}

impl fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.release, self.replica))
    }
}

impl FromStr for ReplicaKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (release, replica) = text.strip_prefix('r')?.split_once('-')?;
            Some(Self {
                release: ReleaseNumber(release.parse().ok()?),
                replica: replica.parse().ok()?,
            })
        };
        parse().ok_or_else(|| {
            format!("`{}` is not a replica; one looks like `r12-0`", super::text::clean(text, 40))
        })
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}
text_form!(ReplicaId);
text_form!(ReplicaKey);

/// One engine process of one start of one replica. Every action on it is idempotent by this id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RankId {
    /// The deck it belongs to.
    pub deck: DeckId,
    /// The service it serves.
    pub service: ServiceName,
    /// The release's identity (the number alone could be reused by a restored deck).
    pub release_id: ReleaseId,
    /// Release number, replica and attempt.
    pub replica: ReplicaId,
    /// Which rank of the gang, from 0.
    pub rank: u32,
}

impl RankId {
    /// The name of this rank's state directory, container or unit: unique on a host, and the same
    /// for a second start of the same generation, which therefore conflicts instead of doubling.
    pub fn unit_name(&self) -> String {
        let id = self.release_id.0.simple().to_string();
        // v7 begins with the time; the tail is random and tells two releases apart.
        let tail = id.get(20..).unwrap_or(&id);
        format!("gpudeck-{}-{}-{}-{}", self.service, self.replica, self.rank, tail)
    }
}

impl fmt::Display for RankId {
    /// `chat/0/1` (service, replica, rank), as on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}/{}", self.service, self.replica.replica, self.rank))
    }
}

/// What a rank is placed on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceId {
    /// A GPU, by the UUID its driver gives it.
    Gpu(String),
    /// Host memory and cores.
    Cpu,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpu(uuid) => f.pad(uuid),
            Self::Cpu => f.pad("cpu"),
        }
    }
}
