//! The part of HAProxy's configuration that gpudeck writes for one service, as text. Pure.
//!
//! What is changed at run time is lost when HAProxy reloads; what stands here is not. So the file
//! always holds the traffic table of now, and a reload changes nothing. (HAProxy's own server-state
//! file would not do: it keeps the state of configured servers only, not servers added at run time.)

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use crate::base::{ReplicaId, ServiceName, TrafficMode, TrafficServer};
use crate::spec::CanaryRule;

/// What a section is made from.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    /// The deck's name, for the comment.
    pub deck: &'a str,
    /// The service.
    pub service: &'a ServiceName,
    /// Its backend.
    pub backend: &'a str,
    /// Where clients reach it: a frontend is written, too (`:8080`).
    pub listen: Option<&'a str>,
    /// Who is sent to the canary whatever the weights.
    pub canary: Option<&'a CanaryRule>,
    /// Longest silence within an answer: token streams pause.
    pub stream_timeout: Duration,
    /// Backends by which other releases of the service are reached, while those live.
    pub also: &'a [OtherBackend],
}

/// A further backend with the same servers: clients may still come through it, or do already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherBackend {
    /// Its name.
    pub backend: String,
    /// The backend of its canary is there, too.
    pub canary: bool,
    /// As [`Section::stream_timeout`].
    pub stream_timeout: Duration,
}

/// A server as it is written, its address resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionServer {
    /// Its name.
    pub replica: ReplicaId,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its weight.
    pub weight: u16,
}

/// The backend of those that a [`CanaryRule`] sends to the canary.
pub fn canary_backend(backend: &str) -> String {
    format!("{backend}-canary")
}

/// The servers of the canary's own backend, also while the canary's weight is 0. Each the same weight.
pub fn canary_servers(servers: &[TrafficServer]) -> Vec<TrafficServer> {
    servers
        .iter()
        .filter(|s| s.by_rule && s.mode == TrafficMode::Ready)
        .map(|s| TrafficServer { weight: 100, ..s.clone() })
        .collect()
}

impl Section<'_> {
    /// The text. `servers` and `canary` are those that take requests: what drains finishes in the
    /// HAProxy process that began it, and a new one must not know it.
    pub fn text(&self, servers: &[SectionServer], canary: &[SectionServer]) -> String {
        let Self { deck, service, backend, .. } = self;
        let mut out = format!(
            "# Written by gpudeck (deck {}, service {service}). Changes here are overwritten.\n",
            crate::base::text::clean(deck, 60)
        );
        let timeout = self.stream_timeout.as_secs().max(1);
        if let Some(listen) = self.listen {
            let _ = write!(
                out,
                "frontend {backend}\n  mode http\n  bind {}\n  timeout client {timeout}s\n",
                crate::base::text::clean(listen, 200)
            );
            if let Some(rule) = self.canary_rule() {
                let _ = writeln!(out, "  {rule}");
            }
            let _ = writeln!(out, "  default_backend {backend}");
        } else if let Some(rule) = self.canary_rule() {
            let _ = writeln!(out, "# In your frontend, before default_backend: {rule}");
        }
        backend_text(&mut out, backend, timeout, servers);
        if self.canary.is_some() {
            backend_text(&mut out, &canary_backend(backend), timeout, canary);
        }
        for other in self.also {
            let timeout = other.stream_timeout.as_secs().max(1);
            backend_text(&mut out, &other.backend, timeout, servers);
            if other.canary {
                backend_text(&mut out, &canary_backend(&other.backend), timeout, canary);
            }
        }
        out
    }

    /// The line that sends some clients to the canary, if there is one; to all replicas otherwise.
    fn canary_rule(&self) -> Option<String> {
        let fetch = match self.canary? {
            CanaryRule::Header { name, value } => format!("req.hdr({name}) -m str {value}"),
            CanaryRule::Cookie { name, value } => format!("req.cook({name}) -m str {value}"),
        };
        let backend = canary_backend(self.backend);
        Some(format!("use_backend {backend} if {{ {fetch} }} {{ nbsrv({backend}) gt 0 }}"))
    }
}

