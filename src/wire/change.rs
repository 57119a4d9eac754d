//! What differs between two samples, so that a sample costs what has changed and not what there is.
//!
//! A change is JSON. Of two objects it holds the members that differ (`null`: the member is gone);
//! of two lists of one length it is an object from index to change; anything else is replaced whole.
//! It is unambiguous because samples hold no `null` and never turn a list into an object.
//!
//! It is written from two samples and read onto a third without a tree of JSON values in between,
//! which would be many times as large as the samples; `parts` says of what they are made.

mod parts;
#[cfg(test)]
mod plain;

use std::sync::Arc;

use serde::de::{DeserializeSeed as _, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use self::parts::Part;
use super::HostSample;

/// A change that does not fit what it is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the change does not fit the sample before it")]
pub struct Misfit;

/// A change from one sample to the next.
#[derive(Clone, Debug)]
pub enum SampleChange {
    /// Where both are at hand: from the first to the second, which differs.
    Between(Arc<HostSample>, Arc<HostSample>),
    /// As it was read.
    Read(Box<RawValue>),
}

impl SampleChange {
    /// Makes the sample before into the one after.
    ///
    /// # Errors
    /// The change does not fit the sample, which is neither the one nor the other now and must be
    /// forgotten.
    pub fn apply(self, to: &mut Arc<HostSample>) -> Result<(), Misfit> {
        match self {
            Self::Between(_, after) => *to = after,
            Self::Read(change) => {
                let mut change = serde_json::Deserializer::from_str(change.get());
                Arc::make_mut(to).read(&mut change).map_err(|_| Misfit)?;
            }
        }
        Ok(())
    }
}

impl PartialEq for SampleChange {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Between(a, b), Self::Between(c, d)) => a == c && b == d,
            (Self::Read(a), Self::Read(b)) => a.get() == b.get(),
            _ => false,
        }
    }
}

/// Reads a line [`super::FromAgent::Change`] straight onto the sample before it.
///
/// # Errors
/// It is another line, or does not fit the sample, which must be forgotten.
pub fn apply_line(line: &[u8], to: &mut Arc<HostSample>) -> Result<(), Misfit> {
    let mut line = serde_json::Deserializer::from_slice(line);
    parts::ChangeLine(to).deserialize(&mut line).map_err(|_| Misfit)?;
    line.end().map_err(|_| Misfit)
}

