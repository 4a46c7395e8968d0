//! Objects as a list or a watch delivers them.
//!
//! The list-and-watch machine needs little more of an object than its resource version. Generic over the kinds it would be
//! compiled, decoders included, once for each of thirty; over [`Unread`] it is compiled once, and a kind costs only its own
//! decoder.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicResourceScope;
use kube::core::discovery::ApiResource;
use kube::{Api, Client, Resource};
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;
use thiserror::Error;

use super::Lean;

/// An object whose kind is known from the request, and of which only the identity has been read.
#[derive(Clone, Debug)]
pub struct Unread {
    /// Name, namespace, uid and resource version; nothing else.
    identity: ObjectMeta,
    text: Box<RawValue>,
}

/// An object cannot be read as the kind that was asked for.
#[derive(Debug, Error)]
#[error("the server's {kind} `{namespace}/{name}` cannot be read; is the server of another version?")]
pub struct Unreadable {
    kind: &'static str,
    namespace: String,
    name: String,
    source: serde_json::Error,
}

impl Unread {
    /// Requests for the objects of a kind in all namespaces.
    pub fn all<K: Resource<DynamicType = ()>>(client: Client) -> Api<Self> {
        Api::all_with(client, &ApiResource::erase::<K>(&()))
    }

    /// Requests for the objects of a kind in one namespace.
    pub fn namespaced<K: Resource<DynamicType = ()>>(client: Client, namespace: &str) -> Api<Self> {
        Api::namespaced_with(client, namespace, &ApiResource::erase::<K>(&()))
    }

    /// Reads the object, all but its managed fields.
    pub fn read<K: DeserializeOwned>(&self) -> Result<K, Unreadable> {
        let read = serde_json::from_str(self.text.get()).map(|Lean(object)| object);
        read.map_err(|source| Unreadable {
            kind: std::any::type_name::<K>(),
            namespace: self.identity.namespace.clone().unwrap_or_default(),
            name: self.identity.name.clone().unwrap_or_default(),
            source,
        })
    }
}

impl Resource for Unread {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.identity
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.identity
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let mut found = None;
        // An object without metadata fails here as it would if it were read.
        let outcome = serde_json::Deserializer::from_str(text.get()).deserialize_map(Head(&mut found));
        match (found, outcome) {
            (Some(identity), _) => Ok(Unread {
                identity: identity.into(),
                text,
            }),
            (None, Err(error)) => Err(de::Error::custom(error)),
            (None, Ok(())) => Err(de::Error::missing_field("metadata")),
        }
    }
}

/// What the list-and-watch machine looks at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl From<Identity> for ObjectMeta {
    fn from(identity: Identity) -> Self {
        ObjectMeta {
            name: identity.name,
            namespace: identity.namespace,
            uid: identity.uid,
            resource_version: identity.resource_version,
            ..ObjectMeta::default()
        }
    }
}

/// Reads an object up to its metadata, which servers write ahead of the rest.
struct Head<'a>(&'a mut Option<Identity>);

impl<'de> Visitor<'de> for Head<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "metadata" {
                *self.0 = Some(map.next_value()?);
                // The text is whole, it was read as a value before: what follows need not be looked at twice.
                break;
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt;
    use kube::core::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;

    fn pod() -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"labels": {"a": "b"}, "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"containers": [{"name": "c"}]},
        })
    }

    fn check(object: &Unread) {
        assert_eq!(object.name_any(), "a");
        assert_eq!(object.namespace().as_deref(), Some("n"));
        assert_eq!(object.uid().as_deref(), Some("u"));
        assert_eq!(object.resource_version().as_deref(), Some("7"));
        let read: Pod = object.read().unwrap();
        assert_eq!(read.labels()["a"], "b");
        assert_eq!(read.spec.unwrap().containers[0].name, "c");
        assert_eq!(read.metadata.managed_fields, None);
    }

    #[test]
    fn objects_of_lists_and_of_watches_are_read_when_asked_for() {
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "9"},
            "items": [pod(), pod()]});
        let list: ObjectList<Unread> = serde_json::from_str(&list.to_string()).unwrap();
        assert_eq!(list.items.len(), 2);
        list.items.iter().for_each(check);
        let line = format!(r#"{{"type":"MODIFIED","object":{}}}"#, pod());
        let WatchEvent::Modified(object) = serde_json::from_str::<WatchEvent<Unread>>(&line).unwrap() else {
            panic!("modified");
        };
        check(&object);
    }

    #[test]
    fn metadata_may_come_last() {
        let text = r#"{"spec":{"containers":[{"name":"c"}]},"kind":"Pod","metadata":{"labels":{"a":"b"},"uid":"u",
            "namespace":"n","name":"a","resourceVersion":"7"}}"#;
        check(&serde_json::from_str(text).unwrap());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["3", "[]", "{}", r#"{"metadata":3}"#, r#"{"metadata":{"name":4}}"#] {
            serde_json::from_str::<Unread>(text).unwrap_err();
        }
        let odd = r#"{"metadata":{"name":"a","namespace":"n"},"spec":{"containers":3}}"#;
        let odd: Unread = serde_json::from_str(odd).unwrap();
        let error = odd.read::<Pod>().unwrap_err().to_string();
        assert!(error.contains("n/a") && error.contains("Pod"), "{error}");
    }
}
