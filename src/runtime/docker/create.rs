//! From a rank to the body of a create request. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use super::labels;
use crate::base::{Bytes, DeviceId};
use crate::spec::DockerRuntime as DockerSpec;
use crate::wire::RankStart;

/// Where images have this binary, for argument lists that begin with `{gpudeck}`.
const GPUDECK_IN_IMAGE: &str = "/gpudeck";

/// What differs between container engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// It is Podman, behind Docker's API.
    pub podman: bool,
    /// It runs without root and can raise no limits.
    pub rootless: bool,
    /// It lacks the small program that is a container's first process (`docker-init`).
    pub no_init: bool,
}

/// The container of a rank: named, labelled, on the host's network, never restarted by the engine.
/// The error says what of the rank cannot be a container.
pub fn body(
    start: &RankStart,
    spec: &DockerSpec,
    kind: Kind,
) -> Result<ContainerCreateBody, String> {
    let argv: Vec<String> = start
        .argv
        .iter()
        .map(|word| if word == "{gpudeck}" { GPUDECK_IN_IMAGE.to_owned() } else { word.clone() })
        .collect();
    let Some((program, arguments)) = argv.split_first() else {
        return Err("the rank has no command".to_owned());
    };
    let gpus: Vec<String> = start
        .needs
        .iter()
        .filter_map(|need| match &need.device {
            DeviceId::Gpu(uuid) => Some(uuid.clone()),
            DeviceId::Cpu => None,
        })
        .collect();
    let mut env: BTreeMap<&str, &str> =
        start.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    if gpus.is_empty() {
        // CUDA images ask for all GPUs; where NVIDIA's is the default runtime they would get them.
        env.entry("NVIDIA_VISIBLE_DEVICES").or_insert("void");
    }
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        // Images differ in their entry points: with both set, none of theirs is left.
        entrypoint: Some(vec![program.clone()]),
        cmd: Some(arguments.to_vec()),
        env: Some(env.into_iter().map(|(k, v)| format!("{k}={v}")).collect()),
        labels: Some(labels::write(&start.rank, start.ports.first().copied())),
        host_config: Some(HostConfig {
            network_mode: Some("host".to_owned()),
            // NCCL and the engines' worker processes share memory through /dev/shm.
            ipc_mode: Some("host".to_owned()),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            mounts: Some(mounts(&start.files, start.key_file.as_deref(), &spec.mounts)?),
            // An engine that is a container's first process has nobody who reaps what its workers leave, and ignores
            // every signal that it has no handler for. (Podman's own is a package of its own.)
            init: (!kind.podman && !kind.no_init).then_some(true),
            // GPUDirect pins memory. Without GPUs nobody needs it, and an unprivileged engine
            // cannot grant it.
            ulimits: (!gpus.is_empty() && !kind.rootless).then(|| {
                vec![ResourcesUlimits {
                    name: Some("memlock".to_owned()),
                    soft: Some(-1),
                    hard: Some(-1),
                }]
            }),
            device_requests: (!gpus.is_empty()).then(|| {
                vec![DeviceRequest {
                    driver: Some("nvidia".to_owned()),
                    device_ids: Some(gpus),
                    capabilities: Some(vec![vec!["gpu".to_owned()]]),
                    ..DeviceRequest::default()
                }]
            }),
            log_config: Some(log_config(start.log_limit)),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    })
}

/// Two files of half the limit: when one is full, the older half goes and not everything.
fn log_config(limit: Bytes) -> HostConfigLogConfig {
    let half = (limit.0 / 2).max(64 << 10);
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from([
            ("max-size".to_owned(), half.to_string()),
            ("max-file".to_owned(), "2".to_owned()),
        ])),
    }
}

