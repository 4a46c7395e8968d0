//! Reading Go type declarations: line by line, which is all that the generated-code conventions of Kubernetes need.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// The packages read: directory under `k8s.io`, and the name types of it get.
const PACKAGES: &[(&str, &str)] = &[
    ("apimachinery/pkg/apis/meta/v1", "meta.v1"),
    ("api/core/v1", "core.v1"),
    ("api/apps/v1", "apps.v1"),
    ("api/batch/v1", "batch.v1"),
    ("api/autoscaling/v1", "autoscaling.v1"),
    ("api/autoscaling/v2", "autoscaling.v2"),
    ("api/policy/v1", "policy.v1"),
    ("api/discovery/v1", "discovery.v1"),
    ("api/networking/v1", "networking.v1"),
    ("api/coordination/v1", "coordination.v1"),
    ("api/scheduling/v1", "scheduling.v1"),
    ("api/storage/v1", "storage.v1"),
    ("api/rbac/v1", "rbac.v1"),
    ("api/events/v1", "events.v1"),
    ("api/node/v1", "node.v1"),
    ("api/certificates/v1", "certificates.v1"),
    ("api/authentication/v1", "authentication.v1"),
    ("api/authorization/v1", "authorization.v1"),
];

/// A reference to a type, resolved as far as one package allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GoType {
    /// A built-in such as `string`, or a named type as `package.Name`.
    Named(String),
    Pointer(Box<GoType>),
    List(Box<GoType>),
    Map(Box<GoType>),
}

#[derive(Clone, Debug)]
pub(super) struct GoField {
    pub(super) json: String,
    pub(super) inline: bool,
    pub(super) omit_empty: bool,
    pub(super) number: u32,
    /// The field's name in the protobuf message.
    pub(super) proto_name: String,
    pub(super) patch_strategy: String,
    pub(super) patch_merge_key: String,
    pub(super) ty: GoType,
    pub(super) markers: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) enum GoDecl {
    Struct(Vec<GoField>),
    Alias(GoType),
}

#[derive(Clone, Debug)]
pub(super) struct GoDefinition {
    pub(super) decl: GoDecl,
    pub(super) markers: Vec<String>,
}

/// What all packages declare.
#[derive(Debug, Default)]
pub(super) struct GoTypes {
    /// By `package.Name`.
    pub(super) definitions: BTreeMap<String, GoDefinition>,
    /// String constants by `package.Name`.
    pub(super) constants: BTreeMap<String, String>,
    /// Package → API group.
    pub(super) groups: BTreeMap<String, String>,
}

pub(super) fn parse(src: &Path) -> Result<GoTypes> {
    let mut types = GoTypes::default();
    for (directory, package) in PACKAGES {
        let directory = src.join(directory);
        let path = directory.join("types.go");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        parse_file(&mut types, package, &text).with_context(|| format!("parse {}", path.display()))?;
        let register = fs::read_to_string(directory.join("register.go")).unwrap_or_default();
        let group = register.lines().find_map(|line| {
            let rest = line.trim().strip_prefix("const ").unwrap_or(line.trim());
            quoted(rest.strip_prefix("GroupName = ")?)
        });
        types
            .groups
            .insert((*package).to_owned(), group.unwrap_or_default());
    }
    Ok(types)
}

fn quoted(text: &str) -> Option<String> {
    Some(text.trim().strip_prefix('"')?.split('"').next()?.to_owned())
}

fn parse_file(types: &mut GoTypes, package: &str, text: &str) -> Result<()> {
    let mut imports = BTreeMap::new();
    let mut markers: Vec<String> = Vec::new();
    let mut open: Option<(String, Vec<String>, Vec<GoField>)> = None;
    let mut in_comment = false;
    for line in text.lines() {
        let line = line.trim();
        if in_comment {
            in_comment = !line.ends_with("*/");
            continue;
        }
        if line.starts_with("/*") {
            in_comment = !line.ends_with("*/");
            continue;
        }
        if let Some(comment) = line.strip_prefix("//") {
            if let Some(marker) = comment.trim().strip_prefix('+') {
                markers.push(marker.trim().to_owned());
            }
            continue;
        }
        if line.is_empty() {
            // A blank line ends a field's comment; above a type, markers may stand apart from the words.
            if open.is_some() {
                markers.clear();
            }
            continue;
        }
        if let Some((name, _, fields)) = &mut open {
            if line == "}" {
                if let Some((name, markers, fields)) = open.take() {
                    types.definitions.insert(
                        name,
                        GoDefinition {
                            decl: GoDecl::Struct(fields),
                            markers,
                        },
                    );
                }
                markers.clear();
            } else if let Some(field) = parse_field(package, &imports, line, std::mem::take(&mut markers))
                .with_context(|| format!("a field of {name}: {line}"))?
            {
                fields.push(field);
            }
            continue;
        }
        if let Some(rest) = line.strip_prefix("type ") {
            let (name, rest) = rest.split_once(' ').context("a type declaration")?;
            let qualified = format!("{package}.{name}");
            let markers = std::mem::take(&mut markers);
            if rest.starts_with("struct") {
                if rest.ends_with("{}") {
                    let decl = GoDecl::Struct(Vec::new());
                    types
                        .definitions
                        .insert(qualified, GoDefinition { decl, markers });
                } else {
                    open = Some((qualified, markers, Vec::new()));
                }
            } else if !rest.starts_with("interface") && !rest.starts_with("func") {
                let ty = parse_type(package, &imports, rest.trim_start_matches("= "))?;
                types.definitions.insert(
                    qualified,
                    GoDefinition {
                        decl: GoDecl::Alias(ty),
                        markers,
                    },
                );
            }
            continue;
        }
        if let Some((alias, path)) = parse_import(line) {
            imports.insert(alias, path);
        } else if let Some((left, right)) = line.split_once('=')
            && let Some(value) = quoted(right)
            && let Some(name) = left.trim_start_matches("const ").split_whitespace().next()
        {
            types.constants.insert(format!("{package}.{name}"), value);
        }
        markers.clear();
    }
    Ok(())
}

