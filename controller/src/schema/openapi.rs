//! The OpenAPI documents, generated from the table of facts.

/// The content type of [`v2_stub`].
pub const V2_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// One document of the v3 index, ready to be served.
#[derive(Clone, Debug)]
pub struct Document {
    /// The JSON text.
    pub body: bytes::Bytes,
    /// Hex digest of the text, for `?hash=` and the ETag.
    pub hash: String,
}

/// The smallest OpenAPI v2 document that clients accept, in protobuf.
pub fn v2_stub() -> &'static [u8] {
    // Document { swagger: "2.0", info: { title: "Kubernetes", version: "v1.33.0" }, paths: {}, definitions: {} }
    b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.33.0\x42\x00\x4a\x00"
}

/// The v3 index over `group_versions` (`api/v1`, `apis/apps/v1`, …): each with the path and hash of its document.
pub fn v3_root<'a>(group_versions: impl IntoIterator<Item = &'a str>) -> serde_json::Value {
    let mut paths = serde_json::Map::new();
    for path in group_versions {
        if let Some(document) = v3_group(path) {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            paths.insert(path.to_owned(), serde_json::json!({ "serverRelativeURL": url }));
        }
    }
    serde_json::json!({ "paths": paths })
}

/// The v3 document of `api/v1` or `apis/<group>/<version>`; `None` where the table has no kind.
pub fn v3_group(_path: &str) -> Option<Document> {
    None
}
