//! What can be wrong with a model's files, each with its next step.

use crate::base::{Bytes, Hint};

/// Why a header does not describe a usable file. Without the path; [`ModelError`] adds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends before its data does.
    #[error("truncated: {}", cut(*missing, *file, *expected, *header))]
    Truncated {
        /// What is missing.
        missing: Bytes,
        /// Length of the file.
        file: Bytes,
        /// Length that its header speaks of, as far as known.
        expected: Bytes,
        /// Not even its header is whole.
        header: bool,
    },
    /// It contradicts itself or its format.
    #[error("broken: {0}")]
    Broken(String),
    /// It is something else.
    #[error("{0}")]
    NotThisFormat(String),
    /// Its header is larger than is read.
    #[error("too large: {what} (at most {limit})")]
    TooLarge {
        /// The limit.
        limit: Bytes,
        /// Of what.
        what: String,
    },
}

impl HeaderError {
    /// The file has `file` bytes and its header speaks of `expected`.
    pub(crate) fn truncated(file: u64, expected: u64) -> Self {
        Self::Truncated {
            missing: Bytes(expected.saturating_sub(file)),
            file: Bytes(file),
            expected: Bytes(expected),
            header: false,
        }
    }

    /// The file has `file` bytes, and its header alone at least `expected`.
    pub(crate) fn truncated_header(file: u64, expected: u64) -> Self {
        match Self::truncated(file, expected) {
            Self::Truncated { missing, file, expected, .. } => {
                Self::Truncated { missing, file, expected, header: true }
            }
            other => other,
        }
    }

    pub(crate) fn broken(what: impl Into<String>) -> Self {
        Self::Broken(what.into())
    }
}

/// What a file lacks, in words.
fn cut(missing: Bytes, file: Bytes, expected: Bytes, header: bool) -> String {
    let bytes = if missing.0 == 1 { "byte is" } else { "bytes are" };
    match (file, header) {
        (Bytes::ZERO, _) => "it is empty".to_owned(),
        (_, true) => format!(
            "it ends within its header, after {file} (at least {} {bytes} missing, and all of its data)",
            missing.0
        ),
        (_, false) => format!("{} {bytes} missing ({file} of {expected} are there)", missing.0),
    }
}

/// Why nothing can be said about the model at a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Nothing is there.
    #[error("{path} does not exist")]
    NotFound {
        /// Where.
        path: String,
    },
    /// Something is there, and it is not a model.
    #[error("{path} is not a model: {why}")]
    NotAModel {
        /// Where.
        path: String,
        /// What was found instead.
        why: String,
        /// What to do.
        hint: String,
    },
    /// A file of it is wrong.
    #[error("{path} is {error}")]
    Header {
        /// Which file.
        path: String,
        /// What is wrong.
        error: HeaderError,
    },
    /// Files that belong to it are not there.
    #[error("{path} is incomplete: {} missing", list(names))]
    MissingParts {
        /// The directory.
        path: String,
        /// The files.
        names: Vec<String>,
    },
    /// Two of its files hold a tensor of the same name.
    #[error("{path} holds a tensor that {other} holds, too")]
    Repeated {
        /// The file that was read later.
        path: String,
        /// The name of the other one.
        other: String,
    },
    /// It could not be read.
    #[error("{path} cannot be read: {why}")]
    Unreadable {
        /// Where.
        path: String,
        /// Why, cleaned.
        why: String,
    },
}

fn list(names: &[String]) -> String {
    let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        0..=4 => format!("{shown} {}", if names.len() == 1 { "is" } else { "are" }),
        n => format!("{shown} and {} more are", n - 4),
    }
}

impl ModelError {
    /// Nothing is at the path.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl Hint for ModelError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { path } => format!(
                "put the model there on the host, or correct `model` in the service's spec ({path})"
            ),
            Self::NotAModel { hint, .. } => hint.clone(),
            Self::Header { error: HeaderError::Truncated { .. }, .. } => {
                "the copy was cut short: copy the file again and compare sizes".to_owned()
            }
            Self::Header { error: HeaderError::NotThisFormat(_), path }
                if path.strip_suffix(".gguf").is_some() =>
            {
                "give the path of a GGUF file (version 2 or 3), or of a directory with safetensors"
                    .to_owned()
            }
            Self::Header { path, .. } if path.ends_with("/config.json") => {
                "copy the file again, and compare it with the published one".to_owned()
            }
            Self::Header { .. } => {
                "copy the file again; if it stays so, the model itself is damaged".to_owned()
            }
            Self::MissingParts { .. } => {
                "copy the missing files to the host; links that lead nowhere count as missing"
                    .to_owned()
            }
            Self::Repeated { .. } => {
                "an older set of files lies beside the model's own: leave one set there, with its index"
                    .to_owned()
            }
            Self::Unreadable { why, .. } if why.contains("levels of symbolic links") => {
                "its links lead in a circle: put the file itself there (`cp -L` from where it is)"
                    .to_owned()
            }
            Self::Unreadable { .. } => {
                "see that the user gpudeck logs in as may read the model's files".to_owned()
            }
        })
    }
}
