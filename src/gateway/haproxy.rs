//! HAProxy (checked with 2.6) through its run-time socket, which the agent of its host talks to.
//!
//! Run-time changes are lost when HAProxy is restarted or reloaded: [`Gateway::apply`] always
//! looks first and puts back whatever is missing. Servers whose name is not a replica's are
//! somebody else's and are never touched.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::haproxy_plan::{self, Wanted};
use super::haproxy_text::{self, ServerState};
use super::{BackendSeen, Gateway, GatewayError, ServerCounters};
use crate::base::{DeckId, EpochCell, HostName, ReplicaId, TrafficServer, text};
use crate::fleet::{HostLink, LinkError};
use crate::wire::{Refusal, Reply, Request, Verb};

/// How often, and how far apart, a removal is tried while HAProxy still closes idle connections.
const REMOVAL_TRIES: u32 = 5;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// Commands in one act: the agent takes a thousand.
const COMMANDS_AT_ONCE: usize = 500;

/// One backend of one HAProxy.
pub struct HaproxyGateway {
    link: Arc<dyn HostLink>,
    socket: String,
    backend: String,
    deck: DeckId,
    epoch: EpochCell,
}

impl HaproxyGateway {
    /// The backend `backend` of the HAProxy whose run-time socket is `socket` on the link's host.
    ///
    /// `epoch` is read anew for every change, so whoever renews the claim on the host just stores
    /// the new number ([`Epoch`]'s) there.
    pub fn new(
        link: Arc<dyn HostLink>,
        socket: impl Into<String>,
        backend: String,
        deck: DeckId,
        epoch: EpochCell,
    ) -> Self {
        Self { link, socket: socket.into(), backend, deck, epoch }
    }

    async fn show(&self, command: String) -> Result<String, GatewayError> {
        self.check_backend()?;
        let request = Request::GatewayShow { socket: self.socket.clone(), command };
        match self.link.request(request).await.map_err(|e| self.explain_link(e))? {
            Reply::Texts(texts) => Ok(texts.into_iter().next().unwrap_or_default()),
            _ => Err(self.unexpected()),
        }
    }

    /// Carries the commands out; their outputs, one each.
    async fn act(&self, commands: &[String]) -> Result<Vec<String>, GatewayError> {
        let mut outputs = Vec::with_capacity(commands.len());
        for some in commands.chunks(COMMANDS_AT_ONCE) {
            outputs.extend(self.act_at_once(some).await?);
        }
        Ok(outputs)
    }

    async fn act_at_once(&self, commands: &[String]) -> Result<Vec<String>, GatewayError> {
        let request = Request::Act {
            deck: self.deck,
            epoch: self.epoch.get(),
            verb: Verb::Gateway { socket: self.socket.clone(), commands: commands.to_vec() },
        };
        match self.link.request(request).await.map_err(|e| self.explain_link(e))? {
            Reply::Texts(texts) if texts.len() == commands.len() => Ok(texts),
            _ => Err(self.unexpected()),
        }
    }

    /// [`Gateway::apply`], and how the servers that were there already differed from the table, in words.
    pub async fn put(&self, servers: &[TrafficServer]) -> (Vec<String>, Result<(), GatewayError>) {
        let mut found = Vec::new();
        let result = self.bring(servers, &mut found).await;
        (found, result)
    }

