//! What a service needs of its hosts besides the model's files, looked for before anything is touched.

use std::sync::Arc;
use std::time::Duration;

use super::super::actions::{self, Means};
use super::Draft;
use crate::base::HostName;
use crate::engine;
use crate::fleet::{HostLink, LinkError};
use crate::spec::{RuntimeSpec, ServiceSpec};
use crate::wire::{ProgramSought, Refusal, Reply, Request};

/// How long a plan waits for a host's word. Who says nothing may have all of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks on each host for the engine's program and for the file of its key. A host that says that it lacks one
/// is not placed on.
pub async fn look_for(means: &Arc<Means>, draft: &mut Draft, hosts: Vec<HostName>) {
    let spec = &draft.spec;
    let program = program_sought(spec);
    if program.is_none() && spec.api_key_file.is_none() {
        return;
    }
    let named = &spec.placement.hosts;
    let hosts = hosts.into_iter().filter(|host| {
        !draft.lacking.contains_key(host) && (named.is_empty() || named.contains(host))
    });
    let looks = hosts.filter_map(|host| {
        let link = actions::link(means, &host).ok()?;
        let (program, key_file) = (program.clone(), spec.api_key_file.clone());
        Some(async move {
            let looked = tokio::time::timeout(PATIENCE, lacks(link.as_ref(), program, key_file));
            Some((host, looked.await.ok()??))
        })
    });
    let found = futures::future::join_all(looks).await;
    draft.lacking.extend(found.into_iter().flatten());
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

/// Why the host cannot run an engine of the service; none: nothing speaks against it.
async fn lacks(
    link: &dyn HostLink,
    program: Option<ProgramSought>,
    key_file: Option<String>,
) -> Option<String> {
    if let Some(sought) = program {
        let name = sought.program.clone();
        let request =
            Request::CheckUp { reach: Vec::new(), disk_bytes: None, programs: vec![sought] };
        if let Ok(Reply::CheckUp(found)) = link.request(request).await
            && found.programs.first().is_some_and(|program| program.file.is_none())
        {
            let path = if name.starts_with('/') { "" } else { " on the path of gpudeck's agent" };
            return Some(format!("there is no program {name}{path}"));
        }
    }
    // Opened, and nothing of it read.
    let request = Request::ReadFile { path: key_file?, offset: 0, length: 0 };
    match link.request(request).await {
        Err(LinkError::Refused {
            refusal: refusal @ (Refusal::NoFile { .. } | Refusal::Failed { .. }),
            ..
        }) => Some(format!("the key of its engine: {refusal}")),
        _ => None,
    }
}
