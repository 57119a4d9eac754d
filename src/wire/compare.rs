//! How a process runs against how it was to run. It is compared on its host: no value that is not its release's own
//! travels, since an engine's environment and arguments may hold keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::RankId;

/// Variables that say which GPUs a program sees: their values are GPUs and no secrets.
pub const GPU_VARIABLES: [&str; 3] =
    ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"];

/// How a rank was to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankWanted {
    /// Which rank.
    pub rank: RankId,
    /// As [`super::RankStart::argv`].
    pub argv: Vec<String>,
    /// As [`super::RankStart::env`].
    pub env: BTreeMap<String, String>,
}

/// What of its process is otherwise. Nothing is in it that the asker did not say, but names of GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankSeen {
    /// None: not known, for a program may write a title over its command line, or become another program.
    #[serde(default)]
    pub arguments: Option<ArgumentsSeen>,
    /// The variables that are otherwise; none: not known, for a title may lie over them, too.
    #[serde(default)]
    pub variables: Option<Vec<VariableSeen>>,
}

/// Arguments of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArgumentsSeen {
    /// Which of those asked about, as they are counted in [`RankWanted::argv`], it does not have.
    #[serde(default)]
    pub missing: Vec<u32>,
    /// How many others it has.
    #[serde(default)]
    pub more: u32,
    /// It has the same ones in another order.
    #[serde(default)]
    pub reordered: bool,
}

/// A variable of a process that is otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariableSeen {
    /// Its name, one of those asked about.
    pub name: String,
    /// It has another value; otherwise it is not set at all.
    pub is_set: bool,
    /// Of a variable that says which GPUs a program sees: these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<GpusSeen>,
}

/// GPUs that a process sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpusSeen {
    /// Those that it sees. None: something that names no GPUs.
    pub seen: Option<Vec<String>>,
    /// Those that it was given when it was started.
    pub wanted: Vec<String>,
}
