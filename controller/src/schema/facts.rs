//! The table of facts about the built-in types, embedded at compile time and read once.
//!
//! `facts.txt` is written by `cargo xtask api-facts`; `facts-extensions.txt` has what its sources lack. A line `kind GROUP VERSION KIND TYPE [cluster]` names a kind (`-` is
//! the core group), a line `type NAME [atomic]` begins a struct, and an indented line is a field of it: `NAME NUMBER SHAPE FLAGS…`,
//! where NUMBER is protobuf's (0: not in the message) and SHAPE a scalar, `@struct`, `[]list`, `{}map`, or `^list` for a
//! list that protobuf wraps in a message. Flags: `!` required, `*` pointer in Go, `~` inline in JSON, `p=` patch strategy,
//! `k=` patch merge key, `l=` keys of an associative list, `l:set`, `l:atomic`, `m:atomic`, `m:granular`, `d=` default.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

/// A struct's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u32);

/// What kind of value a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// A string.
    Str,
    /// A boolean.
    Bool,
    /// A 32-bit integer.
    I32,
    /// A 64-bit integer.
    I64,
    /// A float.
    F64,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A resource quantity.
    Quantity,
    /// An integer or a string.
    IntOrString,
    /// Any JSON.
    Raw,
    /// A time in seconds.
    Time,
    /// A time in microseconds.
    MicroTime,
    /// A duration such as `30s`.
    Duration,
    /// A set of field paths.
    FieldsV1,
    /// A struct.
    Struct(TypeId),
    /// A list.
    List(&'static Shape),
    /// A map from strings.
    Map(&'static Shape),
    /// A list that protobuf wraps in a message of its own.
    Wrapped(&'static Shape),
}

/// How lists of the field merge when applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items are known by these fields.
    Map(Vec<&'static str>),
}

/// How lists and maps of the field merge under a strategic merge patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Items merge; otherwise the list is replaced.
    pub merge: bool,
    /// The patch may name the keys that stay.
    pub retain_keys: bool,
}

/// One field of a struct.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name in JSON; for an inline field, the name of the nested protobuf message's field.
    pub name: &'static str,
    /// Its number in protobuf; 0 if it is not in the message.
    pub number: u32,
    /// What it holds.
    pub shape: Shape,
    /// It must be set.
    pub required: bool,
    /// Its zero value is written in JSON, not left out.
    pub zero_written: bool,
    /// It is a pointer in Go, so that a zero value and an absent one differ.
    pub pointer: bool,
    /// Its struct's fields stand beside the other fields in JSON.
    pub inline: bool,
    /// For strategic merge patches.
    pub patch: PatchStrategy,
    /// By what items of a list merge in strategic merge patches.
    pub merge_key: Option<&'static str>,
    /// For server-side apply; absent means atomic.
    pub list_type: Option<ListType>,
    /// Whether a map or struct is one value for server-side apply; `None` leaves it to the type.
    pub atomic: Option<bool>,
    /// What a server fills in.
    pub default: Option<Value>,
}

/// One struct.
#[derive(Debug)]
pub struct TypeDef {
    /// Its name, such as `core.v1.PodSpec`.
    pub name: &'static str,
    /// Whether it is one value for server-side apply.
    pub atomic: bool,
    /// Its own fields, inline ones included.
    pub fields: Vec<Field>,
    /// Every field it has in JSON, by name: its own and those of inline structs, as (struct, index).
    flat: Vec<(&'static str, TypeId, u32)>,
}

/// One kind: where its type is.
#[derive(Clone, Copy, Debug)]
pub struct KindEntry {
    /// The API group, empty for the core.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// Its type.
    pub root: TypeId,
    /// Its objects belong to no namespace.
    pub cluster_scoped: bool,
}

/// All facts.
#[derive(Debug, Default)]
pub struct Table {
    kinds: Vec<KindEntry>,
    types: Vec<TypeDef>,
}

const TEXTS: [&str; 2] = [include_str!("facts.txt"), include_str!("facts-extensions.txt")];

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::read(&TEXTS));

/// The table, read at its first use.
pub fn table() -> &'static Table {
    &TABLE
}

