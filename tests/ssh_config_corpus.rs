//! Our reading of `ssh_config` against OpenSSH's own: every file in `tests/ssh_config_corpus` is
//! given to `ssh -G` and to `gpudeck ssh-config`, and every key that we print must be the same.
//!
//! A file's first lines may say more: `# hosts: a b` which names to ask for (default: `a`),
//! `# refused` that `ssh` does not take it, and then we must not either, `# env: NAME=value`.
//! `@DIR@` in a file is the directory in which the includes lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ssh_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

type Values = BTreeMap<String, Vec<String>>;

fn values(output: &Output) -> Values {
    let mut all = Values::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        all.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    all
}

fn ask(program: &str, args: &[&str], env: &[(String, String)]) -> Output {
    let mut command = Command::new(program);
    command.args(args).env_remove("GPUDECK_SSH_MATCH_EXEC").stdin(std::process::Stdio::null());
    command.envs(env.iter().map(|(k, v)| (k, v)));
    command.output().unwrap()
}

/// Lists of algorithms that differ between versions of OpenSSH before anything is configured.
fn other_version() -> Vec<String> {
    let empty = ["-F", "/dev/null", "a"];
    let theirs = values(&ask("ssh", &[&["-G"], &empty[..]].concat(), &[]));
    let gpudeck = env!("CARGO_BIN_EXE_gpudeck");
    let ours = values(&ask(gpudeck, &[&["ssh-config"], &empty[..]].concat(), &[]));
    theirs
        .iter()
        .filter(|(key, value)| {
            key.contains("algorithms")
                || ["ciphers", "macs"].contains(&key.as_str()) && ours.get(*key) != Some(value)
        })
        .filter(|(key, value)| ours.get(*key).is_some_and(|own| own != *value))
        .map(|(key, _)| key.clone())
        .collect()
}

/// The keys that we print and for which we have no value of our own where nothing is said: a file decides whether they
/// are there. The lists of algorithms come last.
const SOMETIMES: [&str; 25] = [
    "user",
    "hostname",
    "bindaddress",
    "bindinterface",
    "certificatefile",
    "globalknownhostsfile",
    "hostkeyalias",
    "identityagent",
    "identityfile",
    "ignoreunknown",
    "knownhostscommand",
    "pkcs11provider",
    "preferredauthentications",
    "proxycommand",
    "proxyjump",
    "rekeylimit",
    "revokedhostkeys",
    "userknownhostsfile",
    "casignaturealgorithms",
    "ciphers",
    "hostbasedacceptedalgorithms",
    "hostkeyalgorithms",
    "kexalgorithms",
    "macs",
    "pubkeyacceptedalgorithms",
];
const LISTS: usize = 7;

/// What is printed otherwise; also what they print and we do not, of the keys we ever print. A list of algorithms that
/// comes to nothing is empty there, and left out here.
fn differences(theirs: &Values, ours: &Values, versions: &[String]) -> Vec<String> {
    let lists = &SOMETIMES[SOMETIMES.len() - LISTS..];
    let is_nothing = |key: &String| {
        let said = theirs.get(key).map(Vec::as_slice);
        lists.contains(&key.as_str())
            && !ours.contains_key(key)
            && matches!(said, Some([empty]) if empty.is_empty())
    };
    ours.keys()
        .chain(SOMETIMES.map(String::from).iter())
        .filter(|key| !versions.contains(key) && theirs.get(*key) != ours.get(*key))
        .filter(|key| !is_nothing(key))
        .map(|key| format!("{key}: ssh {:?}, we {:?}", theirs.get(key), ours.get(key)))
        .collect()
}

