//! `ssh_config`, resolved for one host as OpenSSH does it; the oracle is `ssh -G`.
//!
//! What is supported and what not is listed in `docs/ssh.md`. Something that decides how a host is
//! reached and is not supported is a warning, never silence. A mistake in a file is an error for
//! every host, as it is for `ssh`.

mod algorithms;
mod exec;
mod glob;
mod keywords;
mod pattern;
mod place;
mod print;
mod read;
mod tokens;
mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(in crate::ssh) use self::pattern::{Listed, matches_list};
pub use self::place::Place;
pub use self::read::MAX_CONFIG_BYTES;
pub use self::words::Jump;

use self::algorithms::Kind;
use self::read::{JumpValue, Owner, Pass, Values};
use self::tokens::Tokens;
use crate::base::quote;

/// The system's configuration, read after a person's.
const SYSTEM_FILE: &str = "/etc/ssh/ssh_config";

/// Most bytes under one session key (RFC 4253, section 9).
const MOST_BETWEEN_KEYS: u64 = 1 << 30;
/// Fewest: an exchange of keys costs more than the bytes.
const LEAST_BETWEEN_KEYS: u64 = 1 << 20;

/// A connection that leaves so many keepalives unanswered has ended, whatever the configuration says.
const MOST_UNANSWERED: u32 = 100;

/// What to do with a host key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StrictHostKeyChecking {
    /// An unknown key is asked about.
    #[default]
    Ask,
    /// An unknown key is refused without a question.
    Yes,
    /// An unknown key is written down without a question. `no` and `off` mean this too: a changed
    /// key is refused whatever the configuration says.
    AcceptNew,
}

/// Which kind of address a name may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressFamily {
    /// Both.
    #[default]
    Any,
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

/// How a host is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// By TCP from here.
    #[default]
    Direct,
    /// Over another SSH server.
    Jump {
        /// The last place before the host.
        last: Jump,
        /// The places before that one, as `ProxyJump` would be given them; none: what the
        /// configuration of `last` says.
        before: Option<String>,
    },
    /// By a command whose input and output are the connection.
    Command {
        /// What is run.
        line: String,
        /// As it was written: the same for all hosts that a line of the configuration serves.
        written: String,
    },
}

