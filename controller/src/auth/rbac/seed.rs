//! Makes the default roles and bindings that a cluster lacks, and completes those that are not whole.

use std::collections::HashMap;

use futures::future::try_join_all;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde_json::Value;

use super::default_roles::{AUTO_UPDATE, cluster_role_bindings, cluster_roles};
use super::{Rule, missing};
use crate::auth::authorizer::RBAC_GROUP;

/// The object that is there with what it lacks of the one that there should be; `None` if it lacks nothing or is its
/// owner's business.
fn completed(there: &Value, wanted: &Value) -> Option<Value> {
    if there["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return None;
    }
    let mut new = there.clone();
    for part in ["labels", "annotations"] {
        let entries = wanted["metadata"][part].as_object().into_iter().flatten();
        for (key, value) in entries {
            if there["metadata"][part][key].is_null() {
                new["metadata"][part][key] = value.clone();
            }
        }
    }
    if wanted["aggregationRule"].is_object() {
        new["aggregationRule"] = wanted["aggregationRule"].clone();
    } else if wanted["rules"].is_array() {
        let lacking = missing(&Rule::list(there), &Rule::list(wanted));
        let mut rules = there["rules"].as_array().cloned().unwrap_or_default();
        rules.extend(lacking.iter().map(Rule::to_value));
        new["rules"] = rules.into();
    }
    if let Some(wanted) = wanted["subjects"].as_array() {
        let mut subjects = there["subjects"].as_array().cloned().unwrap_or_default();
        for subject in wanted {
            let same = |other: &Value| {
                ["kind", "name", "namespace"]
                    .iter()
                    .all(|key| other[*key] == subject[*key])
            };
            if !subjects.iter().any(same) {
                subjects.push(subject.clone());
            }
        }
        if !subjects.is_empty() {
            new["subjects"] = subjects.into();
        }
    }
    (new != *there).then_some(new)
}

/// Makes what is missing in a cluster, and completes what is not whole.
pub(crate) async fn ensure(client: &Client) -> Result<(), kube::Error> {
    for (kind, wanted) in [
        ("ClusterRole", cluster_roles()),
        ("ClusterRoleBinding", cluster_role_bindings()),
    ] {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(RBAC_GROUP, "v1", kind));
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        let there = api.list(&ListParams::default()).await?.items;
        let there: HashMap<_, _> = there.iter().map(|object| (object.name_any(), object)).collect();
        // Together they share commits.
        try_join_all(wanted.iter().map(|wanted| {
            let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
            let found = there.get(name).copied();
            put(&api, name, found, wanted)
        }))
        .await?;
    }
    Ok(())
}

async fn put(
    api: &Api<DynamicObject>,
    name: &str,
    found: Option<&DynamicObject>,
    wanted: &Value,
) -> Result<(), kube::Error> {
    let object = |value: Value| serde_json::from_value(value).map_err(kube::Error::SerdeError);
    let written = match found {
        None => {
            let new: DynamicObject = object(wanted.clone())?;
            api.create(&PostParams::default(), &new).await
        }
        Some(found) => {
            let there = serde_json::to_value(found).map_err(kube::Error::SerdeError)?;
            let Some(new) = completed(&there, wanted) else {
                return Ok(());
            };
            api.replace(name, &PostParams::default(), &object(new)?).await
        }
    };
    match written {
        Ok(_) => Ok(()),
        // Another server starts at the same time and does the same.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::default_roles::tests::find;
    use super::*;

    #[test]
    fn what_was_taken_away_comes_back_and_what_was_added_stays() {
        let wanted = find(&cluster_roles(), "system:basic-user");
        assert_eq!(completed(&wanted, &wanted), None);
        let mut there = wanted.clone();
        there["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let new = completed(&there, &wanted).unwrap();
        assert!(missing(&Rule::list(&new), &Rule::list(&wanted)).is_empty());
        assert!(missing(&Rule::list(&new), &Rule::list(&there)).is_empty());
        there["metadata"]["annotations"][AUTO_UPDATE] = json!("false");
        assert_eq!(completed(&there, &wanted), None);
        let wanted = find(&cluster_role_bindings(), "system:public-info-viewer");
        let mut there = wanted.clone();
        there["subjects"] = json!([{"kind": "User", "name": "u"}]);
        let new = completed(&there, &wanted).unwrap();
        assert_eq!(new["subjects"].as_array().map(Vec::len), Some(3));
    }
}
