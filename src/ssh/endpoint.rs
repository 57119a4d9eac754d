//! Whom to connect to, with everything decided: a person's words and the SSH configuration put
//! together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::agents::{Agents, IdentityAgent};
use super::config::{self, ConfigFiles, Given, HostConfig, Place, Route};
use super::jumps::Jumps;
use super::pace::Pace;
use super::{KeyRing, SshError, known_hosts};
use crate::base::text;

/// Most places to jump over: each handshake lies within the one of the place before it, on one stack.
const MAX_JUMPS: usize = 32;
/// Longest name of a place to jump over, in bytes (`NI_MAXHOST`).
const MAX_JUMP_NAME: usize = 1025;

/// A host as a person named it; what is left out comes from the SSH configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The name, as `ssh` would be given it.
    pub name: String,
    /// Address to connect to instead: what `HostName` would say, and nothing else.
    pub address: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
    /// User to log in as.
    pub user: Option<String>,
    /// Keys to offer before those of the configuration.
    pub identity_files: Vec<String>,
    /// The known-hosts file to use instead of the user's.
    pub known_hosts: Option<String>,
}

/// What all connections of a person share.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Which SSH configuration is read.
    pub config: ConfigFiles,
    /// Who we are and where.
    pub place: Place,
    /// The SSH agents there are.
    pub agents: Arc<Agents>,
    /// Keys that were unlocked, and passwords that were taken.
    pub key_ring: Arc<KeyRing>,
    /// Connections that others go over.
    pub jumps: Arc<Jumps>,
    /// Not too many handshakes at once.
    pub pace: Arc<Pace>,
    /// Patience in each phase.
    pub timeouts: Timeouts,
}

/// How long each phase may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Looking up the name and connecting.
    pub tcp: Duration,
    /// From the first byte to an encrypted connection.
    pub handshake: Duration,
    /// Logging in, without what a person takes to answer.
    pub auth: Duration,
    /// An agent's signature: somebody may have to touch a key, type a PIN or confirm.
    pub sign: Duration,
    /// Opening a channel and starting a command on it.
    pub channel: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp: Duration::from_secs(10),
            handshake: Duration::from_secs(15),
            auth: Duration::from_secs(15),
            sign: Duration::from_mins(1),
            channel: Duration::from_secs(15),
        }
    }
}

impl ConnectOptions {
    /// From the environment of this process; `config` instead of the usual files.
    pub fn from_env(config: Option<&Path>) -> Self {
        let own = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty()).map(PathBuf::from);
        Self {
            config: config.map_or(ConfigFiles::Usual, |path| ConfigFiles::Only(path.to_owned())),
            place: Place::here(),
            agents: Arc::new(Agents::new(own)),
            key_ring: Arc::default(),
            jumps: Arc::default(),
            pace: Arc::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// A target with everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The name a person uses.
    pub name: String,
    /// Where the agent is.
    pub agent: IdentityAgent,
    /// Files of known keys; the first is written to.
    pub known_hosts_files: Vec<PathBuf>,
    /// Where accepted ones are written: the user's own, never the system's.
    pub known_hosts_file: Option<PathBuf>,
    /// The name under which the host key is known.
    pub host_key_name: String,
    /// The port under which the host key is known.
    pub host_key_port: u16,
    /// Everything else the configuration says.
    pub config: HostConfig,
}

/// What a configuration asks for and does not get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InVain {
    /// Whoever wrote it expects it.
    pub warnings: Vec<String>,
    /// The system's own file has it for everybody: told when somebody asks.
    pub notes: Vec<String>,
}

impl InVain {
    /// All of it.
    pub fn all(self) -> impl Iterator<Item = String> {
        self.warnings.into_iter().chain(self.notes)
    }
}