/// What a configuration says about one host, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// The name as it was given.
    pub name: String,
    /// Name or address to connect to.
    pub host_name: String,
    /// User to log in as.
    pub user: String,
    /// Port of the server.
    pub port: u16,
    /// Which kind of address.
    pub address_family: AddressFamily,
    /// Address of this machine to connect from.
    pub bind_address: Option<String>,
    /// How it is reached.
    pub route: Route,
    /// Private keys in order.
    pub identity_files: Vec<PathBuf>,
    /// They were named by somebody, so that a missing one is worth a word.
    pub identity_files_named: bool,
    /// Certificates in order.
    pub certificate_files: Vec<PathBuf>,
    /// Offer only the keys of `identity_files` and `certificate_files`.
    pub identities_only: bool,
    /// Socket of the SSH agent, `none`, `SSH_AUTH_SOCK` or `$NAME`; none: the usual one.
    pub identity_agent: Option<String>,
    /// A person's files of known host keys, the first is written to.
    pub user_known_hosts_files: Vec<PathBuf>,
    /// The system's files of known host keys.
    pub global_known_hosts_files: Vec<PathBuf>,
    /// Write host names hashed.
    pub hash_known_hosts: bool,
    /// What to do with unknown keys.
    pub strict_host_key_checking: StrictHostKeyChecking,
    /// The name under which the host key is known.
    pub host_key_alias: Option<String>,
    /// Do not check the key of a host on this machine's loopback.
    pub no_host_authentication_for_localhost: bool,
    /// A file of keys that are refused.
    pub revoked_host_keys: Option<PathBuf>,
    /// Try keys.
    pub pubkey_authentication: bool,
    /// Try a password.
    pub password_authentication: bool,
    /// Answer the server's questions.
    pub kbd_interactive_authentication: bool,
    /// The order of the ways to log in, where it is given.
    pub preferred_authentications: Option<Vec<String>>,
    /// Ask nobody for passwords and passphrases.
    pub batch_mode: bool,
    /// A password is asked for so often.
    pub number_of_password_prompts: u32,
    /// Shortest RSA key that is trusted, or offered, in bits.
    pub required_rsa_size: u32,
    /// How long an answer to a keepalive is waited for; none: not said.
    pub server_alive_interval: Option<Duration>,
    /// So many unanswered keepalives end the connection.
    pub server_alive_count_max: u32,
    /// Patience for TCP and the first bytes.
    pub connect_timeout: Option<Duration>,
    /// Keep-alives of the kernel.
    pub tcp_keep_alive: bool,
    /// New session keys after so many bytes.
    pub rekey_bytes: Option<u64>,
    /// New session keys after so long.
    pub rekey_interval: Option<Duration>,
    /// Allowed ciphers, where they are given.
    pub ciphers: Option<Vec<String>>,
    /// Allowed MACs, where they are given.
    pub macs: Option<Vec<String>>,
    /// Allowed key exchanges, where they are given.
    pub kex_algorithms: Option<Vec<String>>,
    /// Allowed host key algorithms, where they are given.
    pub host_key_algorithms: Option<Vec<String>>,
    /// Their order is the person's; else the kinds of key that are known of a host come first.
    pub host_key_order_given: bool,
    /// Allowed signatures of user keys, where they are given.
    pub pubkey_accepted_algorithms: Option<Vec<String>>,
    /// Allowed signatures of certificate authorities.
    pub ca_signature_algorithms: Vec<String>,
    /// What was found and is not supported, with file and line.
    pub warnings: Vec<String>,
    /// The same where it costs nobody anything: what distributions put into the system's own file, and what many have for
    /// all hosts (`ControlMaster`). Told when somebody asks.
    pub notes: Vec<String>,
    /// What makes no sense in it and is noticed when a connection is made, as by `ssh`.
    pub fault: Option<ConfigError>,
    /// As `ssh -G` prints it: keys and values.
    pub printed: Vec<(String, String)>,
}

/// A mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {why}", file.display())]
pub struct ConfigError {
    /// Which file.
    pub file: PathBuf,
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// Which configuration is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConfigFiles {
    /// `~/.ssh/config` and then the system's.
    #[default]
    Usual,
    /// This one only, as with `ssh -F`; `none` and `/dev/null` are nothing.
    Only(PathBuf),
    /// A text.
    Text(Arc<str>),
}

/// What the command line, or a deck, says before any file does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The name.
    pub name: String,
    /// `-l`.
    pub user: Option<String>,
    /// `-p`.
    pub port: Option<u16>,
    /// Connect to this instead of what `HostName` says.
    pub host_name: Option<String>,
    /// `-J`.
    pub jump: Option<String>,
    /// No jump and no command, whatever the configuration says.
    pub direct: bool,
}

impl Given {
    /// `[user@]host` or `ssh://[user@]host[:port]`, as `ssh` takes it.
    pub fn destination(text: &str) -> Option<Self> {
        if text.starts_with("ssh://") {
            let Jump { user, host, port } = words::jump(text)?;
            return Some(Self { name: host, user, port, ..Self::default() }).filter(Self::is_safe);
        }
        let (user, name) = match text.rsplit_once('@') {
            Some(("", _)) => return None,
            Some((user, name)) => (Some(user.to_owned()), name),
            None => (None, text),
        };
        Some(Self { name: name.to_owned(), user, ..Self::default() }).filter(Self::is_safe)
    }

    /// Names go into command lines (`ProxyCommand`, `Match exec`), for the shell to read: those are refused
    /// that OpenSSH refuses.
    fn is_safe(&self) -> bool {
        self.unsafe_name().is_none()
    }