/// The folders of the rank's files and the file of its key, read only, and the paths of the spec, each under its own
/// path.
fn mounts(
    files: &[String],
    key_file: Option<&str>,
    extra: &[String],
) -> Result<Vec<Mount>, String> {
    let mut read_only = BTreeSet::new();
    for file in files {
        check_path(file)?;
        let path = file.trim_end_matches('/');
        read_only.insert(match path.rsplit_once('/') {
            // Directly under the root: the root itself is not to be mounted.
            None | Some(("", _)) => path,
            Some((folder, _)) => cached_model(folder).unwrap_or(folder),
        });
    }
    if let Some(path) = key_file {
        check_path(path)?;
        // Alone: beside it lie the keys of others.
        read_only.insert(path);
    }
    for path in extra {
        check_path(path)?;
    }
    // What the spec mounts, it mounts for writing, whatever lies there.
    let extra: BTreeSet<&str> = extra.iter().map(|p| p.trim_end_matches('/')).collect();
    let mount = |path: &str, read_only: bool| Mount {
        typ: Some(MountType::BIND),
        source: Some(path.to_owned()),
        target: Some(path.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    };
    Ok(read_only
        .iter()
        .filter(|path| !extra.contains(*path))
        .map(|path| mount(path, true))
        .chain(extra.iter().map(|path| mount(path, false)))
        .collect())
}

/// The directory of the whole model where a folder lies in a snapshot of a Hugging Face cache
/// (`…/models--ORG--NAME/snapshots/HASH`): the files there are links to `../../blobs`.
fn cached_model(folder: &str) -> Option<&str> {
    let (at, _) = folder.match_indices("/snapshots/").find(|(at, _)| {
        let name = folder.get(..*at).and_then(|before| before.rsplit('/').next());
        name.is_some_and(|name| name.starts_with("models--"))
    })?;
    folder.get(..at)
}

fn check_path(path: &str) -> Result<(), String> {
    let good = path.starts_with('/')
        && !path.trim_end_matches('/').is_empty()
        && !path.split('/').any(|part| part == "..");
    if good {
        Ok(())
    } else {
        let path = crate::base::text::clean(path, 120);
        Err(format!("`{path}` cannot be mounted: write an absolute path below `/`"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn paths(files: &[&str], extra: &[&str]) -> Vec<(String, bool)> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        mounts(&own(files), None, &own(extra))
            .unwrap()
            .into_iter()
            .map(|m| (m.source.unwrap(), m.read_only.unwrap()))
            .collect()
    }

    #[test]
    fn mounts_the_folders_of_files_and_the_paths_of_the_spec() {
        assert_eq!(
            paths(&["/m/a/x.gguf", "/m/a/y.gguf", "/one.gguf", "/m/hf/"], &["/cache/", "/data"]),
            [
                ("/m".to_owned(), true),
                ("/m/a".to_owned(), true),
                ("/one.gguf".to_owned(), true),
                ("/cache".to_owned(), false),
                ("/data".to_owned(), false),
            ]
        );
        assert_eq!(paths(&["/m/x.gguf"], &["/m"]), [("/m".to_owned(), false)]);
        // The files of a snapshot are links to the blobs beside it.
        let snapshot = "/hub/models--a--b/snapshots/beef01";
        assert_eq!(
            paths(
                &[
                    &format!("{snapshot}/config.json"),
                    &format!("{snapshot}/tower/model.safetensors"),
                    "/own/snapshots/1/m.gguf",
                ],
                &[]
            ),
            [("/hub/models--a--b".to_owned(), true), ("/own/snapshots/1".to_owned(), true)]
        );
        for bad in ["/", "", "relative", "/m/../etc"] {
            assert!(mounts(&[], None, &[bad.to_owned()]).is_err(), "{bad}");
            assert!(mounts(&[], Some(bad), &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_mounted_without_those_beside_it() {
        let files = ["/m/x.gguf".to_owned()];
        let mounted = mounts(&files, Some("/etc/keys/chat"), &[]).unwrap();
        let paths: Vec<_> = mounted.iter().map(|m| m.source.as_deref().unwrap()).collect();
        assert_eq!(paths, ["/etc/keys/chat", "/m"]);
        assert!(mounted.iter().all(|m| m.read_only == Some(true)));
    }
}
