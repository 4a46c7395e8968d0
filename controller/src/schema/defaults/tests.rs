use super::super::kind;
use serde_json::{Value, json};

fn defaulted(group: &str, version: &str, name: &str, mut object: Value) -> Value {
    let schema = kind(group, version, name).expect("known");
    schema.default(&mut object);
    let once = object.clone();
    schema.default(&mut object);
    assert_eq!(object, once, "defaulting twice");
    once
}

#[test]
fn pods() {
    let pod = defaulted(
        "",
        "v1",
        "Pod",
        json!({"spec": {"hostNetwork": true, "serviceAccountName": "s",
            "volumes": [{"name": "a"}, {"name": "b", "secret": {"secretName": "x"}}],
            "containers": [
                {"name": "a", "image": "reg:5000/a", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
                    "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 3}},
                {"name": "b", "image": "b:1.2"}, {"name": "c", "image": "c:latest"},
                {"name": "d", "image": "d@sha256:00", "imagePullPolicy": "Never"}]}}),
    );
    assert_eq!(
        pod,
        json!({"spec": {"hostNetwork": true, "serviceAccountName": "s", "serviceAccount": "s",
            "enableServiceLinks": true, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "x", "defaultMode": 420}}],
            "containers": [
                {"name": "a", "image": "reg:5000/a", "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}},
                    "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 3,
                        "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3}},
                {"name": "b", "image": "b:1.2", "imagePullPolicy": "IfNotPresent", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"},
                {"name": "c", "image": "c:latest", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"},
                {"name": "d", "image": "d@sha256:00", "imagePullPolicy": "Never", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}]}})
    );
}

#[test]
fn deployments() {
    let deployment = defaulted(
        "apps",
        "v1",
        "Deployment",
        json!({"spec": {"template": {"spec": {}}}}),
    );
    let spec = &deployment["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["revisionHistoryLimit"], 10);
    assert_eq!(spec["progressDeadlineSeconds"], 600);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
    assert!(
        spec["template"]["spec"].get("enableServiceLinks").is_none(),
        "only pods have it"
    );
    let recreate = defaulted(
        "apps",
        "v1",
        "Deployment",
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn services() {
    let service = defaulted("", "v1", "Service", json!({"spec": {"ports": [{"port": 80}]}}));
    assert_eq!(
        service,
        json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP",
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}})
    );
    let service = defaulted(
        "",
        "v1",
        "Service",
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}),
    );
    assert_eq!(
        service["spec"]["sessionAffinityConfig"],
        json!({"clientIP": {"timeoutSeconds": 10_800}})
    );
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(service["spec"]["allocateLoadBalancerNodePorts"], true);
}

#[test]
fn smaller_kinds() {
    assert_eq!(
        defaulted(
            "",
            "v1",
            "Secret",
            json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "hello"}})
        ),
        json!({"data": {"a": "aGVsbG8=", "b": "eQ=="}, "type": "Opaque"})
    );
    assert_eq!(
        defaulted("", "v1", "Namespace", json!({"metadata": {"name": "x"}})),
        json!({"metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}}, "status": {"phase": "Active"}})
    );
    let controller = defaulted(
        "",
        "v1",
        "ReplicationController",
        json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
    );
    assert_eq!(controller["spec"]["selector"], json!({"a": "b"}));
    assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!(controller["spec"]["replicas"], 1);
    let policy = defaulted(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        json!({"spec": {"egress": [{"ports": [{}]}]}}),
    );
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    let scaler = defaulted(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        json!({"spec": {"maxReplicas": 3}}),
    );
    assert_eq!(
        scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        80
    );
    let job = defaulted("batch", "v1", "Job", json!({"spec": {}}));
    assert_eq!(
        (
            job["spec"]["completions"].as_i64(),
            job["spec"]["backoffLimit"].as_i64()
        ),
        (Some(1), Some(6))
    );
}
