//! The keywords of `ssh_config(5)`: what kind of value each takes, and which we do not follow.

use super::algorithms::Kind;

/// What a keyword takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Host,
    Match,
    Include,
    /// `yes` or `no`.
    Flag,
    /// One of some words; the second of each pair is what `ssh -G` prints for it.
    Choice(&'static [(&'static str, &'static str)]),
    Number,
    /// A time; `none` sets nothing.
    Time,
    Text,
    /// Several words, the first line wins; `none` stands alone.
    Words,
    /// One word a line, and the lines add up.
    More,
    Algorithms(Kind),
    /// The rest of the line as it is.
    Rest,
    Jump,
    Port,
    /// A socket's path, with variables.
    Agent,
    /// Bytes, and perhaps a time.
    Rekey,
}

/// A keyword.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) what: What,
    /// What `ssh -G` prints when nothing is said.
    pub(super) default: Option<&'static str>,
    /// Not followed: a warning is due for every value but these.
    pub(super) harmless: Option<&'static [&'static str]>,
}

const TRUE_FALSE: [(&str, &str); 4] =
    [("true", "true"), ("false", "false"), ("yes", "true"), ("no", "false")];

const YES_NO_ASK: &[(&str, &str)] =
    &[TRUE_FALSE[0], TRUE_FALSE[1], TRUE_FALSE[2], TRUE_FALSE[3], ("ask", "ask")];
const STRICT: &[(&str, &str)] = &[
    TRUE_FALSE[0],
    TRUE_FALSE[1],
    TRUE_FALSE[2],
    TRUE_FALSE[3],
    ("ask", "ask"),
    ("off", "false"),
    ("accept-new", "accept-new"),
];
const CANONICAL: &[(&str, &str)] =
    &[TRUE_FALSE[0], TRUE_FALSE[1], TRUE_FALSE[2], TRUE_FALSE[3], ("always", "always")];
const PUBKEY: &[(&str, &str)] = &[
    TRUE_FALSE[0],
    TRUE_FALSE[1],
    TRUE_FALSE[2],
    TRUE_FALSE[3],
    ("unbound", "unbound"),
    ("host-bound", "host-bound"),
];
const FAMILY: &[(&str, &str)] = &[("inet", "inet"), ("inet6", "inet6"), ("any", "any")];
const COMPRESSION: &[(&str, &str)] = &[("yes", "yes"), ("no", "no")];

const fn of(name: &'static str, what: What, default: Option<&'static str>) -> Keyword {
    Keyword { name, what, default, harmless: None }
}

const fn unfollowed(
    name: &'static str,
    what: What,
    default: Option<&'static str>,
    harmless: &'static [&'static str],
) -> Keyword {
    Keyword { name, what, default, harmless: Some(harmless) }
}

