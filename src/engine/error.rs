//! Why an engine cannot serve a model as a spec says.

use crate::base::Hint;

/// Why an engine cannot serve a model as a spec says. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// This adapter does not do that (yet).
    #[error("{engine}: {what} is not supported")]
    Unsupported {
        /// The engine.
        engine: &'static str,
        /// What was asked for.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// The engine cannot divide this model so.
    #[error("{what}")]
    Indivisible {
        /// The numbers.
        what: String,
        /// What divides.
        hint: String,
    },
    /// The engine reads another format.
    #[error("{engine} cannot load the model: {what}")]
    Format {
        /// The engine.
        engine: &'static str,
        /// What it is.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The context is longer than the model allows.
    #[error("context = {context} is longer than the model's {limit}")]
    Context {
        /// Asked for.
        context: u64,
        /// The model's.
        limit: u64,
    },
    /// A setting that gpudeck makes itself.
    #[error("`{setting}` is set by gpudeck and cannot be given in the spec")]
    OwnedSetting {
        /// Which.
        setting: String,
        /// What to do.
        hint: String,
    },
    /// A placeholder of a command template is wrong.
    #[error("engine command: {what}")]
    Template {
        /// What.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A rank was given other devices than its shape wants.
    #[error("a rank that wants {wanted} GPUs was given {given}")]
    Devices {
        /// Wanted.
        wanted: usize,
        /// Given.
        given: usize,
    },
}

impl Hint for EngineError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { hint, .. }
            | Self::Indivisible { hint, .. }
            | Self::Format { hint, .. }
            | Self::OwnedSetting { hint, .. }
            | Self::Template { hint, .. } => Some(hint.clone()),
            Self::Context { limit, .. } => Some(format!("set `context` to at most {limit}")),
            Self::Devices { .. } => Some("run `gpudeck plan` again".to_owned()),
        }
    }
}
