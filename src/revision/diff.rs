//! Differences between specs, for people.

use std::path::Path;

use git2::{DiffOptions, Patch};

use super::repo::DeckRepo;
use super::{RevisionError, service_file};
use crate::base::{Revision, ServiceName};

impl DeckRepo {
    /// The difference of a service's spec between two revisions, unified; empty if there is none.
    /// A revision without the spec counts as an empty one.
    pub fn diff(
        &self,
        old: &Revision,
        new: &Revision,
        service: &ServiceName,
    ) -> Result<String, RevisionError> {
        let file = service_file(service);
        let old = self.text_at(old, &file)?.unwrap_or_default();
        let new = self.text_at(new, &file)?.unwrap_or_default();
        diff_text(&old, &new, &file)
    }
}

/// The difference of two texts, unified with three lines around each change; `file` names it in
/// the header. Empty if they are the same.
pub fn diff_text(old: &str, new: &str, file: &str) -> Result<String, RevisionError> {
    if old == new {
        return Ok(String::new());
    }
    let name = Some(Path::new(file));
    let mut options = DiffOptions::new();
    options.context_lines(3).force_text(true);
    let mut patch =
        Patch::from_buffers(old.as_bytes(), name, new.as_bytes(), name, Some(&mut options))?;
    let mut out = String::new();
    patch.print(&mut |_, _, line| {
        // File headers name blobs that exist nowhere: only the two names are kept.
        let content = String::from_utf8_lossy(line.content());
        match line.origin() {
            origin @ ('+' | '-' | ' ') => {
                out.push(origin);
                out.push_str(&content);
            }
            'F' => {
                for header in
                    content.lines().filter(|l| l.starts_with("--- ") || l.starts_with("+++ "))
                {
                    out.push_str(header);
                    out.push('\n');
                }
            }
            _ => out.push_str(&content),
        }
        true
    })?;
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_changed_and_where() {
        let diff = diff_text("a = 1\nb = 2\n", "a = 1\nb = 3\n", "services/chat.toml").unwrap();
        assert_eq!(
            diff,
            "--- a/services/chat.toml\n+++ b/services/chat.toml\n@@ -1,2 +1,2 @@\n a = 1\n-b = 2\n+b = 3\n"
        );
        assert_eq!(diff_text("same", "same", "x").unwrap(), "");
        let diff = diff_text("", "new", "x").unwrap();
        assert!(diff.contains("+new"), "{diff}");
    }
}
