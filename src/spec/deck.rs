//! `deck.toml`: the hosts, the gateways and the settings of one deck.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::{DeckId, HostName, ServiceName};

/// A whole `deck.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeckSpec {
    /// The deck's identity; every rank it starts is labelled with it.
    pub id: DeckId,
    /// What people call it; shown in the title of every screen.
    pub name: String,
    /// The deck runs on simulated hosts, and every screen says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// The hosts, by name.
    #[serde(default)]
    pub hosts: BTreeMap<HostName, HostSpec>,
    /// The gateways, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<ServiceName, GatewaySpec>,
    /// Where the deck's repository is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSpec>,
    /// Where endpoints are published, for whatever balances without a gateway of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<EndpointsSpec>,
}

/// `[git]`: how the deck's repository is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitSpec {
    /// The remote's name; default: that of the branch, or the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Send every release to the remote, and apply nothing when the two have gone different ways.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub push: bool,
}

/// Where endpoints are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointsSpec {
    /// A directory on the controller's machine: `SERVICE.json`, `SERVICE.file_sd.json`, `SERVICE.scrape.json`, and
    /// `SERVICE.zone` if there is a zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// An address for `GET /v1/endpoints/SERVICE`. Nobody is asked who they are: keep it on
    /// loopback or a network of your own. Read when the controller starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The domain of the DNS-SD records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The command that tells whoever balances of changed files (`rndc reload ZONE`), run in `dir` on the controller's
    /// machine; a change counts as followed only after it. Default: they notice by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<String>,
    /// How long whoever balances may take to follow a change. Without a gateway a replica is
    /// drained only after this.
    #[serde(default = "settle", with = "crate::base::time::text")]
    pub settle: std::time::Duration,
}

const fn settle() -> std::time::Duration {
    std::time::Duration::from_secs(5)
}

/// How a host is reached and what is known of it. What is left out comes from `~/.ssh/config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// Over SSH (the default), or the machine gpudeck itself runs on.
    #[serde(default, skip_serializing_if = "Transport::is_ssh")]
    pub transport: Transport,
    /// Address or name to connect to; default: `HostName` of the SSH configuration, else the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Port of the SSH server; default: the SSH configuration, else 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// User to log in as; default: the SSH configuration, else who runs gpudeck.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Private keys to offer, before those of the SSH configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identity_files: Vec<String>,
    /// The known_hosts file to use instead of the user's; new keys are written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<String>,
    /// Address under which other hosts and the gateway reach this host's engines;
    /// default: the one that they listen on, else that of the SSH connection (`127.0.0.1` for `local`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_address: Option<String>,
    /// IP address on which this host's engines listen; default `0.0.0.0`, which is all of the host's. They ask nobody
    /// for a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_listen: Option<core::net::IpAddr>,
    /// First port to give to engines on this host; default 21000. A thousand ports are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_engine_port: Option<u16>,
    /// How the agent gets root on this host; default: it runs as who is logged in.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "become")]
    pub becomes: Option<Become>,
    /// Environment of the agent on this host, for example `GPUDECK_NVML` (path of the NVML library).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agent_env: BTreeMap<String, String>,
    /// Free words about the host (`zone = "a"`), for placement and filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How the agent gets root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Become {
    /// With `sudo -n`, which asks nothing.
    Sudo,
}

/// The way to a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// An SSH connection.
    #[default]
    Ssh,
    /// This very machine: the same agent as a child process, no SSH.
    Local,
}

impl HostSpec {
    /// It is this very machine, reached without SSH.
    pub fn is_local(&self) -> bool {
        self.transport == Transport::Local
    }
}

impl Transport {
    fn is_ssh(&self) -> bool {
        *self == Self::Ssh
    }
}

/// A HAProxy with a run-time socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySpec {
    /// The host it runs on.
    pub host: HostName,
    /// Its run-time socket (`stats socket PATH level admin`), a path on that host.
    pub socket: String,
    /// Where clients reach it, for showing: `http://10.0.0.5:8080`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The same by service, where each has an address of its own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub urls: BTreeMap<ServiceName, String>,
    /// A directory on that host for our parts of its configuration, `SERVICE.cfg`; HAProxy is
    /// started with `-f` of it. Then a reload or restart loses nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// It is known, and accepted, that this HAProxy forgets its servers when it reloads or restarts: a gateway without
    /// `config` is given no release without that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runtime_only: bool,
    /// Write a frontend, too, for these services, at these addresses (`bind`'s words).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub listen: BTreeMap<ServiceName, String>,
    /// The command that checks a configuration, to which `-f FILE` is added; empty: not checked.
    #[serde(default = "check")]
    pub check: Vec<String>,
    /// The command that reloads HAProxy when more than servers changed; default: a person does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<String>,
}

fn check() -> Vec<String> {
    ["haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg"].map(str::to_owned).to_vec()
}

impl GatewaySpec {
    /// A HAProxy whose configuration is somebody else's.
    pub fn new(host: HostName, socket: String) -> Self {
        Self {
            host,
            socket,
            url: None,
            urls: BTreeMap::new(),
            config: None,
            runtime_only: false,
            listen: BTreeMap::new(),
            check: check(),
            reload: Vec::new(),
        }
    }

    /// Where clients reach a service of it.
    pub fn url_of(&self, service: &ServiceName) -> Option<&str> {
        self.urls.get(service).or(self.url.as_ref()).map(String::as_str)
    }
}
