//! Small files beside the journal that are replaced whole: whoever reads one after a power failure finds what was
//! written last, or what was there before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file; it is on disk when this returns, and its name with it. One at a time for each file.
///
/// # Errors
/// It cannot be written: what was there before is there still, or (only its name may not last) the new one.
pub(super) fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = file.with_extension("new");
    let mut open = OpenOptions::new();
    let mut handle = open.create(true).write(true).truncate(true).mode(0o600).open(&aside)?;
    handle.write_all(bytes)?;
    handle.sync_data()?;
    fs::rename(&aside, file)?;
    file.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_also_where_an_earlier_attempt_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("claims.json");
        fs::write(dir.path().join("claims.new"), "something much longer that was cut of").unwrap();
        replace(&file, b"[\"h1\"]").unwrap();
        replace(&file, b"[]").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"[]");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // Where it cannot be written, what is there stays.
        fs::create_dir(dir.path().join("claims.new")).unwrap();
        assert!(replace(&file, b"[\"h2\"]").is_err());
        assert_eq!(fs::read(&file).unwrap(), b"[]");
    }
}