/// The keywords we understand, in the order in which `ssh -G` prints them.
pub(super) const KEYWORDS: &[Keyword] = &[
    of("host", What::Host, None),
    of("match", What::Match, None),
    of("include", What::Include, None),
    of("user", What::Text, None),
    of("hostname", What::Text, None),
    of("port", What::Port, Some("22")),
    of("addressfamily", What::Choice(FAMILY), Some("any")),
    of("batchmode", What::Flag, Some("no")),
    unfollowed("canonicalizefallbacklocal", What::Flag, Some("yes"), &["yes"]),
    unfollowed("canonicalizehostname", What::Choice(CANONICAL), Some("false"), &["false"]),
    unfollowed("checkhostip", What::Flag, Some("no"), &["no"]),
    unfollowed("compression", What::Choice(COMPRESSION), Some("no"), &["no"]),
    unfollowed("gssapiauthentication", What::Flag, Some("no"), &["no"]),
    of("hashknownhosts", What::Flag, Some("no")),
    unfollowed("hostbasedauthentication", What::Flag, Some("no"), &["no"]),
    of("identitiesonly", What::Flag, Some("no")),
    of("kbdinteractiveauthentication", What::Flag, Some("yes")),
    of("nohostauthenticationforlocalhost", What::Flag, Some("no")),
    of("passwordauthentication", What::Flag, Some("yes")),
    of("proxyusefdpass", What::Flag, Some("no")),
    // What `host-bound` insists on, a server's own key within a signature, is not asked for.
    unfollowed(
        "pubkeyauthentication",
        What::Choice(PUBKEY),
        Some("true"),
        &["true", "false", "unbound"],
    ),
    of("stricthostkeychecking", What::Choice(STRICT), Some("ask")),
    of("tcpkeepalive", What::Flag, Some("yes")),
    unfollowed("verifyhostkeydns", What::Choice(YES_NO_ASK), Some("false"), &["false"]),
    of("canonicalizemaxdots", What::Number, Some("1")),
    unfollowed("connectionattempts", What::Number, Some("1"), &["1"]),
    of("numberofpasswordprompts", What::Number, Some("3")),
    of("serveralivecountmax", What::Number, Some("3")),
    of("serveraliveinterval", What::Time, Some("0")),
    of("requiredrsasize", What::Number, Some("1024")),
    of("bindaddress", What::Text, None),
    unfollowed("bindinterface", What::Text, None, &[]),
    of("ciphers", What::Algorithms(Kind::Cipher), None),
    of("hostkeyalgorithms", What::Algorithms(Kind::Key), None),
    of("hostkeyalias", What::Text, None),
    of("hostbasedacceptedalgorithms", What::Algorithms(Kind::Key), None),
    of("identityagent", What::Agent, None),
    of("ignoreunknown", What::Text, None),
    of("kexalgorithms", What::Algorithms(Kind::Kex), None),
    of("casignaturealgorithms", What::Algorithms(Kind::CaSignature), None),
    of("macs", What::Algorithms(Kind::Mac), None),
    unfollowed("pkcs11provider", What::Text, None, &["none"]),
    of("preferredauthentications", What::Text, None),
    of("pubkeyacceptedalgorithms", What::Algorithms(Kind::Key), None),
    of("revokedhostkeys", What::Text, None),
    unfollowed("knownhostscommand", What::Rest, None, &["none"]),
    of("identityfile", What::More, None),
    of("canonicaldomains", What::Words, Some("none")),
    of("certificatefile", What::More, None),
    of("globalknownhostsfile", What::Words, None),
    of("userknownhostsfile", What::Words, None),
    of("connecttimeout", What::Time, Some("none")),
    of("rekeylimit", What::Rekey, None),
    of("proxycommand", What::Rest, None),
    of("proxyjump", What::Jump, None),
];

/// What the end of the first pass decides where nothing was said: the second comes too late for it.
pub(super) const BEFORE_LAST: [(&str, &str); 3] = [
    ("canonicalizefallbacklocal", "yes"),
    ("canonicalizehostname", "false"),
    ("canonicalizemaxdots", "1"),
];

/// Where the second value of `RekeyLimit` is kept.
pub(super) const REKEY_INTERVAL: &str = "rekeyinterval";

/// Other names of the same.
const ALIASES: [(&str, &str); 10] = [
    ("identityfile2", "identityfile"),
    ("challengeresponseauthentication", "kbdinteractiveauthentication"),
    ("skeyauthentication", "kbdinteractiveauthentication"),
    ("tisauthentication", "kbdinteractiveauthentication"),
    ("dsaauthentication", "pubkeyauthentication"),
    ("keepalive", "tcpkeepalive"),
    ("hostbasedkeytypes", "hostbasedacceptedalgorithms"),
    ("pubkeyacceptedkeytypes", "pubkeyacceptedalgorithms"),
    ("smartcarddevice", "pkcs11provider"),
    ("protocolkeepalives", "serveraliveinterval"),
];

