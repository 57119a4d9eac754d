//! The check of release binaries (`tests/check-glibc`) on small programs made here: it lets pass what runs with
//! glibc 2.17, and nothing else. The release itself is built by `tests/release` (nightly: it takes minutes).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Finished, checkout, has_program, run};

const LONG: Duration = Duration::from_mins(1);

fn cc(dir: &Path, arguments: &[&str]) {
    run(Command::new("cc").current_dir(dir).args(arguments), LONG).expect_success();
}

/// A program that wants these versions of symbols, each of a `libc.so.6` that has nothing else.
fn wanting(dir: &Path, versions: &[&str]) -> PathBuf {
    let mut library = String::new();
    let mut map = String::new();
    let (mut declared, mut calls) = (String::new(), String::new());
    for (at, version) in versions.iter().enumerate() {
        library.push_str(&format!("void f{at}(void) {{}}\n"));
        map.push_str(&format!("{version} {{ global: f{at}; }};\n"));
        declared.push_str(&format!("void f{at}(void);\n"));
        calls.push_str(&format!("f{at}();"));
    }
    std::fs::write(dir.join("f.c"), library).unwrap();
    std::fs::write(dir.join("map"), map).unwrap();
    std::fs::write(dir.join("main.c"), format!("{declared}void _start(void) {{ {calls} }}\n"))
        .unwrap();
    let soname = ["-Wl,-soname,libc.so.6", "-Wl,--version-script=map"];
    cc(dir, &["-shared", "-nostdlib", "-fPIC", soname[0], soname[1], "-o", "libf.so", "f.c"]);
    cc(dir, &["-nostdlib", "-nostartfiles", "-fPIE", "-pie", "-o", "program", "main.c", "libf.so"]);
    dir.join("program")
}

fn check(file: &Path) -> Finished {
    run(Command::new(checkout().join("tests/check-glibc")).arg("2.17").arg(file), LONG)
}

#[test]
fn only_what_runs_with_an_old_glibc_passes() {
    if !has_program("cc") || !has_program("python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // As numbers: 2.9 is older than 2.17.
    let old = check(&wanting(dir, &["GLIBC_2.2.5", "GLIBC_2.9"])).expect_success();
    assert!(old.stdout.contains("wants GLIBC_2.9 at most"), "{old:?}");
    check(&wanting(dir, &["GLIBC_2.17"])).expect_success();
    for (versions, why) in [
        (&["GLIBC_2.18"][..], "GLIBC_2.18 of libc.so.6"),
        (&["GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.9"], "GLIBC_2.34"),
        (&["GLIBC_2.9", "GLIBC_PRIVATE"], "GLIBC_PRIVATE"),
        (&["GLIBC_2.9", "GLIBCXX_3.4.30"], "libstdc++"),
    ] {
        let refused = check(&wanting(dir, versions));
        assert_eq!(refused.code(), Some(1), "{versions:?}: {refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    std::fs::write(dir.join("static.c"), "void _start(void) {}\n").unwrap();
    cc(dir, &["-static", "-nostdlib", "-nostartfiles", "-o", "static", "static.c"]);
    let alone = check(&dir.join("static"));
    assert_eq!(alone.code(), Some(1));
    assert!(alone.stderr.contains("statically"), "{alone:?}");
    assert_eq!(check(&dir.join("main.c")).code(), Some(1), "no program at all");
}
