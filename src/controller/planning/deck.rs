//! The deck's directory and its history: read, compared, committed.

use super::super::core::{Core, DeckFiles};
use super::{Draft, backend_is_its_own, invalid, not_found, with_hint};
use crate::api::{ApiError, ErrorKind, MemoryView, ReleaseView};
use crate::base::{Hint, HostName, ReleaseNumber, Revision, ServiceName, text};
use crate::revision::{DeckRepo, HistoryEntry, ReleaseCommit, RevisionError, diff_text};
use crate::rollout::{Release, RolloutKind};
use crate::spec::{Requirement, ServiceSpec, parse_deck, parse_service};

/// So many of a service's latest releases are kept at hand; older ones are read from Git when somebody asks.
pub const SHOWN_RELEASES: usize = 50;

/// Reads the deck's directory; mistakes stand where the spec would.
pub fn read_files(repo: &DeckRepo) -> DeckFiles {
    let mut files = DeckFiles::default();
    match repo.read() {
        Ok(texts) => {
            let deck = parse_deck(&texts.deck, "deck.toml").map_err(|e| with_hint(&e));
            files.deck = Some(deck);
            for (name, content) in texts.services {
                let spec = parse_service(&content, &format!("services/{name}.toml"));
                files.services.insert(name, spec.map_err(|e| with_hint(&e)));
            }
        }
        Err(error) => files.deck = Some(Err(with_hint(&error))),
    }
    for service in files.services.keys() {
        let Ok(entries) = repo.history(service, SHOWN_RELEASES) else { continue };
        let memory = entries.iter().rev().flat_map(|e| {
            e.memory.iter().map(|seen| MemoryView { release: e.release, seen: seen.clone() })
        });
        let memory: Vec<MemoryView> = memory.collect();
        if !memory.is_empty() {
            files.memory.insert(service.clone(), memory);
        }
        files.history.insert(service.clone(), entries.into_iter().map(release_view).collect());
    }
    files
}

/// A release of Git as doors see it.
pub fn release_view(entry: HistoryEntry) -> ReleaseView {
    ReleaseView {
        number: entry.release,
        revision: entry.revision,
        created: entry.time,
        author: entry.author,
        reason: entry.reason,
        outcome: entry.outcome,
        progress: None,
    }
}

/// What tells whether the deck's files may have changed: sizes, times, and the present commit.
pub type Stamp = Vec<(std::path::PathBuf, u64, Option<std::time::SystemTime>, Option<Revision>)>;

/// The stamp of the deck as it is now.
pub fn stamp(repo: &DeckRepo) -> Stamp {
    let services = std::fs::read_dir(repo.root().join("services")).into_iter().flatten().flatten();
    let files = services.map(|e| e.path()).chain([repo.root().join("deck.toml")]);
    let head = repo.head().ok().flatten();
    let mut stamp: Stamp = files
        .map(|path| {
            let about = std::fs::metadata(&path).ok();
            let changed = about.as_ref().and_then(|m| m.modified().ok());
            (path, about.map_or(0, |m| m.len()), changed, head.clone())
        })
        .collect();
    stamp.sort();
    stamp
}

/// The spec in the work tree, or that of an earlier release.
pub fn read_spec(
    core: &Core,
    service: &ServiceName,
    of: Option<ReleaseNumber>,
) -> Result<(ServiceSpec, String, Option<Revision>), ApiError> {
    let Some(repo) = &core.repo else {
        return Err(not_found(service, core.known_services()));
    };
    let (content, revision, name) = match of {
        None => {
            let content = repo.read_service(service).map_err(|e| match e {
                RevisionError::NoFile { .. } => not_found(service, core.known_services()),
                e => invalid(&e),
            })?;
            (content, None, format!("services/{service}.toml"))
        }
        Some(number) => {
            let revision =
                repo.release(number).map_err(|e| invalid(&e))?.ok_or_else(|| ApiError {
                    kind: ErrorKind::NotFound,
                    message: format!("Git has no release {number}"),
                    hint: Some(format!("`gpudeck history {service}` lists them")),
                })?;
            let content = repo.spec_at(&revision, service).map_err(|e| invalid(&e))?;
            (content, Some(revision), format!("services/{service}.toml at {number}"))
        }
    };
    let spec = parse_service(&content, &name).map_err(|e| invalid(&e))?;
    Ok((spec, content, revision))
}

