//! What a change is, said plainly with JSON values: what the tests hold the real thing against.

use serde_json::{Map, Value};

use super::Misfit;

/// The change from `before` to `after`; none if they are equal.
pub fn between(before: &Value, after: &Value) -> Option<Value> {
    if before == after {
        return None;
    }
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let mut changes = Map::new();
            for key in before.keys().filter(|key| !after.contains_key(*key)) {
                changes.insert(key.clone(), Value::Null);
            }
            for (key, value) in after {
                match before.get(key) {
                    None => {
                        changes.insert(key.clone(), value.clone());
                    }
                    Some(old) => {
                        if let Some(change) = between(old, value) {
                            changes.insert(key.clone(), change);
                        }
                    }
                }
            }
            Some(Value::Object(changes))
        }
        (Value::Array(before), Value::Array(after))
            if before.len() == after.len() && !after.is_empty() =>
        {
            let changes = before.iter().zip(after).enumerate().filter_map(|(index, (old, new))| {
                between(old, new).map(|change| (index.to_string(), change))
            });
            Some(Value::Object(changes.collect()))
        }
        (_, after) => Some(after.clone()),
    }
}

/// Applies a change. After a misfit `to` is neither the one nor the other and must be forgotten.
///
/// # Errors
/// The change speaks of a list's element that is not there.
pub fn apply(to: &mut Value, change: Value) -> Result<(), Misfit> {
    let Value::Object(changes) = change else {
        *to = change;
        return Ok(());
    };
    if let Value::Array(list) = to {
        for (index, change) in changes {
            let index: usize = index.parse().map_err(|_| Misfit)?;
            apply(list.get_mut(index).ok_or(Misfit)?, change)?;
        }
        return Ok(());
    }
    if !to.is_object() {
        *to = Value::Object(Map::new());
    }
    let Value::Object(members) = to else { return Err(Misfit) };
    for (key, change) in changes {
        if change.is_null() {
            members.remove(&key);
        } else {
            apply(members.entry(key).or_insert(Value::Null), change)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What samples are made of: no `null`, and a member is a list in one sample and in the next.
    fn value(depth: u32) -> BoxedStrategy<Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0_u8..4).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        if depth == 0 {
            return leaf.boxed();
        }
        let inner = value(depth - 1);
        let list = prop::collection::vec(inner.clone(), 0..3);
        let some = |v: Option<Value>| v.map(|v| ("m", v));
        prop_oneof![
            leaf,
            (prop::option::of(inner), prop::option::of(list.clone()), prop::option::of(list))
                .prop_map(move |(a, b, c)| {
                    let members = [
                        some(a),
                        b.map(|v| ("l", Value::Array(v))),
                        c.map(|v| ("k", Value::Array(v))),
                    ];
                    let members = members.into_iter().flatten();
                    Value::Object(members.map(|(k, v)| (k.to_owned(), v)).collect())
                }),
        ]
        .boxed()
    }

    proptest! {
        #[test]
        fn a_change_leads_from_one_to_the_other(before in value(3), after in value(3)) {
            let mut now = before.clone();
            match between(&before, &after) {
                None => prop_assert_eq!(&before, &after),
                Some(change) => apply(&mut now, change).unwrap(),
            }
            prop_assert_eq!(now, after);
        }

        #[test]
        fn nothing_that_comes_breaks_it(mut before in value(3), change in value(3)) {
            let _ = apply(&mut before, change);
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let before = json!({ "gpus": [{ "t": 40, "u": 7 }, { "t": 41, "u": 8 }], "load": 1 });
        let after = json!({ "gpus": [{ "t": 40, "u": 7 }, { "t": 42 }], "load": 1 });
        let change = between(&before, &after).unwrap();
        assert_eq!(change, json!({ "gpus": { "1": { "t": 42, "u": null } } }));
        let mut short = json!({ "gpus": [] });
        assert_eq!(apply(&mut short, change), Err(Misfit));
    }
}