/// Read over without a word: they say nothing about how a host is reached or who is let in, or
/// OpenSSH has dropped them itself.
const SKIPPED: &[&str] = &[
    "addkeystoagent",
    "afstokenpassing",
    "canonicalizepermittedcnames",
    "channeltimeout",
    "cipher",
    "clearallforwardings",
    "compressionlevel",
    "controlmaster",
    "controlpath",
    "controlpersist",
    "dynamicforward",
    "enableescapecommandline",
    "enablesshkeysign",
    "escapechar",
    "exitonforwardfailure",
    "fallbacktorsh",
    "fingerprinthash",
    "forkafterauthentication",
    "forwardagent",
    "forwardx11",
    "forwardx11timeout",
    "forwardx11trusted",
    "gatewayports",
    "globalknownhostsfile2",
    "gssapiclientidentity",
    "gssapidelegatecredentials",
    "gssapikexalgorithms",
    "gssapikeyexchange",
    "gssapirenewalforcesrekey",
    "gssapiserveridentity",
    "gssapitrustdns",
    "ipqos",
    "kbdinteractivedevices",
    "kerberosauthentication",
    "kerberostgtpassing",
    "localcommand",
    "localforward",
    "loglevel",
    "logverbose",
    "obscurekeystroketiming",
    "permitlocalcommand",
    "permitremoteopen",
    "protocol",
    "remotecommand",
    "remoteforward",
    "requesttty",
    "rhostsauthentication",
    "rhostsrsaauthentication",
    "rsaauthentication",
    "securitykeyprovider",
    "sendenv",
    "sessiontype",
    "setenv",
    "setuptimeout",
    "stdinnull",
    "streamlocalbindmask",
    "streamlocalbindunlink",
    "syslogfacility",
    "tunnel",
    "tunneldevice",
    "updatehostkeys",
    "useprivilegedport",
    "userknownhostsfile2",
    "useroaming",
    "usersh",
    "visualhostkey",
    "xauthlocation",
];

/// Keywords of newer OpenSSH versions: read over with a warning.
const NEWER: [&str; 4] = ["refuseconnection", "tag", "versionaddendum", "warnweakcrypto"];

/// Of what is read over: what would decide how a host is reached or who is let in, with the values that ask for
/// nothing.
const MISSED: [(&str, &[&str]); 10] = [
    ("addkeystoagent", &["no", "false"]),
    ("canonicalizepermittedcnames", &["none"]),
    ("controlmaster", &["no", "false"]),
    ("controlpath", &["none"]),
    ("gssapikeyexchange", &["no"]),
    ("ipqos", &["none"]),
    ("kbdinteractivedevices", &[]),
    ("securitykeyprovider", &["internal", "none"]),
    ("updatehostkeys", &["no", "false"]),
    ("useprivilegedport", &["no"]),
];

/// Whether a keyword that is read over asks for something that we do not do.
pub(super) fn is_missed(word: &str, value: &str) -> bool {
    let found = MISSED.iter().find(|(name, _)| *name == word);
    found.is_some_and(|(_, harmless)| !harmless.iter().any(|v| v.eq_ignore_ascii_case(value)))
}

/// What many have in a file of their own for all hosts, and what decides little here: connections are ours, whoever
/// else shares one, keys are asked about once, and packets are not marked. Told to who asks, not at each start.
pub(super) fn is_convenience(word: &str) -> bool {
    matches!(word, "addkeystoagent" | "controlmaster" | "controlpath" | "ipqos")
}

/// What a word at the beginning of a line is.
pub(super) enum Found {
    Known(&'static Keyword),
    /// Read over.
    Skipped,
    /// Read over, and worth a word.
    Newer,
    Unknown,
}

/// Looks a keyword up, which is in lower case.
pub(super) fn find(word: &str) -> Found {
    let word = ALIASES.iter().find(|(alias, _)| *alias == word).map_or(word, |(_, name)| *name);
    if let Some(keyword) = KEYWORDS.iter().find(|k| k.name == word) {
        return Found::Known(keyword);
    }
    if SKIPPED.contains(&word) {
        return Found::Skipped;
    }
    if NEWER.contains(&word) { Found::Newer } else { Found::Unknown }
}
