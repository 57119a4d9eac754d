//! A safetensors file that was named itself: with its other parts, and with what lies beside it.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{all_parts, base_name, join, parent};
use super::{Inspection, Job, ListFor, State, Step, What};
use crate::base::Bytes;
use crate::model::{ModelError, ModelFormat, safetensors};
use crate::wire::DirEntry;

/// What the index of a file's parts is called, after their stem.
const INDEX: &str = ".safetensors.index.json";

impl Inspection {
    pub(super) fn begin_safetensors(&mut self) -> State {
        self.facts.format = ModelFormat::Safetensors;
        State::List { path: parent(&self.path).to_owned(), why: ListFor::Beside }
    }

    /// The file and nothing else.
    pub(super) fn alone(&mut self) -> Step {
        self.queue.push_back(Job { path: self.path.clone(), what: What::Shard });
        self.next_job()
    }

    /// What lies in the file's directory.
    pub(super) fn beside(&mut self, path: &str, entries: &[DirEntry]) -> Step {
        let files: BTreeMap<&str, Bytes> =
            entries.iter().filter(|e| !e.is_dir).map(|e| (e.name.as_str(), e.size)).collect();
        let name = base_name(&self.path).to_owned();
        if files.contains_key(name.as_str()) {
            self.what_else(&files);
            if self.queue_config(path, &files) {
                // The file is described by what lies beside it: together they are the model.
                path.clone_into(&mut self.facts.entry);
            } else {
                self.facts.notes.push("there is no config.json beside the weights".to_owned());
            }
        }
        self.sizes = files
            .iter()
            .filter(|(n, _)| n.ends_with(".safetensors"))
            .map(|(n, size)| (join(path, n), *size))
            .collect();
        let stem = all_parts(&name).and_then(|_| Some(name.rsplit_once("-of-")?.0.to_owned()));
        let stem = stem.as_deref().and_then(|rest| Some(rest.rsplit_once('-')?.0));
        let own = stem.map(|stem| format!("{stem}{INDEX}"));
        let usual = format!("model{INDEX}");
        let index = own.into_iter().chain([usual]).find(|n| files.contains_key(n.as_str()));
        let readable =
            |n: &String| files.get(n.as_str()).is_some_and(|b| b.0 <= safetensors::MAX_INDEX);
        match index.filter(readable) {
            Some(index) => {
                self.queue.push_back(Job { path: join(path, &index), what: What::Index });
                self.next_job()
            }
            None => self.its_parts(),
        }
    }

    /// The parts that the file's name tells, or it alone.
    fn its_parts(&mut self) -> Step {
        let Some(parts) = all_parts(base_name(&self.path)) else { return self.alone() };
        let directory = parent(&self.path).to_owned();
        let missing: Vec<String> = parts
            .iter()
            .filter(|n| !self.sizes.contains_key(&join(&directory, n)))
            .cloned()
            .collect();
        if missing.len() == parts.len() {
            return Err(ModelError::NotFound { path: self.path.clone() });
        }
        if !missing.is_empty() {
            return Err(ModelError::MissingParts { path: directory, names: missing });
        }
        self.facts.entry.clone_from(&directory);
        self.queue_shards(parts.iter().map(|n| join(&directory, n)).collect())?;
        self.next_job()
    }

