//! Which release last changed each line of a service's spec.

use git2::{DiffOptions, Patch};

use super::repo::{DeckRepo, revision};
use super::{RevisionError, service_file};
use crate::base::{ReleaseNumber, Revision, ServiceName};

/// One line of a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlamedLine {
    /// Its number, from 1.
    pub line: u32,
    /// The release that brought it; none: it is in the work tree only.
    pub release: Option<ReleaseNumber>,
    /// The text.
    pub text: String,
}

/// A release with its texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseTexts {
    /// Its service.
    pub service: ServiceName,
    /// Its commit.
    pub revision: Revision,
    /// The service's spec in it.
    pub spec: String,
}

impl DeckRepo {
    /// Follows the spec through the releases of the service to what the work tree holds now.
    pub fn blame(&self, service: &ServiceName) -> Result<Vec<BlamedLine>, RevisionError> {
        let file = service_file(service);
        let mut releases = Vec::new();
        for (number, oid) in self.release_commits()? {
            let commit = self.repo.find_commit(oid)?;
            if super::history::trailers(&commit).service.as_ref() == Some(service) {
                releases.push((number, oid));
            }
        }
        let mut text = String::new();
        let mut owners: Vec<Option<ReleaseNumber>> = Vec::new();
        for (number, oid) in releases.into_iter().rev() {
            let next = self.text_at(&revision(oid), &file)?.unwrap_or_default();
            owners = carried(&text, &next, &owners, Some(number))?;
            text = next;
        }
        let present = self.read_service(service)?;
        owners = carried(&text, &present, &owners, None)?;
        let lines = present.lines().zip(owners).zip(1_u32..);
        Ok(lines
            .map(|((text, release), line)| BlamedLine { line, release, text: text.to_owned() })
            .collect())
    }

    /// What a release is of, whichever service that is.
    pub fn release_texts(&self, number: ReleaseNumber) -> Result<ReleaseTexts, RevisionError> {
        let missing = || RevisionError::NotFound { what: format!("release {number}") };
        let revision = self.release(number)?.ok_or_else(missing)?;
        let commit = self.repo.find_commit(self.oid(&revision)?)?;
        let service = super::history::trailers(&commit).service.ok_or_else(missing)?;
        let spec = self.spec_at(&revision, &service)?;
        Ok(ReleaseTexts { service, revision, spec })
    }
}

/// The owners of the lines of `new`: a line that was there keeps its owner, the others get `by`.
fn carried(
    old: &str,
    new: &str,
    owners: &[Option<ReleaseNumber>],
    by: Option<ReleaseNumber>,
) -> Result<Vec<Option<ReleaseNumber>>, RevisionError> {
    if old == new {
        return Ok(owners.to_vec());
    }
    let mut result = vec![by; new.lines().count()];
    let mut options = DiffOptions::new();
    // The whole file is context, so that each line that stayed is seen.
    options.context_lines(u32::MAX).force_text(true);
    let mut patch =
        Patch::from_buffers(old.as_bytes(), None, new.as_bytes(), None, Some(&mut options))?;
    patch.print(&mut |_, _, line| {
        if line.origin() == ' '
            && let (Some(was), Some(is)) = (line.old_lineno(), line.new_lineno())
        {
            let index = |n: u32| usize::try_from(n).unwrap_or(usize::MAX).wrapping_sub(1);
            if let (Some(owner), Some(slot)) = (owners.get(index(was)), result.get_mut(index(is))) {
                *slot = *owner;
            }
        }
        true
    })?;
    Ok(result)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_stay_keep_their_release() {
        let r = |n| Some(ReleaseNumber(n));
        let first = carried("", "a\nb\nc\n", &[], r(1)).unwrap();
        assert_eq!(first, [r(1), r(1), r(1)]);
        let second = carried("a\nb\nc\n", "x\na\nB\nc\n", &first, r(2)).unwrap();
        assert_eq!(second, [r(2), r(1), r(2), r(1)]);
        let third = carried("x\na\nB\nc\n", "x\nc\nd", &second, None).unwrap();
        assert_eq!(third, [r(2), r(1), None]);
    }
}