impl Endpoint {
    /// Decides everything about `target` from the options.
    pub fn resolve(target: &Target, options: &ConnectOptions) -> Result<Self, SshError> {
        let given = Given {
            name: target.name.clone(),
            user: target.user.clone(),
            port: target.port,
            host_name: target.address.clone(),
            ..Given::default()
        };
        let mut endpoint = Self::of(&given, options)?;
        let home = &options.place.home;
        let mut named: Vec<PathBuf> =
            target.identity_files.iter().map(|f| config::expand_home(f, home)).collect();
        if !named.is_empty() {
            if endpoint.config.identity_files_named {
                for file in std::mem::take(&mut endpoint.config.identity_files) {
                    if !named.contains(&file) {
                        named.push(file);
                    }
                }
            }
            endpoint.config.identity_files = named;
            endpoint.config.identity_files_named = true;
        }
        if let Some(file) = &target.known_hosts {
            let file = config::expand_home(file, home);
            endpoint.known_hosts_file = Some(file.clone());
            // It replaces the user's alone: what the machine's revoke and certify is not the deck's to say.
            endpoint.known_hosts_files = vec![file];
            let global = endpoint.config.global_known_hosts_files.iter().cloned();
            endpoint.known_hosts_files.extend(global);
        }
        Ok(endpoint)
    }

    /// [`Self::resolve`] where others must not be held up: files are read, and `Match exec` may run
    /// commands. With it comes what the configuration asks for in vain, here and of all places on the way.
    pub async fn find(
        target: &Target,
        options: &ConnectOptions,
    ) -> Result<(Self, InVain), SshError> {
        let (target, options) = (target.clone(), options.clone());
        aside(move || {
            let endpoint = Self::resolve(&target, &options)?;
            let in_vain = endpoint.in_vain(&options);
            Ok((endpoint, in_vain))
        })
        .await
    }

