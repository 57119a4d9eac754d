//! The way to a host, with the right to act there or to look only, and the runtime of a service on it.

use std::sync::{Arc, Mutex, PoisonError};

use super::Means;
use crate::base::{EpochCell, HostName, ServiceName};
use crate::controller::saved;
use crate::fleet::{HostLink, LinkError};
use crate::runtime::Runtime;
use crate::runtime::docker::{DockerRuntime, StartsUnderWay};
use crate::runtime::process::ProcessRuntime;
use crate::spec::RuntimeSpec;

/// The link of a host, or why there is none.
pub fn link(means: &Means, host: &HostName) -> Result<Arc<dyn HostLink>, LinkError> {
    means.fleet.link(host).ok_or_else(|| LinkError::Down {
        host: host.clone(),
        why: "it is not in the deck any more".to_owned(),
        hint: Some(format!(
            "`gpudeck drain {host}` places what it had elsewhere; or add a [hosts.{host}] section to deck.toml"
        )),
    })
}

/// The runtime of a service on a host, with the right to act there.
pub(super) async fn acting_runtime(
    means: &Means,
    spec: &RuntimeSpec,
    service: &ServiceName,
    host: &HostName,
) -> Result<Arc<dyn Runtime>, LinkError> {
    let link = link(means, host)?;
    let epoch = right_to_act(means, service, link.as_ref()).await?;
    Ok(runtime(means, spec, &link, epoch))
}

/// The right to act on a host of a service: all of its hosts are held, none keeps anything newer, and its state is
/// on them.
pub(in crate::controller) async fn right_to_act(
    means: &Means,
    service: &ServiceName,
    link: &dyn HostLink,
) -> Result<EpochCell, LinkError> {
    means.is_up_to_date(service, link).await?;
    let epoch = means.claims.ensure_for(&means.fleet, service, link).await?;
    saved::before_step(means, service, link, &epoch).await?;
    Ok(epoch)
}

/// The runtime of a service on a host, to look only.
pub async fn reading_runtime(
    means: &Means,
    spec: &RuntimeSpec,
    host: &HostName,
) -> Result<Arc<dyn Runtime>, LinkError> {
    let link = link(means, host)?;
    let epoch = means.claims.cell(host).await;
    Ok(runtime(means, spec, &link, epoch))
}

/// A runtime of a host, to end there what no release wants.
pub(in crate::controller) async fn clearing_runtime(
    means: &Means,
    spec: &RuntimeSpec,
    host: &HostName,
) -> Result<Arc<dyn Runtime>, LinkError> {
    let link = link(means, host)?;
    let epoch = means.claims.ensure(link.as_ref()).await?;
    Ok(runtime(means, spec, &link, epoch))
}

/// The runtime objects, kept because they remember how far logs were read.
#[derive(Default)]
pub struct Runtimes {
    kept: Mutex<Vec<Kept>>,
    starting: StartsUnderWay,
}

struct Kept {
    link: Arc<dyn HostLink>,
    spec: RuntimeSpec,
    runtime: Arc<dyn Runtime>,
}

fn runtime(
    means: &Means,
    spec: &RuntimeSpec,
    link: &Arc<dyn HostLink>,
    epoch: EpochCell,
) -> Arc<dyn Runtime> {
    let mut kept = means.runtimes.kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = kept.iter().find(|k| k.spec == *spec && Arc::ptr_eq(&k.link, link)) {
        return Arc::clone(&kept.runtime);
    }
    // A host whose settings changed has a new link; what was kept of the old one goes.
    kept.retain(|k| k.link.host() != link.host() || Arc::ptr_eq(&k.link, link));
    let runtime: Arc<dyn Runtime> = match spec {
        RuntimeSpec::Process => Arc::new(ProcessRuntime::new(Arc::clone(link), means.deck, epoch)),
        RuntimeSpec::Docker(docker) => {
            let runtime = DockerRuntime::new(Arc::clone(link), means.deck, epoch, docker);
            Arc::new(runtime.beside(&means.runtimes.starting))
        }
    };
    kept.push(Kept { link: Arc::clone(link), spec: spec.clone(), runtime: Arc::clone(&runtime) });
    runtime
}
