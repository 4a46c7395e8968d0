//! Reads a few members of an object's text, and passes over the rest without building anything of it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

/// Of an object's JSON text what is at these paths, such as `metadata.labels` or `status.podIPs.0.ip`.
///
/// # Errors
/// If it is not JSON.
pub(super) fn pick(text: &[u8], paths: &[&str]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Pick(paths.to_vec()).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// What is left of the paths.
struct Pick<'p>(Vec<&'p str>);

impl<'p> Pick<'p> {
    /// What is wanted of a member.
    fn under(&self, part: &str) -> Pick<'p> {
        let rest = self.0.iter().filter_map(|path| match path.split_once('.') {
            Some((first, rest)) => (first == part).then_some(rest),
            None => (*path == part).then_some(""),
        });
        Pick(rest.collect())
    }

    fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.is_nothing() {
            return IgnoredAny::deserialize(deserializer).map(|_| Value::Null);
        }
        if self.0.contains(&"") {
            return Value::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut picked = Map::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let wanted = self.under(&key);
            if wanted.is_nothing() {
                map.next_value::<IgnoredAny>()?;
            } else {
                picked.insert(key.into_owned(), map.next_value_seed(wanted)?);
            }
        }
        Ok(Value::Object(picked))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut picked = Vec::new();
        while let Some(item) = list.next_element_seed(self.under(&picked.len().to_string()))? {
            picked.push(item);
        }
        Ok(Value::Array(picked))
    }

    // A path that leads through one of these leads nowhere.

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_nothing_else() {
        let text = json!({
            "kind": "Pod", "n": 1.5, "none": null,
            "metadata": {"name": "a", "labels": {"x": "1", "es\"caped": "y"}, "managedFields": [{"a": [1, -2, "]"]}]},
            "spec": {"nodeName": "n", "hostNetwork": true, "containers": [{"name": "c"}]},
            "status": {"podIPs": [{"ip": "::1", "x": 1}, {"ip": "::2"}], "phase": 3},
        });
        let paths = [
            "metadata.name",
            "metadata.labels",
            "spec.hostNetwork",
            "status.podIPs.0.ip",
            "status.phase.deeper",
            "absent.at.all",
            "kind",
        ];
        let picked = pick(text.to_string().as_bytes(), &paths).unwrap();
        let expected = json!({
            "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "1", "es\"caped": "y"}},
            "spec": {"hostNetwork": true}, "status": {"podIPs": [{"ip": "::1"}, null], "phase": null},
        });
        assert_eq!(picked, expected);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{", "{\"a\":}", "{} x", "[1,]", "{\"a\":\"\u{1}\"}"] {
            pick(text.as_bytes(), &["a.b"]).unwrap_err();
        }
    }
}