    /// Whether an index that was found beside a file is of others, and what is to be read then.
    pub(super) fn is_of_others(&mut self, names: &BTreeSet<String>) -> Option<Step> {
        let name = base_name(&self.path);
        let asked = name.ends_with(".safetensors");
        if asked && !names.contains(name) {
            return Some(self.its_parts());
        }
        if asked {
            parent(&self.path).clone_into(&mut self.facts.entry);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::base::Bytes;
    use crate::model::inspect::tests::{CONFIG, a_shard, files, inspect};
    use crate::model::{Found, Inspection, ModelError, Need};

    #[test]
    fn one_part_of_a_model_is_taken_for_the_whole_of_it() {
        let mut all = files(&[
            ("/m/config.json", CONFIG),
            ("/m/tokenizer.json", b"{}"),
            ("/m/model-00001-of-00003.safetensors", &a_shard(4)),
            ("/m/model-00002-of-00003.safetensors", &a_shard(6)),
            ("/m/model-00003-of-00003.safetensors", &a_shard(8)),
            ("/m/consolidated.safetensors", &a_shard(18)),
        ]);
        let index = br#"{"weight_map":{"w4":"model-00001-of-00003.safetensors","w6":"model-00002-of-00003.safetensors",
            "w8":"model-00003-of-00003.safetensors","w10":"extra.safetensors"}}"#;
        for number in 1..=3 {
            let path = format!("/m/model-0000{number}-of-00003.safetensors");
            let facts = inspect(&all, &path).unwrap();
            assert_eq!((facts.parts, facts.weight_bytes), (3, Bytes(18)));
            assert_eq!(
                (facts.entry.as_str(), facts.kv_heads, facts.tokenizer),
                ("/m", Some(2), true)
            );
            // As where its directory is named.
            let whole = inspect(&all, "/m").unwrap();
            assert_eq!((facts.weight_bytes, facts.caches), (whole.weight_bytes, whole.caches));
        }
        // The index knows of more, and is not asked about what it does not know.
        all.insert("/m/extra.safetensors".into(), a_shard(10));
        all.insert("/m/model.safetensors.index.json".into(), index.to_vec());
        let bytes = |path: &str| inspect(&all, path).unwrap().weight_bytes.0;
        assert_eq!(bytes("/m/model-00002-of-00003.safetensors"), 28);
        assert_eq!(bytes("/m/extra.safetensors"), 28);
        assert_eq!(bytes("/m/consolidated.safetensors"), 18);
        let lost = all.remove("/m/model-00003-of-00003.safetensors").unwrap();
        for path in ["/m/model-00001-of-00003.safetensors", "/m/model-00003-of-00003.safetensors"] {
            let error = inspect(&all, path).unwrap_err();
            let said = "/m is incomplete: model-00003-of-00003.safetensors is missing";
            assert_eq!(error.to_string(), said, "{path}");
        }
        all.remove("/m/model.safetensors.index.json");
        let error = inspect(&all, "/m/model-00001-of-00003.safetensors").unwrap_err();
        assert!(matches!(&error, ModelError::MissingParts { names, .. } if names.len() == 1));
        // A variant with parts of its own.
        all.insert("/m/model-00003-of-00003.safetensors".into(), lost);
        all.insert("/m/model.fp16-00001-of-00001.safetensors".into(), a_shard(14));
        let facts = inspect(&all, "/m/model.fp16-00001-of-00001.safetensors").unwrap();
        assert_eq!(facts.weight_bytes, Bytes(14));
    }

    #[test]
    fn a_file_is_described_by_the_config_beside_it() {
        let all = files(&[
            ("/m/config.json", CONFIG),
            ("/m/model.safetensors", &a_shard(4)),
            ("/m/other.safetensors", &a_shard(6)),
            ("/n/model.safetensors", &a_shard(4)),
        ]);
        let facts = inspect(&all, "/m/model.safetensors").unwrap();
        assert_eq!((facts.entry.as_str(), facts.layers), ("/m", Some(2)));
        assert!(facts.files.contains(&"/m/config.json".to_owned()));
        assert_eq!(facts.weight_bytes, Bytes(4));
        let alone = inspect(&all, "/n/model.safetensors").unwrap();
        assert_eq!((alone.entry.as_str(), alone.parts), ("/n/model.safetensors", 1));
        assert!(inspect(&all, "/m/none.safetensors").unwrap_err().is_missing());
        assert!(inspect(&all, "/x/none.safetensors").unwrap_err().is_missing());
        assert!(inspect(&all, "/m/a-00001-of-00002.safetensors").unwrap_err().is_missing());
    }

    #[test]
    fn hostile_numbers_of_parts_are_bounded() {
        for name in [
            "model-00001-of-99999999999.safetensors",
            "model-00001-of-04294967295.safetensors",
            "model-00000-of-00002.safetensors",
            "model-00003-of-00002.safetensors",
            "model-1-of-.safetensors",
            "-of-.safetensors",
            ".safetensors",
            "model-99999999999999999999-of-00002.safetensors",
        ] {
            let path = format!("/m/{name}");
            let all = files(&[(path.as_str(), &a_shard(4)[..])]);
            let read = inspect(&all, &path);
            assert!(read.is_ok_and(|facts| facts.parts == 1), "{name}");
        }
        let path = "/m/model-00001-of-02000.safetensors";
        let error = inspect(&files(&[(path, &a_shard(4)[..])]), path).unwrap_err();
        assert!(matches!(&error, ModelError::MissingParts { names, .. } if names.len() == 1_999));
        // A directory that may not be listed.
        let mut inspection = Inspection::new("/m/model-00001-of-00002.safetensors");
        assert_eq!(inspection.next(), Need::ListDir { path: "/m".to_owned() });
        inspection.feed(Found::Failed { why: "Permission denied".to_owned() });
        assert!(matches!(inspection.next(), Need::Read { .. }));
    }
}
