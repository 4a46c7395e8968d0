//! Values: parts of a JSON document that are read through their type, and what expressions make of them.

mod containers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine as _;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde_json::Value as Json;

use super::functions::format::Format;
use super::functions::semver::Version;
use super::functions::time::{parse_lenient_duration, parse_timestamp};
use super::functions::url::Url;
use super::types::{ListKind, ListType, MapType, Named, ObjectType, Type};
use super::{Cost, EvaluationError};
use crate::quantity::Quantity;

/// The result of evaluating an expression.
pub(super) type Evaluated<'a> = Result<Value<'a>, EvaluationError>;

/// Text of the document, or made by an expression.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    /// A part of the document or of the program.
    Borrowed(&'a str),
    /// Made while evaluating.
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// A value; to copy one is cheap.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    String(Text<'a>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// A point in time.
    Timestamp(Timestamp),
    /// A length of time in nanoseconds.
    Duration(i64),
    /// A list.
    List(List<'a>),
    /// A map.
    Map(Map<'a>),
    /// An object of the document.
    Object(&'a serde_json::Map<String, Json>, &'a ObjectType),
    /// A value that may be absent.
    Optional(Option<Arc<Value<'a>>>),
    /// A type.
    Type(Arc<Type>),
    /// An amount of a resource.
    Quantity(Arc<Quantity>),
    /// A URL.
    Url(Arc<Url>),
    /// An IP address.
    Ip(IpAddr),
    /// A range of IP addresses.
    Cidr(IpNetwork),
    /// A rule for strings.
    Format(&'static Format),
    /// A semantic version.
    Semver(Arc<Version>),
}

/// A list of the document, or made by an expression.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// A part of the document.
    Json(&'a [Json], &'a ListType),
    /// Made while evaluating.
    Made(Arc<Vec<Value<'a>>>),
}

/// A map of the document, or made by an expression.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// A part of the document.
    Json(&'a serde_json::Map<String, Json>, &'a MapType),
    /// Made while evaluating.
    Made(Arc<BTreeMap<Key<'a>, Value<'a>>>),
}

/// The key of a map that an expression makes. Integers are equal whether signed or not.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// Text.
    String(Text<'a>),
}

impl<'a> Value<'a> {
    /// Text that was made while evaluating.
    pub(super) fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    /// A list that was made while evaluating.
    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(Arc::new(items)))
    }

    /// A size, a place: what is counted.
    pub(super) fn count(count: usize) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// An optional that has a value.
    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// The type that `type()` gives.
    pub(super) fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Timestamp(_) => Type::Timestamp,
            Self::Duration(_) => Type::Duration,
            Self::List(_) => Type::list(Type::Dynamic),
            Self::Map(_) => Type::map(Type::Dynamic, Type::Dynamic),
            Self::Object(..) => Type::Object(Arc::default()),
            Self::Optional(_) => Type::optional(Type::Dynamic),
            Self::Type(_) => Type::Type(Arc::new(Type::Dynamic)),
            Self::Quantity(_) => Type::Named(Named::Quantity),
            Self::Url(_) => Type::Named(Named::Url),
            Self::Ip(_) => Type::Named(Named::Ip),
            Self::Cidr(_) => Type::Named(Named::Cidr),
            Self::Format(_) => Type::Named(Named::Format),
            Self::Semver(_) => Type::Named(Named::Semver),
        }
    }

    /// A value of the document as its type has it.
    pub(super) fn from_json(json: &'a Json, of: &'a Type, cost: &mut Cost) -> Evaluated<'a> {
        let invalid = || EvaluationError::Data(of.to_string());
        Ok(match (of, json) {
            (_, Json::Null) => Self::Null,
            (Type::Dynamic, _) => Self::from_untyped(json),
            (Type::Bool, Json::Bool(value)) => Self::Bool(*value),
            (Type::Int, Json::Number(number)) => Self::Int(whole(number).ok_or_else(invalid)?),
            (Type::Double, Json::Number(number)) => Self::Double(number.as_f64().ok_or_else(invalid)?),
            (Type::String, Json::String(text)) => Self::String(Text::Borrowed(text)),
            (Type::Bytes, Json::String(text)) => {
                cost.traverse(text.len())?;
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                Self::Bytes(bytes.map_err(|_| invalid())?.into())
            }
            (Type::Timestamp, Json::String(text)) => {
                Self::Timestamp(parse_timestamp(text).ok_or_else(invalid)?)
            }
            (Type::Duration, Json::String(text)) => {
                cost.traverse(text.len())?;
                Self::Duration(parse_lenient_duration(text).ok_or_else(invalid)?)
            }
            (Type::List(of), Json::Array(items)) => Self::List(List::Json(items, of)),
            (Type::Map(of), Json::Object(entries)) => Self::Map(Map::Json(entries, of)),
            (Type::Object(of), Json::Object(fields)) => Self::Object(fields, of),
            _ => return Err(invalid()),
        })
    }

    fn from_untyped(json: &'a Json) -> Self {
        static LIST: ListType = ListType {
            item: Type::Dynamic,
            kind: ListKind::Atomic,
        };
        static MAP: MapType = MapType {
            key: Type::String,
            value: Type::Dynamic,
        };
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::Uint(number),
                (None, None) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::String(Text::Borrowed(text)),
            Json::Array(items) => Self::List(List::Json(items, &LIST)),
            Json::Object(entries) => Self::Map(Map::Json(entries, &MAP)),
        }
    }

    /// The field of an object or the entry of a map; `None` if it is absent.
    pub(super) fn field(&self, name: &str, cost: &mut Cost) -> Result<Option<Self>, EvaluationError> {
        match self {
            Self::Object(fields, of) => {
                let Some(field) = of.fields.get(name) else {
                    return Ok(None);
                };
                let found = fields.get(&field.name);
                found
                    .map(|found| Self::from_json(found, &field.of, cost))
                    .transpose()
            }
            Self::Map(Map::Json(entries, of)) => {
                let found = entries.get(name);
                found
                    .map(|found| Self::from_json(found, &of.value, cost))
                    .transpose()
            }
            Self::Map(Map::Made(entries)) => {
                Ok(entries.get(&Key::String(Text::Shared(name.into()))).cloned())
            }
            _ => Err(EvaluationError::NoSuchOverload),
        }
    }

    /// Whether a field is there, whatever its value.
    pub(super) fn has_field(&self, name: &str) -> Result<bool, EvaluationError> {
        match self {
            Self::Object(fields, of) => {
                let field = of.fields.get(name);
                Ok(field.is_some_and(|field| fields.contains_key(&field.name)))
            }
            Self::Map(Map::Json(entries, _)) => Ok(entries.contains_key(name)),
            Self::Map(Map::Made(entries)) => {
                Ok(entries.contains_key(&Key::String(Text::Shared(name.into()))))
            }
            _ => Err(EvaluationError::NoSuchOverload),
        }
    }

    /// Whether two values are the same. Values of different types are not, numbers apart.
    pub(super) fn equals(&self, other: &Self, cost: &mut Cost) -> Result<bool, EvaluationError> {
        cost.charge(1)?;
        Ok(match (self, other) {
            (Self::Null, Self::Null) | (Self::Optional(None), Self::Optional(None)) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) => {
                cost.traverse(a.len().min(b.len()))?;
                **a == **b
            }
            (Self::Bytes(a), Self::Bytes(b)) => {
                cost.traverse(a.len().min(b.len()))?;
                a == b
            }
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::List(a), Self::List(b)) => return a.equals(b, cost),
            (Self::Map(a), Self::Map(b)) => return a.equals(b, cost),
            (Self::Object(_, of), Self::Object(..)) => {
                // Fields that both lack are looked for too.
                cost.charge(of.fields.len())?;
                for name in of.fields.keys() {
                    let same = match (self.field(name, cost)?, other.field(name, cost)?) {
                        (Some(a), Some(b)) => a.equals(&b, cost)?,
                        (None, None) => true,
                        _ => false,
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Optional(Some(a)), Self::Optional(Some(b))) => return a.equals(b, cost),
            (Self::Type(a), Self::Type(b)) => match (&**a, &**b) {
                (Type::List(_), Type::List(_))
                | (Type::Map(_), Type::Map(_))
                | (Type::Object(_), Type::Object(_))
                | (Type::Type(_), Type::Type(_))
                | (Type::Optional(_), Type::Optional(_)) => true,
                (a, b) => a == b,
            },
            (Self::Quantity(a), Self::Quantity(b)) => a == b,
            (Self::Url(a), Self::Url(b)) => {
                cost.traverse(a.whole.len().min(b.whole.len()))?;
                a == b
            }
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Semver(a), Self::Semver(b)) => super::functions::semver::compare(cost, a, b)?.is_eq(),
            (Self::Format(a), Self::Format(b)) => std::ptr::eq(*a, *b),
            (a, b) => super::functions::operators::compare_numbers(a, b) == Some(std::cmp::Ordering::Equal),
        })
    }
}

/// A JSON number as an integer, even if it was written as `1.0`.
fn whole(number: &serde_json::Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let number = number.as_f64()?;
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        (number.fract() == 0.0 && number.abs() < 9.2e18).then_some(number as i64)
    })
}
