//! Every kind, as kubectl makes it and prints it.

use anyhow::{Context as _, Result};

use crate::server::Server;

/// Objects of the kinds that no other test makes.
const OBJECTS: &str = r#"
{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}
---
{apiVersion: v1, kind: Endpoints, metadata: {name: ends}, subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: ends}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{name: "", port: 80, protocol: TCP}]}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: pv}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /x}, storageClassName: slow}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: pvc}, spec: {accessModes: [ReadWriteOnce], storageClassName: slow, resources: {requests: {storage: 1Gi}}}}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: slow, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}, provisioner: example.com/p}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {name: q}, spec: {hard: {pods: "10"}}}
---
{apiVersion: v1, kind: LimitRange, metadata: {name: l}, spec: {limits: [{type: Container, max: {cpu: "2"}, default: {cpu: "2"}, defaultRequest: {cpu: "2"}}]}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: d}, spec: {selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {nodeSelector: {disk: ssd}, containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: t}, spec: {serviceName: s, selector: {matchLabels: {app: t}}, template: {metadata: {labels: {app: t}}, spec: {containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: c}, spec: {schedule: "*/5 * * * *", timeZone: UTC, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}}}
---
{apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: h}, spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: 3, targetCPUUtilizationPercentage: 60}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: b}, spec: {minAvailable: 50%, selector: {matchLabels: {app: web}}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np}, spec: {podSelector: {matchLabels: {app: web}}, egress: [{}]}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i}, spec: {ingressClassName: x, rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}]}}
---
{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: x}, spec: {controller: example.com/c}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r}, rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: rb}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}, subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: u}]}
---
{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}
---
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: rc}, handler: runc}
"#;

/// What `kubectl get NAME -o wide` prints: the heading's words, and the row's, ages apart.
const PRINTED: &[(&str, &str, &str)] = &[
    ("ep/ends", "NAME ENDPOINTS AGE", "ends 10.0.0.1:80 AGE"),
    (
        "endpointslice/ends",
        "NAME ADDRESSTYPE PORTS ENDPOINTS AGE",
        "ends IPv4 80 10.0.0.1 AGE",
    ),
    (
        "pv/pv",
        "NAME CAPACITY ACCESS MODES RECLAIM POLICY STATUS CLAIM STORAGECLASS VOLUMEATTRIBUTESCLASS REASON AGE VOLUMEMODE",
        "pv 1Gi RWO Retain Pending slow <unset> AGE Filesystem",
    ),
    (
        "pvc/pvc",
        "NAME STATUS VOLUME CAPACITY ACCESS MODES STORAGECLASS VOLUMEATTRIBUTESCLASS AGE VOLUMEMODE",
        "pvc Pending slow <unset> AGE Filesystem",
    ),
    (
        "sc/slow",
        "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION AGE",
        "slow (default) example.com/p Delete Immediate false AGE",
    ),
    ("quota/q", "NAME REQUEST LIMIT AGE", "q AGE"),
    ("limits/l", "NAME CREATED AT", "l AGE"),
    (
        "ds/d",
        "NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE CONTAINERS IMAGES SELECTOR",
        "d 0 0 0 0 0 disk=ssd AGE c i:1 app=d",
    ),
    ("sts/t", "NAME READY AGE CONTAINERS IMAGES", "t 0/1 AGE c i:1"),
    (
        "job/j",
        "NAME STATUS COMPLETIONS DURATION AGE CONTAINERS IMAGES SELECTOR",
        "j Running 0/1 AGE c i:1 SELECTOR",
    ),
    (
        "cj/c",
        "NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE CONTAINERS IMAGES SELECTOR",
        "c */5 * * * * UTC False 0 <none> AGE c i:1 <none>",
    ),
    (
        "hpa/h",
        "NAME REFERENCE TARGETS MINPODS MAXPODS REPLICAS AGE",
        "h Deployment/web cpu: <unknown>/60% 1 3 0 AGE",
    ),
    (
        "pdb/b",
        "NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE",
        "b 50% N/A 0 AGE",
    ),
    ("netpol/np", "NAME POD-SELECTOR AGE", "np app=web AGE"),
    (
        "ing/i",
        "NAME CLASS HOSTS ADDRESS PORTS AGE",
        "i x a.example 80 AGE",
    ),
    (
        "ingressclass/x",
        "NAME CONTROLLER PARAMETERS AGE",
        "x example.com/c <none> AGE",
    ),
    ("role/r", "NAME CREATED AT", "r AGE"),
    (
        "rolebinding/rb",
        "NAME ROLE AGE USERS GROUPS SERVICEACCOUNTS",
        "rb Role/r AGE u",
    ),
    (
        "pc/high",
        "NAME VALUE GLOBAL-DEFAULT AGE PREEMPTIONPOLICY",
        "high 1000 false AGE PreemptLowerPriority",
    ),
    ("runtimeclass/rc", "NAME HANDLER AGE", "rc runc AGE"),
];

