#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;

fn place() -> Place {
    Place {
        home: PathBuf::from("/home/u"),
        local_user: "u".to_owned(),
        uid: 1000,
        local_host: "desk.example".to_owned(),
        env: Arc::new(|name| (name == "SOCK").then(|| "/run/sock".to_owned())),
        run_match_exec: false,
    }
}

fn of(text: &str, host: &str) -> Result<HostConfig, ConfigError> {
    let given = Given::destination(host).unwrap();
    resolve(&ConfigFiles::Text(text.into()), &given, &place())
}

#[test]
fn the_first_value_wins_and_identities_add_up() {
    let text = "Host gpu-* !gpu-9\n HostName %h.example.org\n User=ops\n Port 2222\n \
        IdentityFile ~/.ssh/fleet\n IdentityFile \"~/.ssh/%h key\"\nHost gpu-1\n User other\n \
        IdentitiesOnly yes\n IdentityFile ~/.ssh/fleet\nHost *\n Port 22\n \
        UserKnownHostsFile ~/.ssh/a /etc/b\n";
    let found = of(text, "gpu-1").unwrap();
    assert_eq!(found.host_name, "gpu-1.example.org");
    assert_eq!((found.user.as_str(), found.port), ("ops", 2222));
    assert!(found.identities_only);
    assert_eq!(
        found.identity_files,
        [Path::new("/home/u/.ssh/fleet"), Path::new("/home/u/.ssh/gpu-1.example.org key")]
    );
    assert_eq!(found.user_known_hosts_files, [Path::new("/home/u/.ssh/a"), Path::new("/etc/b")]);
    let found = of(text, "gpu-9").unwrap();
    assert_eq!((found.user.as_str(), found.port), ("u", 22));
    assert!(!found.identity_files_named);
}

#[test]
fn the_command_line_comes_first() {
    let text = "Match user root\n Port 7\nHost *\n User ops\n";
    assert_eq!(of(text, "root@x").unwrap().port, 7);
    assert_eq!(of(text, "x").unwrap().port, 22);
    assert_eq!(of(text, "ssh://me@x:99").unwrap().user, "me");
}

