//! What a container was given beside its command and image: environment, GPUs and mounts, as it is to be and as the
//! engine says that it is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bollard::models::{ContainerCreateBody, ContainerInspectResponse, HostConfig, MountType};

use super::create::{self, Kind};
use crate::runtime::difference::{self, Difference};
use crate::spec::DockerRuntime as DockerSpec;
use crate::wire::RankStart;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Variables and values. An image adds its own: only those that a release sets are compared.
    env: BTreeMap<String, String>,
    /// GPUs by the names they were asked for with.
    gpus: BTreeSet<String>,
    /// Paths of the host by the paths that the container sees, and whether it may only read them. None: the engine
    /// does not say what was asked for.
    mounts: Option<BTreeMap<String, (String, bool)>>,
}

impl Setup {
    /// What a rank is to be given. None: it cannot be a container.
    pub fn wanted(start: &RankStart, spec: &DockerSpec) -> Option<Self> {
        let body: ContainerCreateBody = create::body(start, spec, Kind::default()).ok()?;
        Some(Self::new(body.env, body.host_config))
    }

    /// What a container was given.
    pub(super) fn seen(container: &ContainerInspectResponse) -> Self {
        let env = container.config.as_ref().and_then(|c| c.env.clone());
        let mut seen = Self::new(env, container.host_config.clone());
        // Podman tells what is mounted, not what was asked for.
        let is_bind =
            |m: &bollard::models::MountPoint| m.destination.is_some() && m.source.is_some();
        let something = container.mounts.iter().flatten().any(is_bind);
        if something && seen.mounts.as_ref().is_some_and(BTreeMap::is_empty) {
            seen.mounts = None;
        }
        seen
    }

