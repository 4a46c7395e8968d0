//! Restricting the table to one release.
//!
//! The packages carry, for each release still supported, one JSON object per kind with every field filled in. A field
//! that is absent there did not exist in that release.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::table::{Shape, Table};

/// Removes kinds and fields that the release does not have; says how many.
pub(super) fn restrict(table: &mut Table, samples: &Path) -> Result<String> {
    if !samples.is_dir() {
        bail!(
            "the packages have no samples of the release: {}",
            samples.display()
        );
    }
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut kinds = Vec::new();
    for kind in &table.kinds {
        let group = if kind.group.is_empty() {
            "core"
        } else {
            &kind.group
        };
        let path = samples.join(format!("{group}.{}.{}.json", kind.version, kind.name));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Not an object of its own group, and so without a sample.
            Err(_) if kind.name == "Status" => {
                kinds.push(kind.clone());
                continue;
            }
            Err(_) => continue,
        };
        let value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        visit(table, &mut seen, &kind.type_name, &value);
        kinds.push(kind.clone());
    }
    let dropped_kinds = table.kinds.len() - kinds.len();
    table.kinds = kinds;
    let mut dropped = Vec::new();
    for (name, definition) in &mut table.types {
        let Some(fields) = seen.get(name) else { continue };
        definition.fields.retain(|field| {
            let keep = field.inline || fields.contains(&field.name);
            if !keep {
                dropped.push(format!("{name}.{}", field.name));
            }
            keep
        });
    }
    table.sweep();
    Ok(format!(
        "without {dropped_kinds} kinds and {} fields of other releases: {}",
        dropped.len(),
        dropped.join(" ")
    ))
}

fn visit(table: &Table, seen: &mut BTreeMap<String, BTreeSet<String>>, name: &str, value: &Value) {
    let (Some(definition), Some(object)) = (table.types.get(name), value.as_object()) else {
        return;
    };
    for field in &definition.fields {
        if field.inline {
            if let Shape::Struct(inner) = &field.shape {
                visit(table, seen, inner, value);
            }
        } else if let Some(child) = object.get(&field.name) {
            seen.entry(name.to_owned())
                .or_default()
                .insert(field.name.clone());
            descend(table, seen, &field.shape, child);
        }
    }
}

fn descend(table: &Table, seen: &mut BTreeMap<String, BTreeSet<String>>, shape: &Shape, value: &Value) {
    match (shape, value) {
        (Shape::Struct(name), _) => visit(table, seen, name, value),
        (Shape::List(inner) | Shape::Wrapped(inner), Value::Array(items)) => {
            for item in items {
                descend(table, seen, inner, item);
            }
        }
        (Shape::Map(inner), Value::Object(entries)) => {
            for item in entries.values() {
                descend(table, seen, inner, item);
            }
        }
        _ => {}
    }
}
