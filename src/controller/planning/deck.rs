//! The deck's directory and its history: read, compared, committed.

use super::super::core::{Core, DeckFiles};
use super::{Draft, backend_is_its_own, invalid, not_found, with_hint};
use crate::api::{ApiError, ErrorKind, MemoryView, ReleaseView};
use crate::base::{Hint, HostName, ReleaseNumber, Revision, ServiceName, text};
use crate::revision::files::DECK_FILE;
use crate::revision::{
    DeckRepo, DeckText, HistoryEntry, ReleaseCommit, RevisionError, SpecText, diff_text,
    service_file,
};
use crate::rollout::{Release, RolloutKind};
use crate::spec::{DeckSpec, Requirement, ServiceSpec, parse_deck, parse_service};

/// So many of a service's latest releases are kept at hand; older ones are read from Git when somebody asks.
pub const SHOWN_RELEASES: usize = 50;

/// Reads the deck's directory; mistakes stand where the spec would.
pub fn read_files(repo: &DeckRepo) -> DeckFiles {
    let mut files = DeckFiles::default();
    match repo.read() {
        Ok(texts) => {
            let deck = parse_deck(&texts.deck, "deck.toml").map_err(|e| with_hint(&e));
            files.deck = Some(deck);
            files.unreadable = texts.troubles.iter().map(with_hint).collect();
            // A directory is read in any order.
            files.unreadable.sort();
            for (name, content) in texts.services {
                let spec = parse_service(&content, &format!("services/{name}.toml"));
                files.services.insert(name, spec.map_err(|e| with_hint(&e)));
            }
        }
        Err(error) => files.deck = Some(Err(with_hint(&error))),
    }
    // One whose spec was taken away is served on, and can be gone back to.
    let mut services = repo.released_services().unwrap_or_default();
    services.extend(files.services.keys().cloned());
    for service in services {
        let Ok(entries) = repo.history(&service, SHOWN_RELEASES) else { continue };
        let memory = entries.iter().rev().flat_map(|e| {
            e.memory.iter().map(|seen| MemoryView { release: e.release, seen: seen.clone() })
        });
        let memory: Vec<MemoryView> = memory.collect();
        if !memory.is_empty() {
            files.memory.insert(service.clone(), memory);
        }
        files.history.insert(service, entries.into_iter().map(release_view).collect());
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
        stop: entry.stop,
        progress: None,
        not_here: false,
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
                RevisionError::NoFile { .. } => no_spec(core, service),
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

/// There is no spec in the work tree: of a service that was released the ways back.
pub(in crate::controller) fn no_spec(core: &Core, service: &ServiceName) -> ApiError {
    let history = core.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
    let served = core.state.services.get(service).and_then(|state| state.stable);
    let served = history.iter().find(|release| Some(release.number) == served);
    match served.or(history.first()) {
        None => not_found(service, core.known_services()),
        Some(release) => spec_is_gone(service, release, served.is_some()),
    }
}

fn spec_is_gone(service: &ServiceName, release: &ReleaseView, is_served: bool) -> ApiError {
    let (file, number) = (service_file(service), release.number);
    let ending = if is_served {
        format!("; `gpudeck stop {service}` ends it")
    } else {
        format!("; `gpudeck rollout undo {service} --to {number}` serves it again")
    };
    ApiError {
        kind: ErrorKind::NotFound,
        message: format!(
            "{file} is not there{}",
            if is_served { format!("; {number} is served on") } else { String::new() }
        ),
        hint: Some(format!(
            "in the deck, `git checkout {} -- {file}` brings it back as it was in {number}{ending}",
            release.revision
        )),
    }
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

/// What an edit that was never committed is kept as (in the deck's `.gpudeck`) when an earlier revision's spec takes
/// its place; none: there is no such edit.
///
/// # Errors
/// What stands in the place of the spec cannot be read: it may be just such an edit.
pub(in crate::controller) fn kept_edit(
    repo: &DeckRepo,
    draft: &Draft,
    number: ReleaseNumber,
) -> Result<Option<String>, RevisionError> {
    if draft.revision.is_none() {
        return Ok(None);
    }
    Ok(edit_in_the_way(repo, draft, present_spec(repo, &draft.service)?.as_deref(), number))
}

/// The spec in the work tree; none: there is no file.
fn present_spec(repo: &DeckRepo, service: &ServiceName) -> Result<Option<String>, RevisionError> {
    match repo.read_service(service) {
        Ok(text) => Ok(Some(text)),
        Err(RevisionError::NoFile { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn edit_in_the_way(
    repo: &DeckRepo,
    draft: &Draft,
    present: Option<&str>,
    number: ReleaseNumber,
) -> Option<String> {
    let present = present.filter(|text| *text != draft.text)?;
    let head = repo.head().ok().flatten();
    // What Git cannot say is not taken for committed.
    let committed = head.and_then(|head| repo.spec_at(&head, &draft.service).ok());
    (committed.as_deref() != Some(present))
        .then(|| format!("{}.before-{number}.toml", draft.service))
}

/// The edit of a spec that moves out of the way, in words.
pub(in crate::controller) fn moved_edit(service: &ServiceName, kept: &str) -> String {
    let (file, aside) = (service_file(service), crate::revision::files::ASIDE_DIR);
    format!("{file} is edited and not committed: the edit moves to {aside}/{kept}")
}

/// A release in Git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its commit.
    pub revision: Revision,
    /// What a person should know of the deck's files.
    pub words: Vec<String>,
    /// Git's index is held by another program, and does not have it yet.
    pub index_lags: bool,
}

/// The `deck.toml` that goes into the commit of a release.
#[derive(Clone, Debug)]
pub enum DeckBeside {
    /// The one that was planned with, as it was read then.
    Planned(Box<Option<Result<DeckSpec, String>>>),
    /// The one that Git has: the way back does not wait until a mistake in the file is mended.
    AsInGit,
}

/// `deck.toml` as it would be committed: just what was planned with (`planned`, as it was read then).
fn planned_deck(
    repo: &DeckRepo,
    planned: Option<&Result<DeckSpec, String>>,
) -> Result<String, ApiError> {
    let text = repo.read_deck().map_err(|e| commit_error(&e))?;
    let deck = parse_deck(&text, DECK_FILE).map_err(|e| invalid(&e))?;
    if planned.is_some_and(|planned| planned.as_ref() == Ok(&deck)) {
        Ok(text)
    } else {
        Err(commit_error(&RevisionError::Changed { file: DECK_FILE.to_owned() }))
    }
}

/// Commits what is rolled out. Of an earlier revision the spec comes back into the work tree then, so that the deck
/// says what is served; an edit that was never committed is kept beside it first. Whoever is refused finds the
/// files as they were.
pub fn commit(
    repo: &DeckRepo,
    deck: &DeckBeside,
    draft: &Draft,
    release: &Release,
    kind: RolloutKind,
) -> Result<Committed, ApiError> {
    let service = &draft.service;
    let deck = match deck {
        DeckBeside::Planned(planned) => Some(planned_deck(repo, Option::as_ref(planned))?),
        DeckBeside::AsInGit => None,
    };
    let is_earlier = draft.revision.is_some();
    let (mut present, mut words) = (None, Vec::new());
    if is_earlier {
        present = present_spec(repo, service).map_err(|e| commit_error(&e))?;
        if let Some(kept) = edit_in_the_way(repo, draft, present.as_deref(), release.number) {
            repo.keep_aside(&kept, present.as_deref().unwrap_or_default())
                .map_err(|e| commit_error(&e))?;
            words.push(moved_edit(service, &kept));
        }
    }
    let verb = match kind {
        RolloutKind::Apply => "Apply",
        RolloutKind::Undo => "Undo",
    };
    let subject = format!("{verb} {service}");
    let revision = repo
        .commit_service(&ReleaseCommit {
            service,
            release: release.number,
            subject: &subject,
            reason: release.reason.as_deref(),
            author: Some(&release.author),
            deck: deck.as_deref().map_or(DeckText::AsInGit, DeckText::Read),
            spec: if is_earlier {
                SpecText::Earlier(&draft.text)
            } else {
                SpecText::Read(&draft.text)
            },
        })
        .map_err(|e| commit_error(&e))?;
    // The release stands: what is wrong with the file is told.
    if is_earlier
        && present.as_deref() != Some(draft.text.as_str())
        && let Err(error) = repo.replace_spec(service, &draft.text, present.as_deref())
    {
        let file = service_file(service);
        words = vec![format!("{file} is not what was committed with {}: {error}", release.number)];
    }
    let index_lags = repo.heal_index().is_err();
    if index_lags {
        words.push(format!(
            "another program holds Git's index, which takes {} back with the next `git commit` until it has followed; \
             `git add deck.toml {}` lets it",
            release.number,
            service_file(service)
        ));
    }
    Ok(Committed { revision, words, index_lags })
}

/// Why a release was not committed.
pub(in crate::controller) fn commit_error(error: &RevisionError) -> ApiError {
    ApiError {
        kind: match error {
            RevisionError::Changed { .. }
            | RevisionError::Moved
            | RevisionError::Detached
            | RevisionError::Busy { .. }
            | RevisionError::Locked { .. } => ErrorKind::Conflict,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::base::DeckId;

    const BEFORE: &str = "model = \"/m\"\nengine = \"vllm\"\n";
    const SERVED: &str = "model = \"/m\"\nengine = \"vllm\"\ncontext = 8192\n";

    fn deck(dir: &Path) -> (DeckRepo, Draft) {
        let repo = DeckRepo::init(dir).unwrap();
        let id = DeckId(uuid::Uuid::from_u128(1)).0;
        fs::write(dir.join("deck.toml"), format!("id = \"{id}\"\nname = \"test\"\n")).unwrap();
        fs::create_dir(dir.join("services")).unwrap();
        let service: ServiceName = "chat".parse().unwrap();
        let mut revisions = Vec::new();
        for text in [BEFORE, SERVED] {
            fs::write(dir.join("services/chat.toml"), text).unwrap();
            let made = repo.commit_service(&ReleaseCommit {
                service: &service,
                release: repo.next_release().unwrap(),
                subject: "Apply chat",
                reason: None,
                author: None,
                deck: DeckText::WorkTree,
                spec: SpecText::WorkTree,
            });
            revisions.push(made.unwrap());
        }
        let draft = Draft {
            spec: parse_service(BEFORE, "chat").unwrap(),
            service,
            text: BEFORE.to_owned(),
            revision: revisions.first().cloned(),
            facts: None,
            looked_at: Vec::new(),
            lacking: std::collections::BTreeMap::new(),
            with_container_engine: std::collections::BTreeSet::new(),
            warnings: Vec::new(),
            lender: None,
        };
        (repo, draft)
    }

    #[test]
    fn a_service_whose_spec_is_gone_keeps_its_history() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, _) = deck(dir.path());
        fs::remove_file(dir.path().join("services/chat.toml")).unwrap();
        let files = read_files(&repo);
        assert!(files.services.is_empty());
        let history = files.history.values().next().unwrap();
        assert_eq!(history.iter().map(|r| r.number.0).collect::<Vec<_>>(), [2, 1]);
        let chat: ServiceName = "chat".parse().unwrap();
        let newest = history.first().unwrap();
        let hint = spec_is_gone(&chat, newest, false).hint.unwrap();
        assert!(
            hint.contains(&format!("git checkout {} -- services/chat.toml", newest.revision)),
            "{hint}"
        );
        assert!(hint.contains("undo chat --to r2"), "{hint}");
        let served = spec_is_gone(&chat, newest, true);
        assert!(served.message.ends_with("; r2 is served on"), "{served:?}");
        assert!(served.hint.unwrap().contains("gpudeck stop chat"));
    }

    #[test]
    fn a_service_is_not_another_name_for_itself() {
        let known = vec!["chat".parse().unwrap(), "code".parse().unwrap()];
        let hint = not_found(&"chat".parse().unwrap(), known).hint.unwrap();
        assert!(!hint.contains("did you mean `chat`"), "{hint}");
    }

    fn undo(repo: &DeckRepo, draft: &Draft) -> Result<Committed, ApiError> {
        let id = DeckId(uuid::Uuid::from_u128(1));
        let release = super::super::super::saved::tests::release(id, &draft.service);
        let deck = parse_deck(&repo.read_deck().unwrap(), DECK_FILE).map_err(|e| e.to_string());
        commit(repo, &DeckBeside::Planned(Box::new(Some(deck))), draft, &release, RolloutKind::Undo)
    }

    #[test]
    fn no_other_deck_is_committed_than_was_planned_with() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, draft) = deck(dir.path());
        let head = repo.head().unwrap();
        let file = dir.path().join("deck.toml");
        let text = fs::read_to_string(&file).unwrap();
        let planned = parse_deck(&text, DECK_FILE).map_err(|e| e.to_string());
        let planned = DeckBeside::Planned(Box::new(Some(planned)));
        let id = DeckId(uuid::Uuid::from_u128(1));
        let release = super::super::super::saved::tests::release(id, &draft.service);
        let begin = || commit(&repo, &planned, &draft, &release, RolloutKind::Undo);
        for (edited, said) in [
            (format!("{text}[hosts.h1\n"), "deck.toml"),
            (text.replacen("0000", "0001", 1), "was changed since it was read"),
            (format!("{text}[hosts.h1]\n"), "was changed since it was read"),
        ] {
            fs::write(&file, &edited).unwrap();
            let refused = begin().unwrap_err();
            assert!(refused.message.contains(said), "{edited}: {refused:?}");
        }
        let spec = fs::read_to_string(dir.path().join("services/chat.toml")).unwrap();
        assert_eq!((repo.head().unwrap(), spec.as_str()), (head, SERVED));
        fs::write(&file, format!("{text}# a comment\n")).unwrap();
        begin().unwrap();
    }

    /// Whoever goes back at night does not mend deck.toml first.
    #[test]
    fn a_release_can_leave_deck_toml_as_it_is_in_git() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, draft) = deck(dir.path());
        let file = dir.path().join("deck.toml");
        let good = fs::read_to_string(&file).unwrap();
        let broken = format!("{good}x = [\n");
        fs::write(&file, &broken).unwrap();
        let id = DeckId(uuid::Uuid::from_u128(1));
        let release = super::super::super::saved::tests::release(id, &draft.service);
        let made = commit(&repo, &DeckBeside::AsInGit, &draft, &release, RolloutKind::Undo);
        made.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
        let git = |args: &[&str]| {
            let done =
                std::process::Command::new("git").args(args).current_dir(dir.path()).output();
            String::from_utf8(done.unwrap().stdout).unwrap()
        };
        assert_eq!(git(&["show", "HEAD:deck.toml"]), good);
        assert_eq!(git(&["show", "HEAD:services/chat.toml"]), BEFORE);
        assert_eq!(git(&["status", "--porcelain", "-uno"]), " M deck.toml\n");
    }

    #[test]
    fn an_undo_keeps_what_it_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, draft) = deck(dir.path());
        let file = dir.path().join("services/chat.toml");
        let edit = format!("{SERVED}# hours of work\n");
        fs::write(&file, &edit).unwrap();
        let made = undo(&repo, &draft).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), BEFORE);
        assert_eq!(repo.spec_at(&made.revision, &draft.service).unwrap(), BEFORE);
        assert!(!repo.is_dirty(&draft.service).unwrap());
        let kept = dir.path().join(".gpudeck/chat.before-r3.toml");
        assert_eq!(fs::read_to_string(kept).unwrap(), edit);
        assert!(made.words.iter().any(|w| w.contains("chat.before-r3.toml")), "{:?}", made.words);
    }

    #[test]
    fn an_undo_that_cannot_read_the_spec_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, draft) = deck(dir.path());
        let head = repo.head().unwrap();
        let file = dir.path().join("services/chat.toml");
        let latin = b"model = \"/m\" # caf\xe9\n";
        fs::write(&file, latin).unwrap();
        let refused = undo(&repo, &draft).unwrap_err();
        assert!(refused.message.contains("not UTF-8"), "{refused:?}");
        assert_eq!(fs::read(&file).unwrap(), latin);
        assert!(kept_edit(&repo, &draft, ReleaseNumber(3)).is_err(), "the plan says so, too");

        let elsewhere = dir.path().join("elsewhere.toml");
        fs::write(&elsewhere, SERVED).unwrap();
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        let refused = undo(&repo, &draft).unwrap_err();
        assert!(refused.message.contains("symbolic link"), "{refused:?}");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), SERVED);
        assert_eq!(repo.head().unwrap(), head);
    }

    #[test]
    fn an_undo_that_is_refused_has_changed_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, draft) = deck(dir.path());
        let file = dir.path().join("services/chat.toml");
        let edit = format!("{SERVED}# hours of work\n");
        fs::write(&file, &edit).unwrap();
        fs::write(dir.path().join(".git/MERGE_HEAD"), repo.head().unwrap().unwrap().0).unwrap();
        let refused = undo(&repo, &draft).unwrap_err();
        assert!(refused.message.contains("merge"), "{refused:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), edit);
        fs::remove_file(dir.path().join(".git/MERGE_HEAD")).unwrap();
        // The file is gone: there is nothing to keep.
        fs::remove_file(&file).unwrap();
        assert_eq!(undo(&repo, &draft).unwrap().words, Vec::<String>::new());
        assert_eq!(fs::read_to_string(&file).unwrap(), BEFORE);
    }
}