    async fn bring(
        &self,
        servers: &[TrafficServer],
        found: &mut Vec<String>,
    ) -> Result<(), GatewayError> {
        let have = self.servers().await?;
        let mut want = BTreeMap::new();
        let mut unresolved = Ok(());
        for server in servers {
            match self.resolve(server).await {
                Ok(wanted) => {
                    want.insert(server.replica, wanted);
                }
                // What is there already keeps its address; the rest of the table counts all the same.
                Err(error) => {
                    if let Some(wanted) = have.get(&server.replica).and_then(|s| kept(s, server)) {
                        want.insert(server.replica, wanted);
                    }
                    unresolved = unresolved.and(Err(error));
                }
            }
        }
        found.extend(haproxy_plan::changes(&have, &want));
        let commands = haproxy_plan::commands(&self.backend, &have, &want);
        if !commands.is_empty() {
            let outputs = self.act(&commands).await?;
            for (command, output) in commands.iter().zip(&outputs) {
                if !is_success(output) {
                    return Err(self.refused(&format!("{} (to `{command}`)", output.trim())));
                }
            }
        }
        let unwanted: Vec<ReplicaId> =
            have.keys().filter(|replica| !want.contains_key(replica)).copied().collect();
        if !unwanted.is_empty() {
            self.remove_idle(&unwanted).await?;
        }
        unresolved
    }

    async fn servers(&self) -> Result<BTreeMap<ReplicaId, ServerState>, GatewayError> {
        let answer = self.show(format!("show servers state {}", self.backend)).await?;
        haproxy_text::servers_state(&answer).map_err(|message| self.refused(&message))
    }

    /// Removes those of `unwanted` that are idle. What is busy stays for the next time.
    async fn remove_idle(&self, unwanted: &[ReplicaId]) -> Result<(), GatewayError> {
        let counters = self.counters().await?;
        let mut left: Vec<ReplicaId> = unwanted
            .iter()
            .filter(|replica| counters.get(replica).is_none_or(|seen| seen.in_flight == 0))
            .copied()
            .collect();
        for attempt in 0..REMOVAL_TRIES {
            if left.is_empty() {
                break;
            }
            if attempt > 0 {
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            let commands: Vec<String> =
                left.iter().flat_map(|r| haproxy_plan::removal(&self.backend, *r)).collect();
            let outputs = self.act(&commands).await?;
            let mut still_there = Vec::new();
            for (replica, pair) in left.iter().zip(outputs.chunks(2)) {
                match pair.last().map_or("", |text| text.trim()) {
                    said if said.contains("still has connections") => still_there.push(*replica),
                    said if said.contains("deleted") || said.contains("No such server") => {}
                    said => return Err(self.refused(said)),
                }
            }
            left = still_there;
        }
        Ok(())
    }

    async fn resolve(&self, server: &TrafficServer) -> Result<Wanted, GatewayError> {
        let address = resolve(self.link.host(), server).await?;
        let weight = server.weight.min(256);
        Ok(Wanted { address, port: server.port, weight, mode: server.mode })
    }

    /// The backend's name becomes a word of a command line of HAProxy's.
    fn check_backend(&self) -> Result<(), GatewayError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if !self.backend.is_empty() && self.backend.chars().all(good) {
            return Ok(());
        }
        Err(GatewayError::Gateway {
            host: self.link.host().clone(),
            message: format!("`{}` cannot be a backend's name", text::clean(&self.backend, 100)),
            hint: Some("use letters, digits and `- _ . :` for `backend` in the spec".to_owned()),
        })
    }

    /// HAProxy's words, with what to do about them.
    fn refused(&self, said: &str) -> GatewayError {
        let backend = &self.backend;
        let hint = if lacks_backend(said) {
            Some(format!(
                "add to haproxy.cfg and reload HAProxy: `backend {backend}` with the line `balance roundrobin`, and a frontend with `default_backend {backend}`"
            ))
        } else if said.contains("Permission denied") {
            Some(format!(
                "give the socket its full rights in haproxy.cfg: `stats socket {} level admin`",
                self.socket
            ))
        } else if said.contains("dynamic load balancing") {
            Some(format!("write `balance roundrobin` in the section `backend {backend}`"))
        } else if said.contains("Unknown command") {
            Some("use HAProxy 2.6 or newer: older ones cannot add servers at run time".to_owned())
        } else {
            None
        };
        GatewayError::Gateway {
            host: self.link.host().clone(),
            message: format!("backend {backend}: {}", text::clean(said.trim(), 300)),
            hint,
        }
    }

