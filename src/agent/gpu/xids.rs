//! The Xid errors that are known of the GPUs. A driver tells each once, and only to who waits then:
//! the child that asks the driver may be killed and the agent ends with its connection, so the grave
//! ones are kept in the agent's state directory until the host is started anew.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::agent::state;
use crate::base::text::clean;
use crate::wire::Xid;
use crate::wire::xid::{graver, gravity};

/// The file in the state directory.
pub const FILE: &str = "xids.json";

/// Most GPUs that are remembered.
const MAX_GPUS: usize = 64;

/// Longest UUID.
const MAX_UUID: usize = 80;

/// Longest file that is read, bytes.
const MAX_FILE: u64 = 64 << 10;

/// Of one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    /// The last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Xid>,
    /// The gravest, if one degrades the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grave: Option<Xid>,
}

/// Of all GPUs, by UUID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidTable(BTreeMap<String, Seen>);

/// As it is on disk: the grave ones.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    gpus: BTreeMap<String, Xid>,
}

impl XidTable {
    /// None is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of a GPU.
    pub fn of(&self, uuid: &str) -> Seen {
        self.0.get(uuid).copied().unwrap_or_default()
    }

    /// One more of a GPU, at this time of the host's monotonic clock.
    pub fn happened(&mut self, uuid: &str, code: u64, monotonic_ms: u64) {
        let Some(seen) = self.entry(uuid) else { return };
        let count = seen.last.map_or(0, |x| x.count).saturating_add(1);
        seen.last = Some(Xid { code, monotonic_ms, count });
        seen.grave = graver(seen.grave, seen.last);
    }

    /// Takes over what another one knows.
    pub fn learn(&mut self, other: &Self) {
        for (uuid, more) in &other.0 {
            let Some(seen) = self.entry(uuid) else { continue };
            let at = |xid: Option<Xid>| xid.map(|x| (x.monotonic_ms, x.count));
            if at(more.last) > at(seen.last) {
                seen.last = more.last;
            }
            seen.grave = graver(seen.grave, more.grave);
        }
    }

    fn entry(&mut self, uuid: &str) -> Option<&mut Seen> {
        let room = self.0.len() < MAX_GPUS;
        if room || self.0.contains_key(uuid) {
            Some(self.0.entry(clean(uuid, MAX_UUID)).or_default())
        } else {
            None
        }
    }

    /// The grave ones alone: what is kept.
    #[must_use]
    pub fn grave(&self) -> Self {
        let grave = self.0.iter().filter(|(_, seen)| seen.grave.is_some());
        let only = |seen: &Seen| Seen { last: seen.grave, grave: seen.grave };
        Self(grave.map(|(uuid, seen)| (uuid.clone(), only(seen))).collect())
    }

    /// What was kept since the host was started; a file of another boot, or one that is none, is
    /// nothing. `now_ms` is the host's monotonic clock.
    pub fn load(path: &Path, boot_id: &str, now_ms: u64) -> Self {
        let kept = read(path).unwrap_or_default();
        if boot_id.is_empty() || kept.boot_id != boot_id {
            return Self::default();
        }
        let grave = kept.gpus.into_iter().filter(|(uuid, xid)| {
            !uuid.is_empty() && *uuid == clean(uuid, MAX_UUID) && gravity(xid.code) > 0
        });
        let seen = |xid: Xid| {
            let xid = Some(Xid { monotonic_ms: xid.monotonic_ms.min(now_ms), ..xid });
            Seen { last: xid, grave: xid }
        };
        Self(grave.take(MAX_GPUS).map(|(uuid, xid)| (uuid, seen(xid))).collect())
    }

    /// Keeps the grave ones, beside those that another agent on this directory has kept. Writes
    /// nothing if all are there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, path: &Path, boot_id: &str, now_ms: u64) -> io::Result<()> {
        if boot_id.is_empty() {
            return Ok(());
        }
        let there = Self::load(path, boot_id, now_ms);
        let mut all = there.clone();
        all.learn(&self.grave());
        let grave = |table: &Self| -> BTreeMap<String, Xid> {
            let of = |(uuid, seen): (&String, &Seen)| Some((uuid.clone(), seen.grave?));
            table.0.iter().filter_map(of).collect()
        };
        let gpus = grave(&all);
        if gpus == grave(&there) {
            return Ok(());
        }
        state::write_json(path, &Kept { boot_id: boot_id.to_owned(), gpus })
    }
}

/// A small regular file; a FIFO in its place is not waited for.
fn read(path: &Path) -> Option<Kept> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).ok()?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content).ok()?;
    serde_json::from_slice(&content).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table(xids: &[(&str, u64, u64)]) -> XidTable {
        let mut table = XidTable::default();
        for (uuid, code, at) in xids {
            table.happened(uuid, *code, *at);
        }
        table
    }

    #[test]
    fn the_grave_ones_are_kept_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let code = |table: &XidTable, uuid| table.of(uuid).grave.map(|x| x.code);
        let seen = table(&[("GPU-1", 48, 5), ("GPU-1", 45, 6), ("GPU-2", 31, 7)]);
        assert_eq!(seen.of("GPU-1").last.map(|x| (x.code, x.count)), Some((45, 2)));
        seen.keep(&path, "boot", 10).unwrap();
        let kept = XidTable::load(&path, "boot", 10);
        assert_eq!((code(&kept, "GPU-1"), code(&kept, "GPU-2")), (Some(48), None));
        assert_eq!(XidTable::load(&path, "another", 10), XidTable::default());
        assert_eq!(XidTable::load(&path, "", 10), XidTable::default());

        // Another agent on the same directory has seen another one; nothing is written twice.
        table(&[("GPU-2", 79, 8)]).keep(&path, "boot", 10).unwrap();
        let kept = XidTable::load(&path, "boot", 10);
        assert_eq!((code(&kept, "GPU-1"), code(&kept, "GPU-2")), (Some(48), Some(79)));
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
        let before = inode(&path);
        seen.keep(&path, "boot", 10).unwrap();
        assert_eq!(inode(&path), before);

        // A new boot begins anew, and nothing harmless is ever written.
        let path = dir.path().join("other.json");
        table(&[("GPU-2", 31, 8)]).keep(&path, "boot", 10).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nothing_that_is_in_the_files_place_breaks_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let none = XidTable::default();
        let xid = r#"{"code":48,"monotonic_ms":99,"count":1}"#;
        for text in [
            String::new(),
            "nonsense".to_owned(),
            r#"{"boot_id":"boot","gpus":[]}"#.to_owned(),
            r#"{"boot_id":"boot","gpus":{"GPU-1":{"code":31,"monotonic_ms":1,"count":1}}}"#
                .to_owned(),
            format!(r#"{{"boot_id":"boot","gpus":{{"GPU\u001b[2J":{xid}}}}}"#),
            "[".repeat(1 << 20),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(XidTable::load(&path, "boot", 10), none);
        }
        let many: Vec<String> = (0..500).map(|n| format!(r#""GPU-{n}":{xid}"#)).collect();
        let many = format!(r#"{{"boot_id":"boot","gpus":{{{}}}}}"#, many.join(","));
        std::fs::write(&path, many).unwrap();
        let loaded = XidTable::load(&path, "boot", 10);
        assert!(loaded.0.len() == MAX_GPUS);
        assert!(loaded.0.values().all(|s| s.last.is_some_and(|x| x.monotonic_ms == 10)));
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(XidTable::load(&path, "boot", 10), none);
    }
}