#[test]
fn what_is_not_supported_is_said() {
    let text = "Match exec \"true\"\n Port 5\nMatch all\nHostbasedAuthentication yes\n\
        KnownHostsCommand /bin/x\nCompression yes\nStrictHostKeyChecking no\nLogLevel DEBUG\n";
    let found = of(text, "x").unwrap();
    assert_eq!(found.port, 22);
    let said = found.warnings.join("\n");
    for word in ["exec", "hostbased", "knownhostscommand", "compression", "StrictHostKey"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    assert_eq!(found.warnings.len(), 5, "{said}");
}

#[test]
fn algorithms_and_ways_that_we_lack_are_named() {
    let text = "KexAlgorithms sntrup761x25519-sha512@openssh.com,curve25519-sha256\n\
        Ciphers 3des-cbc,aes128-ctr\nMACs umac-64@openssh.com,hmac-sha2-256\nHostKeyAlgorithms +ssh-rsa\n\
        ConnectionAttempts 5\nPreferredAuthentications gssapi-with-mic,hostbased,publickey\n\
        GSSAPIKeyExchange yes\nUsePrivilegedPort yes\nKbdInteractiveDevices pam\n\
        SecurityKeyProvider /lib/sk.so\nRekeyLimit 4G\nUpdateHostKeys ask\n\
        PubkeyAcceptedAlgorithms +ssh-rsa\nCASignatureAlgorithms +ssh-rsa\n\
        CanonicalizePermittedCNAMEs *.a:*.b\nPubkeyAuthentication host-bound\n";
    let said = of(text, "x").unwrap().warnings;
    for words in [
        "kexalgorithms sntrup761x25519-sha512@openssh.com: not supported",
        "ciphers 3des-cbc: not supported",
        "macs umac-64@openssh.com: not supported",
        "hostkeyalgorithms ssh-rsa: not supported",
        "connectionattempts 5 is not supported",
        "preferredauthentications gssapi-with-mic,hostbased: not supported",
        "gssapikeyexchange yes is not supported",
        "useprivilegedport yes is not supported",
        "kbdinteractivedevices pam is not supported",
        "securitykeyprovider /lib/sk.so is not supported",
        "updatehostkeys ask is not supported",
        "rekeylimit over 1G",
        "pubkeyacceptedalgorithms ssh-rsa: not supported",
        "casignaturealgorithms ssh-rsa: not supported",
        "canonicalizepermittedcnames *.a:*.b is not supported",
        "pubkeyauthentication host-bound is not supported",
    ] {
        assert!(said.iter().any(|warning| warning.contains(words)), "{words}: {said:#?}");
    }
    assert_eq!(said.len(), 16, "{said:#?}");
    let text = "Ciphers -3des-cbc,aes*\nMACs hmac-sha2-256\nConnectionAttempts 1\n\
        PreferredAuthentications publickey,password\nGSSAPIKeyExchange no\nSecurityKeyProvider internal\n\
        UpdateHostKeys no\nCanonicalizePermittedCNAMEs none\nPubkeyAuthentication unbound\n\
        PubkeyAcceptedAlgorithms sk-ssh-ed25519@openssh.com,rsa-sha2-512-cert-v01@openssh.com\n\
        CASignatureAlgorithms sk-ecdsa-sha2-nistp256@openssh.com,rsa-sha2-256\n";
    assert_eq!(of(text, "x").unwrap().warnings, Vec::<String>::new());
}

#[test]
fn names_of_newer_versions_are_no_mistake_and_others_are() {
    let text = "KexAlgorithms mlkem768nistp256-sha256,curve25519-sha256\n\
        HostKeyAlgorithms ^ssh-mldsa44-ed25519@openssh.com\n\
        CASignatureAlgorithms +ssh-mldsa44-ed25519@openssh.com\n";
    let said = of(text, "x").unwrap().warnings.join("\n");
    for name in ["kexalgorithms mlkem768nistp256-sha256:", "hostkeyalgorithms ssh-mldsa44"] {
        assert!(said.contains(name), "{name}: {said}");
    }
    assert!(of("KexAlgorithms curve25519-sha256,nonsense\n", "x").is_err(), "as ssh has it");
}

#[test]
fn values_beyond_what_is_done_are_told_and_the_nearest_counts() {
    for (line, words) in [
        ("RekeyLimit 16K", "rekeylimit under 1M"),
        ("ServerAliveCountMax 0", "serveralivecountmax 0"),
        ("ServerAliveCountMax 101", "serveralivecountmax over 100"),
        ("ServerAliveInterval 0", "every 15 s"),
    ] {
        let said = of(line, "x").unwrap().warnings;
        assert!(said.len() == 1 && said[0].contains(words), "{line}: {said:?}");
    }
    let lines = "RekeyLimit 1M\nServerAliveCountMax 100\nServerAliveInterval 1\n";
    assert_eq!(of(lines, "x").unwrap().warnings, Vec::<String>::new());
    let found = of("RekeyLimit 16K\nServerAliveCountMax 0\n", "x").unwrap();
    assert_eq!((found.rekey_bytes, found.server_alive_count_max), (Some(1 << 20), 1));
    assert_eq!(of("RequiredRSASize 512", "x").unwrap().required_rsa_size, 1024);
}

#[test]
fn what_the_systems_own_file_has_for_everybody_is_told_to_who_asks() {
    let text =
        "GSSAPIAuthentication yes\nMACs umac-64@openssh.com,hmac-sha2-256\nCompression yes\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let said = |owner: Owner| {
        let place = place();
        let mut pass = Pass {
            place: &place,
            original: "x",
            host: "x".to_owned(),
            last: false,
            values: Values::default(),
            wants_last: false,
            warnings: Vec::new(),
            notes: Vec::new(),
            files: 0,
        };
        pass.file(file.path(), owner, false).unwrap();
        (pass.warnings, pass.notes)
    };
    let (warnings, notes) = said(Owner::System);
    assert!(warnings.len() == 1 && warnings[0].contains("compression"), "{warnings:?}");
    assert!(notes[0].contains("gssapiauthentication") && notes[1].contains("umac"), "{notes:?}");
    // Whoever writes it into a file of their own expects it.
    let (warnings, notes) = said(Owner::User);
    assert_eq!((warnings.len(), notes.len()), (3, 0), "{warnings:?}");
}

#[test]
fn shared_connections_and_keys_for_the_agent_are_told_to_who_asks() {
    let text = "ControlMaster auto\nControlPath ~/.ssh/%C\nControlPersist 10m\nAddKeysToAgent yes\nIPQoS lowdelay throughput\n";
    let found = of(text, "x").unwrap();
    assert_eq!(found.warnings, Vec::<String>::new(), "many have it for all hosts");
    for word in
        ["controlmaster auto", "controlpath ~/.ssh/%C", "addkeystoagent yes", "ipqos lowdelay"]
    {
        assert!(found.notes.iter().any(|note| note.contains(word)), "{word}: {:?}", found.notes);
    }
    let text = "ControlMaster no\nControlPath none\nAddKeysToAgent no\nIPQoS none\n";
    assert_eq!(of(text, "x").unwrap().notes, Vec::<String>::new());
}

