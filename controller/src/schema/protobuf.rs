//! Decoding of protobuf request bodies into the JSON they stand for.
//!
//! The messages are those of the Kubernetes Go types, so the table of facts is all that is needed: field numbers, what is
//! inline in JSON, and what is a pointer (Go writes fields that are no pointers even when they are zero; JSON leaves such
//! zeros out).

use base64::Engine as _;
use serde_json::{Map, Value};

use super::facts::{Field, Shape, TypeDef, table};
use super::fields::format_time;

mod wire;

use wire::{Reader, Wire};

/// The content type of such bodies.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// Why a protobuf body could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The body does not begin with the four magic bytes.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    /// The wire format is broken.
    #[error("proto: {0}")]
    Malformed(&'static str),
    /// The kind has no known message.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// The group and version named in the body.
        api_version: String,
        /// The kind named in the body.
        kind: String,
    },
}

/// The object in a protobuf body, with `apiVersion` and `kind` set.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?;
    let envelope = Envelope::read(body)?;
    if envelope.content_type.contains("json") {
        return serde_json::from_slice(envelope.raw)
            .map_err(|_| ProtobufError::Malformed("the embedded JSON is not valid"));
    }
    let (group, version) = match envelope.api_version.split_once('/') {
        Some(parts) => parts,
        None => ("", envelope.api_version.as_str()),
    };
    let entry = match envelope.kind.as_str() {
        // Options belong to every group and version.
        "DeleteOptions" => table().kind("", "v1", "DeleteOptions"),
        kind => table().kind(group, version, kind),
    };
    let Some(entry) = entry else {
        return Err(ProtobufError::UnknownKind {
            api_version: envelope.api_version,
            kind: envelope.kind,
        });
    };
    let mut object = Map::new();
    message(entry.root.definition(), envelope.raw, &mut object)?;
    object.insert("apiVersion".to_owned(), Value::String(envelope.api_version));
    object.insert("kind".to_owned(), Value::String(envelope.kind));
    Ok(Value::Object(object))
}

/// `runtime.Unknown`: what is inside, and the bytes of it.
#[derive(Default)]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    content_type: String,
}

impl<'a> Envelope<'a> {
    fn read(body: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut envelope = Self::default();
        let mut reader = Reader::new(body);
        while let Some((number, wire)) = reader.next()? {
            match (number, wire) {
                (1, Wire::Bytes(meta)) => {
                    let mut reader = Reader::new(meta);
                    while let Some((number, wire)) = reader.next()? {
                        match (number, wire) {
                            (1, Wire::Bytes(text)) => envelope.api_version = string(text)?,
                            (2, Wire::Bytes(text)) => envelope.kind = string(text)?,
                            _ => {}
                        }
                    }
                }
                (2, Wire::Bytes(raw)) => envelope.raw = raw,
                (4, Wire::Bytes(text)) => envelope.content_type = string(text)?,
                _ => {}
            }
        }
        Ok(envelope)
    }
}

fn string(bytes: &[u8]) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtobufError::Malformed("invalid UTF-8"))
}

/// Reads one message into `object`. The types of the table do not recurse, so neither does this without bound.
fn message(definition: &TypeDef, bytes: &[u8], object: &mut Map<String, Value>) -> Result<(), ProtobufError> {
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        // Fields of later releases are left out, as unknown fields always are.
        let Some(field) = definition.fields.iter().find(|field| field.number == number) else {
            continue;
        };
        match field.shape {
            Shape::Struct(id) if field.inline => message(id.definition(), expect_bytes(wire)?, object)?,
            Shape::List(item) => {
                let list = object
                    .entry(field.name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { continue };
                match wire {
                    Wire::Bytes(packed) if matches!(*item, Shape::I32 | Shape::I64 | Shape::Bool) => {
                        let mut reader = Reader::new(packed);
                        while let Some(number) = reader.next_varint()? {
                            list.push(value(*item, Wire::Varint(number))?);
                        }
                    }
                    wire => list.push(value(*item, wire)?),
                }
            }
            Shape::Map(item) => {
                let (key, entry) = map_entry(*item, expect_bytes(wire)?)?;
                let entries = object
                    .entry(field.name)
                    .or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(entries) = entries {
                    entries.insert(key, entry);
                }
            }
            Shape::Struct(id) => {
                // A message that comes in parts is put together.
                let mut inner = match object.remove(field.name) {
                    Some(Value::Object(inner)) => inner,
                    _ => Map::new(),
                };
                message(id.definition(), expect_bytes(wire)?, &mut inner)?;
                if field.pointer || !inner.is_empty() {
                    object.insert(field.name.to_owned(), Value::Object(inner));
                }
            }
            shape => {
                let value = value(shape, wire)?;
                if is_written(field, &value) {
                    object.insert(field.name.to_owned(), value);
                } else {
                    object.remove(field.name);
                }
            }
        }
    }
    Ok(())
}