    /// What the configuration asks for in vain, of this place and of those on the way.
    pub fn in_vain(&self, options: &ConnectOptions) -> InVain {
        let HostConfig { warnings, notes, .. } = &self.config;
        let mut all = InVain { warnings: warnings.clone(), notes: notes.clone() };
        let add = |all: &mut Vec<String>, more: Vec<String>| {
            for text in more {
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        };
        // A way that makes no sense is told when it is gone.
        for place in self.chain(options).unwrap_or_default().into_iter().skip(1) {
            add(&mut all.warnings, place.config.warnings);
            add(&mut all.notes, place.config.notes);
        }
        all
    }

    /// What the configuration alone says.
    pub fn of(given: &Given, options: &ConnectOptions) -> Result<Self, SshError> {
        // Before anything is run with them: a deck and a remote's address come from elsewhere.
        if let Some(name) = given.unsafe_name() {
            return Err(SshError::UnsafeName { name: text::clean(name, 120) });
        }
        let config = config::resolve(&options.config, given, &options.place)?;
        let mut known_hosts_files = config.user_known_hosts_files.clone();
        known_hosts_files.extend(config.global_known_hosts_files.iter().cloned());
        let agent = IdentityAgent::of(config.identity_agent.as_deref(), &options.place);
        let (host_key_name, host_key_port) = match &config.host_key_alias {
            Some(alias) => (alias.clone(), 22),
            None => (config.host_name.clone(), config.port),
        };
        Ok(Self {
            name: given.name.clone(),
            agent,
            known_hosts_file: config.user_known_hosts_files.first().cloned(),
            known_hosts_files,
            host_key_name,
            host_key_port,
            config,
        })
    }

    /// The place to go over, as an endpoint of its own; none when the way is direct or a command.
    fn jump(&self, options: &ConnectOptions) -> Result<Option<Self>, SshError> {
        let Route::Jump { last, before } = &self.config.route else { return Ok(None) };
        // `ProxyJump %h%n` doubles it at every place: that is over before it takes memory.
        if last.host.len() > MAX_JUMP_NAME {
            let name = last.host.chars().take(40).collect();
            return Err(SshError::JumpName { name, length: last.host.len() });
        }
        let given = Given {
            name: last.host.clone(),
            user: last.user.clone(),
            port: last.port,
            host_name: None,
            jump: before.clone(),
            direct: false,
        };
        Self::of(&given, options).map(Some)
    }

    /// The place to go over, if the whole way makes sense; others are not held up by it.
    pub(super) async fn over(&self, options: &ConnectOptions) -> Result<Option<Self>, SshError> {
        let (endpoint, options) = (self.clone(), options.clone());
        aside(move || Ok(endpoint.chain(&options)?.into_iter().nth(1))).await
    }

    /// This place and those it is reached over, the nearest to it first: none may come round to where
    /// it began.
    fn chain(&self, options: &ConnectOptions) -> Result<Vec<Self>, SshError> {
        let mut seen = vec![self.clone()];
        while let Some(next) = seen.last().map(|last| last.jump(options)).transpose()?.flatten() {
            if seen.contains(&next) {
                let names: Vec<_> = seen.iter().map(|e| e.name.as_str()).collect();
                return Err(SshError::JumpLoop { names: names.join(" → ") });
            }
            if seen.len() > MAX_JUMPS {
                return Err(SshError::TooManyJumps { most: MAX_JUMPS });
            }
            seen.push(next);
        }
        Ok(seen)
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        let HostConfig { host_name, port, .. } = &self.config;
        if host_name.contains(':') {
            format!("[{host_name}]:{port}")
        } else {
            format!("{host_name}:{port}")
        }
    }

    /// The name in the known-hosts file.
    pub(super) fn key_name(&self) -> String {
        known_hosts::entry_name(&self.host_key_name, self.host_key_port)
    }

    /// Patience for TCP and the greeting, as configured.
    pub(super) fn timeouts(&self, options: &ConnectOptions) -> Timeouts {
        let mut timeouts = options.timeouts;
        if let Some(limit) = self.config.connect_timeout {
            timeouts.tcp = limit;
            timeouts.handshake = limit;
        }
        timeouts
    }
}

/// Does what may block on a thread where it holds up nobody.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SshError> + Send + 'static,
) -> Result<T, SshError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(SshError::closed("files of ours could not be read")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_of_the_configuration_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("go");
        let command = format!("until test -e {}; do sleep 0.02; done", file.display());
        let mut options = ConnectOptions::from_env(None);
        options.place.run_match_exec = true;
        let text = format!("Match exec \"{command}\"\n Port 2222\n");
        options.config = ConfigFiles::Text(text.as_str().into());
        let target = Target { name: "box".to_owned(), ..Target::default() };
        // The file is made on the same thread, after the command was begun.
        let finding = Endpoint::find(&target, &options);
        let making = async { std::fs::write(&file, "").unwrap() };
        let (found, ()) = tokio::join!(biased; finding, making);
        assert_eq!(found.unwrap().0.config.port, 2222);
    }

    #[tokio::test]
    async fn what_the_places_on_the_way_ask_for_in_vain_is_told() {
        let text = "Host box\n ProxyJump two\nHost two\n ProxyJump one\n Compression yes\n\
                    Host one\n Compression yes\n";
        let mut options = ConnectOptions::from_env(None);
        options.config = ConfigFiles::Text(text.into());
        let target = Target { name: "box".to_owned(), ..Target::default() };
        let (_, InVain { warnings, .. }) = Endpoint::find(&target, &options).await.unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings.iter().all(|w| w.contains("compression yes")), "{warnings:?}");
    }

    #[test]
    fn no_name_from_elsewhere_gets_to_the_shell_of_a_command() {
        let mut options = ConnectOptions::from_env(None);
        options.config = ConfigFiles::Text("ProxyCommand nc %h %n %r\n".into());
        let target = |name: &str, address: Option<&str>, user: Option<&str>| Target {
            name: name.to_owned(),
            address: address.map(str::to_owned),
            user: user.map(str::to_owned),
            ..Target::default()
        };
        for bad in [
            target("box", Some("a;touch x"), None),
            target("box", Some("$(touch x)"), None),
            target("box", Some("-oProxyCommand=x"), None),
            target("box", Some(""), None),
            target("box", None, Some("u`x`")),
            target("box", None, Some("-l")),
            // As the host of a Git remote.
            target("a|x", None, None),
            target("a\nb", None, Some("git")),
        ] {
            let error = Endpoint::resolve(&bad, &options).err().unwrap();
            assert!(matches!(error, SshError::UnsafeName { .. }), "{bad:?}: {error}");
        }
        for good in [
            target("box", Some("fe80::1%eth0"), Some("DOM\\ann")),
            target("box", Some("10.0.0.1"), Some("ann b")),
        ] {
            Endpoint::resolve(&good, &options).unwrap();
        }
        // And a name that nobody has looked at runs nothing before it is.
        let file = tempfile::tempdir().unwrap();
        let mark = file.path().join("ran");
        options.place.run_match_exec = true;
        let text = format!("Match exec \"touch {} # %n\"\n Port 1\n", mark.display());
        options.config = ConfigFiles::Text(text.as_str().into());
        assert!(Endpoint::resolve(&target("a;b", None, None), &options).is_err());
        assert!(!mark.exists());
    }

    #[test]
    fn known_hosts_of_the_deck_replace_the_users_and_not_the_machines() {
        let mut options = ConnectOptions::from_env(None);
        options.config =
            ConfigFiles::Text("UserKnownHostsFile /u1 /u2\nGlobalKnownHostsFile /g1 /g2\n".into());
        let target = Target {
            name: "box".to_owned(),
            known_hosts: Some("/deck".to_owned()),
            ..Target::default()
        };
        let endpoint = Endpoint::resolve(&target, &options).unwrap();
        assert_eq!(endpoint.known_hosts_files, ["/deck", "/g1", "/g2"].map(PathBuf::from));
        assert_eq!(endpoint.known_hosts_file, Some(PathBuf::from("/deck")));
    }

    #[test]
    fn a_long_way_is_no_circle() {
        let mut options = ConnectOptions::from_env(None);
        let mut way = |places: usize| {
            let hops: Vec<String> =
                (0..places).map(|n| format!("Host h{n}\n ProxyJump h{}\n", n + 1)).collect();
            options.config = ConfigFiles::Text(hops.concat().as_str().into());
            let target = Target { name: "h0".to_owned(), ..Target::default() };
            Endpoint::resolve(&target, &options).unwrap().chain(&options)
        };
        assert_eq!(way(MAX_JUMPS).unwrap().len(), 1 + MAX_JUMPS);
        let error = way(MAX_JUMPS + 1).err().unwrap();
        assert!(matches!(error, SshError::TooManyJumps { .. }), "{error}");
    }

    #[test]
    fn a_name_that_doubles_from_place_to_place_takes_no_memory() {
        let mut options = ConnectOptions::from_env(None);
        options.config = ConfigFiles::Text("ProxyJump %h%n\n".into());
        let target = Target { name: "grow".to_owned(), ..Target::default() };
        let endpoint = Endpoint::resolve(&target, &options).unwrap();
        let error = endpoint.chain(&options).err().unwrap();
        assert_eq!(error.cause(), crate::base::DownCause::Configuration);
        assert!(error.to_string().contains("a name of 2048 bytes: growgrow"), "{error}");
    }

    #[test]
    fn an_address_of_the_deck_replaces_the_host_name_and_not_the_way_there() {
        let text = "Host box\n HostName 10.0.0.1\n ProxyJump bastion\n Port 2222\n";
        let mut options = ConnectOptions::from_env(None);
        options.config = ConfigFiles::Text(text.into());
        let target = Target {
            name: "box".to_owned(),
            address: Some("10.0.0.9".to_owned()),
            ..Target::default()
        };
        let endpoint = Endpoint::resolve(&target, &options).unwrap();
        assert_eq!(endpoint.address(), "10.0.0.9:2222");
        let jump = endpoint.jump(&options).unwrap().unwrap();
        assert_eq!(jump.name, "bastion");
    }
}