impl Table {
    /// The entry of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<KindEntry> {
        let key = (group, version, kind);
        let index = self
            .kinds
            .binary_search_by(|k| (k.group, k.version, k.kind).cmp(&key))
            .ok()?;
        self.kinds.get(index).copied()
    }

    /// All kinds, ordered by group, version and kind.
    pub fn kinds(&self) -> &[KindEntry] {
        &self.kinds
    }

    /// A struct by its name.
    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        let index = self.types.binary_search_by(|t| t.name.cmp(name)).ok()?;
        u32::try_from(index).ok().map(TypeId)
    }

    /// Reads the text form.
    ///
    /// # Panics
    /// If the text is malformed: it is part of the program.
    fn read(texts: &[&'static str]) -> Self {
        let lines = || {
            let lines = texts.iter().flat_map(|text| text.lines());
            lines.filter(|line| !line.starts_with('#'))
        };
        let mut names: Vec<&'static str> = lines()
            .filter_map(|line| line.strip_prefix("type ")?.split(' ').next())
            .collect();
        names.sort_unstable();
        let ids: HashMap<&'static str, TypeId> = names.iter().copied().zip((0..).map(TypeId)).collect();
        let id = |name: &str| *ids.get(name).unwrap_or_else(|| panic!("facts: no type {name}"));
        let mut table = Self::default();
        for line in lines() {
            let words: Vec<&'static str> = line.trim_start().split(' ').collect();
            if line.starts_with(' ') {
                let field = Field::read(&words, &id);
                table
                    .types
                    .last_mut()
                    .expect("facts: a field before any type")
                    .fields
                    .push(field);
                continue;
            }
            match words[..] {
                ["kind", group, version, kind, root, ref flags @ ..] => {
                    let group = if group == "-" { "" } else { group };
                    let cluster_scoped = flags.contains(&"cluster");
                    table.kinds.push(KindEntry {
                        group,
                        version,
                        kind,
                        root: id(root),
                        cluster_scoped,
                    });
                }
                ["type", name, ref flags @ ..] => {
                    let atomic = flags.contains(&"atomic");
                    table.types.push(TypeDef {
                        name,
                        atomic,
                        fields: Vec::new(),
                        flat: Vec::new(),
                    });
                }
                _ => panic!("facts: {line}"),
            }
        }
        table.kinds.sort_by_key(|k| (k.group, k.version, k.kind));
        table.types.sort_by_key(|t| t.name);
        let flats: Vec<_> = (0..table.types.len()).map(|index| table.flatten(index)).collect();
        for (definition, flat) in table.types.iter_mut().zip(flats) {
            definition.flat = flat;
        }
        table
    }

    fn flatten(&self, index: usize) -> Vec<(&'static str, TypeId, u32)> {
        let mut flat = Vec::new();
        let owner = TypeId(u32::try_from(index).unwrap_or(u32::MAX));
        for (field, position) in self.types[index].fields.iter().zip(0..) {
            match field.shape {
                Shape::Struct(inner) if field.inline => flat.extend(self.flatten(inner.0 as usize)),
                _ => flat.push((field.name, owner, position)),
            }
        }
        flat.sort_by_key(|(name, ..)| *name);
        flat
    }
}

impl Field {
    fn read(words: &[&'static str], id: &impl Fn(&str) -> TypeId) -> Self {
        let [name, number, shape, flags @ ..] = words else {
            panic!("facts: {words:?}")
        };
        let mut field = Self {
            name,
            number: number.parse().unwrap_or_else(|_| panic!("facts: {words:?}")),
            shape: Shape::read(shape, id),
            required: false,
            zero_written: false,
            pointer: false,
            inline: false,
            patch: PatchStrategy::default(),
            merge_key: None,
            list_type: None,
            atomic: None,
            default: None,
        };
        for flag in flags {
            match *flag {
                "!" => field.required = true,
                "0" => field.zero_written = true,
                "*" => field.pointer = true,
                "~" => field.inline = true,
                "l:set" => field.list_type = Some(ListType::Set),
                "l:atomic" => field.list_type = Some(ListType::Atomic),
                "m:atomic" => field.atomic = Some(true),
                "m:granular" => field.atomic = Some(false),
                other => match other.split_once('=') {
                    Some(("p", strategy)) => {
                        field.patch.merge = strategy.contains("merge");
                        field.patch.retain_keys = strategy.contains("retainKeys");
                    }
                    Some(("k", key)) => field.merge_key = Some(key),
                    Some(("l", keys)) => field.list_type = Some(ListType::Map(keys.split(',').collect())),
                    Some(("d", default)) => {
                        let value = serde_json::from_str(default);
                        field.default = Some(value.unwrap_or_else(|_| panic!("facts: {words:?}")));
                    }
                    _ => panic!("facts: {words:?}"),
                },
            }
        }
        field
    }
}

impl Shape {
    fn read(text: &'static str, id: &impl Fn(&str) -> TypeId) -> Self {
        // The table is read once and lives as long as the program.
        let inner = |text| -> &'static Self { Box::leak(Box::new(Self::read(text, id))) };
        match text {
            "str" => Self::Str,
            "bool" => Self::Bool,
            "i32" => Self::I32,
            "i64" => Self::I64,
            "f64" => Self::F64,
            "bytes" => Self::Bytes,
            "quantity" => Self::Quantity,
            "intstr" => Self::IntOrString,
            "raw" => Self::Raw,
            "time" => Self::Time,
            "microtime" => Self::MicroTime,
            "duration" => Self::Duration,
            "fieldsv1" => Self::FieldsV1,
            _ => {
                if let Some(name) = text.strip_prefix('@') {
                    Self::Struct(id(name))
                } else if let Some(rest) = text.strip_prefix("[]") {
                    Self::List(inner(rest))
                } else if let Some(rest) = text.strip_prefix("{}") {
                    Self::Map(inner(rest))
                } else if let Some(rest) = text.strip_prefix('^') {
                    Self::Wrapped(inner(rest))
                } else {
                    panic!("facts: shape {text}")
                }
            }
        }
    }

