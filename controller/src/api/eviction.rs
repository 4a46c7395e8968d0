//! Takes a pod away for someone who empties its node, unless a PodDisruptionBudget forbids it.

use http::StatusCode;
use serde_json::{Value, json};

use super::delete::{self, Options};
use super::status::{ApiError, success};
use super::write::{self, Change, Managers, Reply};
use super::{Call, objects};
use crate::resources;
use crate::selector::LabelSelector;
use crate::store::{Encoded, Expect, Operation, StoreError, Write};

const BUDGETS: &str = "policy/poddisruptionbudgets";
/// How often a budget is read again when others write it meanwhile.
const ATTEMPTS: usize = 50;
/// Evictions let through whose pods have not gone; more mean that nobody looks after the budget.
const MAX_AWAITED: usize = 2000;
/// When to ask again where the budget has not been looked at yet, in seconds.
const RETRY_SECONDS: u64 = 10;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// POST of an eviction. Clients are sloppy with this body: what matters is the URL.
pub(super) async fn evict(call: &Call, eviction: &Value) -> Result<Reply, ApiError> {
    let named = objects::name(eviction);
    if !named.is_empty() && named != call.path.name {
        return Err(ApiError::bad_request(format!(
            "name in URL does not match name in Eviction object: {} != {named}",
            call.path.name
        )));
    }
    let options = Options::read(call, &eviction["deleteOptions"])?;
    let pod = call.find()?.value();
    // Before anything is taken out of a budget, and about this very pod all along: another may get its name meanwhile.
    delete::preconditions(&call.resource, &call.path.name, &pod, &options)?;
    call.admits(&pod, Some(&pod))?;
    let meant: &[&str] = if options.is_of_version() {
        &["uid", "resourceVersion"]
    } else {
        &["uid"]
    };
    let options = options.of_object(&pod);
    if is_guarded(&pod) {
        charge(call, &pod, options.dry_run()).await?;
    }
    if !options.dry_run() {
        mark(call, &pod["metadata"], meant).await?;
    }
    delete::delete(call, &options).await?;
    Ok(Reply::status(StatusCode::CREATED, success(Value::Null)))
}

/// Whether budgets are about the pod: not if it has not begun, has ended, or is going.
fn is_guarded(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !matches!(phase, "Pending" | "Succeeded" | "Failed") && !objects::is_terminating(pod)
}

/// Takes the pod's eviction out of its budget.
async fn charge(call: &Call, pod: &Value, dry_run: bool) -> Result<(), ApiError> {
    let Some(row) = resources::stored_as(BUDGETS) else {
        return Ok(());
    };
    let now = objects::timestamp(call.now);
    for _ in 0..ATTEMPTS {
        let budgets = call
            .server
            .store
            .list(BUDGETS, &format!("{}/", call.path.namespace))
            .items;
        let mut own = budgets.iter().filter(|budget| selects(&budget.value(), pod));
        let Some(stored) = own.next() else { return Ok(()) };
        if own.next().is_some() {
            return Err(ApiError::several_budgets());
        }
        let Some(charged) = charged(&stored.value(), pod, &now)? else {
            return Ok(());
        };
        if dry_run {
            return Ok(());
        }
        let write = Write {
            resource: BUDGETS,
            key: row.key(&call.path.namespace, objects::name(&charged)),
            expect: Expect::Revision(stored.revision()),
            operation: Operation::Put(Encoded::new(&charged, row.index(&charged))),
        };
        match call.server.store.commit(vec![write]).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::stale(row, &call.path.name))
}

fn selects(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    // No selector selects nothing, and an empty one everything.
    !selector.is_null()
        && LabelSelector::from_value(selector)
            .is_ok_and(|selector| selector.matches(&pod["metadata"]["labels"]))
}

