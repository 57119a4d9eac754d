//! The agent's binary on this side: which file, its hash, for which processor.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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

/// This very program's file, also after it was replaced on disk by another version.
pub fn own_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    if path.exists() {
        return Ok(path);
    }
    // Linux keeps the replaced file reachable as long as we run.
    Ok(PathBuf::from(format!("/proc/{}/exe", std::process::id())))
}

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
}
