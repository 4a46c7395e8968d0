//! The table itself: what is reachable from the API's kinds, in the form it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

use super::golang::{GoDecl, GoField, GoType, GoTypes};

/// Kinds that are sent as bodies but are no stored objects with metadata.
const BARE_KINDS: &[(&str, &str)] = &[("meta.v1", "DeleteOptions"), ("meta.v1", "Status")];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A scalar or opaque value, by its name in the table.
    Plain(&'static str),
    /// A struct, by its name.
    Struct(String),
    List(Box<Shape>),
    Map(Box<Shape>),
    /// A list which protobuf wraps in a message of its own.
    Wrapped(Box<Shape>),
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) shape: Shape,
    pub(super) inline: bool,
    flags: String,
}

#[derive(Clone, Debug)]
pub(super) struct Struct {
    pub(super) fields: Vec<Field>,
    atomic: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) name: String,
    pub(super) type_name: String,
    /// Objects of it belong to no namespace.
    pub(super) cluster_scoped: bool,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) kinds: Vec<Kind>,
    pub(super) types: BTreeMap<String, Struct>,
}

impl Table {
    /// All kinds of the packages, and all types that they reach.
    pub(super) fn reachable(go: &GoTypes) -> Result<Self> {
        let mut table = Self {
            kinds: Vec::new(),
            types: BTreeMap::new(),
        };
        for (name, definition) in &go.definitions {
            let GoDecl::Struct(fields) = &definition.decl else {
                continue;
            };
            let (package, kind) = name.rsplit_once('.').context("a qualified name")?;
            let embeds = |ty: &str| {
                fields
                    .iter()
                    .any(|f| f.inline && f.ty == GoType::Named(ty.to_owned()))
            };
            let has_metadata = fields
                .iter()
                .any(|f| f.json == "metadata" && f.ty == GoType::Named("meta.v1.ObjectMeta".to_owned()));
            let bare = BARE_KINDS.contains(&(package, kind));
            if !embeds("meta.v1.TypeMeta")
                || (!has_metadata && !bare)
                || name == "meta.v1.PartialObjectMetadata"
            {
                continue;
            }
            let version = package.rsplit('.').next().unwrap_or_default();
            let group = if bare {
                ""
            } else {
                go.groups.get(package).map_or("", String::as_str)
            };
            table.kinds.push(Kind {
                group: group.to_owned(),
                version: version.to_owned(),
                name: kind.to_owned(),
                type_name: name.clone(),
                cluster_scoped: definition.markers.iter().any(|m| m == "genclient:nonNamespaced"),
            });
            table.reach(go, name)?;
        }
        table
            .kinds
            .sort_by(|a, b| (&a.group, &a.version, &a.name).cmp(&(&b.group, &b.version, &b.name)));
        Ok(table)
    }

    fn reach(&mut self, go: &GoTypes, name: &str) -> Result<()> {
        if self.types.contains_key(name) {
            return Ok(());
        }
        let definition = go
            .definitions
            .get(name)
            .with_context(|| format!("no type {name}"))?;
        let GoDecl::Struct(fields) = &definition.decl else {
            bail!("{name} is no struct")
        };
        let atomic = definition
            .markers
            .iter()
            .any(|m| m == "structType=atomic" || m == "mapType=atomic");
        self.types.insert(
            name.to_owned(),
            Struct {
                fields: Vec::new(),
                atomic,
            },
        );
        let mut rendered = Vec::new();
        for field in fields {
            let field = self
                .field(go, name, field)
                .with_context(|| format!("{name}.{}", field.json))?;
            rendered.push(field);
        }
        rendered.sort_by(|a, b| a.name.cmp(&b.name));
        self.types.insert(
            name.to_owned(),
            Struct {
                fields: rendered,
                atomic,
            },
        );
        Ok(())
    }

    fn field(&mut self, go: &GoTypes, owner: &str, field: &GoField) -> Result<Field> {
        let pointer = matches!(field.ty, GoType::Pointer(_));
        let shape = self.shape(go, &field.ty)?;
        let optional = field.markers.iter().any(|m| m == "optional");
        let required = field.markers.iter().any(|m| m == "required") || (!optional && !field.omit_empty);
        let mut flags = String::new();
        if required && !field.inline {
            flags.push_str(" !");
        }
        if !field.omit_empty && !field.inline {
            flags.push_str(" 0");
        }
        if pointer {
            flags.push_str(" *");
        }
        if field.inline {
            flags.push_str(" ~");
        }
        if !field.patch_strategy.is_empty() {
            write!(flags, " p={}", field.patch_strategy)?;
        }
        if !field.patch_merge_key.is_empty() {
            write!(flags, " k={}", field.patch_merge_key)?;
        }
        let marker = |key: &str| {
            let plain = field
                .markers
                .iter()
                .find_map(|m| m.strip_prefix(key)?.strip_prefix('='));
            plain.or_else(|| {
                field
                    .markers
                    .iter()
                    .find_map(|m| m.strip_prefix("k8s:")?.strip_prefix(key)?.strip_prefix('='))
            })
        };
        match marker("listType") {
            Some("map") => {
                let mut keys: Vec<&str> = field
                    .markers
                    .iter()
                    .filter_map(|m| m.strip_prefix("listMapKey="))
                    .collect();
                keys.sort_unstable();
                keys.dedup();
                write!(flags, " l={}", keys.join(","))?;
            }
            Some("set") => flags.push_str(" l:set"),
            Some("atomic") => flags.push_str(" l:atomic"),
            Some(other) => bail!("list type {other}"),
            None => {}
        }
        match marker("mapType").or_else(|| marker("structType")) {
            Some("atomic") => flags.push_str(" m:atomic"),
            Some("granular") => flags.push_str(" m:granular"),
            Some(other) => bail!("map type {other}"),
            None => {}
        }
        if let Some(default) = marker("default") {
            let value = match default.strip_prefix("ref(").and_then(|d| d.strip_suffix(')')) {
                None => default.to_owned(),
                Some(constant) => {
                    let package = owner.rsplit_once('.').map_or("", |(package, _)| package);
                    let value = go.constants.get(&format!("{package}.{constant}"));
                    format!("{:?}", value.with_context(|| format!("no constant {constant}"))?)
                }
            };
            write!(flags, " d={value}")?;
        }
        let name = if field.inline {
            &field.proto_name
        } else {
            &field.json
        };
        let name = if name.is_empty() || field.number == 0 && field.inline {
            "-"
        } else {
            name
        };
        Ok(Field {
            name: name.to_owned(),
            number: field.number,
            shape,
            inline: field.inline,
            flags,
        })
    }