    fn new(env: Option<Vec<String>>, host: Option<HostConfig>) -> Self {
        let pair = |line: String| {
            let (name, value) = line.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let host = host.unwrap_or_default();
        let mut gpus = BTreeSet::new();
        for request in host.device_requests.into_iter().flatten() {
            let any = match request.count.unwrap_or(0) {
                -1 => "all".to_owned(),
                count => format!("any {count}"),
            };
            gpus.extend(request.device_ids.filter(|ids| !ids.is_empty()).unwrap_or(vec![any]));
        }
        let is_gpu = |path: &String| path.starts_with("/dev/nvidia");
        let by_path = host.devices.into_iter().flatten().filter_map(|device| device.path_on_host);
        gpus.extend(by_path.filter(is_gpu));
        let mut mounts = BTreeMap::new();
        for mount in host.mounts.into_iter().flatten() {
            if let (Some(MountType::BIND), Some(from), Some(to)) =
                (mount.typ, mount.source, mount.target)
            {
                mounts.insert(to, (from, mount.read_only == Some(true)));
            }
        }
        for bind in host.binds.into_iter().flatten() {
            let mut parts = bind.split(':');
            if let (Some(from), Some(to)) = (parts.next(), parts.next()) {
                let read_only = parts.next().is_some_and(|o| o.split(',').any(|word| word == "ro"));
                mounts.insert(to.to_owned(), (from.to_owned(), read_only));
            }
        }
        let env = env.into_iter().flatten().filter_map(pair).collect();
        Self { env, gpus, mounts: Some(mounts) }
    }

    /// What differs in what a container was given from this, which it was to be given.
    pub fn differences(&self, seen: &Self) -> Vec<Difference> {
        let otherwise = self.env.iter().filter_map(|(name, value)| match seen.env.get(name) {
            Some(other) if other == value => None,
            other => Some((name.as_str(), other.is_some())),
        });
        let mut out: Vec<Difference> = difference::environment(otherwise).into_iter().collect();
        out.extend(difference::devices(&seen.gpus, &self.gpus));
        if let (Some(wanted), Some(there)) = (&self.mounts, &seen.mounts)
            && wanted != there
        {
            out.push(Difference::Mounts(mount_words(wanted, there)));
        }
        out
    }
}

type Mounts = BTreeMap<String, (String, bool)>;

fn mount_words(wanted: &Mounts, there: &Mounts) -> String {
    let mut words = Vec::new();
    for (path, (from, read_only)) in wanted {
        match there.get(path) {
            None => words.push(format!("{path} is not mounted")),
            Some((other, _)) if other != from => {
                words.push(format!("{path} is {other} of the host"));
            }
            Some((_, only)) if only != read_only => {
                let way = if *only { "for reading only" } else { "for writing" };
                words.push(format!("{path} is mounted {way}"));
            }
            Some(_) => {}
        }
    }
    let more = there.keys().filter(|path| !wanted.contains_key(*path));
    words.extend(more.map(|path| format!("{path} is mounted, too")));
    words.join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bollard::models::{ContainerConfig, DeviceMapping, DeviceRequest, Mount};

    use super::*;
    use crate::base::{Bytes, DeviceId};
    use crate::wire::DeviceNeed;

    fn start() -> RankStart {
        RankStart {
            rank: crate::base::RankId {
                deck: crate::base::DeckId(uuid::Uuid::from_u128(1)),
                service: "chat".parse().unwrap(),
                release_id: crate::base::ReleaseId(uuid::Uuid::from_u128(2)),
                replica: "r1-0-a1".parse().unwrap(),
                rank: 0,
            },
            argv: vec!["serve".to_owned()],
            env: BTreeMap::from([("MODE".to_owned(), "a=b".to_owned())]),
            needs: vec![DeviceNeed {
                device: DeviceId::Gpu("GPU-1".to_owned()),
                memory: Bytes::gib(1),
                healthy: false,
            }],
            ports: vec![21_000],
            files: vec!["/m/a/x.gguf".to_owned()],
            key_file: None,
            log_limit: Bytes::mib(1),
        }
    }

    fn spec() -> DockerSpec {
        serde_json::from_value(serde_json::json!({ "image": "vllm:1", "mounts": ["/cache"] }))
            .unwrap()
    }

    /// As the engine tells of what was created so.
    fn inspected(change: impl Fn(&mut Vec<String>, &mut HostConfig)) -> Setup {
        let body = create::body(&start(), &spec(), Kind::default()).unwrap();
        let mut env = body.env.unwrap();
        env.push("PATH=/usr/bin".to_owned());
        let mut host = body.host_config.unwrap();
        change(&mut env, &mut host);
        Setup::seen(&ContainerInspectResponse {
            config: Some(ContainerConfig { env: Some(env), ..ContainerConfig::default() }),
            host_config: Some(host),
            ..ContainerInspectResponse::default()
        })
    }

    fn differences(change: impl Fn(&mut Vec<String>, &mut HostConfig)) -> Vec<Difference> {
        Setup::wanted(&start(), &spec()).unwrap().differences(&inspected(change))
    }

    #[test]
    fn what_was_created_so_does_not_differ() {
        assert_eq!(differences(|_, _| ()), []);
    }

    #[test]
    fn each_part_that_differs_is_told_without_values() {
        let told = differences(|env, host| {
            env.retain(|line| !line.starts_with("MODE"));
            env.push("MODE=secret".to_owned());
            host.device_requests = Some(vec![DeviceRequest {
                count: Some(-1),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                ..DeviceRequest::default()
            }]);
            host.mounts = Some(vec![Mount {
                typ: Some(MountType::BIND),
                source: Some("/elsewhere".to_owned()),
                target: Some("/m/a".to_owned()),
                read_only: Some(true),
                ..Mount::default()
            }]);
            host.binds = Some(vec!["/etc:/etc".to_owned(), "/cache:/cache:ro".to_owned()]);
        });
        let mounts = "/cache is mounted for reading only, /m/a is /elsewhere of the host, /etc is mounted, too";
        assert_eq!(
            told,
            [
                Difference::Environment("MODE has another value".to_owned()),
                Difference::Devices("has all, not GPU-1".to_owned()),
                Difference::Mounts(mounts.to_owned()),
            ]
        );
        let told = differences(|env, host| {
            env.clear();
            host.device_requests = None;
            host.devices = Some(vec![DeviceMapping {
                path_on_host: Some("/dev/nvidia3".to_owned()),
                ..DeviceMapping::default()
            }]);
        });
        assert_eq!(
            told,
            [
                Difference::Environment("MODE is not set".to_owned()),
                Difference::Devices("has /dev/nvidia3, not GPU-1".to_owned()),
            ]
        );
    }
}
