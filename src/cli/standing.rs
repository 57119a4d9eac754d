//! How the deck stands, which comes before its services and hosts: lines for people, and the same in JSON.

use serde::Serialize;

use super::args::Args;
use super::attach::{deck, is_another_build};
use super::exit::Failure;
use super::table;
use crate::api::{Client, DeckView};
use crate::controller::sharing::{self, SharingView};

/// The deck as `--output json` has it: everything that people are told of it.
#[derive(Serialize)]
pub struct DeckPart<'a> {
    #[serde(flatten)]
    view: &'a DeckView,
    /// The controller is of another build than this command.
    another_build: bool,
    /// Its repository; absent where it was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    git: Option<Git>,
}

/// How the deck stands to its remote and to what is committed.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Git {
    /// As it was looked at.
    Known(SharingView),
    /// It cannot be told.
    Unknown {
        /// Why.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl Git {
    /// Whether the deck is edited, behind or diverged, in words; nothing when all is well.
    pub fn plainly(&self) -> Vec<String> {
        match self {
            Self::Known(view) => view.plainly(),
            Self::Unknown { error, .. } => vec![error.clone()],
        }
    }
}

/// Looks at the repository of the deck in this directory; none: it has a mistake, which is told elsewhere.
pub async fn git(args: &Args) -> Option<Git> {
    let (dir, spec) = deck(args).ok()?;
    let remote = spec.git.and_then(|g| g.remote);
    let look = tokio::task::spawn_blocking(move || sharing::status(&dir, remote.as_deref()));
    Some(match look.await.ok()? {
        Ok(view) => Git::Known(view),
        Err(error) => Git::Unknown { error: error.message, hint: error.hint },
    })
}

/// The deck for programs.
pub async fn part<'a>(client: &Client, deck: &'a DeckView, git: Option<Git>) -> DeckPart<'a> {
    let another_build = is_another_build(client).await.is_some();
    DeckPart { view: deck, another_build, git }
}

/// What comes before a table: that everything is simulated, and what keeps the deck from something.
pub fn print(deck: &DeckView) -> Result<(), Failure> {
    if deck.simulated {
        table::out("SIMULATED hosts, engines and gateway")?;
    }
    lines(deck).iter().try_for_each(|line| table::say(line))
}

fn lines(deck: &DeckView) -> Vec<String> {
    let mut lines = Vec::new();
    for condition in &deck.conditions {
        let name = condition.kind.name();
        lines.push(format!("! {name} since {}: {}", condition.since, condition.text));
        lines.extend(condition.hint.as_ref().map(|hint| format!("  → {hint}")));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::api::{DeckCondition, DeckConditionKind, Timestamp};

    #[test]
    fn programs_are_told_every_state_that_people_are_told() {
        let conditions = DeckConditionKind::ALL.map(|kind| DeckCondition {
            kind,
            since: Timestamp(1),
            text: format!("about {}", kind.name()),
            hint: Some(format!("mend {}", kind.name())),
        });
        let view = DeckView { conditions: conditions.to_vec(), ..DeckView::default() };
        let git = Git::Known(SharingView {
            branch: "main".to_owned(),
            remote: Some("origin".to_owned()),
            url: None,
            follows: Some("up/main".to_owned()),
            ahead: 1,
            behind: 2,
            diverged: true,
            dirty: vec!["services/chat.toml".to_owned()],
        });
        assert_eq!(git.plainly().len(), 3, "{:?}", git.plainly());
        let (shown, part) =
            (lines(&view), DeckPart { view: &view, another_build: true, git: Some(git) });
        let json = serde_json::to_value(part).unwrap();
        let told = json["conditions"].as_array().unwrap();
        let documented = include_str!("../../docs/cli.md");
        for (index, kind) in DeckConditionKind::ALL.into_iter().enumerate() {
            let name = kind.name();
            assert_eq!(told[index]["kind"], name);
            assert_eq!(told[index]["text"], format!("about {name}"));
            assert_eq!(told[index]["hint"], format!("mend {name}"));
            assert!(shown.iter().any(|l| l.starts_with(&format!("! {name} since"))), "{shown:?}");
            assert!(documented.contains(&format!("| `{name}` |")), "{name} is in no document");
        }
        assert_eq!(
            (&json["another_build"], &json["git"]["diverged"]),
            (&true.into(), &true.into())
        );
        assert_eq!(json["git"]["dirty"][0], "services/chat.toml");
        assert_eq!(
            (&json["git"]["behind"], &json["git"]["follows"]),
            (&2.into(), &"up/main".into())
        );
    }
}
