//! ResourceQuotas: what a write costs is charged to the namespace's quotas in the same transaction, so that two writers cannot
//! both have the last of anything.

use serde_json::Value;

use super::status::ApiError;
use super::{Call, objects};
use crate::quantity::Quantity;
use crate::quota::{Amounts, amounts, charge, in_scope, printed, unsaid, usage};
use crate::resources::{Resource, Subresource};
use crate::store::{Encoded, Expect, Object, Operation, Write};

/// Where quotas are.
pub(super) const QUOTAS: &str = "resourcequotas";

/// Whether changes of objects of the kind can cost something; of the others only creation does.
fn changes_cost(resource: &Resource) -> bool {
    matches!(resource.storage, "pods" | "services" | "persistentvolumeclaims")
}

/// The writes that charge the namespace's quotas for what turns `old` into `new`.
pub(super) fn charges(call: &Call, old: Option<&Value>, new: &Value) -> Result<Vec<Write>, ApiError> {
    let resource = &call.resource;
    let store = &call.server.store;
    // Of what is below an object only one way leads to more of anything.
    let below =
        matches!(resource.subresource(&call.path.subresource), Some(below) if below != Subresource::Resize);
    let free = !resource.namespaced || resource.storage == "events" || below;
    if free || store.count(QUOTAS) == 0 || (old.is_some() && !changes_cost(resource)) {
        return Ok(Vec::new());
    }
    let quotas = store.list(QUOTAS, &format!("{}/", call.path.namespace)).items;
    let mut change = usage(resource.group, resource.plural, new, call.now);
    if let Some(old) = old {
        for (name, amount) in usage(resource.group, resource.plural, old, call.now) {
            let entry = change.entry(name).or_insert(Quantity::ZERO);
            *entry -= amount;
        }
    }
    let charged = quotas
        .iter()
        .filter_map(|quota| charge_one(call, quota, old.is_none(), new, &change).transpose());
    charged.collect()
}

fn charge_one(
    call: &Call,
    stored: &Object,
    created: bool,
    object: &Value,
    change: &Amounts,
) -> Result<Option<Write>, ApiError> {
    let mut quota = stored.value();
    if !in_scope(&quota, call.resource.plural, object) {
        return Ok(None);
    }
    let forbidden = |why: &str| ApiError::forbidden(&call.resource, objects::name(object), why);
    let name = objects::name(&quota).to_owned();
    // As in Kubernetes, a quota begins to bind once it has been counted what is there.
    let bounded = amounts(&quota["status"]["hard"]);
    let counted = amounts(&quota["status"]["used"]);
    let unknown: Vec<_> = bounded
        .keys()
        .filter(|name| change.contains_key(*name) && !counted.contains_key(*name))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        let why = format!(
            "status unknown for quota: {name}, resources: {}",
            unknown.join(",")
        );
        return Err(forbidden(&why));
    }
    if created
        && call.resource.storage == "pods"
        && let Some(why) = unsaid(bounded.keys().map(String::as_str), &object["spec"])
    {
        return Err(forbidden(&format!("failed quota: {name}: {why}")));
    }
    let Some(used) = charge(&quota, change).map_err(|why| forbidden(&why))? else {
        return Ok(None);
    };
    quota["status"]["used"] = printed(&used);
    let Some(row) = crate::resources::stored_as(QUOTAS) else {
        return Ok(None);
    };
    Ok(Some(Write {
        resource: row.storage,
        key: row.key(&call.path.namespace, &name),
        expect: Expect::Revision(stored.revision()),
        operation: Operation::Put(Encoded::new(&quota, row.index(&quota))),
    }))
}