/// The budget after the eviction; `None` if the eviction costs nothing.
fn charged(budget: &Value, pod: &Value, now: &str) -> Result<Option<Value>, ApiError> {
    let status = &budget["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or_default();
    let name = objects::name(budget);
    let conditions = pod["status"]["conditions"].as_array();
    let ready =
        conditions.is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
    if !ready {
        // A pod that does not work is no loss, if the others suffice or the budget says so.
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let enough = number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy");
        if always || enough {
            return Ok(None);
        }
    }
    let refused = |why: String, retry: u64| {
        let mut error = ApiError::too_many_requests(REFUSED, retry);
        if retry == 0 {
            error.details = json!({});
        }
        error.details["causes"] = json!([{"reason": "DisruptionBudget", "message": why}]);
        error
    };
    let generation = budget["metadata"]["generation"].as_i64().unwrap_or_default();
    if number("observedGeneration") < generation {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(why, RETRY_SECONDS));
    }
    let awaited = status["disruptedPods"]
        .as_object()
        .map_or(0, serde_json::Map::len);
    if awaited > MAX_AWAITED {
        return Err(ApiError::forbidden_path(format!(
            "poddisruptionbudget.policy {name:?} is forbidden: DisruptedPods map too big - too many evictions not confirmed by PDB \
             controller"
        )));
    }
    let allowed = number("disruptionsAllowed");
    if allowed <= 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(refused(why, 0));
    }
    let mut budget = budget.clone();
    let status = &mut budget["status"];
    status["disruptionsAllowed"] = json!(allowed - 1);
    status["disruptedPods"][objects::name(pod)] = json!(now);
    let conditions = status["conditions"].as_array_mut().into_iter().flatten();
    for condition in conditions.filter(|condition| allowed == 1 && condition["type"] == "DisruptionAllowed") {
        condition["status"] = json!("False");
        condition["reason"] = json!("InsufficientPods");
        condition["lastTransitionTime"] = json!(now);
    }
    Ok(Some(budget))
}

/// Says on the pod why it goes, if it still has what is `meant` of this metadata.
async fn mark(call: &Call, metadata: &Value, meant: &[&str]) -> Result<(), ApiError> {
    let now = objects::timestamp(call.now);
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": now,
    });
    write::change(call, Managers::SetAside, |pod| {
        let mut pod = pod.clone();
        for key in meant {
            objects::copy(&mut pod["metadata"], metadata, key);
        }
        match pod["status"]["conditions"].as_array_mut() {
            Some(list)
                if list
                    .iter()
                    .any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True") => {}
            Some(list) => {
                list.retain(|condition| condition["type"] != "DisruptionTarget");
                list.push(condition.clone());
            }
            None => pod["status"]["conditions"] = json!([condition]),
        }
        Ok(Change {
            object: pod,
            warnings: Vec::new(),
            tracked: false,
        })
    })
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2025-01-01T00:00:00Z";

    fn pod(ready: bool) -> Value {
        let state = if ready { "True" } else { "False" };
        json!({"metadata": {"name": "web"}, "status": {"conditions": [{"type": "Ready", "status": state}]}})
    }

    fn budget(allowed: i64, current: i64, desired: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 1}, "spec": {}, "status": {
            "observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": current, "desiredHealthy": desired,
            "conditions": [{"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods"}]}})
    }

    #[test]
    fn an_eviction_is_taken_out_of_the_budget() {
        let after = charged(&budget(2, 4, 2), &pod(true), NOW).unwrap().unwrap();
        assert_eq!(after["status"]["disruptionsAllowed"], 1);
        assert_eq!(after["status"]["disruptedPods"], json!({"web": NOW}));
        assert_eq!(after["status"]["conditions"][0]["status"], "True");
        let last = charged(&budget(1, 3, 2), &pod(true), NOW).unwrap().unwrap();
        assert_eq!(last["status"]["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn a_used_up_budget_refuses_in_kubernetes_words() {
        let error = charged(&budget(0, 2, 2), &pod(true), NOW).unwrap_err();
        assert_eq!(
            (error.code, error.reason, error.message.as_str()),
            (429, "TooManyRequests", REFUSED)
        );
        assert_eq!(
            error.details["causes"],
            json!([{"reason": "DisruptionBudget", "message": "The disruption budget b needs 2 healthy pods and has 2 currently"}])
        );
        let mut fresh = budget(3, 3, 0);
        fresh["metadata"]["generation"] = json!(2);
        let error = charged(&fresh, &pod(true), NOW).unwrap_err();
        assert_eq!(
            error.details["causes"][0]["message"],
            "The disruption budget b is still being processed by the server."
        );
        assert_eq!(error.details["retryAfterSeconds"], 10);
    }

    #[test]
    fn pods_that_do_not_work_may_go_if_the_others_suffice() {
        assert!(charged(&budget(0, 2, 2), &pod(false), NOW).unwrap().is_none());
        assert!(charged(&budget(0, 1, 2), &pod(false), NOW).is_err());
        let mut lenient = budget(0, 1, 2);
        lenient["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        assert!(charged(&lenient, &pod(false), NOW).unwrap().is_none());
    }

    #[test]
    fn budgets_are_about_working_pods_that_they_select() {
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        for (selector, selected) in [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"a": "c"}}), false),
        ] {
            assert_eq!(
                selects(&json!({"spec": {"selector": selector}}), &labelled),
                selected
            );
        }
        for (phase, guarded) in [("Running", true), ("Pending", false), ("Succeeded", false)] {
            assert_eq!(is_guarded(&json!({"status": {"phase": phase}})), guarded);
        }
    }
}
