//! `GPTQ`'s layers by name: `modules_in_block_to_quantize` (`AutoGPTQ`, `optimum`) and `dynamic`
//! (`GPTQModel`: `-:` before an expression leaves modules out, else its settings differ).

use serde_json::{Map, Value};

use super::names::Names;
use super::{Group, MAX_GROUPS, Method, Quantisation};
use crate::model::arch::conf::whole;

impl Quantisation {
    /// Follows both lists, once the method itself is known.
    pub(super) fn named_by_gptq(&mut self, config: &Map<String, Value>) {
        let Method::Gptq { bits, group, ordered } = self.method else { return };
        let settings = config.get("dynamic").and_then(Value::as_object);
        for (pattern, settings) in settings.into_iter().flatten() {
            if let Some(out) = pattern.strip_prefix("-:") {
                self.exceptions.add_pattern(out);
                continue;
            }
            let number = |key: &str| settings.get(key).and_then(whole);
            let ordered = settings.get("desc_act").and_then(Value::as_bool).unwrap_or(ordered);
            let method = Method::Gptq {
                bits: number("bits").unwrap_or(bits).min(16),
                group: number("group_size").unwrap_or(group),
                ordered,
            };
            if method == self.method {
                continue;
            }
            if self.groups.len() >= MAX_GROUPS {
                self.unknown = true;
                continue;
            }
            let mut names = Names::default();
            names.add_pattern(pattern.strip_prefix("+:").unwrap_or(pattern));
            self.groups.push(Group { method, names, linear: false });
        }
        let blocks = config.get("modules_in_block_to_quantize").and_then(Value::as_array);
        let mut names = Names::default();
        let inner = blocks.into_iter().flatten().flat_map(|inside| match inside {
            Value::Array(inside) => inside.as_slice(),
            one => std::slice::from_ref(one),
        });
        names.extend(inner.filter_map(Value::as_str));
        let linear = blocks.is_none_or(Vec::is_empty);
        if !self.groups.is_empty() || !linear {
            self.groups.push(Group { method: self.method, names, linear });
        }
    }
}
