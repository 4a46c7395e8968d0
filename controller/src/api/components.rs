//! `componentstatuses`: how the parts of the control plane are, as `kubectl get cs` asks. Nothing of it is kept: whoever asks makes the
//! server look.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Server;
use crate::controllers::chain;
use crate::leader;
use crate::resources::Resource;
use crate::store::{Encoded, Listing};

/// A part that one process of several does: its name, and that of the Lease by which Kubernetes' own does it.
struct Elected {
    name: &'static str,
    lease: &'static str,
}

const CONTROLLERS: Elected = Elected {
    name: leader::CONTROLLERS,
    lease: "kube-controller-manager",
};
const SCHEDULER: Elected = Elected {
    name: leader::SCHEDULER,
    lease: "kube-scheduler",
};

/// Every part, by name.
pub(super) async fn all(server: &Server, row: &Resource, now: Timestamp) -> Listing {
    let revision = server.store.revision();
    let stored = match server.store.barrier().await {
        Ok(()) => Ok(()),
        Err(error) => Err(chain(&error)),
    };
    let parts = [
        (CONTROLLERS.name, elected(server, &CONTROLLERS, now)),
        (SCHEDULER.name, elected(server, &SCHEDULER, now)),
        ("store", stored),
    ];
    let items = parts.map(|(name, health)| {
        let object = status(name, health);
        Arc::new(Encoded::new(&object, row.index(&object)).seal(revision))
    });
    Listing {
        revision,
        items: items.into(),
    }
}

fn status(name: &str, health: Result<(), String>) -> Value {
    let mut condition = json!({"type": "Healthy", "status": "True", "message": "ok"});
    if let Err(why) = health {
        condition = json!({"type": "Healthy", "status": "False", "message": why, "error": why});
    }
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name}, "conditions": [condition],
    })
}

/// Whether somebody does it: this process, or one that holds a Lease for it.
fn elected(server: &Server, part: &Elected, now: Timestamp) -> Result<(), String> {
    if server.runs.split(',').any(|name| name == part.name) {
        return Ok(());
    }
    let leases = server
        .store
        .list("coordination.k8s.io/leases", leader::NAMESPACE_PREFIX);
    let held = leases.items.iter().any(|object| {
        let lease = object.value();
        is_about(&lease, part) && is_held(&lease, now)
    });
    if held {
        return Ok(());
    }
    Err(format!(
        "nobody holds a Lease for it in namespace {}",
        leader::NAMESPACE
    ))
}

fn is_about(lease: &Value, part: &Elected) -> bool {
    let runs = lease["metadata"]["annotations"][leader::RUNS].as_str();
    lease["metadata"]["name"] == part.lease
        || runs.is_some_and(|runs| runs.split(',').any(|name| name == part.name))
}

fn is_held(lease: &Value, now: Timestamp) -> bool {
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let renewed = spec["renewTime"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    let seconds = spec["leaseDurationSeconds"].as_i64().unwrap_or_default();
    let until = renewed.and_then(|time| time.checked_add(SignedDuration::from_secs(seconds)).ok());
    !holder.is_empty() && until.is_some_and(|until| now <= until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_for_what_its_holder_runs_and_while_it_is_renewed() {
        let lease = |name: &str, runs: &str, holder: &str| {
            json!({
                "metadata": {"name": name, "annotations": {leader::RUNS: runs}},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 8, "renewTime": "2026-01-01T00:00:00.000000Z"},
            })
        };
        let ours = lease("weft-controller", "controller-manager", "me");
        assert!(is_about(&ours, &CONTROLLERS) && !is_about(&ours, &SCHEDULER));
        assert!(is_about(&lease("kube-scheduler", "", "it"), &SCHEDULER));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(is_held(&ours, at("2026-01-01T00:00:08Z")));
        assert!(!is_held(&ours, at("2026-01-01T00:00:09Z")));
        assert!(!is_held(&lease("x", "", ""), at("2026-01-01T00:00:01Z")));
        assert!(!is_held(
            &json!({"spec": {"holderIdentity": "me"}}),
            at("2026-01-01T00:00:01Z")
        ));
    }
}
