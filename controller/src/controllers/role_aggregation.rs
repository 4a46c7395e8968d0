//! Fills the ClusterRoles that gather the rules of others, such as `admin`, `edit` and `view`.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{Context, ControllerError, Outcome, is_not_found, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};
use crate::selector::LabelSelector;

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let (keys, roles) = (queue.clone(), Arc::downgrade(&context.cluster_roles));
    context.cluster_roles.subscribe(move |change| {
        // A role may come into or fall out of any that gathers.
        let Some(roles) = roles.upgrade() else { return };
        let changed = change.latest().filter(|role| role.aggregation_rule.is_some());
        if let Some(role) = changed {
            keys.add(ObjectKey::of(&role.metadata));
        }
        for role in roles.all().iter().filter(|role| role.aggregation_rule.is_some()) {
            keys.add(ObjectKey::of(&role.metadata));
        }
    });
    let ready = {
        let roles = context.cluster_roles.clone();
        async move { roles.wait_synced().await }
    };
    let shared = context.clone();
    // One at a time: a role that gathers may be gathered itself.
    spawn_workers(context, "clusterrole-aggregation", &queue, 1, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key).await }
    });
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(role) = context.cluster_roles.get(key) else {
        return Ok(None);
    };
    let Some(rules) = gathered(&role, &context.cluster_roles.all()) else {
        return Ok(None);
    };
    let api: Api<ClusterRole> = Api::all(context.client.clone());
    let patch = json!({"metadata": {"resourceVersion": role.metadata.resource_version}, "rules": rules});
    match api
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(ControllerError::api("patch", format!("cluster role {key}"))(
            error,
        )),
    }
}

/// The rules that a role is to have; `None` if it has them, or gathers none.
fn gathered(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.clone()?;
    let selectors: Vec<_> = selectors
        .iter()
        // One that makes no sense gathers nothing.
        .filter_map(|selector| LabelSelector::from_object(Some(selector)).ok())
        .collect();
    let mut sources: Vec<_> = all
        .iter()
        .filter(|source| source.metadata.name != role.metadata.name)
        .filter(|source| {
            let labels = source.metadata.labels.clone().unwrap_or_default();
            selectors.iter().any(|selector| selector.matches(&labels))
        })
        .collect();
    sources.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in sources.iter().flat_map(|source| source.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value};

    use super::*;

    fn role(name: &str, labels: &Value, verb: &str) -> Arc<ClusterRole> {
        let role = json!({
            "metadata": {"name": name, "labels": labels},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}],
        });
        Arc::new(from_value(role).unwrap())
    }

    #[test]
    fn rules_are_gathered_by_label_in_order_and_once() {
        let mut gathering: ClusterRole = from_value(json!({
            "metadata": {"name": "g", "labels": {"x": "1"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"x": "1"}}, {"matchLabels": {"y": "1"}}]},
        }))
        .unwrap();
        let all = [
            role("c", &json!({"y": "1"}), "get"),
            role("b", &json!({"x": "1"}), "list"),
            role("a", &json!({"x": "1", "y": "1"}), "get"),
            role("z", &json!({"z": "1"}), "delete"),
            Arc::new(gathering.clone()),
        ];
        let rules = gathered(&gathering, &all).unwrap();
        let verbs: Vec<_> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
        gathering.rules = Some(rules);
        assert_eq!(gathered(&gathering, &all), None);
        assert_eq!(gathered(&all[0], &all), None);
    }
}