    fn shape(&mut self, go: &GoTypes, ty: &GoType) -> Result<Shape> {
        Ok(match ty {
            GoType::Pointer(inner) => self.shape(go, inner)?,
            GoType::List(inner) if **inner == GoType::Named("byte".to_owned()) => Shape::Plain("bytes"),
            GoType::List(inner) => Shape::List(Box::new(self.shape(go, inner)?)),
            GoType::Map(inner) => Shape::Map(Box::new(self.shape(go, inner)?)),
            GoType::Named(name) => match name.as_str() {
                "string" => Shape::Plain("str"),
                "bool" => Shape::Plain("bool"),
                "int32" => Shape::Plain("i32"),
                "int64" | "int" => Shape::Plain("i64"),
                "float64" => Shape::Plain("f64"),
                "resource.Quantity" => Shape::Plain("quantity"),
                "intstr.IntOrString" => Shape::Plain("intstr"),
                "runtime.RawExtension" => Shape::Plain("raw"),
                "meta.v1.Time" => Shape::Plain("time"),
                "meta.v1.MicroTime" => Shape::Plain("microtime"),
                "meta.v1.Duration" => Shape::Plain("duration"),
                "meta.v1.FieldsV1" => Shape::Plain("fieldsv1"),
                other if other.starts_with("types.") => Shape::Plain("str"),
                other => {
                    let definition = go
                        .definitions
                        .get(other)
                        .with_context(|| format!("no type {other}"))?;
                    match &definition.decl {
                        GoDecl::Struct(_) => {
                            self.reach(go, other)?;
                            Shape::Struct(other.to_owned())
                        }
                        GoDecl::Alias(target) => {
                            let shape = self.shape(go, target)?;
                            let wrapped = definition.markers.iter().any(|m| m == "protobuf.nullable=true");
                            if wrapped {
                                Shape::Wrapped(Box::new(shape))
                            } else {
                                shape
                            }
                        }
                    }
                }
            },
        })
    }

    /// Drops types that no kind reaches any more.
    pub(super) fn sweep(&mut self) {
        let mut reached = BTreeSet::new();
        let mut waiting: Vec<String> = self.kinds.iter().map(|kind| kind.type_name.clone()).collect();
        while let Some(name) = waiting.pop() {
            if let Some(definition) = self.types.get(&name)
                && reached.insert(name)
            {
                waiting.extend(
                    definition
                        .fields
                        .iter()
                        .filter_map(|f| f.shape.struct_name().map(str::to_owned)),
                );
            }
        }
        self.types.retain(|name, _| reached.contains(name));
    }

    /// The text that is committed.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for kind in &self.kinds {
            let group = if kind.group.is_empty() { "-" } else { &kind.group };
            let _ = writeln!(
                text,
                "kind {group} {} {} {}{}",
                kind.version,
                kind.name,
                kind.type_name,
                if kind.cluster_scoped { " cluster" } else { "" }
            );
        }
        for (name, definition) in &self.types {
            let _ = writeln!(
                text,
                "type {name}{}",
                if definition.atomic { " atomic" } else { "" }
            );
            for field in &definition.fields {
                let _ = writeln!(
                    text,
                    " {} {} {}{}",
                    field.name,
                    field.number,
                    field.shape.render(),
                    field.flags
                );
            }
        }
        text
    }
}

impl Shape {
    /// The struct at the bottom, if there is one.
    pub(super) fn struct_name(&self) -> Option<&str> {
        match self {
            Self::Plain(_) => None,
            Self::Struct(name) => Some(name),
            Self::List(inner) | Self::Map(inner) | Self::Wrapped(inner) => inner.struct_name(),
        }
    }

    fn render(&self) -> String {
        match self {
            Self::Plain(name) => (*name).to_owned(),
            Self::Struct(name) => format!("@{name}"),
            Self::List(inner) => format!("[]{}", inner.render()),
            Self::Map(inner) => format!("{{}}{}", inner.render()),
            Self::Wrapped(inner) => format!("^{}", inner.render()),
        }
    }
}
