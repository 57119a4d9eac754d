//! The agent's binary on this side: which file, its hash, for which processor.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A file that was changed so lately could be changed again without its time telling.
const TOO_FRESH: Duration = Duration::from_secs(2);
/// What is remembered is a line.
const MAX_MEMO_BYTES: u64 = 4 << 10;

/// A binary that can be put on hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentBinary {
    /// Where it is read from.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it, 64 hexadecimal digits.
    pub sha256: String,
    /// `x86_64`, `aarch64`; none when it is no ELF file (a script).
    pub arch: Option<&'static str>,
}

impl AgentBinary {
    /// As [`Self::read`], but a file that was hashed before is only looked at: hashing it takes as
    /// long as connecting to a dozen hosts. Blocking.
    pub fn read_once(path: &Path, memo: &Path) -> io::Result<Self> {
        let stamp = Stamp::of(&fs::metadata(path)?);
        if let Some(Memo { sha256, arch, .. }) = Memo::read(memo).filter(|m| m.stamp == stamp) {
            let arch = ARCHITECTURES.into_iter().find(|known| arch.as_deref() == Some(*known));
            return Ok(Self { path: path.to_owned(), bytes: stamp.bytes, sha256, arch });
        }
        let read = Self::read(path)?;
        // Changed meanwhile, or it could be without a trace.
        if Stamp::of(&fs::metadata(path)?) == stamp && !stamp.is_fresh() {
            let arch = read.arch.map(ToOwned::to_owned);
            let memo_of = Memo { stamp, sha256: read.sha256.clone(), arch };
            // Not remembered, it is hashed again the next time.
            let _ = memo_of.write(memo);
        }
        Ok(read)
    }

    /// Reads and hashes `path`. Blocking.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = fs::File::open(path)?;
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; 256 << 10];
        let mut bytes = 0;
        let mut arch = None;
        loop {
            let n = file.read(&mut buffer)?;
            let piece = buffer.get(..n).unwrap_or_default();
            if n == 0 {
                break;
            }
            if bytes == 0 {
                arch = elf_arch(piece);
            }
            bytes += n as u64;
            context.update(piece);
        }
        let sha256 = context.finish().as_ref().iter().fold(String::new(), |mut hex, byte| {
            use std::fmt::Write;
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Ok(Self { path: path.to_owned(), bytes, sha256, arch })
    }

    /// The file's name on a host.
    pub fn installed_name(&self) -> String {
        format!("gpudeck-{}", self.sha256.get(..16).unwrap_or(&self.sha256))
    }
}

/// What tells a file from any other, and from itself after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    fn is_fresh(&self) -> bool {
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        UNIX_EPOCH.elapsed().is_ok_and(|now| now < changed + TOO_FRESH)
    }
}

/// The hash of a file as it was when it was read last.
#[derive(Serialize, Deserialize)]
struct Memo {
    stamp: Stamp,
    sha256: String,
    arch: Option<String>,
}

impl Memo {
    fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        fs::File::open(path).ok()?.take(MAX_MEMO_BYTES).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|memo: &Self| {
            memo.sha256.len() == 64 && memo.sha256.bytes().all(|b| b.is_ascii_hexdigit())
        })
    }

    /// Whoever reads meanwhile sees all of it or what was there before.
    fn write(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut beside = tempfile::NamedTempFile::new_in(dir)?;
        beside.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        beside.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// This very program's file, also after it was replaced on disk by another version.
pub fn own_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    if path.exists() {
        return Ok(path);
    }
    // Linux keeps the replaced file reachable as long as we run.
    Ok(PathBuf::from(format!("/proc/{}/exe", std::process::id())))
}

/// As [`AgentBinary::arch`] names them.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// `e_machine` of an ELF header (`elf(5)`).
fn elf_arch(head: &[u8]) -> Option<&'static str> {
    let little_endian_64 = head.starts_with(b"\x7fELF\x02\x01");
    let machine = u16::from_le_bytes([*head.get(18)?, *head.get(19)?]);
    match machine {
        62 if little_endian_64 => Some("x86_64"),
        183 if little_endian_64 => Some("aarch64"),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn knows_hash_and_processor() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("s");
        fs::write(&script, "abc").unwrap();
        let binary = AgentBinary::read(&script).unwrap();
        assert_eq!(
            binary.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!((binary.bytes, binary.arch), (3, None));
        assert_eq!(binary.installed_name(), "gpudeck-ba7816bf8f01cfea");
        let own = AgentBinary::read(&own_path().unwrap()).unwrap();
        assert_eq!(own.arch, Some(std::env::consts::ARCH));
    }

    #[test]
    fn what_was_hashed_is_only_looked_at_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (program, memo) = (dir.path().join("p"), dir.path().join("memo"));
        let read = || AgentBinary::read_once(&program, &memo).unwrap();
        let truth = || AgentBinary::read(&program).unwrap();
        fs::write(&program, "abc").unwrap();
        assert_eq!(read(), truth());
        assert!(!memo.exists(), "it could change within the same tick of the clock");
        // Long ago, by all its times: as if it were a file that lies there.
        let stamp = |changed| Stamp { changed, ..Stamp::of(&fs::metadata(&program).unwrap()) };
        assert!(stamp((i64::MAX, 0)).is_fresh() && !stamp((1, 0)).is_fresh());
        let told = "0".repeat(64);
        let known = Stamp::of(&fs::metadata(&program).unwrap());
        let of = Memo { stamp: known, sha256: told.clone(), arch: Some("aarch64".to_owned()) };
        of.write(&memo).unwrap();
        assert_eq!((read().sha256, read().arch), (told, Some("aarch64")), "only looked at");
        fs::write(&program, "abd").unwrap();
        assert_eq!(read(), truth(), "another file");
        fs::write(&memo, "nonsense").unwrap();
        assert_eq!(read(), truth());
    }
}
