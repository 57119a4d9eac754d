//! What a service needs of its hosts besides the model's files, looked for before anything is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::actions::{self, Means};
use super::Draft;
use crate::base::HostName;
use crate::engine;
use crate::fleet::{HostLink, LinkError};
use crate::spec::{DockerRuntime, RuntimeSpec, ServiceSpec};
use crate::wire::{Checkup, ProgramSought, Refusal, Reply, Request};

/// How long a plan waits for a host's word. Who says nothing may have all of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks on each host for the engine's program or the container engine, and for the file of its key; a host that
/// says that it lacks one is not placed on. And for the ports at which something listens: no engine is given one of them.
pub async fn look_for(means: &Arc<Means>, draft: &mut Draft, hosts: Vec<HostName>) {
    let spec = &draft.spec;
    let sought = Sought {
        program: program_sought(spec),
        container_engine: asks_container_engine(spec),
        key_file: spec.api_key_file.clone(),
    };
    let named = &spec.placement.hosts;
    let hosts = hosts.into_iter().filter(|host| {
        !draft.lacking.contains_key(host) && (named.is_empty() || named.contains(host))
    });
    let looks = hosts.filter_map(|host| {
        let link = actions::link(means, &host).ok()?;
        let sought = sought.clone();
        Some(async move {
            let found = tokio::time::timeout(PATIENCE, look(link.as_ref(), sought)).await;
            Some((host, found.ok()?))
        })
    });
    let mut listening = BTreeMap::new();
    for (host, found) in futures::future::join_all(looks).await.into_iter().flatten() {
        if let Some(ports) = found.listening {
            listening.insert(host.clone(), ports);
        }
        if found.has_container_engine {
            draft.with_container_engine.insert(host.clone());
        }
        if let Some(why) = found.lacks {
            draft.lacking.insert(host, why);
        }
    }
    // Before the plan, which is made of the same inputs in their order. If the loop is ending there is none.
    let _ = means.ask(move |core| core.listening_ports.extend(listening)).await;
}

/// What a host is asked for.
#[derive(Clone, Default, PartialEq)]
struct Sought {
    program: Option<ProgramSought>,
    container_engine: bool,
    key_file: Option<String>,
}

/// What it says of it. Who is not sure says nothing.
#[derive(Default)]
struct Found {
    has_container_engine: bool,
    /// Why it cannot run an engine of the service; none: nothing speaks against it.
    lacks: Option<String>,
    /// Where something listens; none: nothing is known of that.
    listening: Option<BTreeSet<u16>>,
}

/// Whether containers of the service are started by the engine that agents look for.
pub(super) fn asks_container_engine(spec: &ServiceSpec) -> bool {
    matches!(&spec.runtime, RuntimeSpec::Docker(docker) if docker.socket == DockerRuntime::default_socket())
}

/// Why a host without a container engine has no place for the service.
pub(super) fn no_container_engine() -> String {
    format!(
        "no container engine is there ({}); install Docker, or set runtime = \"process\"",
        DockerRuntime::default_socket()
    )
}

/// The program that a plain process runs and that a host can be asked for.
fn program_sought(spec: &ServiceSpec) -> Option<ProgramSought> {
    if spec.runtime != RuntimeSpec::Process {
        return None;
    }
    let program = engine::of(&spec.engine).program(spec)?;
    // What is relative to the directory in which engines start nobody else can find.
    let is_relative = program.contains('/') && !program.starts_with('/');
    let path = spec.env.get("PATH").cloned();
    (!is_relative).then_some(ProgramSought { program, path, tells_version: false })
}

async fn look(link: &dyn HostLink, sought: Sought) -> Found {
    let mut found = Found::default();
    let programs = sought.program.clone().into_iter().collect();
    let request = Request::CheckUp { reach: Vec::new(), disk_bytes: None, programs };
    if let Ok(Reply::CheckUp(checkup)) = link.request(request).await {
        found = read(&sought, &checkup);
    }
    if found.lacks.is_none()
        && let Some(path) = sought.key_file
    {
        found.lacks = key_trouble(link, path).await;
    }
    found
}

/// What a check-up says of what was sought.
fn read(sought: &Sought, checkup: &Checkup) -> Found {
    let listening = Some(checkup.listening.iter().copied().collect());
    let mut found = Found { listening, ..Found::default() };
    if let Some(program) = &sought.program
        && checkup.programs.first().is_some_and(|program| program.file.is_none())
    {
        let name = &program.program;
        let whole = name.starts_with('/');
        let path = if whole { "" } else { " on the path of gpudeck's agent" };
        let or = if whole { "" } else { ", or write its whole path" };
        found.lacks = Some(format!("there is no program {name}{path}: install it{or}"));
    }
    if sought.container_engine {
        match (&checkup.container_engine, &checkup.container_engine_trouble) {
            (Some(_), None) => found.has_container_engine = true,
            (_, Some(trouble)) => {
                found.lacks = Some(format!("its container engine cannot be used: {trouble}"));
            }
            (None, None) => found.lacks = Some(no_container_engine()),
        }
    }
    found
}

/// Why the file of a key cannot be read. It is opened, and nothing of it read.
async fn key_trouble(link: &dyn HostLink, path: String) -> Option<String> {
    match link.request(Request::ReadFile { path, offset: 0, length: 0 }).await {
        Err(LinkError::Refused {
            refusal: refusal @ (Refusal::NoFile { .. } | Refusal::Failed { .. }),
            ..
        }) => Some(format!("the key of its engine: {refusal}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ContainerEngine;

    /// What a host that was asked only for its container engine is found to have.
    fn asked(engine: bool, trouble: Option<&str>) -> Found {
        let docker = ContainerEngine { name: "docker".to_owned(), version: None };
        let checkup = Checkup {
            container_engine: engine.then_some(docker),
            container_engine_trouble: trouble.map(str::to_owned),
            ..Checkup::default()
        };
        read(&Sought { container_engine: true, ..Sought::default() }, &checkup)
    }

    #[test]
    fn a_host_has_a_container_engine_only_if_it_can_be_used() {
        let found = asked(true, None);
        assert!(found.has_container_engine);
        assert_eq!(found.lacks, None);
        let found = asked(true, Some("/var/run/docker.sock: Permission denied"));
        assert!(!found.has_container_engine);
        assert!(found.lacks.unwrap().ends_with("/var/run/docker.sock: Permission denied"));
        assert!(asked(false, None).lacks.unwrap().starts_with("no container engine is there"));
    }

    #[test]
    fn a_plain_process_asks_for_no_container_engine() {
        let found = read(&Sought::default(), &Checkup::default());
        assert!(found.lacks.is_none());
    }
}
