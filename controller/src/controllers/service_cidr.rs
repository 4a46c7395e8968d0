//! Ranges of Services' addresses: says that they are ready, and keeps one that is deleted until no Service needs it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::{Context, ControllerError, Outcome, is_not_found, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// Keeps a range while addresses of it are in use.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// How long a range that gives out no more addresses is kept at least: who gave one out meanwhile has written it by then.
const SETTLE: Duration = Duration::from_secs(2);

/// What a range needs done.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// It gets the finalizer.
    Protect,
    /// It gets this condition.
    Condition(Value),
    /// It is looked at again later.
    Wait,
    /// It may go.
    Release,
}

/// Decides about a range; `addresses` are those in use, asked for only if it is being deleted.
fn step(range: &ServiceCIDR, others: &[Arc<ServiceCIDR>], addresses: &[IpAddr], now: Timestamp) -> Step {
    let meta = &range.metadata;
    let protected = meta
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == FINALIZER);
    let conditions = range
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let ready = conditions
        .unwrap_or_default()
        .iter()
        .find(|condition| condition.type_ == "Ready");
    let says = |status: &str| ready.is_some_and(|condition| condition.status == status);
    let Some(deleted) = &meta.deletion_timestamp else {
        return match (protected, says("True")) {
            (false, _) => Step::Protect,
            (true, true) => Step::Nothing,
            (true, false) => Step::Condition(condition(
                "True",
                "",
                "Kubernetes Service CIDR is ready",
                ready,
                now,
            )),
        };
    };
    if !protected {
        return Step::Nothing;
    }
    if !says("False") {
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        return Step::Condition(condition("False", "Terminating", message, ready, now));
    }
    let rest: Vec<IpNetwork> = others
        .iter()
        .filter(|other| other.metadata.name != meta.name && other.metadata.deletion_timestamp.is_none())
        .flat_map(|other| networks(other))
        .collect();
    let own = networks(range);
    let needed = addresses.iter().any(|address| {
        own.iter().any(|network| network.contains(*address))
            && !rest.iter().any(|network| network.contains(*address))
    });
    let settled = now.duration_since(deleted.0).unsigned_abs() >= SETTLE;
    if needed || !settled {
        Step::Wait
    } else {
        Step::Release
    }
}

fn networks(range: &ServiceCIDR) -> Vec<IpNetwork> {
    let spec = range.spec.as_ref();
    let texts = spec.and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn condition(status: &str, reason: &str, message: &str, old: Option<&Condition>, now: Timestamp) -> Value {
    let since = old
        .filter(|old| old.status == status)
        .map_or(now, |old| old.last_transition_time.0);
    json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": format!("{since:.0}")})
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.service_cidrs.subscribe(move |change| {
        if let Some(range) = change.new {
            keys.add(ObjectKey::of(&range.metadata));
        }
    });
    let synced = context.clone();
    let ready = async move { synced.service_cidrs.wait_synced().await };
    let shared = context.clone();
    spawn_workers(context, "service-cidr", &queue, 1, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key).await }
    });
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(range) = context.service_cidrs.get(key) else {
        return Ok(None);
    };
    let mut addresses = Vec::new();
    if range.metadata.deletion_timestamp.is_some() {
        let api: Api<IPAddress> = Api::all(context.client.clone());
        let list = api.list(&ListParams::default()).await;
        let list = list.map_err(ControllerError::api("list", "the addresses of Services"))?;
        let names = list.items.into_iter().filter_map(|address| address.metadata.name);
        addresses = names.filter_map(|name| name.parse().ok()).collect();
    }
    let others = context.service_cidrs.all();
    let api: Api<ServiceCIDR> = Api::all(context.client.clone());
    let version = &range.metadata.resource_version;
    let mut finalizers = range.metadata.finalizers.clone().unwrap_or_default();
    let params = PatchParams::default();
    let written = match step(&range, &others, &addresses, Timestamp::now()) {
        Step::Nothing => return Ok(None),
        Step::Wait => return Ok(Some(SETTLE)),
        Step::Condition(condition) => {
            let patch =
                json!({"metadata": {"resourceVersion": version}, "status": {"conditions": [condition]}});
            api.patch_status(&key.name, &params, &Patch::Merge(patch)).await
        }
        step => {
            if step == Step::Protect {
                finalizers.push(FINALIZER.to_owned());
            } else {
                finalizers.retain(|finalizer| finalizer != FINALIZER);
            }
            let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
            api.patch(&key.name, &params, &Patch::Merge(patch)).await
        }
    };
    match written {
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(ControllerError::api("update", format!("service CIDR {key}"))(
            error,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidr: &str, metadata: Value, status: &str) -> ServiceCIDR {
        let mut meta = json!({"name": name, "finalizers": [FINALIZER]});
        for (key, value) in metadata.as_object().unwrap() {
            meta[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": meta, "spec": {"cidrs": [cidr]},
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": "", "message": "",
                "lastTransitionTime": "2030-01-01T00:00:00Z"}]}}))
        .unwrap()
    }

    #[test]
    fn a_range_is_kept_while_it_is_needed() {
        let now: Timestamp = "2030-01-01T00:01:00Z".parse().unwrap();
        let deleted = json!({"deletionTimestamp": "2030-01-01T00:00:50Z"});
        let used: [IpAddr; 1] = ["10.97.0.5".parse().unwrap()];
        let step = |range: &ServiceCIDR, others: &[Arc<ServiceCIDR>], used: &[IpAddr]| {
            step(range, others, used, now)
        };
        let fresh = range("a", "10.97.0.0/24", json!({"finalizers": null}), "Unknown");
        assert_eq!(step(&fresh, &[], &[]), Step::Protect);
        let Step::Condition(condition) = step(&range("a", "10.97.0.0/24", json!({}), "Unknown"), &[], &[])
        else {
            panic!("it says that it is ready")
        };
        assert_eq!(
            (&condition["status"], &condition["lastTransitionTime"]),
            (&json!("True"), &json!("2030-01-01T00:01:00Z"))
        );
        assert_eq!(
            step(&range("a", "10.97.0.0/24", json!({}), "True"), &[], &[]),
            Step::Nothing
        );
        let going = range("a", "10.97.0.0/24", deleted.clone(), "True");
        assert!(matches!(step(&going, &[], &used), Step::Condition(_)));
        let going = range("a", "10.97.0.0/24", deleted.clone(), "False");
        assert_eq!(step(&going, &[], &used), Step::Wait);
        assert_eq!(step(&going, &[], &[]), Step::Release);
        let wider = Arc::new(range("b", "10.97.0.0/16", json!({}), "True"));
        assert_eq!(
            step(&going, &[wider], &used),
            Step::Release,
            "another has its addresses"
        );
        let just = range(
            "a",
            "10.97.0.0/24",
            json!({"deletionTimestamp": "2030-01-01T00:00:59Z"}),
            "False",
        );
        assert_eq!(step(&just, &[], &[]), Step::Wait);
    }
}
