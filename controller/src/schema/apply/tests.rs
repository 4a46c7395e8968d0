use super::*;
use crate::schema::kind;
use proptest::prelude::*;
use serde_json::json;

const TIME: &str = "2025-01-01T00:00:00Z";
const LATER: &str = "2025-01-01T00:01:00Z";

fn manager(name: &str) -> Manager<'_> {
    Manager {
        name,
        subresource: None,
        time: TIME,
    }
}

fn apply_as(name: &str, live: Option<&Value>, applied: &Value, force: bool) -> Result<Value, ApplyError> {
    let schema = kind("apps", "v1", "Deployment").expect("known");
    let time = if live.is_some() { LATER } else { TIME };
    schema.apply(
        live,
        &ApplyRequest {
            applied,
            manager: Manager {
                time,
                ..manager(name)
            },
            force,
        },
    )
}

fn update_as(name: &str, live: Option<&Value>, mut new: Value) -> Value {
    let schema = kind("apps", "v1", "Deployment").expect("known");
    schema.track_update(live, &mut new, &manager(name));
    new
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image})
}

fn with_containers(containers: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": containers}}}))
}

fn without_managers(mut object: Value) -> Value {
    object["metadata"]
        .as_object_mut()
        .expect("object")
        .remove("managedFields");
    object
}

fn fields_of(object: &Value, name: &str) -> Value {
    let list = object["metadata"]["managedFields"].as_array().expect("tracked");
    list.iter()
        .find(|entry| entry["manager"] == name)
        .map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn the_first_apply_owns_what_it_says() {
    let applied = deployment(
        json!({"replicas": 2, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
        {"name": "c", "image": "x", "args": ["1"], "ports": [{"containerPort": 80}]}]}}}),
    );
    let object = apply_as("me", None, &applied, false).expect("applied");
    assert_eq!(without_managers(object.clone()), applied);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{"manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": TIME, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {
                "f:metadata": {"f:labels": {"f:a": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}}])
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let applied = with_containers(json!([container("c", "x")]));
    let object = apply_as("me", None, &applied, false).expect("applied");
    assert_eq!(
        apply_as("me", Some(&object), &applied, false).expect("applied"),
        object
    );
}

#[test]
fn lists_merge_by_their_keys_with_defaults() {
    let live = with_containers(
        json!([{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"},
        {"containerPort": 80, "protocol": "UDP"}]}, container("sidecar", "s")]),
    );
    let applied = with_containers(
        json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}, container("new", "n")]),
    );
    let live = update_as("creator", None, live);
    let merged = apply_as("me", Some(&live), &applied, false).expect("no conflict");
    assert_eq!(
        merged["spec"]["template"]["spec"]["containers"],
        json!([{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http", "hostPort": 8080},
            {"containerPort": 80, "protocol": "UDP"}]}, container("sidecar", "s"), container("new", "n")])
    );
}

#[test]
fn a_conflict_names_the_manager_and_the_field() {
    let live = apply_as(
        "first",
        None,
        &with_containers(json!([container("c", "x")])),
        false,
    )
    .expect("applied");
    let applied = with_containers(json!([container("c", "y")]));
    let error = apply_as("second", Some(&live), &applied, false).expect_err("conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"first\": .spec.template.spec.containers[name=\"c\"].image"
    );
    let forced = apply_as("second", Some(&live), &applied, true).expect("forced");
    assert_eq!(forced["spec"]["template"]["spec"]["containers"][0]["image"], "y");
    let first = fields_of(&forced, "first");
    let item = &first["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"];
    assert_eq!(item, &json!({".": {}, "f:name": {}}));
    // The same value is no conflict: both own it.
    let shared = apply_as(
        "second",
        Some(&live),
        &with_containers(json!([container("c", "x")])),
        false,
    )
    .expect("shared");
    assert_eq!(fields_of(&shared, "first"), fields_of(&shared, "second"));
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let live = update_as(
        "kubectl",
        None,
        deployment(json!({"replicas": 1, "paused": true})),
    );
    let error = apply_as(
        "me",
        Some(&live),
        &deployment(json!({"replicas": 2, "paused": false})),
        false,
    );
    assert_eq!(
        error.expect_err("conflicts").to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn fields_no_longer_applied_go_unless_another_owns_them() {
    let applied = deployment(
        json!({"replicas": 2, "paused": true, "template": {"metadata": {"labels": {"a": "1", "b": "2"}},
        "spec": {"containers": [container("a", "x"), container("b", "y")], "securityContext": {"runAsUser": 1}}}}),
    );
    let live = apply_as("me", None, &applied, false).expect("applied");
    let live = apply_as("other", Some(&live), &deployment(json!({"replicas": 2})), false).expect("shared");
    let less = deployment(
        json!({"template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [container("a", "x")]}}}),
    );
    let object = apply_as("me", Some(&live), &less, false).expect("applied");
    assert_eq!(
        without_managers(object),
        deployment(
            json!({"replicas": 2, "template": {"metadata": {"labels": {"a": "1"}},
            "spec": {"containers": [container("a", "x")]}}})
        )
    );
}

#[test]
fn an_item_that_another_manager_changed_stays_with_its_keys() {
    let live = apply_as("me", None, &with_containers(json!([container("a", "x")])), false).expect("applied");
    let mut new = live.clone();
    new["spec"]["template"]["spec"]["containers"][0]["tty"] = json!(true);
    let live = update_as("other", Some(&live), new);
    let object = apply_as("me", Some(&live), &with_containers(json!([])), false).expect("applied");
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "tty": true}])
    );
}

