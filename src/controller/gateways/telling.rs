//! Telling gateways their table: the file first, then at run time, and what HAProxy has not read yet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Gateways, lacks_backend};
use crate::api::Severity;
use crate::base::{Hint, HostName, ServiceName, TrafficServer, text};
use crate::controller::actions::{Means, link, right_to_act};
use crate::controller::core::{Core, Input};
use crate::fleet::LinkError;
use crate::gateway::section::canary_backend;
use crate::gateway::{Gateway, GatewayError, HaproxyGateway};
use crate::spec::GatewaySpec;
use crate::wire::{GatewayConfig, RELOAD_FAILED, RELOAD_NEEDED, Reply, Request, Verb};

/// The file of a gateway is looked at again after so long, in case somebody changed it.
const REWRITE: Duration = Duration::from_secs(30);

/// HAProxy is asked to reload at most so often.
const RELOAD: Duration = Duration::from_secs(20);

/// The table is told at run time when the file is written, or after so long.
const FILE_FIRST: Duration = Duration::from_secs(2);

/// Gateways that are not as they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotApplied {
    /// Which of them, and why, for people.
    pub why: String,
    /// Each of them says that it has no such backend: nothing is sent through it.
    pub lacks_backend: bool,
}

impl std::fmt::Display for NotApplied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl NotApplied {
    /// All of them as one; none: all is as it should be.
    pub fn together(all: Vec<Self>) -> Option<Self> {
        let lacks_backend = all.iter().all(|one| one.lacks_backend);
        let why: Vec<String> = all.into_iter().map(|one| one.why).collect();
        (!why.is_empty()).then(|| Self { why: why.join("; "), lacks_backend })
    }
}

/// What was written to each gateway's file last, and when it was reloaded; how the tables differed that were found.
#[derive(Default)]
pub struct Written {
    files: BTreeMap<ServiceName, Kept>,
    found: Vec<String>,
}

impl Written {
    /// How the gateways' tables differed at the last look from what they were told then, in words.
    pub fn take_found(&mut self) -> Vec<String> {
        std::mem::take(&mut self.found)
    }
}

struct Kept {
    text: String,
    at: Instant,
    reloaded: Option<Instant>,
    /// HAProxy has not read it yet: why, as it was told.
    unread: Option<String>,
}

impl Gateways {
    /// Takes everything of the service out; whether nothing is left there. What goes with its section serves on until it
    /// is gone: a process of `HAProxy` that is about to be replaced still leads clients there.
    pub async fn leave(
        &self,
        means: &Means,
        servers: &[TrafficServer],
        written: &mut Written,
    ) -> Result<bool, NotApplied> {
        let servers = if self.until_read { servers } else { &[] };
        self.apply(means, servers, written).await?;
        let counters = self.counters(means).await;
        Ok(counters.is_some_and(|all| all.values().all(BTreeMap::is_empty)))
    }

    /// Makes every gateway's table exactly this. `Err`: which of them is not as it should be, and
    /// why; the others are.
    pub async fn apply(
        &self,
        means: &Means,
        servers: &[TrafficServer],
        written: &mut Written,
    ) -> Result<(), NotApplied> {
        let mut kept: BTreeMap<ServiceName, Option<Kept>> =
            self.places.keys().map(|name| (name.clone(), written.files.remove(name))).collect();
        let one = |(name, gateway): (&ServiceName, &GatewaySpec)| {
            let kept = kept.remove(name).flatten();
            let (name, gateway) = (name.clone(), gateway.clone());
            async move {
                let mut found = Vec::new();
                let (kept, result) =
                    self.apply_to(means, &name, &gateway, servers, kept, &mut found).await;
                (name, kept, found, result)
            }
        };
        let all: Vec<_> = self.places.iter().map(one).collect();
        let mut wrong = Vec::new();
        for unknown in &self.unknown {
            let why = format!(
                "deck.toml has no gateway `{unknown}`: add [gateways.{unknown}] or change the spec"
            );
            wrong.push(NotApplied { why, lacks_backend: false });
        }
        let several = self.places.len() > 1;
        written.found.clear();
        for (name, kept, found, result) in futures::future::join_all(all).await {
            written.found.extend(found.into_iter().map(|what| format!("at {name} {what}")));
            if let Err(NotApplied { why, lacks_backend }) = result {
                let why = if several { format!("{name}: {why}") } else { why };
                wrong.push(NotApplied { why, lacks_backend });
            }
            if let Some(kept) = kept {
                written.files.insert(name, kept);
            }
        }
        NotApplied::together(wrong).map_or(Ok(()), Err)
    }

    async fn apply_to(
        &self,
        means: &Means,
        name: &ServiceName,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
        mut kept: Option<Kept>,
        found: &mut Vec<String>,
    ) -> (Option<Kept>, Result<(), NotApplied>) {
        // The file first: if a reload comes in between, it holds nothing that is not ready.
        // A check that hangs does not keep what is not ready any more in the traffic, though.
        let (filed, mut applied) = {
            let mut filing =
                std::pin::pin!(self.write(means, name, gateway, servers, &mut kept, false));
            match tokio::time::timeout(FILE_FIRST, &mut filing).await {
                Ok(filed) => (filed, self.tell(means, gateway, servers, found).await),
                Err(_) => {
                    let applied = self.tell(means, gateway, servers, found).await;
                    (filing.await, applied)
                }
            }
        };
        if let Err(error) = &applied
            && filed.is_ok()
            && !gateway.reload.is_empty()
            && lacks_backend(error)
        {
            let again = self.write(means, name, gateway, servers, &mut kept, true).await;
            if again.is_ok() {
                applied = self.tell(means, gateway, servers, found).await;
            }
        }
        // What is told at run time counts now; a file that could not be written is still an error.
        let lacks = applied.as_ref().is_err_and(lacks_backend);
        let result = applied.and(filed).map_err(|error| {
            let hint = match &gateway.config {
                Some(directory) if lacks => Some(format!(
                    "its section is written: start HAProxy with `-f {directory}` besides its own \
                     configuration, and reload it"
                )),
                _ => error.hint(),
            };
            let why = match hint {
                Some(hint) => format!("{error} ({hint})"),
                None => error.to_string(),
            };
            NotApplied { why, lacks_backend: lacks }
        });
        (kept, result)
    }