/// The words of a line, with what differs from run to run replaced.
fn words(line: &str) -> String {
    let is_age = |word: &str| {
        let seconds = word
            .strip_suffix('s')
            .is_some_and(|digits| digits.parse::<u32>().is_ok());
        seconds || (word.starts_with("20") && word.ends_with('Z'))
    };
    let words: Vec<_> = line
        .split_whitespace()
        .map(|word| match word {
            age if is_age(age) => "AGE",
            selector if selector.starts_with("batch.kubernetes.io/controller-uid=") => "SELECTOR",
            other => other,
        })
        .collect();
    words.join(" ")
}

#[test]
fn every_kind_is_made_and_printed() -> Result<()> {
    let server = Server::api_only()?;
    let file = server.write("objects.yaml", OBJECTS)?;
    let made = server.kubectl(&["apply", "-f", &file])?;
    assert_eq!(made.lines().count(), OBJECTS.matches("---").count() + 1, "{made}");
    // Filling in gives the same every time.
    let again = server.kubectl(&["apply", "-f", &file])?;
    assert!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");
    for (name, heading, row) in PRINTED {
        let table = server.kubectl(&["get", name, "-o", "wide"])?;
        let mut lines = table.lines();
        assert_eq!(words(lines.next().context("no heading")?), *heading, "{name}");
        assert_eq!(words(lines.next().context("no row")?), *row, "{name}");
    }
    let older = server.kubectl(&[
        "get",
        "horizontalpodautoscalers.v1.autoscaling",
        "h",
        "-o",
        "jsonpath={.spec.targetCPUUtilizationPercentage}",
    ])?;
    let newer = server.kubectl(&[
        "get",
        "hpa",
        "h",
        "-o",
        "jsonpath={.spec.metrics[0].resource.target.averageUtilization}",
    ])?;
    assert_eq!((older.as_str(), newer.as_str()), ("60", "60"));
    let top = server.try_kubectl(&["top", "nodes"])?;
    let said = String::from_utf8_lossy(&top.stderr).into_owned();
    assert!(said.contains("metrics not available yet"), "{said}");
    Ok(())
}

#[test]
fn what_is_wrong_is_refused_in_kubernetes_words() -> Result<()> {
    let server = Server::api_only()?;
    for (object, expected) in [
        (
            "{apiVersion: batch/v1, kind: CronJob, metadata: {name: c}, spec: {schedule: often, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}",
            "The CronJob \"c\" is invalid: spec.schedule: Invalid value: \"often\": expected exactly 5 fields, found 1: [often]\n",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: 9s}, spec: {ports: [{port: 80}]}}",
            "The Service \"9s\" is invalid: metadata.name: Invalid value: \"9s\": a DNS-1035 label must consist of lower case \
             alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
             'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')\n",
        ),
        (
            "{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {template: {spec: {containers: [{name: c, image: i}]}}}}",
            "The Job \"j\" is invalid: spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"\n",
        ),
    ] {
        let file = server.write("bad.yaml", object)?;
        let output = server.try_kubectl(&["create", "-f", &file])?;
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    }
    Ok(())
}