    /// A socket that is not there is the gateway's trouble, not the link's.
    fn explain_link(&self, error: LinkError) -> GatewayError {
        let message = match &error {
            LinkError::Refused { refusal: Refusal::NoFile { path }, .. }
                if *path == self.socket =>
            {
                format!("HAProxy's run-time socket {} is not there", self.socket)
            }
            LinkError::Refused { refusal: Refusal::Failed { message }, .. } => {
                text::clean(message, 300)
            }
            _ => return GatewayError::Link(error),
        };
        GatewayError::Gateway {
            host: self.link.host().clone(),
            message,
            hint: Some(format!(
                "start HAProxy, with `stats socket {} mode 660 level admin` under `global` in haproxy.cfg, or correct `socket` of the gateway in deck.toml",
                self.socket
            )),
        }
    }

    fn unexpected(&self) -> GatewayError {
        GatewayError::Link(LinkError::Unexpected {
            host: self.link.host().clone(),
            what: "not the outputs of the gateway's commands".to_owned(),
        })
    }
}

/// Whether these words of `HAProxy`'s mean that it does not know the backend.
pub fn lacks_backend(said: &str) -> bool {
    ["find backend", "No such backend", "No such proxy"].iter().any(|words| said.contains(words))
}

/// Whether a backend that balances so sends requests to its servers in the proportion of their weights. `leastconn` goes
/// by connections (few at a time: one after the other), `first` fills one server after the other, and the rest choose by
/// something of the request or its client. `static-rr` has weights, and lets none be changed at run time nor a server be
/// added. 2.6 has no word for `random`.
pub fn follows_weights(balance: &str) -> bool {
    matches!(balance, "roundrobin" | "random" | "unknown")
}

/// The server's address: `HAProxy` on `host` does not resolve the name of a server that is added at
/// run time, and does not start with one that cannot be resolved.
pub async fn resolve(host: &HostName, server: &TrafficServer) -> Result<IpAddr, GatewayError> {
    if let Ok(address) = server.address.parse() {
        return Ok(address);
    }
    tokio::net::lookup_host((server.address.as_str(), server.port))
        .await
        .ok()
        .and_then(|found| found.map(|a| a.ip()).min())
        .ok_or_else(|| GatewayError::Gateway {
            host: host.clone(),
            message: format!(
                "the address `{}` of {} cannot be resolved",
                text::clean(&server.address, 100),
                server.replica
            ),
            hint: Some("set `engine_address` of its host in deck.toml to an IP address".to_owned()),
        })
}

#[async_trait]
impl Gateway for HaproxyGateway {
    async fn apply(&self, servers: &[TrafficServer]) -> Result<(), GatewayError> {
        self.put(servers).await.1
    }

    async fn backend(&self) -> Result<BackendSeen, GatewayError> {
        let answer = self.show("show stat -1 6 -1".to_owned()).await?;
        haproxy_text::backend(&answer, &self.backend).map_err(|message| self.refused(&message))
    }

    async fn counters(&self) -> Result<BTreeMap<ReplicaId, ServerCounters>, GatewayError> {
        // Of all proxies: asked by name it takes a frontend of that name first. 6: backends and
        // servers.
        let answer = self.show("show stat -1 6 -1".to_owned()).await?;
        haproxy_text::counters(&answer, &self.backend).map_err(|message| self.refused(&message))
    }
}

/// The server as it is to be, at the address that HAProxy has.
fn kept(state: &ServerState, server: &TrafficServer) -> Option<Wanted> {
    let address = state.address.parse().ok()?;
    let weight = server.weight.min(256);
    Some(Wanted { address, port: state.port, weight, mode: server.mode })
}

/// HAProxy says nothing when all is well, except when it adds a server or changes an address.
fn is_success(output: &str) -> bool {
    let output = output.trim();
    output.is_empty()
        || output.ends_with("New server registered.")
        || output.ends_with("by 'stats socket command'")
        // Somebody else added it since we looked; the next round mends what differs.
        || output.starts_with("Already exists a server with the same name")
}