    /// A name of a host or a user that a shell could misread.
    pub(super) fn unsafe_name(&self) -> Option<&str> {
        let hosts = [Some(&self.name), self.host_name.as_ref()];
        let host = hosts.into_iter().flatten().find(|name| !quote::is_plain_host(name));
        let user = self.user.as_ref().filter(|name| !quote::is_plain_user(name));
        host.or(user).map(String::as_str)
    }
}

/// Reads the files and resolves them for one host.
pub fn resolve(
    files: &ConfigFiles,
    given: &Given,
    place: &Place,
) -> Result<HostConfig, ConfigError> {
    let mut values = Values::default();
    let mut put = |key: &'static str, value: Option<String>| {
        if let Some(value) = value {
            values.set.insert(key, vec![value]);
        }
    };
    put("user", given.user.clone());
    put("port", given.port.map(|p| p.to_string()));
    put("hostname", given.host_name.as_ref().map(|name| name.replace('%', "%%")));
    if given.direct {
        values.jump = Some(JumpValue::None);
        values.set.insert("proxycommand", vec!["none".to_owned()]);
    } else if let Some(jump) = &given.jump
        && !values.put_jump(jump, true)
    {
        return Err(general(format!("`{jump}` is no ProxyJump")));
    }
    let mut pass = Pass {
        place,
        original: &given.name,
        host: given.name.clone(),
        last: false,
        values,
        wants_last: false,
        warnings: Vec::new(),
        notes: Vec::new(),
        files: 0,
    };
    read_all(&mut pass, files)?;

    let mut host = match pass.values.first("hostname") {
        Some(name) => {
            let token = |token| (token == 'h').then(|| given.name.clone());
            tokens::expand(name, token, |_| None, false)
                .map_err(|why| general(format!("HostName {name}: {why}")))?
        }
        None => given.name.clone(),
    };
    let family = pass.values.first("addressfamily");
    let other_family = |address: &str| match family {
        Some("inet") => address.contains(':'),
        Some("inet6") => !address.contains(':'),
        _ => false,
    };
    match words::numeric_address(&host) {
        Some(address) if address.eq_ignore_ascii_case(&host) || other_family(&address) => {}
        Some(address) => host = address,
        None if host.contains([':', '%']) => {}
        None => host = host.to_ascii_lowercase(),
    }
    let canonical = pass.values.first("canonicalizehostname").is_some_and(|v| v != "false");
    if pass.wants_last || canonical {
        pass.values.set.insert("hostname", vec![host.clone()]);
        for (key, value) in keywords::BEFORE_LAST {
            pass.values.set.entry(key).or_insert_with(|| vec![value.to_owned()]);
        }
        pass.host.clone_from(&host);
        pass.last = true;
        pass.files = 0;
        read_all(&mut pass, files)?;
    }
    let Pass { values, warnings, notes, .. } = pass;
    let found = finish(given, place, host, &values, warnings)?;
    Ok(HostConfig { notes, ..found })
}

fn general(why: impl Into<String>) -> ConfigError {
    ConfigError { file: PathBuf::from("the SSH configuration"), line: 0, why: why.into() }
}

fn read_all(pass: &mut Pass<'_>, files: &ConfigFiles) -> Result<(), ConfigError> {
    match files {
        ConfigFiles::Text(text) => pass.text(text),
        ConfigFiles::Only(path) if path.as_os_str().eq_ignore_ascii_case("none") => Ok(()),
        ConfigFiles::Only(path) => {
            if pass.file(path, Owner::User, false)? {
                return Ok(());
            }
            Err(ConfigError {
                file: path.clone(),
                line: 0,
                why: "there is no such file".to_owned(),
            })
        }
        ConfigFiles::Usual => {
            pass.file(&pass.place.home.join(".ssh/config"), Owner::User, true)?;
            pass.file(Path::new(SYSTEM_FILE), Owner::System, false)?;
            Ok(())
        }
    }
}

/// The private keys that are tried when none is named, in OpenSSH's order.
const USUAL_KEYS: [&str; 7] =
    ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa"];