/// The hosts and the gateways that a spec names must be in deck.toml: a slip of the pen is no wish to do
/// without them.
pub(super) fn names_are_of_the_deck(
    core: &Core,
    service: &ServiceName,
    spec: &ServiceSpec,
) -> Result<(), ApiError> {
    let unknown = |what: &str, name: &str, known: Vec<&str>| ApiError {
        kind: ErrorKind::Invalid,
        message: format!(
            "services/{service}.toml names the {what} `{name}`, which is not in deck.toml"
        ),
        hint: Some(match text::nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("add [{what}s.{name}] to deck.toml"),
            None => format!("add [{what}s.{name}] to deck.toml; there are: {}", known.join(", ")),
        }),
    };
    for host in &spec.placement.hosts {
        if !core.deck.hosts.contains_key(host) {
            let known = core.deck.hosts.keys().map(HostName::as_str).collect();
            return Err(unknown("host", host.as_str(), known));
        }
    }
    if let Some(require) = &spec.placement.require {
        let known = core.deck.hosts.values().flat_map(|h| h.labels.keys().map(String::as_str));
        Requirement::parse(require).and_then(|r| r.check_labels(known)).map_err(|e| ApiError {
            kind: ErrorKind::Invalid,
            message: format!("services/{service}.toml: require, {e}"),
            hint: e.hint(),
        })?;
    }
    let known = &core.deck.gateways;
    if let Some(gateway) =
        spec.gateway.iter().chain(&spec.gateways).find(|name| !known.contains_key(*name))
    {
        let known = known.keys().map(ServiceName::as_str).collect();
        return Err(unknown("gateway", gateway.as_str(), known));
    }
    backend_is_its_own(core, service, spec)
}

/// Where an edit that was never committed is kept (below the deck's directory) when an earlier revision's spec
/// takes its place; none: there is no such edit.
pub(in crate::controller) fn kept_edit(
    repo: &DeckRepo,
    draft: &Draft,
    number: ReleaseNumber,
) -> Option<String> {
    draft.revision.as_ref()?;
    let present = repo.read_service(&draft.service).ok().filter(|text| *text != draft.text)?;
    let head = repo.head().ok().flatten();
    let committed = head.and_then(|head| repo.spec_at(&head, &draft.service).ok());
    (committed.as_ref() != Some(&present))
        .then(|| format!(".gpudeck/{}.before-{number}.toml", draft.service))
}

/// Commits what is rolled out. An earlier revision puts its spec back into the work tree first, so that the
/// deck says what is served; an edit that was never committed is kept beside it.
pub fn commit(
    repo: &DeckRepo,
    draft: &Draft,
    release: &Release,
    kind: RolloutKind,
) -> Result<Revision, ApiError> {
    if draft.revision.is_some() {
        let present = repo.read_service(&draft.service).unwrap_or_default();
        if present != draft.text {
            let write = |path: &std::path::Path, content: &str| {
                std::fs::write(path, content).map_err(|e| ApiError {
                    kind: ErrorKind::Internal,
                    message: format!("{}: {e}", path.display()),
                    hint: None,
                })
            };
            if let Some(kept) = kept_edit(repo, draft, release.number) {
                let kept = repo.root().join(kept);
                if let Some(dir) = kept.parent() {
                    let _ = std::fs::create_dir_all(dir);
                }
                write(&kept, &present)?;
            }
            let file = repo.root().join("services").join(format!("{}.toml", draft.service));
            write(&file, &draft.text)?;
        }
    }
    let verb = match kind {
        RolloutKind::Apply => "Apply",
        RolloutKind::Undo => "Undo",
    };
    let subject = format!("{verb} {}", draft.service);
    repo.commit_service(&ReleaseCommit {
        service: &draft.service,
        release: release.number,
        subject: &subject,
        reason: release.reason.as_deref(),
        author: Some(&release.author),
        expected: Some(&draft.text),
    })
    .map_err(|e| commit_error(&e))
}

/// Why a release was not committed.
pub(in crate::controller) fn commit_error(error: &RevisionError) -> ApiError {
    ApiError {
        kind: match error {
            RevisionError::Changed { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Internal,
        },
        message: error.to_string(),
        hint: error.hint(),
    }
}

/// The spec of one release against another's.
pub fn diff(
    core: &Core,
    service: &ServiceName,
    from: ReleaseNumber,
    to: ReleaseNumber,
) -> Result<String, ApiError> {
    let (_, old, _) = read_spec(core, service, Some(from))?;
    let (_, new, _) = read_spec(core, service, Some(to))?;
    diff_text(&old, &new, &format!("services/{service}.toml")).map_err(|e| invalid(&e))
}

/// A fresh repository around a new deck's files.
pub fn init_repository(dir: &std::path::Path) -> Result<(), RevisionError> {
    DeckRepo::init(dir).map(|_| ())
}
