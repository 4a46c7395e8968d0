//! What an expression can be of, as far as can be told before it is evaluated.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The type of an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Told only when the value is there.
    Dynamic,
    /// The type of `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// A signed integer of 64 bits.
    Int,
    /// An unsigned integer of 64 bits.
    Uint,
    /// A floating-point number.
    Double,
    /// Text.
    String,
    /// Bytes; base64 in JSON.
    Bytes,
    /// A point in time.
    Timestamp,
    /// A length of time.
    Duration,
    /// A list.
    List(Arc<ListType>),
    /// A map.
    Map(Arc<MapType>),
    /// An object with known fields.
    Object(Arc<ObjectType>),
    /// A value that may be absent.
    Optional(Arc<Type>),
    /// The type of a type.
    Type(Arc<Type>),
    /// A type of the Kubernetes libraries.
    Named(Named),
    /// What a call or an empty list leaves open.
    Parameter(usize),
}

/// The types of the Kubernetes libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// An amount of a resource.
    Quantity,
    /// A URL.
    Url,
    /// An IP address.
    Ip,
    /// A range of IP addresses.
    Cidr,
    /// A rule for strings.
    Format,
    /// A semantic version.
    Semver,
}

/// A list's type.
#[derive(Clone, Debug, PartialEq)]
pub struct ListType {
    /// What it has.
    pub item: Type,
    /// How its items are told apart.
    pub kind: ListKind,
}

/// How the items of a list are told apart, which decides how lists compare and add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// By their place.
    Atomic,
    /// By their value.
    Set,
    /// By the values of these fields.
    Map(Vec<String>),
}

/// A map's type.
#[derive(Clone, Debug, PartialEq)]
pub struct MapType {
    /// The keys.
    pub key: Type,
    /// The values.
    pub value: Type,
}

/// An object's type. Two objects with the same fields are of different types if they stand at different places.
#[derive(Debug, Default)]
pub struct ObjectType {
    /// The fields by the name that expressions use.
    pub fields: BTreeMap<String, Field>,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// A field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The name in JSON.
    pub name: String,
    /// What it is of.
    pub of: Type,
}

impl Type {
    /// A list of items that are told apart by their place.
    pub fn list(item: Type) -> Self {
        Self::list_of(item, ListKind::Atomic)
    }

    /// A list.
    pub fn list_of(item: Type, kind: ListKind) -> Self {
        Self::List(Arc::new(ListType { item, kind }))
    }

    /// A map.
    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new(MapType { key, value }))
    }

    /// A value that may be absent.
    pub fn optional(of: Type) -> Self {
        Self::Optional(Arc::new(of))
    }

    /// Whether values can be `null` for all the checker knows.
    pub(super) fn is_nullable(&self) -> bool {
        matches!(
            self,
            Self::Null
                | Self::Object(_)
                | Self::Timestamp
                | Self::Duration
                | Self::Optional(_)
                | Self::Named(_)
        )
    }

    /// Whether the type may be that of a map's keys.
    pub(super) fn is_key(&self) -> bool {
        matches!(
            self,
            Self::Bool | Self::Int | Self::Uint | Self::String | Self::Dynamic | Self::Parameter(_)
        )
    }
}

/// The types with a name of one word, as expressions and signatures write them.
pub(super) const WORDS: &[(&str, Type)] = &[
    ("dyn", Type::Dynamic),
    ("null_type", Type::Null),
    ("bool", Type::Bool),
    ("int", Type::Int),
    ("uint", Type::Uint),
    ("double", Type::Double),
    ("string", Type::String),
    ("bytes", Type::Bytes),
    ("google.protobuf.Timestamp", Type::Timestamp),
    ("google.protobuf.Duration", Type::Duration),
    ("kubernetes.Quantity", Type::Named(Named::Quantity)),
    ("kubernetes.URL", Type::Named(Named::Url)),
    ("net.IP", Type::Named(Named::Ip)),
    ("net.CIDR", Type::Named(Named::Cidr)),
    ("kubernetes.NamedFormat", Type::Named(Named::Format)),
    ("kubernetes.Semver", Type::Named(Named::Semver)),
];

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(list) => write!(f, "list({})", list.item),
            Self::Map(map) => write!(f, "map({}, {})", map.key, map.value),
            Self::Object(_) => f.write_str("object"),
            Self::Optional(of) => write!(f, "optional_type({of})"),
            Self::Type(of) => write!(f, "type({of})"),
            Self::Parameter(index) => write!(f, "_var{index}"),
            word => {
                let known = WORDS.iter().find(|(_, known)| known == word);
                f.write_str(known.map_or("error", |(name, _)| name))
            }
        }
    }
}