impl Serialize for SampleChange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Between(before, after) => before.write(after, to),
            Self::Read(change) => change.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for SampleChange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let change = Box::<RawValue>::deserialize(from)?;
        if change.get().starts_with('{') {
            Ok(Self::Read(change))
        } else {
            Err(D::Error::custom("a sample's change is an object"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::value::to_raw_value;
    use serde_json::{Value, json};

    use super::*;

    /// Everything that a sample can say, for its members to be taken away and changed one by one.
    fn whole() -> Value {
        serde_json::from_str(
            r#"{
              "monotonic_ms": 17, "gpu_trouble": "x", "gpus_age_ms": 3, "cpu_percent": 12.3, "load_1m": 0.1,
              "memory": { "used": 5, "total": 80 }, "disk": { "used": 6, "total": 80 },
              "net_rx_bytes_per_s": 5, "net_tx_bytes_per_s": 6, "uptime_s": 7,
              "gpus": { "some": [
                { "index": 1, "uuid": "GPU-1", "name": "H100", "health": "ok",
                  "utilisation_percent": 0 },
                { "index": 0, "uuid": "GPU-0", "name": "H100", "vendor": "amd",
                  "health": { "degraded": { "why": "hot" } }, "pci_bus_id": "0:1",
                  "memory": { "used": 5, "total": 80 }, "bar1": { "used": 5, "total": 80 },
                  "utilisation_percent": 1, "memory_utilisation_percent": 2, "encoder_percent": 3,
                  "decoder_percent": 4, "temperature_c": 5, "slowdown_temperature_c": 6,
                  "shutdown_temperature_c": 7, "thermal_margin_c": -2, "power_mw": 8, "power_limit_mw": 9,
                  "fan_percent": 10, "sm_clock_mhz": 11, "max_sm_clock_mhz": 12,
                  "memory_clock_mhz": 13, "max_memory_clock_mhz": 14, "pstate": "P0",
                  "throttle_reasons": ["a", "b"],
                  "pcie": { "generation": 4, "max_generation": 5, "width": 8, "max_width": 16,
                            "rx_bytes_per_s": 7, "tx_bytes_per_s": 8, "bytes_per_s": 9 },
                  "nvlink": { "links": 18, "active": 17, "rx_bytes_per_s": 7, "tx_bytes_per_s": 8 },
                  "fabric": "completed", "ecc_enabled": true, "ecc_uncorrected": 1, "ecc_corrected": 2,
                  "ecc_uncorrected_aggregate": 3, "ecc_corrected_aggregate": 4,
                  "retired_pages": 5, "retired_pages_pending": true, "remapped_rows": 6,
                  "row_remap_pending": false, "row_remap_failed": false,
                  "xid": { "code": 79, "monotonic_ms": 5, "count": 1 },
                  "grave_xid": { "code": 48, "monotonic_ms": 4, "count": 1 }, "partition": "CPX",
                  "compute_mode": "default", "persistence": true, "mig": true,
                  "mig_instances": [
                    { "uuid": "MIG-1", "name": "3g", "memory": { "used": 5, "total": 80 } }],
                  "nvlink_peers": ["GPU-1"], "paths": [{ "to": "GPU-1", "over": "pix" }],
                  "numa_node": 1,
                  "processes": [
                    { "pid": 7, "name": "python3", "command": "python3 x", "user": "u",
                      "container": "c", "unit": "x.service", "kind": "compute", "memory": 4,
                      "sm_percent": 5, "encoder_percent": 6, "decoder_percent": 7,
                      "cpu_percent": 8.25, "host_memory": 9, "running_s": 10 }] }] }
            }"#,
        )
        .unwrap()
    }

    /// All values that differ from this one in one place, whether they make sense or not.
    fn one_place_otherwise(value: &Value) -> Vec<Value> {
        let here = match value {
            Value::Number(n) => {
                vec![json!(n.as_f64().unwrap() + 0.5), json!(n.as_u64().map(|n| n + 1))]
            }
            Value::Bool(b) => vec![json!(!b)],
            Value::String(s) => {
                ["ok", "lost", "sys", "both", &format!("{s}x")].map(Value::from).into()
            }
            _ => Vec::new(),
        };
        let mut all: Vec<Value> = here.into_iter().filter(|v| !v.is_null()).collect();
        match value {
            Value::Object(members) => {
                for (name, inner) in members {
                    let mut without = members.clone();
                    without.remove(name);
                    all.push(without.into());
                    for other in one_place_otherwise(inner) {
                        let mut members = members.clone();
                        members.insert(name.clone(), other);
                        all.push(members.into());
                    }
                }
            }
            Value::Array(list) => {
                all.push(json!([]));
                all.push(list.iter().chain(list.first()).cloned().collect());
                for (index, inner) in list.iter().enumerate() {
                    for other in one_place_otherwise(inner) {
                        let mut list = list.clone();
                        *list.get_mut(index).unwrap() = other;
                        all.push(list.into());
                    }
                }
            }
            _ => {}
        }
        all
    }

    fn samples() -> Vec<Arc<HostSample>> {
        let mut values = one_place_otherwise(&whole());
        values.push(whole());
        for gpus in [
            json!({ "hung": { "for_ms": 5 } }),
            json!({ "hung": { "for_ms": 6 } }),
            json!({ "none": { "why": "a" } }),
            json!({ "none": { "why": "b" } }),
            json!({ "some": [] }),
        ] {
            values.push(json!({ "monotonic_ms": 18, "gpus": gpus }));
        }
        let mut samples: Vec<Arc<HostSample>> = Vec::new();
        for sample in values.into_iter().filter_map(|v| serde_json::from_value(v).ok()) {
            if samples.iter().all(|s| **s != sample) {
                samples.push(Arc::new(sample));
            }
        }
        samples
    }

    fn plain(sample: &HostSample) -> Value {
        serde_json::from_str(&serde_json::to_string(sample).unwrap()).unwrap()
    }

    #[test]
    fn every_member_is_told_as_the_definition_says_and_leads_to_the_sample_after() {
        assert_eq!(plain(&serde_json::from_value(whole()).unwrap()), whole(), "not all is known");
        let samples = samples();
        assert!(samples.len() > 140, "{}", samples.len());
        let plains: Vec<Value> = samples.iter().map(|s| plain(s)).collect();
        for (before, plain_before) in samples.iter().zip(&plains) {
            for (after, plain_after) in samples.iter().zip(&plains) {
                let Some(expected) = plain::between(plain_before, plain_after) else { continue };
                let change = SampleChange::Between(Arc::clone(before), Arc::clone(after));
                let text = serde_json::to_string(&change).unwrap();
                assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
                let change: SampleChange = serde_json::from_str(&text).unwrap();
                let mut now = Arc::clone(before);
                assert_eq!(change.apply(&mut now), Ok(()), "{text}");
                assert_eq!(now, *after, "{text}");
                let since_ms = before.monotonic_ms;
                let line = format!(r#"{{"change":{{"since_ms":{since_ms},"change":{text}}}}}"#);
                let mut now = Arc::clone(before);
                assert_eq!(apply_line(line.as_bytes(), &mut now), Ok(()), "{line}");
                assert_eq!(now, *after, "{line}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_noticed() {
        let sample: HostSample = serde_json::from_value(whole()).unwrap();
        for hostile in [
            json!({ "gpus": null }),
            json!({ "gpus": { "some": null } }),
            json!({ "gpus": { "hung": { "for_ms": 1 } } }),
            json!({ "gpus": { "some": null, "hung": { "for_ms": 1 }, "none": { "why": "" } } }),
            json!({ "gpus": { "some": { "2": { "index": 1 } } } }),
            json!({ "gpus": { "some": { "-1": { "index": 1 } } } }),
            json!({ "gpus": { "some": { "0": { "power_mw": 1_u64 << 40 } } } }),
            json!({ "gpus": { "some": { "0": null } } }),
            json!({ "gpus": { "other": {} } }),
            json!({ "monotonic_ms": -1 }),
            json!({ "memory": { "used": null } }),
        ] {
            let mut to = Arc::new(sample.clone());
            let change = SampleChange::Read(to_raw_value(&hostile).unwrap());
            assert_eq!(change.apply(&mut to), Err(Misfit), "{hostile}");
        }
        assert!(serde_json::from_str::<SampleChange>("7").is_err());
        for line in [
            r#"{"change":{"since_ms":17,"change":{"uptime_s":8}}}x"#,
            r#"{"change":{"since_ms":16,"change":{"uptime_s":8}}}"#,
            r#"{"change":{"change":{"uptime_s":8},"since_ms":17}}"#,
            r#"{"change":{"since_ms":17}}"#,
            r#"{"ranks":[]}"#,
            "{}",
        ] {
            let mut to = Arc::new(sample.clone());
            assert_eq!(apply_line(line.as_bytes(), &mut to), Err(Misfit), "{line}");
        }
    }
}
