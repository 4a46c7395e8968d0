//! What is served, in both forms that clients ask for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::resources::{ResourceRef, Subresource};

/// The versions of the aggregated form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    /// Its media type; clients ignore the answer under any other.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }
}

/// The aggregated form that is asked for before anything else that is served.
pub(crate) fn aggregated_form(accept: &str) -> Option<Aggregated> {
    for entry in accept.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter(|part| !part.starts_with("q=")).collect();
        let has = |wanted: &str| parameters.contains(&wanted);
        if has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList") {
            match (has("v=v2"), has("v=v2beta1")) {
                (true, _) => return Some(Aggregated::V2),
                (_, true) => return Some(Aggregated::V2Beta1),
                _ => {}
            }
        } else if parameters.is_empty() && matches!(media, "application/json" | "application/*" | "*/*") {
            return None;
        }
    }
    None
}

/// The groups in discovery's order, each with its versions; the first is preferred.
fn groups(resources: &[ResourceRef]) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in resources {
        match groups.iter_mut().find(|(group, _)| *group == resource.group) {
            Some((_, versions)) if versions.contains(&resource.version) => {}
            Some((_, versions)) => versions.push(resource.version),
            None => groups.push((resource.group, vec![resource.version])),
        }
    }
    groups
}

/// The paths of all group versions below the root: `api/v1`, `apis/apps/v1`.
pub(crate) fn group_versions(resources: &[ResourceRef]) -> Vec<String> {
    let groups = groups(resources).into_iter();
    groups
        .flat_map(|(group, versions)| {
            versions.into_iter().map(move |version| {
                if group.is_empty() {
                    format!("api/{version}")
                } else {
                    format!("apis/{group}/{version}")
                }
            })
        })
        .collect()
}

/// The aggregated form: of the core group, or of all others.
pub(crate) fn aggregated(resources: &[ResourceRef], form: Aggregated, core: bool) -> Value {
    let items: Vec<_> = groups(resources)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<_> = versions
                .into_iter()
                .map(|version| {
                    let rows = rows(resources, group, version)
                        .map(aggregated_resource)
                        .collect::<Vec<_>>();
                    json!({"version": version, "freshness": "Current", "resources": rows})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {}, "items": items,
    })
}

fn aggregated_resource(resource: &ResourceRef) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    add_names(&mut entry, resource);
    if !resource.subresources.is_empty() {
        let below = resource.subresources.iter().map(|subresource| {
            let (group, version, kind) = response_kind(resource, *subresource);
            json!({
                "subresource": subresource.name(),
                "responseKind": {"group": group, "version": version, "kind": kind},
                "verbs": subresource.verbs(),
            })
        });
        entry["subresources"] = below.collect();
    }
    entry
}

fn response_kind(
    resource: &ResourceRef,
    subresource: Subresource,
) -> (&'static str, &'static str, &'static str) {
    subresource.foreign_kind().unwrap_or((
        resource.group,
        resource.version,
        subresource.own_kind(resource.kind).unwrap_or(resource.kind),
    ))
}

/// `/api`.
pub(crate) fn core_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// `/apis`.
pub(crate) fn group_list(resources: &[ResourceRef]) -> Value {
    let named = groups(resources)
        .into_iter()
        .filter(|(group, _)| !group.is_empty());
    let groups: Vec<_> = named
        .map(|(name, versions)| Value::Object(group_fields(name, &versions)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub(crate) fn group(resources: &[ResourceRef], name: &str) -> Option<Value> {
    let (name, versions) = groups(resources)
        .into_iter()
        .find(|(group, _)| *group == name && !name.is_empty())?;
    let mut fields = group_fields(name, &versions);
    fields.insert("kind".to_owned(), "APIGroup".into());
    fields.insert("apiVersion".to_owned(), "v1".into());
    Some(Value::Object(fields))
}

fn group_fields(name: &str, versions: &[&str]) -> Map<String, Value> {
    let versions: Vec<_> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    let mut fields = Map::new();
    fields.insert("name".to_owned(), name.into());
    fields.insert("preferredVersion".to_owned(), versions[0].clone());
    fields.insert("versions".to_owned(), versions.into());
    fields
}

/// `/api/v1`, `/apis/<group>/<version>`.
pub(crate) fn resource_list(resources: &[ResourceRef], group: &str, version: &str) -> Option<Value> {
    rows(resources, group, version).next()?;
    let mut entries = BTreeMap::new();
    for resource in rows(resources, group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs,
        });
        add_names(&mut entry, resource);
        entries.insert(resource.plural.to_owned(), entry);
        for subresource in resource.subresources {
            let name = format!("{}/{}", resource.plural, subresource.name());
            let mut entry = json!({
                "name": name, "singularName": "", "namespaced": resource.namespaced,
                "kind": response_kind(resource, *subresource).2, "verbs": subresource.verbs(),
            });
            if let Some((group, version, _)) = subresource.foreign_kind() {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            entries.insert(name, entry);
        }
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    let entries: Vec<_> = entries.into_values().collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": entries,
    }))
}

fn rows<'a>(
    resources: &'a [ResourceRef],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a ResourceRef> {
    let rows = resources.iter();
    rows.filter(move |resource| resource.group == group && resource.version == version)
}

fn add_names(entry: &mut Value, resource: &ResourceRef) {
    let (short_names, categories) = (resource.short_names(), resource.categories());
    if !short_names.is_empty() {
        entry["shortNames"] = json!(short_names);
    }
    if !categories.is_empty() {
        entry["categories"] = json!(categories);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_served_wins() {
        let v2 = Aggregated::V2.content_type();
        let beta = Aggregated::V2Beta1.content_type();
        for (accept, form) in [
            (format!("{v2},{beta},application/json"), Some(Aggregated::V2)),
            (format!("{beta},application/json"), Some(Aggregated::V2Beta1)),
            (format!("application/json,{v2}"), None),
            (
                "application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList".to_owned(),
                None,
            ),
            ("*/*".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(aggregated_form(&accept), form, "{accept}");
        }
    }
}
