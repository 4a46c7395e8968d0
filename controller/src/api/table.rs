//! Tables: what `get` prints.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::resources::ResourceRef;

/// How much of the object a row carries along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
    /// Nothing.
    None,
}

impl Include {
    /// From the parameter `includeObject`.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Object") => Self::Object,
            Some("None") => Self::None,
            _ => Self::Metadata,
        }
    }
}

/// A table of objects; `metadata` is the list's.
pub(crate) fn table(
    resource: &ResourceRef,
    objects: &[Value],
    metadata: Value,
    include: Include,
    now: Timestamp,
    headings: bool,
) -> Value {
    let rows: Vec<_> = objects
        .iter()
        .map(|object| row(resource, object, include, now))
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": if headings { resource.column_definitions() } else { json!([]) },
        "rows": rows,
    })
}

/// The object's metadata alone.
pub(crate) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
    })
}

/// The same from the object's text, without reading more of it than where its metadata is.
pub(crate) fn partial_text(object: &[u8]) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let metadata = serde_json::from_slice::<Parts<'_>>(object).map_or("{}", |parts| parts.metadata.get());
    let head = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;
    [head.as_slice(), metadata.as_bytes(), b"}"].concat()
}

fn row(resource: &ResourceRef, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells = resource.row_cells(object, now);
    match include {
        Include::Metadata => json!({"cells": cells, "object": partial(object)}),
        Include::Object => json!({"cells": cells, "object": object}),
        Include::None => json!({"cells": cells}),
    }
}