#[test]
fn atomic_values_are_replaced_together() {
    let selector = |labels: Value| deployment(json!({"selector": {"matchLabels": labels}}));
    let live = apply_as("me", None, &selector(json!({"a": "1"})), false).expect("applied");
    assert_eq!(fields_of(&live, "me"), json!({"f:spec": {"f:selector": {}}}));
    let object = apply_as("me", Some(&live), &selector(json!({"b": "2"})), false).expect("own");
    assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"b": "2"}}));
}

#[test]
fn updates_own_what_they_change() {
    let created = update_as(
        "creator",
        None,
        deployment(json!({"replicas": 1, "paused": true})),
    );
    assert_eq!(
        fields_of(&created, "creator"),
        json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
    let mut scaled = created.clone();
    scaled["spec"] = json!({"replicas": 5});
    scaled["metadata"]["labels"] = json!({"x": "y"});
    let scaled = update_as("scaler", Some(&created), scaled);
    assert_eq!(
        fields_of(&scaled, "creator"),
        Value::Null,
        "it owns nothing any more"
    );
    assert_eq!(
        fields_of(&scaled, "scaler"),
        json!({"f:metadata": {"f:labels": {".": {}, "f:x": {}}}, "f:spec": {"f:replicas": {}}})
    );
    assert_eq!(
        update_as("third", Some(&scaled), scaled.clone()),
        scaled,
        "nothing changed"
    );
}

#[test]
fn status_and_the_rest_are_told_apart() {
    let schema = kind("apps", "v1", "Deployment").expect("known");
    let live = update_as("creator", None, deployment(json!({"replicas": 1})));
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1});
    let status = Manager {
        subresource: Some("status"),
        ..manager("controller")
    };
    schema.track_update(Some(&live), &mut new, &status);
    let entry = new["metadata"]["managedFields"]
        .as_array()
        .and_then(|entries| entries.iter().find(|entry| entry["manager"] == "controller"))
        .expect("tracked");
    assert_eq!(entry["subresource"], "status");
    assert_eq!(entry["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    assert_eq!(fields_of(&new, "creator"), fields_of(&live, "creator"));
}

#[test]
fn an_empty_list_forgets_all_managers() {
    let live = update_as("creator", None, deployment(json!({"replicas": 1})));
    for reset in [json!([]), json!([{}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = reset;
        let new = update_as("me", Some(&live), new);
        assert!(new["metadata"].get("managedFields").is_none());
    }
}

#[test]
fn what_cannot_be_applied_is_refused() {
    for (applied, problem) in [
        (json!([]), "an applied configuration must be an object"),
        (
            json!({"metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
        (
            json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"replicaz": 1}}),
            "failed to create typed patch object (n/a; apps/v1, Kind=Deployment): .spec.replicaz: field not declared in schema",
        ),
        (
            with_containers(json!([{"image": "x"}])),
            "failed to create typed patch object (/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: \
             element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have \
             default value)",
        ),
        (
            with_containers(json!([container("a", "x"), container("a", "y")])),
            "failed to create typed patch object (/web; apps/v1, Kind=Deployment): .spec.template.spec.containers: \
             duplicate entries for key [name=\"a\"]",
        ),
    ] {
        assert_eq!(
            apply_as("me", None, &applied, false)
                .expect_err("refused")
                .to_string(),
            problem
        );
    }
}

#[test]
fn an_object_from_before_tracking_gets_a_first_manager() {
    let live = deployment(json!({"replicas": 1, "paused": true}));
    let error =
        apply_as("me", Some(&live), &deployment(json!({"replicas": 3})), false).expect_err("conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn old_updaters_are_put_together() {
    let mut object = update_as("u00", None, deployment(json!({"replicas": 0})));
    for index in 1..20 {
        let mut new = object.clone();
        new["metadata"]["labels"][format!("l{index:02}")] = json!("x");
        object = update_as(&format!("u{index:02}"), Some(&object), new);
    }
    let managers = object["metadata"]["managedFields"].as_array().expect("tracked");
    assert_eq!(managers.len(), 10);
    assert!(managers.iter().any(|entry| entry["manager"] == "ancient-changes"));
}

fn any_deployment() -> impl Strategy<Value = Value> {
    let container = (
        prop::sample::select(vec!["a", "b", "c"]),
        0..3_i32,
        prop::option::of(80..83_i32),
    )
        .prop_map(|(name, image, port)| {
            let mut container = json!({"name": name, "image": image.to_string()});
            if let Some(port) = port {
                container["ports"] = json!([{"containerPort": port}]);
            }
            container
        });
    let containers = prop::collection::vec(container, 1..3).prop_map(|mut list| {
        list.sort_by_key(|c| c["name"].to_string());
        list.dedup_by_key(|c| c["name"].to_string());
        list
    });
    let labels = prop::collection::btree_map("[a-c]", "[x-z]", 1..3);
    (prop::option::of(0..3), labels, containers).prop_map(|(replicas, labels, containers)| {
        let mut spec = json!({"template": {"spec": {"containers": containers}}});
        if let Some(replicas) = replicas {
            spec["replicas"] = json!(replicas);
        }
        let mut object = deployment(spec);
        object["metadata"]["labels"] = json!(labels);
        object
    })
}

proptest! {
    #[test]
    fn what_is_applied_with_force_is_there_afterwards(objects in prop::collection::vec((0..3, any_deployment()), 1..6)) {
        let mut live: Option<Value> = None;
        for (who, applied) in objects {
            let name = format!("m{who}");
            let object = apply_as(&name, live.as_ref(), &applied, true).expect("forced");
            let slot = Slot::root(kind("apps", "v1", "Deployment").expect("known").root());
            let unmanaged = without_managers(object.clone());
            let again = walk::merge(slot, Some(&unmanaged), &applied);
            prop_assert_eq!(&again, &unmanaged, "all of it is there");
            let repeated = apply_as(&name, Some(&object), &applied, false).expect("its own now");
            prop_assert_eq!(&repeated, &object, "and applying it again is no change");
            live = Some(object);
        }
    }

    #[test]
    fn one_manager_alone_gets_exactly_what_it_applies(first in any_deployment(), second in any_deployment()) {
        let live = apply_as("me", None, &first, false).expect("applied");
        let object = apply_as("me", Some(&live), &second, false).expect("own");
        let schema = kind("apps", "v1", "Deployment").expect("known");
        let (mut got, mut wanted) = (without_managers(object), second);
        // Without regard to the order of items.
        for value in [&mut got, &mut wanted] {
            schema.prune(value);
            if let Some(list) = value["spec"]["template"]["spec"]["containers"].as_array_mut() {
                list.sort_by_key(|c| c["name"].to_string());
            }
        }
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn a_change_is_noted_as_it_would_be_settled(
        objects in prop::collection::vec((0..3, any::<bool>(), any_deployment()), 1..6),
    ) {
        let schema = kind("apps", "v1", "Deployment").expect("known");
        let target = Target::built_in(&schema);
        let mut live: Option<Value> = None;
        for (who, applies, mut new) in objects {
            let name = format!("m{who}");
            if applies {
                live = Some(apply_as(&name, live.as_ref(), &new, true).expect("forced"));
                continue;
            }
            if let Some(list) = live.as_ref().map(|live| &live["metadata"]["managedFields"]).filter(|list| list.is_array()) {
                new["metadata"]["managedFields"] = list.clone();
            }
            let mut settled = new.clone();
            let difference = walk::difference(target.root, live.as_ref(), Some(&new));
            let (mut changed, mut removed) = (difference.changed, difference.removed);
            strip(&mut changed, None);
            strip(&mut removed, None);
            settle(&target, live.as_ref(), &mut settled, &manager(&name), changed, removed);
            schema.track_update(live.as_ref(), &mut new, &manager(&name));
            prop_assert_eq!(&new, &settled);
            live = Some(new);
        }
    }

    #[test]
    fn field_sets_survive_their_json_form(object in any_deployment()) {
        let set = walk::collect(Slot::root(kind("apps", "v1", "Deployment").expect("known").root()), &object);
        prop_assert_eq!(FieldSet::from_json(&set.clone().into_json()), set);
    }
}

#[test]
fn what_nobody_sets_any_more_goes_with_the_defaults_in_it() {
    let probed = |probe: Value| {
        let mut container = container("a", "x");
        container["livenessProbe"] = probe;
        with_containers(json!([container]))
    };
    let schema = kind("apps", "v1", "Deployment").expect("known");
    let applied = probed(json!({"httpGet": {"path": "/", "port": 80}}));
    let mut live = apply_as("me", None, &applied, false).expect("applied");
    schema.default(&mut live);
    let of = |object: &Value| object["spec"]["template"]["spec"]["containers"][0]["livenessProbe"].clone();
    assert_eq!(of(&live)["httpGet"]["scheme"], "HTTP", "it has a default");

    let other = probed(json!({"exec": {"command": ["x"]}}));
    let object = apply_as("me", Some(&live), &other, false).expect("applied");
    assert_eq!(of(&object)["httpGet"], Value::Null);
    assert_eq!(of(&object)["periodSeconds"], 10, "the probe is still one");
    let none = with_containers(json!([container("a", "x")]));
    let object = apply_as("me", Some(&live), &none, false).expect("applied");
    assert_eq!(of(&object), Value::Null);
    assert_eq!(object["metadata"]["name"], "web");

    // What somebody else sets of it keeps it.
    let mut changed = live.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["timeoutSeconds"] = json!(7);
    let live = update_as("other", Some(&live), changed);
    let object = apply_as("me", Some(&live), &none, false).expect("applied");
    assert_eq!(of(&object)["timeoutSeconds"], 7);
}

#[test]
fn what_kubectl_applied_on_its_own_side_it_may_apply_on_the_servers() {
    let first = deployment(json!({"replicas": 1, "paused": true}));
    let mut sent = first.clone();
    sent["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": first.to_string()});
    let live = update_as("kubectl-client-side-apply", None, sent);
    let next = deployment(json!({"replicas": 2, "paused": true}));
    assert!(
        apply_as("flux", Some(&live), &next, false).is_err(),
        "not its own"
    );
    let object = apply_as("kubectl", Some(&live), &next, false).expect("its own");
    assert_eq!(object["spec"]["replicas"], 2);

    // What somebody has changed since is not kubectl's any more.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = json!(5);
    let live = update_as("autoscaler", Some(&live), scaled);
    let both = deployment(json!({"replicas": 2, "paused": false}));
    let error = apply_as("kubectl", Some(&live), &both, false).expect_err("a conflict");
    let told = error.to_string();
    assert!(
        told.contains(".spec.replicas") && !told.contains(".spec.paused"),
        "{told}"
    );
}

#[test]
fn what_means_the_same_is_no_conflict_and_nothing_said_takes_nothing() {
    let schema = kind("apps", "v1", "Deployment").expect("known");
    let with_cpu = |cpu: &str, rest: Value| {
        let mut container = container("a", "x");
        container["resources"] = json!({"requests": {"cpu": cpu}});
        let mut object = with_containers(json!([container]));
        object["spec"]["paused"] = rest;
        object
    };
    let mut live = with_cpu("1000m", json!(false));
    schema.prune(&mut live);
    let live = update_as("creator", None, live);
    let mut applied = with_cpu("1000m", json!(false));
    applied["spec"]["template"]["metadata"] = json!({"annotations": {"a": "b"}});
    let first = apply_as("one", Some(&live), &applied, false).expect("no difference");
    let mut first = first;
    schema.prune(&mut first);
    apply_as("two", Some(&first), &applied, false).expect("both say the same");

    // An empty value in a manifest is no value.
    let mut restarted = first.clone();
    restarted["spec"]["template"]["metadata"]["annotations"]["restartedAt"] = json!("now");
    let live = update_as("kubectl-rollout", Some(&first), restarted);
    let mut applied = with_cpu("1", json!(false));
    applied["spec"]["template"]["metadata"] = json!({"annotations": null});
    schema.prune_applied(&mut applied);
    let object = apply_as("one", Some(&live), &applied, false).expect("applied");
    let annotations = &object["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["restartedAt"], "now");
}

#[test]
fn finalizers_and_labels_of_nobody_stay() {
    let mut applied = deployment(json!({"replicas": 1}));
    applied["metadata"]["finalizers"] = json!(["mine"]);
    applied["metadata"]["labels"] = json!({"mine": "1"});
    let mut live = apply_as("me", None, &applied, false).expect("applied");
    // As admission adds them, after the managers were written.
    live["metadata"]["finalizers"] = json!(["mine", "servers"]);
    live["metadata"]["labels"]["servers"] = json!("1");
    let object = apply_as("me", Some(&live), &deployment(json!({"replicas": 1})), false).expect("applied");
    assert_eq!(object["metadata"]["finalizers"], json!(["servers"]));
    assert_eq!(object["metadata"]["labels"], json!({"servers": "1"}));
}
