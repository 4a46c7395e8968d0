//! Which form an answer takes, and how a body is read.

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use super::status::ApiError;
use crate::schema::{json, protobuf};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Objects as they are.
    Object,
    /// Rows for people.
    Table,
    /// Metadata alone.
    Metadata,
}

/// Media types that bodies can have.
const READ: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
/// Media types that answers can have.
const WRITTEN: &str = "application/json";

/// Chooses the form from the Accept header: the first that can be served.
///
/// # Errors
/// 406 if none can.
pub(crate) fn form(headers: &HeaderMap, objects_only: bool) -> Result<Form, ApiError> {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
        return Ok(Form::Object);
    };
    if accept.trim().is_empty() {
        return Ok(Form::Object);
    }
    for entry in accept.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let parameter = |name: &str| {
            entry
                .split(';')
                .skip(1)
                .map(str::trim)
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        let group = parameter("g").is_none_or(|group| group == "meta.k8s.io");
        match parameter("as") {
            None => return Ok(Form::Object),
            Some("Table") if group && !objects_only => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if group && !objects_only => {
                return Ok(Form::Metadata);
            }
            Some(_) => {}
        }
    }
    Err(ApiError::not_acceptable(WRITTEN))
}

/// A body, read.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The object; null if there was no body.
    pub value: Value,
    /// Paths of keys that came twice.
    pub duplicates: Vec<String>,
}

/// The media type of the body without parameters.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map_or("", str::trim)
}

/// Reads the body of anything but a patch.
///
/// # Errors
/// 400 if it cannot be read, 415 if its type is unknown.
pub fn decode(headers: &HeaderMap, body: &Bytes) -> Result<Decoded, ApiError> {
    if body.is_empty() {
        return Ok(Decoded::default());
    }
    match content_type(headers) {
        "" | "application/json" | "*/*" => decode_json(body),
        "application/yaml" => decode_yaml(body),
        protobuf::CONTENT_TYPE => {
            let value = protobuf::decode(body).map_err(|error| ApiError::bad_request(error.to_string()))?;
            Ok(Decoded {
                value,
                duplicates: Vec::new(),
            })
        }
        _ => Err(ApiError::unsupported_media_type(READ)),
    }
}

/// Reads JSON.
///
/// # Errors
/// 400.
pub(crate) fn decode_json(body: &[u8]) -> Result<Decoded, ApiError> {
    let (value, duplicates) = json::parse_with_duplicates(body).map_err(|error| {
        ApiError::bad_request(format!("couldn't parse the body: json parse error: {error}"))
    })?;
    Ok(Decoded { value, duplicates })
}

/// Reads YAML, of which JSON is a part.
///
/// # Errors
/// 400.
pub(crate) fn decode_yaml(body: &[u8]) -> Result<Decoded, ApiError> {
    if body.first() == Some(&b'{')
        && let Ok(decoded) = decode_json(body)
    {
        return Ok(decoded);
    }
    let (value, duplicates) = json::parse_yaml_with_duplicates(body)
        .map_err(|error| ApiError::bad_request(format!("error parsing YAML: {error}")))?;
    Ok(Decoded { value, duplicates })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> Result<Form, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, text.parse().unwrap());
        form(&headers, false)
    }

    #[test]
    fn the_first_servable_form_wins() {
        assert_eq!(form(&HeaderMap::new(), false).unwrap(), Form::Object);
        assert_eq!(accept("*/*").unwrap(), Form::Object);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(accept(table).unwrap(), Form::Table);
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Form::Object
        );
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accept(metadata).unwrap(), Form::Metadata);
        assert_eq!(accept("text/html").unwrap_err().code, 406);
    }

    #[test]
    fn bodies_of_unknown_type_are_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        assert_eq!(decode(&headers, &Bytes::from_static(b"x")).unwrap_err().code, 415);
        headers.insert(
            header::CONTENT_TYPE,
            "application/json; charset=utf-8".parse().unwrap(),
        );
        assert_eq!(decode(&headers, &Bytes::from_static(b"{")).unwrap_err().code, 400);
        headers.insert(header::CONTENT_TYPE, "application/yaml".parse().unwrap());
        let decoded = decode(&headers, &Bytes::from_static(b"a: 1")).unwrap();
        assert_eq!(decoded.value["a"], 1);
    }
}
