//! Objects read without their managed fields, which are half of a typical object and which no controller looks at.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, Visitor,
    value::CowStrDeserializer,
};
use serde::{Deserialize, de};

/// An object read without its managed fields.
#[derive(Clone, Debug)]
pub struct Lean<K>(pub K);

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::deserialize(Sieve {
            inner: deserializer,
            part: Part::Object,
        })
        .map(Lean)
    }
}

/// What is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Object,
    Metadata,
    Other,
}

impl Part {
    /// What is under a key; `None` is left out.
    fn under(self, key: &str) -> Option<Part> {
        match (self, key) {
            (Part::Object, "metadata") => Some(Part::Metadata),
            (Part::Metadata, "managedFields") => None,
            _ => Some(Part::Other),
        }
    }
}

/// Wraps a deserializer, a visitor or a map, and hides what is left out.
struct Sieve<T> {
    inner: T,
    part: Part,
}

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty),*);)+) => { $(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, Self::Error> {
            let part = self.part;
            self.inner.$method($($argument,)* Sieve { inner: visitor, part })
        }
    )+ };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Sieve<D> {
    type Error = D::Error;

    forward! {
        deserialize_any();
        deserialize_map();
        deserialize_option();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_newtype_struct(name: &'static str);
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Sieve<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(formatter)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(SievedMap {
            map,
            of: self.part,
            value: Part::Other,
        })
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let part = self.part;
        self.inner.visit_some(Sieve {
            inner: deserializer,
            part,
        })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let part = self.part;
        self.inner.visit_newtype_struct(Sieve {
            inner: deserializer,
            part,
        })
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }
}

struct SievedMap<A> {
    map: A,
    of: Part,
    value: Part,
}

/// A key: borrowed from the text wherever it can be.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for SievedMap<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key_seed(Key)? {
            let Some(part) = self.of.under(&key) else {
                self.map.next_value::<IgnoredAny>()?;
                continue;
            };
            self.value = part;
            let key: CowStrDeserializer<'_, A::Error> = key.into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        if self.value == Part::Metadata {
            return self.map.next_value_seed(Inside(seed));
        }
        self.map.next_value_seed(seed)
    }
}

/// Reads the value of `metadata`.
struct Inside<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Inside<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Sieve {
            inner: deserializer,
            part: Part::Metadata,
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::DynamicObject;
    use kube::core::PartialObjectMeta;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    fn read<K: DeserializeOwned>() -> K {
        let text = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "labels": {"managedFields": "x", "es\"caped": "y"}, "generation": 3,
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}],
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true},
                ],
            },
            "spec": {"nodeName": "n", "containers": [{"name": "c", "env": [{"name": "managedFields"}]}]},
        });
        let Lean(object) = serde_json::from_str(&text.to_string()).unwrap();
        object
    }

    #[test]
    fn all_but_the_managed_fields_is_read() {
        let pod: Pod = read();
        let mut expected = pod.clone();
        expected.metadata.managed_fields = None;
        assert_eq!(pod, expected);
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["managedFields"], "x");
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["es\"caped"], "y");
        assert_eq!(pod.metadata.generation, Some(3));
        assert_eq!(pod.metadata.owner_references.unwrap()[0].controller, Some(true));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("n"));
        assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "managedFields");
    }

    #[test]
    fn objects_of_any_kind_are_read() {
        let partial: PartialObjectMeta<DynamicObject> = read();
        assert_eq!(partial.metadata.name.as_deref(), Some("a"));
        assert_eq!(partial.metadata.managed_fields, None);
        assert_eq!(partial.types.unwrap().kind, "Pod");
    }
}