    /// Whether there is a struct somewhere in it.
    pub fn has_struct(self) -> bool {
        match self {
            Self::Struct(_) => true,
            Self::List(inner) | Self::Map(inner) | Self::Wrapped(inner) => inner.has_struct(),
            _ => false,
        }
    }

    /// The shape in JSON, where a wrapped list is a list.
    #[must_use]
    pub fn unwrapped(self) -> Self {
        match self {
            Self::Wrapped(inner) => *inner,
            other => other,
        }
    }
}

impl TypeId {
    /// The struct itself.
    pub fn definition(self) -> &'static TypeDef {
        &table().types[self.0 as usize]
    }
}

impl TypeDef {
    /// The field called `name` in JSON.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        let index = self
            .flat
            .binary_search_by(|(field, ..)| (*field).cmp(name))
            .ok()?;
        let (_, owner, position) = self.flat[index];
        owner.definition().fields.get(position as usize)
    }

    /// Every field in JSON, by name.
    pub fn json_fields(&self) -> impl Iterator<Item = &'static Field> + '_ {
        self.flat
            .iter()
            .map(|&(_, owner, position)| &owner.definition().fields[position as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: (&str, &str, &str), path: &[&str]) -> &'static Field {
        let mut definition = table()
            .kind(kind.0, kind.1, kind.2)
            .expect("kind")
            .root
            .definition();
        let (last, parents) = path.split_last().expect("a path");
        for name in parents {
            let mut shape = definition.field(name).expect(name).shape;
            while let Shape::List(inner) | Shape::Map(inner) = shape {
                shape = *inner;
            }
            let Shape::Struct(id) = shape else {
                panic!("{name} is no struct")
            };
            definition = id.definition();
        }
        definition.field(last).expect(last)
    }

    #[test]
    fn the_table_says_what_kubernetes_says() {
        let pod = ("", "v1", "Pod");
        let containers = field(pod, &["spec", "containers"]);
        assert!(containers.required && containers.patch.merge);
        assert_eq!(containers.merge_key, Some("name"));
        assert_eq!(containers.list_type, Some(ListType::Map(vec!["name"])));
        let ports = field(pod, &["spec", "containers", "ports"]);
        assert_eq!(ports.merge_key, Some("containerPort"));
        assert_eq!(
            ports.list_type,
            Some(ListType::Map(vec!["containerPort", "protocol"]))
        );
        let protocol = field(pod, &["spec", "containers", "ports", "protocol"]);
        assert_eq!(protocol.default, Some(Value::from("TCP")));
        let service_ports = field(("", "v1", "Service"), &["spec", "ports"]);
        assert_eq!(service_ports.merge_key, Some("port"));
        assert_eq!(
            service_ports.list_type,
            Some(ListType::Map(vec!["port", "protocol"]))
        );
        assert!(field(pod, &["spec", "volumes"]).patch.retain_keys);
        assert!(
            field(pod, &["spec", "volumes", "emptyDir"]).pointer,
            "inline fields are found"
        );
        let finalizers = field(pod, &["metadata", "finalizers"]);
        assert!(finalizers.patch.merge && finalizers.list_type == Some(ListType::Set));
        assert!(field(("apps", "v1", "Deployment"), &["spec", "replicas"]).pointer);
        let selector = field(("apps", "v1", "Deployment"), &["spec", "selector"]);
        let Shape::Struct(id) = selector.shape else {
            panic!("a struct")
        };
        assert!(id.definition().atomic);
        assert_eq!(
            field(("networking.k8s.io", "v1", "ServiceCIDR"), &["spec", "cidrs"]).number,
            1
        );
    }

    #[test]
    fn every_struct_has_each_number_and_name_once() {
        for definition in &table().types {
            let mut numbers: Vec<u32> = definition
                .fields
                .iter()
                .map(|f| f.number)
                .filter(|n| *n > 0)
                .collect();
            let count = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{}", definition.name);
            assert!(
                definition.flat.windows(2).all(|pair| pair[0].0 < pair[1].0),
                "{}",
                definition.name
            );
        }
    }
}
