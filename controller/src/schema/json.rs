//! JSON parsing that notices duplicate keys.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses a JSON text. As in Go the last of duplicate keys wins; the paths of all that came twice are returned beside
/// the value, in the order found, each once.
pub fn parse_with_duplicates(text: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut found = Found::within(text.len());
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Node(&mut found).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, found.duplicates))
}

/// The same of a YAML text. What its aliases repeat must not make more of it than it could say itself.
pub fn parse_yaml_with_duplicates(text: &[u8]) -> Result<(Value, Vec<String>), serde_yaml_ng::Error> {
    let mut found = Found::within(text.len());
    let value = Node(&mut found).deserialize(serde_yaml_ng::Deserializer::from_slice(text))?;
    Ok((value, found.duplicates))
}

/// What aliases may make of a short text.
const LEAST_ROOM: usize = 1 << 20;

/// So many are named; more make the message no clearer, and each is looked for among those before.
const MOST_DUPLICATES: usize = 100;

struct Found {
    path: String,
    duplicates: Vec<String>,
    /// How many values and bytes of text may still come.
    room: usize,
}

impl Found {
    /// For a text of so many bytes: a value takes one at least, and an escape makes no more than twice its length.
    fn within(bytes: usize) -> Self {
        Self {
            path: String::new(),
            duplicates: Vec::new(),
            room: (4 * bytes).max(LEAST_ROOM),
        }
    }

    fn take<E: de::Error>(&mut self, amount: usize) -> Result<(), E> {
        let left = self.room.checked_sub(amount);
        self.room = left.ok_or_else(|| E::custom("aliases make it too large"))?;
        Ok(())
    }
}

struct Node<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.take(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.0.take(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        self.0.take(value.len())?;
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let found = self.0;
        let length = found.path.len();
        let mut list = Vec::new();
        loop {
            found.path.extend(["[", &list.len().to_string(), "]"]);
            let item = items.next_element_seed(Node(found))?;
            found.path.truncate(length);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let found = self.0;
        let length = found.path.len();
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            found.take(key.len())?;
            if length > 0 {
                found.path.push('.');
            }
            found.path.push_str(&key);
            if object.contains_key(&key)
                && found.duplicates.len() < MOST_DUPLICATES
                && !found.duplicates.contains(&found.path)
            {
                found.duplicates.push(found.path.clone());
            }
            let value = entries.next_value_seed(Node(found))?;
            found.path.truncate(length);
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_last_duplicate_wins_and_each_path_is_named_once() {
        let text =
            br#"{"a":1,"a":2,"a":3,"spec":{"list":[{"x":1,"x":{"y":null}},{"x":2}]},"b":[1.5,-3,"s",true]}"#;
        let (value, duplicates) = parse_with_duplicates(text).expect("valid");
        assert_eq!(duplicates, ["a", "spec.list[0].x"]);
        assert_eq!(value["a"], json!(3));
        assert_eq!(value["spec"]["list"], json!([{"x": {"y": null}}, {"x": 2}]));
    }

    #[test]
    fn aliases_make_a_yaml_text_no_larger_than_it_could_be() {
        let parse = |text: &str| parse_yaml_with_duplicates(text.as_bytes());
        let (value, duplicates) = parse("a: &x {k: [1, two]}\nb: *x\nc: 1\nc: 2\n").expect("small");
        assert_eq!(value["b"], value["a"]);
        assert_eq!((value["c"].clone(), duplicates), (json!(2), vec!["c".to_owned()]));
        let list = "0,".repeat(50_000);
        let bomb = format!("a: &x [{list}]\nb: [{}]\n", "*x,".repeat(50_000));
        assert!(parse(&bomb).is_err());
        let text = "y".repeat(50_000);
        let bomb = format!("a: &x {text}\nb: [{}]\n", "*x,".repeat(50_000));
        assert!(parse(&bomb).is_err());
        let bomb = format!("a: &x {{{text}: 1}}\nb: [{}]\n", "*x,".repeat(50_000));
        assert!(parse(&bomb).is_err());
        // Whatever has no aliases has room.
        for text in [
            "[,]",
            "? \n",
            "a:\nb:\n",
            "\"\\L\\P\\N\"",
            "- - - -",
            "{a,b,c}",
            "--- x",
        ] {
            let plain = serde_yaml_ng::from_str::<Value>(text).map_err(|error| error.to_string());
            let ours = parse(text)
                .map(|(value, _)| value)
                .map_err(|error| error.to_string());
            assert_eq!(plain.is_ok(), ours.is_ok(), "{text} {ours:?}");
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in ["", "{", "{}x", "[1,]", "{\"a\"}", "nul"] {
            assert!(parse_with_duplicates(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse_with_duplicates(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_parser(text in "[\\[\\]{}\":,a0-9.\\-e ]{0,40}") {
            let plain = serde_json::from_str::<Value>(&text).ok();
            prop_assert_eq!(parse_with_duplicates(text.as_bytes()).ok().map(|(value, _)| value), plain);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_with_duplicates(&bytes);
        }
    }
}