fn finish(
    given: &Given,
    place: &Place,
    host: String,
    values: &Values,
    mut warnings: Vec<String>,
) -> Result<HostConfig, ConfigError> {
    let text = |key: &str| values.first(key).map(ToOwned::to_owned);
    if values.first("connectionattempts") == Some("0") {
        return Err(general("ConnectionAttempts 0: nothing would be tried"));
    }
    let user = text("user").unwrap_or_else(|| place.local_user.clone());
    let port: u16 = values.first("port").and_then(|p| p.parse().ok()).unwrap_or(22);
    let host_key_alias = text("hostkeyalias").map(|alias| alias.to_ascii_lowercase());
    let tokens = Tokens {
        host: host.clone(),
        original: given.name.clone(),
        port: port.to_string(),
        user: user.clone(),
        key_alias: host_key_alias.clone().unwrap_or_else(|| given.name.clone()),
        jump: print::jump(values).unwrap_or_default(),
    };
    let path = |key: &str, raw: &str| -> Result<String, ConfigError> {
        tokens::expand_tilde(raw, place)
            .and_then(|text| tokens.expand(&text, place, true))
            .map_err(|why| general(format!("{key} {raw}: {why}")))
    };
    let mut fault = None;
    // What `ssh` notices when it connects, and not before.
    let mut later = |key: &str, raw: &str| match path(key, raw) {
        Ok(path) => Some(PathBuf::from(path)),
        Err(error) => {
            fault.get_or_insert(error);
            None
        }
    };
    let list = |key: &str| values.set.get(key).cloned();
    let is_none = |v: &String| v.eq_ignore_ascii_case("none");

    let raw_identities = list("identityfile");
    let identity_files_named = raw_identities.is_some();
    let raw_identities = raw_identities
        .unwrap_or_else(|| USUAL_KEYS.iter().map(|name| format!("~/.ssh/{name}")).collect());
    let mut identity_files = Vec::new();
    for raw in raw_identities.iter().filter(|v| !is_none(v)) {
        identity_files.extend(later("IdentityFile", raw));
    }
    let raw_certificates = list("certificatefile").unwrap_or_default();
    let mut certificate_files = Vec::new();
    for raw in raw_certificates.iter().filter(|v| !is_none(v)) {
        certificate_files.extend(later("CertificateFile", raw));
    }
    let identity_agent = match values.first("identityagent") {
        Some(raw) => Some(path("IdentityAgent", raw)?),
        None => None,
    };
    let mut user_known_hosts = Vec::new();
    let raw = list("userknownhostsfile")
        .unwrap_or_else(|| vec!["~/.ssh/known_hosts".into(), "~/.ssh/known_hosts2".into()]);
    for raw in raw.iter().filter(|v| !is_none(v)) {
        user_known_hosts.push(path("UserKnownHostsFile", raw)?);
    }
    let global_raw: Vec<String> = list("globalknownhostsfile")
        .unwrap_or_else(|| {
            vec!["/etc/ssh/ssh_known_hosts".into(), "/etc/ssh/ssh_known_hosts2".into()]
        })
        .into_iter()
        .filter(|v| !is_none(v))
        .collect();
    let mut global_known_hosts_files = Vec::new();
    let mut global_fault = None;
    for raw in &global_raw {
        match tokens::expand_tilde(raw, place) {
            Ok(file) => global_known_hosts_files.push(PathBuf::from(file)),
            Err(why) => {
                global_fault
                    .get_or_insert_with(|| general(format!("GlobalKnownHostsFile {raw}: {why}")));
            }
        }
    }
    let revoked_host_keys = match values.first("revokedhostkeys") {
        Some(raw) if !raw.eq_ignore_ascii_case("none") => later("RevokedHostKeys", raw),
        _ => None,
    };
    let mut list_fault = None;
    let mut algorithms = |key: &str, kind: Kind| {
        algorithms::assemble(kind, values.first(key)).unwrap_or_else(|why| {
            list_fault.get_or_insert_with(|| general(format!("{key}: {why}")));
            Vec::new()
        })
    };
    let mut given_algorithms =
        |key: &str, kind: Kind| values.first(key).map(|_| algorithms(key, kind));
    let ciphers = given_algorithms("ciphers", Kind::Cipher);
    let macs = given_algorithms("macs", Kind::Mac);
    let kex_algorithms = given_algorithms("kexalgorithms", Kind::Kex);
    let host_key_algorithms = given_algorithms("hostkeyalgorithms", Kind::Key);
    let pubkey_accepted_algorithms = given_algorithms("pubkeyacceptedalgorithms", Kind::Key);
    let ca_signature_algorithms = algorithms("casignaturealgorithms", Kind::CaSignature);
    let yes = |key: &str, default: bool| values.first(key).map_or(default, |v| v == "yes");
    let number =
        |key: &str, default: u32| values.first(key).and_then(|v| v.parse().ok()).unwrap_or(default);
    let seconds = |key: &str| {
        let seconds: Option<u64> = values.first(key).and_then(|v| v.parse().ok());
        seconds.filter(|s| *s > 0).map(Duration::from_secs)
    };
    let rekey_bytes: u64 = values.first("rekeylimit").and_then(|v| v.parse().ok()).unwrap_or(0);
    let alive_count = number("serveralivecountmax", 3);
    bounds(values, rekey_bytes, alive_count, &mut warnings);
    let route = route(values, &tokens, place, &host, port, &user, &mut warnings)?;
    let batch_mode = yes("batchmode", false);
    let mut config = HostConfig {
        name: given.name.clone(),
        host_name: host,
        user,
        port,
        address_family: match values.first("addressfamily") {
            Some("inet") => AddressFamily::Inet,
            Some("inet6") => AddressFamily::Inet6,
            _ => AddressFamily::Any,
        },
        bind_address: text("bindaddress"),
        route,
        identity_files,
        identity_files_named,
        certificate_files,
        identities_only: yes("identitiesonly", false),
        identity_agent,
        user_known_hosts_files: user_known_hosts.iter().map(PathBuf::from).collect(),
        global_known_hosts_files,
        hash_known_hosts: yes("hashknownhosts", false),
        strict_host_key_checking: match values.first("stricthostkeychecking") {
            Some("true") => StrictHostKeyChecking::Yes,
            Some("false" | "accept-new") => StrictHostKeyChecking::AcceptNew,
            _ => StrictHostKeyChecking::Ask,
        },
        host_key_alias,
        no_host_authentication_for_localhost: yes("nohostauthenticationforlocalhost", false),
        revoked_host_keys,
        pubkey_authentication: values.first("pubkeyauthentication") != Some("false"),
        password_authentication: yes("passwordauthentication", true),
        kbd_interactive_authentication: yes("kbdinteractiveauthentication", true),
        preferred_authentications: text("preferredauthentications")
            .map(|list| list.split(',').map(ToOwned::to_owned).collect()),
        batch_mode,
        number_of_password_prompts: number("numberofpasswordprompts", 3),
        // `ssh` trusts no shorter one, whatever is asked for.
        required_rsa_size: number("requiredrsasize", 1024).max(1024),
        server_alive_interval: seconds("serveraliveinterval"),
        server_alive_count_max: alive_count.clamp(1, MOST_UNANSWERED),
        connect_timeout: seconds("connecttimeout"),
        tcp_keep_alive: yes("tcpkeepalive", true),
        rekey_bytes: Some(rekey_bytes)
            .filter(|b| *b > 0)
            .map(|bytes| bytes.clamp(LEAST_BETWEEN_KEYS, MOST_BETWEEN_KEYS)),
        rekey_interval: seconds(keywords::REKEY_INTERVAL),
        ciphers,
        macs,
        kex_algorithms,
        host_key_algorithms,
        // OpenSSH (ssh_kex2 in sshconnect2.c): what is only added or taken away is no order.
        host_key_order_given: values
            .first("hostkeyalgorithms")
            .is_some_and(|list| !list.starts_with(['+', '-'])),
        pubkey_accepted_algorithms,
        ca_signature_algorithms,
        warnings,
        notes: Vec::new(),
        fault: fault.or(global_fault).or(list_fault),
        printed: Vec::new(),
    };
    let shown =
        print::Shown { user_known_hosts: &user_known_hosts, global_known_hosts: &global_raw };
    config.printed = print::all(&config, values, &raw_identities, &raw_certificates, &shown);
    Ok(config)
}