#[test]
fn what_only_stops_a_connection_is_kept_for_it() {
    let fault = |text: &str| of(text, "x").unwrap().fault.unwrap().why;
    assert!(fault("IdentityFile ~no-such-user/k\n").contains("no-such-user"));
    assert!(fault("CertificateFile /c/%x\n").contains("%x"));
    assert!(fault("GlobalKnownHostsFile ~no-such-user/g\n").contains("no-such-user"));
    let list = "CASignatureAlgorithms ssh-ed25519-cert-v01@openssh.com\n";
    assert!(fault(list).contains("casignaturealgorithms"));
    let found = of("IdentityFile /k/%x\nIdentityFile /k/good\n", "x").unwrap();
    assert_eq!(found.identity_files, [Path::new("/k/good")]);
    assert_eq!(of("IdentityFile /k/good\n", "x").unwrap().fault, None);
}

#[test]
fn handing_over_a_descriptor_is_missed_with_a_command_only() {
    let said = |way: &str| of(&format!("ProxyUseFdpass yes\n{way}\n"), "x").unwrap().warnings;
    assert_eq!(
        said("ProxyCommand nc %h"),
        ["proxyusefdpass yes is not supported and has no effect"]
    );
    assert_eq!(said("ProxyJump b"), Vec::<String>::new());
    assert_eq!(said("ProxyCommand none"), Vec::<String>::new());
}

// Not in the corpus: how strict `ssh` is here depends on its version.
#[test]
fn names_that_a_command_line_could_misread_are_refused() {
    for name in
        ["a,b", "a;b", "a b", "-a", "", "u\n@a", "u\u{1}x@a", "ssh://u\u{7f}@a", "-u@a", "u;@a"]
    {
        assert_eq!(Given::destination(name), None, "{name:?}");
    }
    for name in ["a", "u$x@a", "u\\x@a", "u v@a", "u,v@a", "::1", "fe80::1%lo"] {
        assert!(Given::destination(name).is_some(), "{name:?}");
    }
}

#[test]
fn mistakes_are_errors_with_their_line() {
    for (text, word) in [
        ("\nPort x", "port"),
        ("\nNonsense 1", "unknown keyword"),
        ("\nUser \"a", "quote"),
        ("\nPort", "nothing follows"),
        ("\nPort 1 2", "more values"),
        ("\nCiphers rot13", "algorithms"),
        ("\nMatch colour red", "attribute"),
        ("\nProxyJump @", "ProxyJump"),
    ] {
        let error = of(text, "x").unwrap_err();
        assert_eq!(error.line, 2, "{text}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn ways() {
    let route = |text: &str| of(text, "x").unwrap().route;
    let command =
        |line: &str, written: &str| Route::Command { line: line.into(), written: written.into() };
    assert_eq!(route("ProxyJump none\nProxyJump b"), Route::Direct);
    assert_eq!(route("ProxyJump none\nProxyCommand nc %h"), command("nc x", "nc %h"));
    assert_eq!(route("ProxyCommand nc %h %p # all"), command("nc x 22 # all", "nc %h %p # all"));
    assert_eq!(route("ProxyCommand none\nProxyJump b"), Route::Direct);
    let last = Jump { user: Some("v".into()), host: "c".into(), port: Some(9) };
    assert_eq!(
        route("ProxyJump a,u@b:8,v@c:9"),
        Route::Jump { last, before: Some("a,u@b:8".into()) }
    );
    assert!(of("ProxyJump x", "x").is_err());
}

#[test]
fn tokens_of_every_kind() {
    let text =
        "User r\nPort 9\nHostKeyAlias K\nIdentityAgent ${SOCK}/%n-%h-%p-%r-%k-%u-%i-%l-%L-%d-%%\n";
    let found = of(text, "N").unwrap();
    assert_eq!(
        found.identity_agent.unwrap(),
        "/run/sock/N-n-9-r-k-u-1000-desk.example-desk-/home/u-%"
    );
    assert!(of("IdentityAgent ${NOPE}", "x").is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_survived(text in "(.|\n){0,400}", host in "[a-z.*?!-]{1,20}") {
        let given = Given { name: host, ..Given::default() };
        let _ = resolve(&ConfigFiles::Text(text.as_str().into()), &given, &place());
    }

    #[test]
    fn any_keyword_is_survived(
        word in proptest::sample::select(keywords::KEYWORDS.iter().map(|k| k.name).collect::<Vec<_>>()),
        text in "[ -~]{0,60}",
    ) {
        let given = Given { name: "h".to_owned(), ..Given::default() };
        let text = format!("{word} {text}\n");
        let _ = resolve(&ConfigFiles::Text(text.as_str().into()), &given, &place());
    }
}