fn backend_text(out: &mut String, name: &str, timeout: u64, servers: &[SectionServer]) {
    // roundrobin: leastconn ignores weights when requests come one after the other.
    let _ = write!(
        out,
        "backend {name}\n  mode http\n  balance roundrobin\n  option redispatch\n  \
         timeout connect 5s\n  timeout server {timeout}s\n"
    );
    for server in servers {
        let address = match server.address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let _ = writeln!(
            out,
            "  server {} {address}:{} weight {}",
            server.replica,
            server.port,
            server.weight.min(256)
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn server(replica: &str, weight: u16, mode: TrafficMode) -> TrafficServer {
        let replica = replica.parse().unwrap();
        TrafficServer {
            replica,
            address: "10.0.0.1".into(),
            port: 8000,
            weight,
            mode,
            by_rule: false,
            taken_over_by: None,
        }
    }

    #[test]
    fn the_canarys_backend_has_what_the_table_says_whatever_its_weight() {
        let by_rule =
            |weight, mode| TrafficServer { by_rule: true, ..server("r2-0-a1", weight, mode) };
        for weight in [0, 10] {
            let table = [
                server("r1-0-a1", 90, TrafficMode::Ready),
                by_rule(weight, TrafficMode::Ready),
                by_rule(0, TrafficMode::Drain),
            ];
            let canary = canary_servers(&table);
            assert_eq!(canary.len(), 1);
            let (name, weight) = (canary[0].replica.to_string(), canary[0].weight);
            assert_eq!((name.as_str(), weight), ("r2-0-a1", 100));
        }
        // On the way back nobody is sent there any more, though it may carry a share by weight.
        assert!(canary_servers(&[server("r2-0-a1", 10, TrafficMode::Ready)]).is_empty());
    }

    #[test]
    fn writes_frontend_and_backends() {
        let service: ServiceName = "chat".parse().unwrap();
        let rule = CanaryRule::Header { name: "x-canary".into(), value: "1".into() };
        let mut section = Section {
            deck: "prod",
            service: &service,
            backend: "chat",
            listen: Some(":8080"),
            canary: Some(&rule),
            stream_timeout: Duration::from_secs(600),
            also: &[],
        };
        let server = |replica: &str, address: &str, weight| SectionServer {
            replica: replica.parse().unwrap(),
            address: address.parse().unwrap(),
            port: 21000,
            weight,
        };
        let servers = [server("r1-0-a1", "10.0.0.1", 90), server("r2-0-a1", "fd00::2", 10)];
        let text = section.text(&servers, &servers[1..]);
        assert_eq!(
            text,
            "# Written by gpudeck (deck prod, service chat). Changes here are overwritten.\n\
             frontend chat\n  mode http\n  bind :8080\n  timeout client 600s\n  \
             use_backend chat-canary if { req.hdr(x-canary) -m str 1 } { nbsrv(chat-canary) gt 0 }\n  \
             default_backend chat\n\
             backend chat\n  mode http\n  balance roundrobin\n  option redispatch\n  \
             timeout connect 5s\n  timeout server 600s\n  \
             server r1-0-a1 10.0.0.1:21000 weight 90\n  \
             server r2-0-a1 [fd00::2]:21000 weight 10\n\
             backend chat-canary\n  mode http\n  balance roundrobin\n  option redispatch\n  \
             timeout connect 5s\n  timeout server 600s\n  \
             server r2-0-a1 [fd00::2]:21000 weight 10\n"
        );
        // While another release lives that is reached otherwise, its backends have the same servers.
        let other = |canary| OtherBackend {
            backend: "llm".to_owned(),
            canary,
            stream_timeout: Duration::from_secs(900),
        };
        let (with, without) = ([other(true)], [other(false)]);
        section.also = &with;
        let both = section.text(&servers, &servers[1..]);
        let as_other = |text: &str| {
            let backends = text.split_once("\nbackend chat\n").unwrap().1;
            let named = format!("backend chat\n{backends}").replace("chat", "llm");
            named.replace("timeout server 600s", "timeout server 900s")
        };
        assert_eq!(both, format!("{text}{}", as_other(&text)));
        section.also = &without;
        assert!(!section.text(&servers, &servers[1..]).contains("llm-canary"));
        section.also = &[];
        section.listen = None;
        section.canary = None;
        assert!(
            section.text(&[], &[]).starts_with("# Written by gpudeck (deck prod, service chat).")
        );
        assert!(!section.text(&[], &[]).contains("frontend"));
    }
}
