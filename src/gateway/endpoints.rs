//! Where a service is served, for whatever balances without our gateway: as JSON, as Prometheus'
//! `file_sd` (and `http_sd`), and as DNS-SD records. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::json;

use crate::base::{ServiceName, Timestamp, TrafficMode, TrafficServer};

/// How long resolvers keep the records, in seconds.
const TTL: u32 = 5;

/// The endpoints of one service, as last decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoints {
    /// The service.
    pub service: ServiceName,
    /// Counts up with each change.
    pub version: u64,
    /// Of this change.
    pub changed: Timestamp,
    /// The servers with their weights. `drain`: finish what you have there, send nothing new.
    pub endpoints: Vec<TrafficServer>,
}

impl Endpoints {
    /// JSON for programs.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// What a reader of Prometheus' `file_sd` or `http_sd` balances over: only what takes new requests, so that one
    /// that heeds no label sends nothing elsewhere. The weight is a `__meta_` label: it changes, and a lasting label
    /// would make new series of it.
    pub fn file_sd(&self) -> String {
        groups(&self.service, self.open())
    }

    /// The same of every server, for whoever reads their metrics.
    pub fn scrape(&self) -> String {
        groups(&self.service, self.endpoints.iter())
    }

    /// Those that take new requests.
    fn open(&self) -> impl Iterator<Item = &TrafficServer> {
        self.endpoints.iter().filter(|s| s.mode == TrafficMode::Ready && s.weight > 0)
    }

    /// DNS-SD (RFC 6763) records to be included in the zone `zone`: browse `_http._tcp`, or ask for
    /// the SRV records of `_SERVICE._tcp` directly. SRV weights are ours; what takes nothing new is
    /// left out.
    pub fn zone(&self, zone: &str) -> String {
        let Self { service, version, .. } = self;
        let zone = zone.trim_end_matches('.');
        let mut out = format!(
            "; Written by gpudeck: service {service}, version {version}.\n\
             $ORIGIN {zone}.\n$TTL {TTL}\n"
        );
        for server in self.open() {
            let name = format!("{}.{service}", server.replica);
            let target = match server.address.parse() {
                Ok(IpAddr::V4(v4)) => {
                    let _ = writeln!(out, "{name} IN A {v4}");
                    format!("{name}.{zone}.")
                }
                Ok(IpAddr::V6(v6)) => {
                    let _ = writeln!(out, "{name} IN AAAA {v6}");
                    format!("{name}.{zone}.")
                }
                Err(_) => {
                    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                    if !server.address.chars().all(plain) {
                        continue;
                    }
                    format!("{}.", server.address.trim_end_matches('.'))
                }
            };
            let instance = format!("{service}-{}._http._tcp", server.replica);
            let srv = format!("IN SRV 0 {} {} {target}", server.weight, server.port);
            let _ = writeln!(out, "_http._tcp IN PTR {instance}");
            let _ = writeln!(out, "{instance} {srv}");
            let _ = writeln!(
                out,
                "{instance} IN TXT \"service={service}\" \"release={}\" \"path=/v1\"",
                server.release()
            );
            let _ = writeln!(out, "_{service}._tcp {srv}");
        }
        out
    }
}

fn groups<'a>(service: &ServiceName, servers: impl Iterator<Item = &'a TrafficServer>) -> String {
    let groups: Vec<serde_json::Value> = servers
        .map(|server| {
            json!({
                "targets": [authority(server)],
                "labels": {
                    "service": service,
                    "release": server.release().to_string(),
                    "replica": server.replica.to_string(),
                    "__meta_gpudeck_weight": server.weight.to_string(),
                    "__meta_gpudeck_mode": match server.mode {
                        TrafficMode::Ready => "ready",
                        TrafficMode::Drain => "drain",
                    },
                },
            })
        })
        .collect();
    serde_json::to_string_pretty(&groups).unwrap_or_default() + "\n"
}

fn authority(server: &TrafficServer) -> String {
    if server.address.contains(':') {
        format!("[{}]:{}", server.address, server.port)
    } else {
        format!("{}:{}", server.address, server.port)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn endpoints() -> Endpoints {
        let server = |replica: &str, address: &str, weight, mode| TrafficServer {
            replica: replica.parse().unwrap(),
            address: address.to_owned(),
            port: 21000,
            weight,
            mode,
            by_rule: false,
            taken_over_by: None,
        };
        Endpoints {
            service: "chat".parse().unwrap(),
            version: 7,
            changed: Timestamp(0),
            endpoints: vec![
                server("r1-0-a1", "10.0.0.1", 90, TrafficMode::Ready),
                server("r2-0-a1", "gpu2.lan", 10, TrafficMode::Ready),
                server("r1-1-a1", "fd00::1", 0, TrafficMode::Drain),
            ],
        }
    }

    #[test]
    fn who_balances_gets_what_is_open_and_who_scrapes_gets_all() {
        let read = |text: String| -> serde_json::Value { serde_json::from_str(&text).unwrap() };
        let mut endpoints = endpoints();
        endpoints.endpoints[1].weight = 0;
        let open = read(endpoints.file_sd());
        assert_eq!(open.as_array().unwrap().len(), 1, "neither weight 0 nor what drains");
        assert_eq!(open[0]["targets"][0], "10.0.0.1:21000");
        let groups = read(endpoints.scrape());
        assert_eq!(groups.as_array().unwrap().len(), 3);
        assert_eq!(groups[2]["targets"][0], "[fd00::1]:21000");
        assert_eq!(groups[2]["labels"]["__meta_gpudeck_mode"], "drain");
        assert_eq!(groups[0]["labels"]["__meta_gpudeck_weight"], "90");
        assert_eq!(groups[0]["labels"]["release"], "r1");
        // What r3 took over is r3's, whatever it was started as.
        endpoints.endpoints[0].taken_over_by = Some(crate::base::ReleaseNumber(3));
        let groups = read(endpoints.scrape());
        assert_eq!(groups[0]["labels"]["release"], "r3");
        assert_eq!(groups[0]["labels"]["replica"], "r1-0-a1");
        assert!(endpoints.zone("llm.lan.").contains("\"release=r3\""));
    }

    #[test]
    fn dns_has_weights_and_nothing_that_drains() {
        assert_eq!(
            endpoints().zone("llm.lan."),
            "; Written by gpudeck: service chat, version 7.\n$ORIGIN llm.lan.\n$TTL 5\n\
             r1-0-a1.chat IN A 10.0.0.1\n\
             _http._tcp IN PTR chat-r1-0-a1._http._tcp\n\
             chat-r1-0-a1._http._tcp IN SRV 0 90 21000 r1-0-a1.chat.llm.lan.\n\
             chat-r1-0-a1._http._tcp IN TXT \"service=chat\" \"release=r1\" \"path=/v1\"\n\
             _chat._tcp IN SRV 0 90 21000 r1-0-a1.chat.llm.lan.\n\
             _http._tcp IN PTR chat-r2-0-a1._http._tcp\n\
             chat-r2-0-a1._http._tcp IN SRV 0 10 21000 gpu2.lan.\n\
             chat-r2-0-a1._http._tcp IN TXT \"service=chat\" \"release=r2\" \"path=/v1\"\n\
             _chat._tcp IN SRV 0 10 21000 gpu2.lan.\n"
        );
    }

    #[test]
    fn json_says_all() {
        let told: serde_json::Value = serde_json::from_str(&endpoints().json()).unwrap();
        assert_eq!((&told["service"], &told["version"]), (&json!("chat"), &json!(7)));
        assert_eq!(told["endpoints"][2]["mode"], "drain");
    }
}
