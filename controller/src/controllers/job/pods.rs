//! What the pods of a Job look like.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::FINALIZER;
use crate::controllers::claim::controller_reference;
use crate::controllers::pod::{COMPLETION_INDEX, INDEX_FAILURES, INDEX_IGNORED};
use crate::controllers::pod_control::pod_of;

/// The variable by which a container learns its index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// A pod's name is at most 63 bytes long, of which the server makes five.
const LONGEST_PREFIX: usize = 58;

/// A pod without an index.
pub(super) fn pod(job: &Job) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    make(job, &prefix(name, ""))
}

/// The pod of an index; `failures` are those of the index before it, counted and ignored.
pub(super) fn indexed(job: &Job, index: i32, failures: Option<(i32, i32)>) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let mut pod = make(job, &prefix(name, &format!("-{index}")));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(COMPLETION_INDEX.into(), index.to_string());
    if let Some((counted, ignored)) = failures {
        annotations.insert(INDEX_FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED.into(), ignored.to_string());
        }
    }
    pod.metadata
        .labels
        .get_or_insert_default()
        .insert(COMPLETION_INDEX.into(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        tell_index(container);
    }
    pod
}

fn prefix(name: &str, index: &str) -> String {
    let room = LONGEST_PREFIX.saturating_sub(index.len() + 1);
    let name = name.get(..room).unwrap_or(name);
    format!("{name}{index}-")
}

fn make(job: &Job, prefix: &str) -> Pod {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let default = k8s_openapi::api::core::v1::PodTemplateSpec::default();
    let template = job.spec.as_ref().map_or(&default, |spec| &spec.template);
    let mut pod = pod_of(template, namespace, prefix, controller_reference(job));
    pod.metadata
        .finalizers
        .get_or_insert_default()
        .push(FINALIZER.into());
    pod
}

fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector {
        api_version: None,
        field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
    };
    env.push(EnvVar {
        name: INDEX_VARIABLE.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(field),
            ..EnvVarSource::default()
        }),
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(name: &str) -> Job {
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "a", "uid": "u" },
            "spec": { "template": { "metadata": { "labels": { "app": "x" } }, "spec": {
                "containers": [{ "name": "c" }, { "name": "d", "env": [{ "name": INDEX_VARIABLE, "value": "mine" }] }],
                "initContainers": [{ "name": "i" }] } } } }))
        .unwrap()
    }

    #[test]
    fn an_indexed_pod_knows_its_index() {
        let pod = indexed(&job("pi"), 7, Some((2, 1)));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("pi-7-"));
        assert_eq!(
            pod.metadata.finalizers.as_deref(),
            Some(&[FINALIZER.to_owned()][..])
        );
        let (labels, annotations) = (pod.metadata.labels.unwrap(), pod.metadata.annotations.unwrap());
        assert_eq!(
            (labels[COMPLETION_INDEX].as_str(), labels["app"].as_str()),
            ("7", "x")
        );
        assert_eq!(annotations[COMPLETION_INDEX], "7");
        assert_eq!(
            (
                annotations[INDEX_FAILURES].as_str(),
                annotations[INDEX_IGNORED].as_str()
            ),
            ("2", "1")
        );
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("pi-7"));
        let variables = |container: &Container| container.env.as_ref().unwrap().len();
        assert!(spec.containers.iter().all(|container| variables(container) == 1));
        assert_eq!(
            spec.containers[1].env.as_ref().unwrap()[0].value.as_deref(),
            Some("mine")
        );
        assert_eq!(variables(&spec.init_containers.unwrap()[0]), 1);
    }

    #[test]
    fn long_names_leave_room() {
        let long = "x".repeat(63);
        let made = indexed(&job(&long), 12, None).metadata.generate_name.unwrap();
        assert_eq!(made.len(), LONGEST_PREFIX);
        assert!(made.ends_with("x-12-"));
        assert_eq!(pod(&job("pi")).metadata.generate_name.as_deref(), Some("pi-"));
    }
}