/// `alias "path"` or `"path"`, inside an import block or after `import`.
fn parse_import(line: &str) -> Option<(String, String)> {
    let line = line.strip_prefix("import ").unwrap_or(line);
    let start = line.find('"')?;
    let (alias, path) = (line[..start].trim(), line[start..].trim().trim_matches('"'));
    if alias.contains('=') || !path.contains('/') || path.contains(' ') {
        return None;
    }
    let alias = if alias.is_empty() {
        path.rsplit('/').next()?
    } else {
        alias
    };
    let package = match path.strip_prefix("k8s.io/") {
        Some("apimachinery/pkg/apis/meta/v1") => "meta.v1".to_owned(),
        Some(path) => match path.strip_prefix("api/") {
            Some(path) => path.replace('/', "."),
            None => path.rsplit('/').next()?.to_owned(),
        },
        None => path.to_owned(),
    };
    Some((alias.to_owned(), package))
}

fn parse_type(package: &str, imports: &BTreeMap<String, String>, text: &str) -> Result<GoType> {
    let text = text.split("//").next().unwrap_or(text).trim();
    if let Some(rest) = text.strip_prefix('*') {
        return Ok(GoType::Pointer(Box::new(parse_type(package, imports, rest)?)));
    }
    if let Some(rest) = text.strip_prefix("[]") {
        return Ok(GoType::List(Box::new(parse_type(package, imports, rest)?)));
    }
    if let Some(rest) = text.strip_prefix("map[") {
        let (_, value) = rest.split_once(']').context("a map type")?;
        return Ok(GoType::Map(Box::new(parse_type(package, imports, value)?)));
    }
    if let Some((alias, name)) = text.split_once('.') {
        let package = imports
            .get(alias)
            .with_context(|| format!("no import for {text}"))?;
        return Ok(GoType::Named(format!("{package}.{name}")));
    }
    if text == "interface{}" {
        return Ok(GoType::Named("any".to_owned()));
    }
    if text.is_empty() || !text.chars().all(char::is_alphanumeric) {
        bail!("not a type: {text}");
    }
    let named = if text.starts_with(char::is_uppercase) {
        format!("{package}.{text}")
    } else {
        text.to_owned()
    };
    Ok(GoType::Named(named))
}

fn parse_field(
    package: &str,
    imports: &BTreeMap<String, String>,
    line: &str,
    markers: Vec<String>,
) -> Result<Option<GoField>> {
    let Some((declaration, rest)) = line.split_once('`') else {
        return Ok(None);
    };
    let tags = rest.split('`').next().unwrap_or(rest);
    let tag = |key: &str| -> &str {
        let Some(start) = tags.find(&format!("{key}:\"")) else {
            return "";
        };
        tags[start + key.len() + 2..].split('"').next().unwrap_or("")
    };
    let mut json = tag("json").split(',');
    let name = json.next().unwrap_or("");
    let options: Vec<&str> = json.collect();
    if name == "-" {
        return Ok(None);
    }
    let mut words = declaration.split_whitespace();
    let first = words.next().context("a field")?;
    let type_text: String = words.collect::<Vec<_>>().join(" ");
    let inline = options.contains(&"inline");
    let type_text = if type_text.is_empty() { first } else { &type_text };
    let mut protobuf = tag("protobuf").split(',');
    let number = protobuf.nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let proto_name = protobuf
        .find_map(|part| part.strip_prefix("name="))
        .unwrap_or(name);
    Ok(Some(GoField {
        json: name.to_owned(),
        inline,
        omit_empty: options.contains(&"omitempty"),
        number,
        proto_name: proto_name.to_owned(),
        patch_strategy: tag("patchStrategy").to_owned(),
        patch_merge_key: tag("patchMergeKey").to_owned(),
        ty: parse_type(package, imports, type_text)?,
        markers,
    }))
}
