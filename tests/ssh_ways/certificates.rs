//! Certificates of users and hosts.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::ssh_support::{Agent, Sshd, keygen, lab, tool};
use gpudeck::ssh::{Agents, ConfigFiles, NoQuestions, SshError};

use super::{add_to, block, options, to};

fn sign(ca: &Path, key: &Path, more: &[&str]) {
    let public = format!("{}.pub", key.display());
    tool(
        "ssh-keygen",
        &[&["-q", "-s", ca.to_str().unwrap(), "-I", "test"], more, &[&public]].concat(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn user_certificates_let_us_in() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let ca = server.path("ca");
    keygen(&ca, "ed25519", "");
    add_to(&mut server, &format!("TrustedUserCAKeys {}.pub\n", ca.display()));
    fs::write(server.path("authorized_keys"), "").unwrap();
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let key = server.path(&format!("certified_{kind}"));
        keygen(&key, kind, "");
        let base = block("box", &server, "")
            .replace(&server.user_key().display().to_string(), &key.display().to_string());
        let error =
            to("box", &options(server.dir.path(), &base), &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::AuthFailed { .. }), "{error}");
        sign(&ca, &key, &["-n", "root"]);
        to("box", &options(server.dir.path(), &base), &NoQuestions).await.expect(kind);
        // Somewhere else, and named.
        let (beside, moved) = (format!("{}-cert.pub", key.display()), server.path("elsewhere.pub"));
        fs::rename(&beside, &moved).unwrap();
        let named = format!("{base} CertificateFile {}\n", moved.display());
        to("box", &options(server.dir.path(), &named), &NoQuestions).await.expect(kind);
        // The agent has the plain key, a file the certificate.
        let agent = Agent::start(&server.path(&format!("agent_{kind}"))).await;
        agent.add(&key);
        fs::rename(&key, server.path("gone")).unwrap();
        let mut options = options(server.dir.path(), &named);
        options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
        to("box", &options, &NoQuestions).await.expect(kind);
        // The agent has both.
        fs::rename(server.path("gone"), &key).unwrap();
        fs::rename(&moved, &beside).unwrap();
        agent.add(&key);
        fs::remove_file(&key).unwrap();
        fs::remove_file(&beside).unwrap();
        fs::remove_file(format!("{}.pub", key.display())).unwrap();
        options.config = ConfigFiles::Text(base.as_str().into());
        to("box", &options, &NoQuestions).await.expect(kind);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_certificates_are_believed_as_far_as_they_go() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let (ca, host) = (server.path("ca"), server.path("host_ed25519"));
    let server_host_key = server.path("host_ed25519.pub");
    let known_hosts = server.path("known_hosts");
    let certificate = server.path("host_ed25519-cert.pub");
    keygen(&ca, "ecdsa", "");
    add_to(&mut server, &format!("HostCertificate {}-cert.pub\n", host.display()));
    let public = fs::read_to_string(format!("{}.pub", ca.display())).unwrap();
    let block = block("box", &server, "");
    let plain = server.known_hosts_line("ed25519");
    let other_key = fs::read_to_string(server.path("user_key.pub")).unwrap();
    let other_key = format!("[127.0.0.1]:{} {other_key}", server.port);
    let authority = format!("@cert-authority [127.0.0.1]:* {public}");
    let mut known = |lines: &str, args: &[&str]| {
        sign(&ca, &host, &[&["-h"], args].concat());
        fs::write(server.path("known_hosts"), lines).unwrap();
        server.kill();
        server.up();
        options(server.dir.path(), &block)
    };
    let good = known(&authority, &["-n", "127.0.0.1"]);
    to("box", &good, &NoQuestions).await.unwrap();
    for (args, word) in [
        (&["-n", "another.host"][..], "it is for another.host"),
        (&["-n", "127.0.0.1", "-V", "20200101:20200102"], "expired"),
        (&["-n", "127.0.0.1", "-V", "20990101:20990102"], "not valid yet"),
    ] {
        let error = to("box", &known(&authority, args), &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::HostKeyBad { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // Where the plain key is known as well, that is enough, and that it has changed is said.
    let expired = &["-n", "127.0.0.1", "-V", "20200101:20200102"];
    let both = known(&(authority.clone() + &plain), expired);
    to("box", &both, &NoQuestions).await.unwrap();
    let changed = known(&(authority.clone() + &other_key), expired);
    let error = to("box", &changed, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyChanged { line: 2, .. }), "{error}");
    let revoked = known(&format!("{authority}@revoked * {public}"), &["-n", "127.0.0.1"]);
    let error = to("box", &revoked, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
    // What is revoked for the plain name is so on every port, be it the authority or the key.
    let host_key = fs::read_to_string(server_host_key).unwrap();
    for revoked in [&public, &host_key] {
        let lines = format!("{authority}@revoked 127.0.0.1 {revoked}");
        let error =
            to("box", &known(&lines, &["-n", "127.0.0.1"]), &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
    }
    // Where only the plain key is known, the certificate is asked for all the same: who signed it may be revoked, or it.
    let good = &["-n", "127.0.0.1"];
    let signed_by_revoked = known(&format!("{plain}@revoked * {public}"), good);
    let error = to("box", &signed_by_revoked, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
    for before in [&plain, &authority] {
        let options = known(before, good);
        to("box", &options, &NoQuestions).await.unwrap();
        let revoked = fs::read_to_string(&certificate).unwrap();
        fs::write(&known_hosts, format!("{before}@revoked * {revoked}")).unwrap();
        let error = to("box", &options, &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
        // Also in a list of its own.
        let list = known_hosts.with_file_name("revoked");
        fs::write(&list, format!("# none of these\n{revoked}")).unwrap();
        fs::write(&known_hosts, before).unwrap();
        let mut listed = options;
        let text = format!("Host *\n RevokedHostKeys {}\n{block}", list.display());
        listed.config = ConfigFiles::Text(text.as_str().into());
        let error = to("box", &listed, &NoQuestions).await.err().unwrap();
        assert!(
            error.to_string().ends_with(&format!("is revoked ({})", list.display())),
            "{error}"
        );
    }
    // With only certificates asked for and no authority known, the key in it is judged.
    let mut alone = known(&plain, good);
    let text = format!("Host *\n HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com\n{block}");
    alone.config = ConfigFiles::Text(text.as_str().into());
    to("box", &alone, &NoQuestions).await.unwrap();
    // Of another authority: the key itself must be known.
    let line = authority.replace("127.0.0.1", "10.9.8.7");
    let other = known(&line, &["-n", "127.0.0.1"]);
    let error = to("box", &other, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
}