/// Whether the scalar is there in JSON: zeros are only where absent and zero differ.
fn is_written(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => false,
        _ if field.pointer || field.zero_written => true,
        Value::Number(number) => number.as_f64() != Some(0.0) || field.shape == Shape::IntOrString,
        Value::Bool(set) => *set,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(_) => true,
    }
}

fn expect_bytes(wire: Wire<'_>) -> Result<&[u8], ProtobufError> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(ProtobufError::Malformed("wrong wireType")),
    }
}

fn map_entry(shape: Shape, bytes: &[u8]) -> Result<(String, Value), ProtobufError> {
    let (mut key, mut entry) = (String::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => key = string(expect_bytes(wire)?)?,
            2 => entry = Some(value(shape, wire)?),
            _ => {}
        }
    }
    let empty = match shape {
        Shape::Struct(_) | Shape::Map(_) => Value::Object(Map::new()),
        Shape::List(_) | Shape::Wrapped(_) => Value::Array(Vec::new()),
        _ => Value::String(String::new()),
    };
    Ok((key, entry.unwrap_or(empty)))
}

fn value(shape: Shape, wire: Wire<'_>) -> Result<Value, ProtobufError> {
    Ok(match (shape, wire) {
        (Shape::Bool, Wire::Varint(number)) => Value::Bool(number != 0),
        (Shape::I32, Wire::Varint(number)) => Value::from(number as i32),
        (Shape::I64, Wire::Varint(number)) => Value::from(number.cast_signed()),
        (Shape::F64, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
        (Shape::Str, Wire::Bytes(bytes)) => Value::String(string(bytes)?),
        (Shape::Bytes, Wire::Bytes(bytes)) => {
            Value::String(base64::engine::general_purpose::STANDARD.encode(bytes))
        }
        (Shape::Quantity, Wire::Bytes(bytes)) => match field_of(bytes, 1)? {
            Some(Wire::Bytes(text)) => Value::String(string(text)?),
            _ => Value::String("0".to_owned()),
        },
        (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Shape::Time, Wire::Bytes(bytes)) => time(bytes, false)?,
        (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, true)?,
        (Shape::Duration, Wire::Bytes(bytes)) => match field_of(bytes, 1)? {
            Some(Wire::Varint(nanos)) => {
                let duration = jiff::SignedDuration::from_nanos(nanos.cast_signed());
                Value::String(format!("{}s", duration.as_secs_f64()))
            }
            _ => Value::String("0s".to_owned()),
        },
        (Shape::Raw | Shape::FieldsV1, Wire::Bytes(bytes)) => match field_of(bytes, 1)? {
            Some(Wire::Bytes(json)) => serde_json::from_slice(json)
                .map_err(|_| ProtobufError::Malformed("the embedded JSON is not valid"))?,
            _ => Value::Null,
        },
        (Shape::Struct(id), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            message(id.definition(), bytes, &mut object)?;
            Value::Object(object)
        }
        (Shape::Wrapped(Shape::List(item)), Wire::Bytes(bytes)) => {
            let mut items = Vec::new();
            let mut reader = Reader::new(bytes);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    items.push(value(**item, wire)?);
                }
            }
            Value::Array(items)
        }
        _ => return Err(ProtobufError::Malformed("wrong wireType")),
    })
}

fn field_of(bytes: &[u8], wanted: u32) -> Result<Option<Wire<'_>>, ProtobufError> {
    let mut found = None;
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// `IntOrString{type, intVal, strVal}`.
fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    if let Some(Wire::Varint(1)) = field_of(bytes, 1)? {
        return match field_of(bytes, 3)? {
            Some(Wire::Bytes(text)) => string(text).map(Value::String),
            _ => Ok(Value::String(String::new())),
        };
    }
    match field_of(bytes, 2)? {
        Some(Wire::Varint(number)) => Ok(Value::from(number as i32)),
        _ => Ok(Value::from(0)),
    }
}

/// `Timestamp{seconds, nanos}`; an empty one is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, ProtobufError> {
    let number = |field| -> Result<i64, ProtobufError> {
        match field_of(bytes, field)? {
            Some(Wire::Varint(number)) => Ok(number.cast_signed()),
            _ => Ok(0),
        }
    };
    let (seconds, nanos) = (number(1)?, number(2)? as i32);
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let time =
        jiff::Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed("time out of range"))?;
    Ok(Value::String(format_time(time, micro)))
}

#[cfg(test)]
mod tests;