#[test]
fn every_key_we_print_is_what_ssh_prints() {
    if !ssh_support::lab() {
        return;
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh_config_corpus");
    let dir = tempfile::tempdir().unwrap();
    let dir_text = dir.path().display().to_string();
    // Includes must be nobody else's to write.
    // Of two bytes, which `?` matches one at a time.
    fs::write(dir.path().join("k\u{e4}.cls"), "IdentityFile /umlaut\n").unwrap();
    for entry in fs::read_dir(corpus.join("include")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap().replace("@DIR@", &dir_text);
        let copy = dir.path().join(path.file_name().unwrap());
        fs::write(&copy, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&copy, mode).unwrap();
    }
    let gpudeck = env!("CARGO_BIN_EXE_gpudeck");
    let versions = other_version();
    let mut files: Vec<_> = fs::read_dir(&corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "conf"))
        .collect();
    files.sort();
    assert!(files.len() >= 40, "{} files", files.len());
    let (mut compared, mut wrong) = (0, Vec::new());
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(file).unwrap().replace("@DIR@", &dir_text);
        let copy = dir.path().join(name);
        fs::write(&copy, &text).unwrap();
        let said = |word: &str| {
            let mut lines = text.lines().take_while(|l| l.starts_with('#'));
            lines.find_map(|l| l.strip_prefix(&format!("# {word}"))).map(str::trim)
        };
        let hosts = said("hosts:").unwrap_or("a");
        let env: Vec<(String, String)> = said("env:")
            .into_iter()
            .flat_map(str::split_whitespace)
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        for host in hosts.split_whitespace() {
            let path = copy.to_str().unwrap();
            let theirs = ask("ssh", &["-G", "-F", path, host], &env);
            let ours = ask(gpudeck, &["ssh-config", "-F", path, host], &env);
            let refused = said("refused").is_some();
            let errors = |o: &Output| String::from_utf8_lossy(&o.stderr).into_owned();
            if theirs.status.success() == refused {
                wrong.push(format!("{name} {host}: the file is wrong: {}", errors(&theirs)));
                continue;
            }
            if ours.status.success() == refused {
                wrong.push(format!("{name} {host}: refused: {refused}: {}", errors(&ours)));
                continue;
            }
            if refused {
                compared += 1;
                continue;
            }
            let (theirs, ours) = (values(&theirs), values(&ours));
            assert!(ours.len() > 30, "{name} {host}: {ours:?}");
            compared += ours.len();
            let differing = differences(&theirs, &ours, &versions);
            wrong.extend(differing.into_iter().map(|what| format!("{name} {host}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{} files, {compared} values compared", files.len());
}

/// Runs a program where a person's and the system's files are those of `dir`.
fn ask_usual(dir: &Path, program: &str, args: &[&str]) -> Output {
    let script = "mount --bind \"$0/system\" /etc/ssh/ssh_config && mount -t tmpfs none /root \
                  && mkdir -m 700 /root/.ssh && cp \"$0/user\" /root/.ssh/config && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.arg(dir).arg(program).args(args).env("HOME", "/root");
    command.stdin(std::process::Stdio::null()).output().unwrap()
}

#[test]
fn what_a_person_and_the_system_name_is_there_twice() {
    if !ssh_support::lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let user = "IdentityFile ~/.ssh/both\nIdentityFile ~/.ssh/own\nIdentityFile ~/.ssh/own\n\
                CertificateFile /c/both\n";
    let system = "Host *\n SendEnv LANG LC_*\n HashKnownHosts yes\n GSSAPIAuthentication yes\n \
                  IdentityFile ~/.ssh/both\n CertificateFile /c/both\n IdentityFile /k/system\n";
    fs::write(dir.path().join("user"), user).unwrap();
    fs::write(dir.path().join("system"), system).unwrap();
    let theirs = ask_usual(dir.path(), "ssh", &["-G", "a"]);
    let ours =
        ask_usual(dir.path(), env!("CARGO_BIN_EXE_gpudeck"), &["ssh-config", "--plain", "a"]);
    let said = String::from_utf8_lossy(&ours.stderr);
    assert!(theirs.status.success() && ours.status.success(), "{theirs:?}\n{said}");
    assert!(said.contains("gssapiauthentication yes is not supported"), "{said}");
    let (theirs, ours) = (values(&theirs), values(&ours));
    assert_eq!(theirs["identityfile"].len(), 4, "{theirs:?}");
    let wrong = differences(&theirs, &ours, &other_version());
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Lines of which `ssh` takes each one; what several come to, in some order, is the question.
const LINES: [&str; 70] = [
    "Host *",
    "Host a",
    "host=A b",
    "Host !a *",
    "Host \"b\" ?*.org # c",
    "Host ? !b",
    "Match all",
    "Match host a",
    "Match !host b user root",
    "Match originalhost=a localuser *",
    "match host \"*.org\" # all",
    "Match final",
    "Match !final host a,b",
    "Match canonical all",
    "Match final host x.*",
    "Match user bob,!root",
    "User bob",
    "User = \"root\"",
    "\tUSER\tu%x # no token",
    "HostName x.org",
    "HostName %h.Example.org",
    "Hostname=127.1",
    "HostName ::0001",
    "HostName %h%%h",
    "HostKeyAlias Alias-%h",
    "Port 2200",
    "port\t=\t022",
    "Port ssh",
    "ProxyJump gw",
    "ProxyJump u@gw:22,[::1]:23 # c",
    "ProxyJump ssh://u@10.0.0.1:24/",
    "ProxyJump a",
    "ProxyJump none",
    "ProxyCommand nc %h %p",
    "ProxyCommand = 'nc' \"%h\" # c",
    "ProxyCommand none",
    "ProxyUseFdpass yes",
    "IdentityFile ~/.ssh/%h-%r",
    "IdentityFile \"/k/a b\"",
    "IdentityFile none",
    "identityfile2 /k/%p\\ x",
    "CertificateFile /c/%C",
    "CertificateFile none",
    "IdentityAgent SSH_AUTH_SOCK",
    "IdentityAgent ~/%u-%i.%k",
    "IdentityAgent none",
    "IdentitiesOnly yes",
    "UserKnownHostsFile ~/k '/k/%h b'",
    "UserKnownHostsFile none",
    "GlobalKnownHostsFile /g1 /g2",
    "StrictHostKeyChecking off",
    "StrictHostKeyChecking Accept-New",
    "CheckHostIP yes\r",
    "ConnectTimeout 1m30",
    "ConnectTimeout none",
    "ServerAliveInterval 2h",
    "BatchMode true",
    "RekeyLimit 1.5G 1h",
    "RekeyLimit default none",
    "CanonicalDomains B.org. c.org",
    "CanonicalizeMaxDots 3",
    "PreferredAuthentications publickey,password",
    "AddressFamily inet6",
    "TCPKeepAlive no",
    "IdentityFile ~no-such-user/k",
    "CertificateFile /c/%x",
    "GlobalKnownHostsFile ~no-such-user/g",
    "RevokedHostKeys /r/%x",
    "Ciphers -*",
    "ProxyJump []",
];

/// Files of such lines by chance, the same ones in every run.
#[test]
fn lines_in_any_order_come_to_what_ssh_makes_of_them() {
    if !ssh_support::lab() {
        return;
    }
    let versions = other_version();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    let path = file.to_str().unwrap();
    let mut state: u64 = 1;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % end
    };
    for round in 0..100 {
        let lines: Vec<&str> = (0..4 + below(14)).map(|_| LINES[below(LINES.len())]).collect();
        let text = lines.join("\n");
        fs::write(&file, &text).unwrap();
        let host = ["a", "a", "b", "A", "bob@a", "ssh://root@b:99", "x.org", "::1"][below(8)];
        let theirs = ask("ssh", &["-G", "-F", path, host], &[]);
        let ours = ask(env!("CARGO_BIN_EXE_gpudeck"), &["ssh-config", "-F", path, host], &[]);
        let errors = String::from_utf8_lossy(&ours.stderr);
        let both = (theirs.status.success(), ours.status.success());
        assert!(both.0 == both.1, "{round}: {host}: {both:?}: {errors}\n{text}");
        if both.0 {
            let wrong = differences(&values(&theirs), &values(&ours), &versions);
            assert!(wrong.is_empty(), "{round}: {host}: {wrong:?}\n{text}");
        }
    }
}