    async fn tell(
        &self,
        means: &Means,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
        found: &mut Vec<String>,
    ) -> Result<(), GatewayError> {
        let link = link(means, &gateway.host)?;
        let epoch = right_to_act(means, &self.service, link.as_ref()).await?;
        let mut told = Ok(());
        for (backend, servers) in self.backends(servers) {
            let (link, socket) = (link.clone(), gateway.socket.clone());
            let haproxy = HaproxyGateway::new(link, socket, backend, means.deck, epoch.clone());
            // What goes wrong with one does not keep the others as they were.
            let (differed, put) = haproxy.put(&servers).await;
            found.extend(differed);
            match put {
                Err(error) if self.leaving && lacks_backend(&error) => {}
                put => told = told.and(put),
            }
        }
        if self.left_canary {
            let (socket, backend) = (gateway.socket.clone(), canary_backend(&self.backend));
            let haproxy = HaproxyGateway::new(link, socket, backend, means.deck, epoch);
            match haproxy.apply(&[]).await {
                // Where its section was ours it is gone with the rule.
                Err(error) if lacks_backend(&error) => {}
                emptied => told = told.and(emptied),
            }
        }
        told
    }

    async fn write(
        &self,
        means: &Means,
        name: &ServiceName,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
        kept: &mut Option<Kept>,
        reload_now: bool,
    ) -> Result<(), GatewayError> {
        let Some(directory) = &gateway.config else { return Ok(()) };
        let text = self.section(name, gateway, servers).await?;
        let recently = |at: Option<Instant>, time| at.is_some_and(|at| at.elapsed() < time);
        let fresh = kept.as_ref().filter(|k| k.text == text).map(|k| k.at);
        let reloaded = kept.as_ref().and_then(|k| k.reloaded);
        let done = if reload_now { recently(reloaded, RELOAD) } else { recently(fresh, REWRITE) };
        if done {
            return Ok(());
        }
        let link = link(means, &gateway.host)?;
        let epoch = right_to_act(means, &self.service, link.as_ref()).await?.get();
        let config = GatewayConfig {
            directory: directory.clone(),
            name: format!("{}.cfg", self.service),
            text: text.clone(),
            check: gateway.check.clone(),
            reload: gateway.reload.clone(),
            reload_now,
        };
        let verb = Verb::GatewayConfig(Box::new(config));
        let refused = |error: LinkError| match error {
            LinkError::Refused { host, refusal } => GatewayError::Gateway {
                host,
                message: text::clean(&refusal.to_string(), 400),
                hint: Some(format!(
                    "the directory {directory} must be there and writable, HAProxy be started with \
                     `-f {directory}`, and `check` be right for it"
                )),
            },
            other => GatewayError::Link(other),
        };
        let act = Request::Act { deck: means.deck, epoch, verb };
        let said = match link.request(act).await.map_err(refused)? {
            Reply::Texts(texts) => texts.into_iter().next().unwrap_or_default(),
            _ => String::new(),
        };
        let now = Instant::now();
        if said != "unchanged" {
            tracing::info!(service = %self.service, host = %gateway.host, "configuration: {said}");
        }
        let reloaded = if said == "reloaded" { Some(now) } else { reloaded };
        let unread = not_read(gateway, &self.service, &said);
        if unread != kept.as_ref().and_then(|k| k.unread.clone()) {
            let (service, host, unread) =
                (self.service.clone(), gateway.host.clone(), unread.clone());
            let tell = move |core: &mut Core| core.gateway_file(service, host, unread);
            let _ = means.inputs.send(Input::Ask(Box::new(tell))).await;
        }
        *kept = Some(Kept { text, at: now, reloaded, unread });
        Ok(())
    }
}

/// Why HAProxy has not read what was written, and what to do; from the agent's answer.
pub(super) fn not_read(gateway: &GatewaySpec, service: &ServiceName, said: &str) -> Option<String> {
    let host = &gateway.host;
    if let Some(how) = said.strip_prefix(RELOAD_FAILED) {
        let how = text::clean(how, 300);
        return Some(format!(
            "HAProxy on {host} was not reloaded, and goes on with its configuration before: {how}; tried again twice a minute"
        ));
    }
    (said == RELOAD_NEEDED).then(|| {
        format!(
            "{service}.cfg has changed: reload HAProxy on {host} by hand, or name the command in deck.toml: reload = [\"systemctl\", \"reload\", \"haproxy\"]"
        )
    })
}

impl Core {
    /// What was heard of the configuration file of a service at one of its gateways.
    fn gateway_file(&mut self, service: ServiceName, host: HostName, unread: Option<String>) {
        if let Some(words) = &unread {
            self.say(Severity::Warning, Some(&service), words);
        }
        let kept = self.gateway_files.entry(service.clone()).or_default();
        match unread {
            Some(words) => kept.insert(host, words),
            None => kept.remove(&host),
        };
        self.publish_service(&service);
    }
}