/// Says where a value goes beyond what is done here: the nearest that is counts.
fn bounds(values: &Values, rekey_bytes: u64, alive_count: u32, warnings: &mut Vec<String>) {
    let mut say = |what: &str| warnings.push(what.to_owned());
    if rekey_bytes > MOST_BETWEEN_KEYS {
        say("rekeylimit over 1G is not supported: keys change after each GiB");
    } else if rekey_bytes > 0 && rekey_bytes < LEAST_BETWEEN_KEYS {
        say("rekeylimit under 1M is not supported: keys change after each MiB");
    }
    if alive_count == 0 {
        say(
            "serveralivecountmax 0 is not supported: the first unanswered keepalive ends a connection",
        );
    } else if alive_count > MOST_UNANSWERED {
        say(
            "serveralivecountmax over 100 is not supported: 100 unanswered keepalives end a connection",
        );
    }
    if values.first("serveraliveinterval") == Some("0") {
        say(
            "serveraliveinterval 0 is not supported: a host is asked every 15 s whether it is there",
        );
    }
}

fn route(
    values: &Values,
    tokens: &Tokens,
    place: &Place,
    host: &str,
    port: u16,
    user: &str,
    warnings: &mut Vec<String>,
) -> Result<Route, ConfigError> {
    // These are the only tokens that OpenSSH expands in both of them.
    let few = |text: &str| {
        let token = |token: char| {
            Some(match token {
                'h' => tokens.host.clone(),
                'n' => tokens.original.clone(),
                'p' => tokens.port.clone(),
                'r' => tokens.user.clone(),
                'k' => tokens.key_alias.clone(),
                _ => return None,
            })
        };
        tokens::expand(text, token, |name| (place.env)(name), false)
    };
    // It says something of `ProxyCommand` alone.
    let fd_pass = values.first("proxyusefdpass") == Some("yes");
    match &values.jump {
        Some(JumpValue::Over { before, last }) => {
            let jump_port = last.port.unwrap_or(22);
            let jump_user = last.user.as_deref().unwrap_or(user);
            if last.host == host && jump_port == port && jump_user == user {
                return Err(general(format!(
                    "ProxyJump {}: the host jumps over itself",
                    last.host
                )));
            }
            // A mistake in it shows when it is used, as with OpenSSH.
            let expand = |text: &str| few(text).unwrap_or_else(|_| text.to_owned());
            let last = Jump {
                user: last.user.as_deref().map(expand),
                host: expand(&last.host),
                port: last.port,
            };
            Ok(Route::Jump { last, before: before.as_deref().map(expand) })
        }
        Some(JumpValue::None) | None => match values.first("proxycommand") {
            None => Ok(Route::Direct),
            Some(command) if command.eq_ignore_ascii_case("none") => Ok(Route::Direct),
            Some("-") if fd_pass => {
                Err(general("`ProxyCommand -` and ProxyUseFdpass exclude each other"))
            }
            Some("-") => {
                warnings
                    .push("ProxyCommand - is not supported; the host is reached directly".into());
                Ok(Route::Direct)
            }
            Some(command) => {
                if fd_pass {
                    warnings.push("proxyusefdpass yes is not supported and has no effect".into());
                }
                let line = few(command).unwrap_or_else(|_| command.to_owned());
                Ok(Route::Command { line, written: command.to_owned() })
            }
        },
    }
}

/// `~` and `~/…` become the home directory.
pub fn expand_home(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
