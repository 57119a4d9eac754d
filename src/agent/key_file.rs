//! The keys to engines that answer to nobody else. They lie in files of the host and never leave it.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::reads::FileReads;
use crate::base::text::clean;
use crate::wire::Refusal;

/// Longest key, in bytes.
const MAX_KEY: usize = 4 << 10;

/// A key that comes later than that keeps whoever asks waiting for too long.
const WITHIN: Duration = Duration::from_secs(3);

/// The key in a file: its first line.
///
/// # Errors
/// [`Refusal::NoKey`], which says nothing of what is in the file.
pub async fn read(reads: &FileReads, path: &str) -> Result<String, Refusal> {
    let file = path.to_owned();
    let refused = |why: &str| Refusal::NoKey { path: clean(path, 300), why: clean(why, 300) };
    match reads.run(path, WITHIN, move || Ok(first_line(Path::new(&file)))).await {
        Ok(found) => found.map_err(|why| refused(&why)),
        Err(busy) => Err(refused(&busy.to_string())),
    }
}

fn first_line(path: &Path) -> Result<String, String> {
    if !path.is_absolute() {
        return Err("its path is not absolute".to_owned());
    }
    // Opening a FIFO would wait for its writer.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(nonblocking).open(path).map_err(in_words)?;
    if !file.metadata().map_err(in_words)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut start = Vec::new();
    file.take(MAX_KEY as u64 + 2).read_to_end(&mut start).map_err(in_words)?;
    key_of(&start)
}

fn in_words(error: std::io::Error) -> String {
    error.to_string()
}

/// Engines read these files by themselves, too: what they could understand otherwise is no key.
fn key_of(start: &[u8]) -> Result<String, String> {
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.is_empty() {
        return Err("its first line is empty".to_owned());
    }
    if line.len() > MAX_KEY {
        return Err(format!("its first line is longer than {MAX_KEY} bytes"));
    }
    let plain = |byte: &u8| byte.is_ascii_graphic();
    if !line.iter().all(plain) || line.starts_with(b"#") {
        return Err("its first line is not a key alone (letters, digits and signs, no blanks, no \
                    carriage return, not a comment)"
            .to_owned());
    }
    Ok(String::from_utf8_lossy(line).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_key_and_what_is_none_is_never_repeated() {
        assert_eq!(key_of(b"sk-1+/=.,~\\\n").unwrap(), "sk-1+/=.,~\\");
        assert_eq!(key_of(b"sk-1").unwrap(), "sk-1");
        assert_eq!(key_of(b"one\ntwo\n").unwrap(), "one");
        for none in ["", "\nsk-1", "sk-1\r\n", "sk 1", " sk-1", "sk-1 \n", "# sk-1", "sk-1\u{e9}"] {
            let why = key_of(none.as_bytes()).unwrap_err();
            assert!(!why.contains("sk"), "{none:?}: {why}");
        }
        assert_eq!(key_of(&[b'k'; MAX_KEY]).unwrap().len(), MAX_KEY);
        assert!(key_of(&[b'k'; MAX_KEY + 1]).is_err());
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.key");
        let reads = FileReads::default();
        let name = path.to_string_lossy().into_owned();
        let refused = read(&reads, &name).await.unwrap_err();
        assert!(matches!(&refused, Refusal::NoKey { path, .. } if *path == name), "{refused}");
        std::fs::write(&path, "sk-1\n").unwrap();
        assert_eq!(read(&reads, &name).await.unwrap(), "sk-1");
        let folder = dir.path().to_string_lossy().into_owned();
        assert!(read(&reads, &folder).await.is_err());
        assert!(read(&reads, "chat.key").await.is_err());
    }
}
