//! Which path is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::*;

/// In a Hugging Face cache every file is a link to one whose name tells nothing.
#[cfg(unix)]
#[test]
fn a_file_that_is_a_link_keeps_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let (blob, snapshot) = (root.join("blobs/77aa"), root.join("snapshots/beef"));
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(&blob, b"x").unwrap();
    std::os::unix::fs::symlink("../../blobs/77aa", snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("snapshots/beef", root.join("current")).unwrap();
    let of = |path: &str| followed(&root.join(path));
    assert_eq!(of("current/model.safetensors"), snapshot.join("model.safetensors"));
    assert_eq!(of("current"), snapshot);
    assert_eq!(of("current/../none"), root.join("current/../none"));
}
