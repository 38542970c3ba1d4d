//! The difference of two values as a JSON merge patch (RFC 7396). Together with the resourceVersion of the old value it
//! replaces a whole spec: what is gone becomes null, and a server that has anything newer refuses it.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The merge patch that makes `new` of `old`; an empty object where they are the same.
pub fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return new.clone();
    };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(before) if before == value => {}
            Some(before @ Value::Object(_)) if value.is_object() => {
                patch.insert(key.clone(), difference(before, value));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// A merge patch that replaces the spec, if the object is still at `resource_version`.
///
/// # Errors
/// When a spec cannot be written as JSON.
pub fn replace_spec<T: Serialize>(resource_version: &str, old: &T, new: &T) -> Result<Value, serde_json::Error> {
    let spec = difference(&serde_json::to_value(old)?, &serde_json::to_value(new)?);
    Ok(json!({ "metadata": { "resourceVersion": resource_version }, "spec": spec }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_add_change_and_remove() {
        let old = json!({ "a": 1, "b": { "x": 1, "y": 2 }, "c": [1], "d": {} });
        let new = json!({ "a": 1, "b": { "x": 3 }, "c": [1, 2], "e": { "z": 1 } });
        let expected = json!({ "b": { "x": 3, "y": null }, "c": [1, 2], "d": null, "e": { "z": 1 } });
        assert_eq!(difference(&old, &new), expected);
        assert_eq!(difference(&new, &new), json!({}));
    }
}
