//! A stored object: its JSON text, ready to be sent, and what selectors ask about.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::Revision;

/// What is known of an object without reading its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The namespace; empty for a cluster-scoped object.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
    /// The labels in key order.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the resource's selectable fields, in the order of its table.
    pub fields: Box<[Box<str>]>,
}

impl crate::selector::Labels for Meta {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(name, _)| &**name == key)
            .map(|(_, value)| &**value)
    }
}

/// An object serialised but for its resource version, which only the write decides.
#[derive(Clone, Debug)]
pub struct Encoded {
    text: Vec<u8>,
    version_at: usize,
    meta: Meta,
}

impl Encoded {
    /// Serialises `object`. Its metadata begins with the resource version, so that the place is known.
    pub fn new(object: &Value, meta: Meta) -> Self {
        Self::with(object, None, meta)
    }

    /// The same with another text for one member of the object.
    pub fn with(object: &Value, apart: Option<(&str, &RawValue)>, meta: Meta) -> Self {
        let empty = Map::new();
        let fields = object.as_object().unwrap_or(&empty);
        let metadata = fields
            .get("metadata")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let mut text = Vec::with_capacity(1024);
        text.push(b'{');
        for key in ["apiVersion", "kind"] {
            if let Some(value) = fields.get(key) {
                member(&mut text, key, value);
                text.push(b',');
            }
        }
        text.extend_from_slice(b"\"metadata\":{\"resourceVersion\":\"");
        let version_at = text.len();
        text.push(b'"');
        for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
            text.push(b',');
            member(&mut text, key, value);
        }
        text.push(b'}');
        let others = |key: &str| !matches!(key, "apiVersion" | "kind" | "metadata");
        for (key, value) in fields.iter().filter(|(key, _)| others(key)) {
            text.push(b',');
            match apart.filter(|(name, _)| name == key) {
                Some((_, raw)) => member(&mut text, key, raw),
                None => member(&mut text, key, value),
            }
        }
        text.push(b'}');
        Self {
            text,
            version_at,
            meta,
        }
    }

    /// How long the text is.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether there is nothing; there always is.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// What an engine keeps that knows the revision itself: the place of the resource version (4 bytes, big-endian), then the
    /// text without it.
    pub(super) fn record(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(4 + self.text.len());
        record.extend_from_slice(&u32::try_from(self.version_at).unwrap_or(0).to_be_bytes());
        record.extend_from_slice(&self.text);
        record
    }

    /// Reads such a record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn from_record(
        record: &[u8],
        index: impl FnOnce(&[u8]) -> Result<Meta, serde_json::Error>,
    ) -> Result<Self, String> {
        let (version_at, text) = record.split_first_chunk::<4>().ok_or("too short")?;
        let version_at = u32::from_be_bytes(*version_at) as usize;
        if version_at > text.len() {
            return Err("the place of the resource version is behind its end".to_owned());
        }
        Ok(Self {
            text: text.to_vec(),
            version_at,
            meta: index(text).map_err(|error| error.to_string())?,
        })
    }

    /// The object as of `revision`.
    pub fn seal(self, revision: Revision) -> Object {
        let mut body = Vec::with_capacity(self.text.len() + 20);
        body.extend_from_slice(&self.text[..self.version_at]);
        body.extend_from_slice(revision.to_string().as_bytes());
        body.extend_from_slice(&self.text[self.version_at..]);
        Object {
            revision,
            version_at: self.version_at,
            body: body.into(),
            meta: self.meta,
        }
    }
}

/// One state of one object.
#[derive(Debug)]
pub struct Object {
    revision: Revision,
    version_at: usize,
    body: Bytes,
    meta: Meta,
}

impl Object {
    /// An object read back from a record.
    pub(super) fn from_record(revision: Revision, version_at: usize, body: Bytes, meta: Meta) -> Self {
        Self {
            revision,
            version_at,
            body,
            meta,
        }
    }

    /// The revision at which it was written: its resource version.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The JSON text, with `apiVersion`, `kind` and the resource version.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// What selectors ask about.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The object as a tree.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The object as a tree but for one member, whose text comes beside it; `None` if the object does not have it.
    pub fn value_but<'a>(&'a self, part: &str) -> Option<(Value, &'a RawValue)> {
        let mut deserializer = serde_json::Deserializer::from_slice(&self.body);
        deserializer.deserialize_map(But(part)).ok()?
    }

    pub(super) fn version_at(&self) -> usize {
        self.version_at
    }

    /// The same state under another revision: what a watcher is told about a deletion.
    #[must_use]
    pub fn at_revision(&self, revision: Revision) -> Self {
        let digits = self.revision.to_string().len();
        let mut body = Vec::with_capacity(self.body.len() + 4);
        body.extend_from_slice(&self.body[..self.version_at]);
        body.extend_from_slice(revision.to_string().as_bytes());
        body.extend_from_slice(&self.body[self.version_at + digits..]);
        Self {
            revision,
            version_at: self.version_at,
            body: body.into(),
            meta: self.meta.clone(),
        }
    }
}

/// Reads an object but for one member.
struct But<'p>(&'p str);

impl<'de> Visitor<'de> for But<'_> {
    type Value = Option<(Value, &'de RawValue)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut fields, mut apart) = (Map::new(), None);
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == self.0 {
                apart = Some(map.next_value::<&RawValue>()?);
            } else {
                fields.insert(key.into_owned(), map.next_value()?);
            }
        }
        Ok(apart.map(|text| (Value::Object(fields), text)))
    }
}

fn member(text: &mut Vec<u8>, key: &str, value: &(impl Serialize + ?Sized)) {
    // Writing to a vector cannot fail, and neither can serialising a tree whose keys are strings.
    let _ = serde_json::to_writer(&mut *text, key);
    text.push(b':');
    let _ = serde_json::to_writer(text, value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_is_spliced_in_and_replaced() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "resourceVersion": "3", "annotations": {"resourceVersion": "x"}},
            "data": {"k": "\"resourceVersion\":\""},
        });
        let sealed = Encoded::new(&object, Meta::default()).seal(41);
        let mut expected = object;
        expected["metadata"]["resourceVersion"] = json!("41");
        assert_eq!(sealed.value(), expected);
        expected["metadata"]["resourceVersion"] = json!("1000");
        let later = sealed.at_revision(1000);
        assert_eq!((later.value(), later.revision()), (expected, 1000));
    }

    #[test]
    fn a_part_is_set_aside_and_put_back_as_it_was() {
        let object =
            json!({"metadata": {"name": "a"}, "spec": {"b": [1, 2.50, "\u{e9}"]}, "status": {"c": true}});
        let sealed = Encoded::new(&object, Meta::default()).seal(3);
        let (mut value, spec) = sealed.value_but("spec").unwrap();
        assert_eq!(value["spec"], Value::Null);
        value["spec"] = json!({"stands": "for it"});
        let again = Encoded::with(&value, Some(("spec", spec)), Meta::default()).seal(3);
        assert_eq!(again.body(), sealed.body());
        assert!(sealed.value_but("data").is_none());
    }

    #[test]
    fn an_object_without_metadata_still_gets_a_version() {
        let sealed = Encoded::new(&json!({"kind": "X"}), Meta::default()).seal(7);
        assert_eq!(
            sealed.value(),
            json!({"kind": "X", "metadata": {"resourceVersion": "7"}})
        );
    }
}
