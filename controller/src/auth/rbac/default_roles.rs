//! The roles and bindings that every cluster has, as Kubernetes names them.

use serde_json::{Value, json};

use super::Rule;
use crate::auth::authorizer::RBAC_GROUP;

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";
/// What an administrator writes into an object that no start of the server shall change.
pub(super) const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// One rule: verbs, API groups (`core` for the one without a name), resources, and names of objects.
type R = (&'static str, &'static str, &'static str, &'static str);

const fn on(verbs: &'static str, groups: &'static str, resources: &'static str) -> R {
    (verbs, groups, resources, "")
}

/// A role: its name, which roles gather it (`view`), its rules, and the paths that it lets read.
struct Role {
    name: &'static str,
    gathered_by: &'static str,
    rules: &'static [R],
    paths: &'static str,
}

const fn role(name: &'static str, rules: &'static [R]) -> Role {
    Role {
        name,
        gathered_by: "",
        rules,
        paths: "",
    }
}

const fn reader(name: &'static str, paths: &'static str) -> Role {
    Role {
        paths,
        ..role(name, &[])
    }
}

const SIGNERS: &str = "certificates.k8s.io";
const WORKLOADS: &str = "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale \
                         statefulsets statefulsets/scale";

const ROLES: &[Role] = &[
    role("cluster-admin", &[on("*", "*", "*")]),
    reader(
        "system:discovery",
        "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/",
    ),
    reader(
        "system:public-info-viewer",
        "/healthz /livez /readyz /version /version/",
    ),
    reader(
        "system:monitoring",
        "/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*",
    ),
    reader(
        "system:service-account-issuer-discovery",
        "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
    ),
    role(
        "system:basic-user",
        &[
            on(
                "create",
                "authorization.k8s.io",
                "selfsubjectaccessreviews selfsubjectrulesreviews",
            ),
            on("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    Role {
        gathered_by: "admin",
        ..role(
            "system:aggregate-to-admin",
            &[
                on("create", "authorization.k8s.io", "localsubjectaccessreviews"),
                on(ALL, RBAC_GROUP, "roles rolebindings"),
            ],
        )
    },
    Role {
        gathered_by: "edit",
        ..role(
            "system:aggregate-to-edit",
            &[
                on(
                    READ,
                    "core",
                    "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
                ),
                on("impersonate", "core", "serviceaccounts"),
                on(
                    WRITE,
                    "core",
                    "pods pods/attach pods/exec pods/portforward pods/proxy",
                ),
                on("create", "core", "pods/eviction serviceaccounts/token"),
                on(
                    WRITE,
                    "core",
                    "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets \
                     serviceaccounts services services/proxy",
                ),
                on(WRITE, "apps", WORKLOADS),
                on(WRITE, "autoscaling", "horizontalpodautoscalers"),
                on(WRITE, "batch", "cronjobs jobs"),
                on(WRITE, "policy", "poddisruptionbudgets"),
                on(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
                on(ALL, "coordination.k8s.io", "leases"),
            ],
        )
    },
    Role {
        gathered_by: "view",
        ..role(
            "system:aggregate-to-view",
            &[
                on(
                    READ,
                    "core",
                    "bindings configmaps endpoints events limitranges namespaces namespaces/status persistentvolumeclaims \
                     persistentvolumeclaims/status pods pods/log pods/status replicationcontrollers \
                     replicationcontrollers/scale replicationcontrollers/status resourcequotas resourcequotas/status \
                     serviceaccounts services services/status",
                ),
                on(READ, "discovery.k8s.io", "endpointslices"),
                on(READ, "events.k8s.io", "events"),
                on(
                    READ,
                    "apps",
                    "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status \
                     replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
                ),
                on(
                    READ,
                    "autoscaling",
                    "horizontalpodautoscalers horizontalpodautoscalers/status",
                ),
                on(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
                on(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
                on(
                    READ,
                    "networking.k8s.io",
                    "ingresses ingresses/status networkpolicies",
                ),
                on(READ, "metrics.k8s.io", "pods nodes"),
            ],
        )
    },
    role(
        "system:node-bootstrapper",
        &[on("create get list watch", SIGNERS, "certificatesigningrequests")],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[on("create", SIGNERS, "certificatesigningrequests/nodeclient")],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[on("create", SIGNERS, "certificatesigningrequests/selfnodeclient")],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[(
            "approve",
            SIGNERS,
            "signers",
            "kubernetes.io/kube-apiserver-client",
        )],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[(
            "approve",
            SIGNERS,
            "signers",
            "kubernetes.io/kube-apiserver-client-kubelet",
        )],
    ),
    role(
        "system:auth-delegator",
        &[
            on("create", "authentication.k8s.io", "tokenreviews"),
            on("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    // What nodes may do is decided by what their pods need; the role is there for those who look for it.
    role(
        "system:node",
        &[
            on(
                "create",
                "authorization.k8s.io",
                "localsubjectaccessreviews subjectaccessreviews",
            ),
            on("create", "authentication.k8s.io", "tokenreviews"),
            on(READ, "core", "services nodes pods"),
            on("create patch update", "core", "events nodes/status pods/status"),
            on("create get delete patch update", "coordination.k8s.io", "leases"),
            on("create get list watch", SIGNERS, "certificatesigningrequests"),
        ],
    ),
    role(
        "system:node-proxier",
        &[
            on(READ, "core", "nodes services"),
            on(READ, "discovery.k8s.io", "endpointslices"),
            on("create patch update", "core events.k8s.io", "events"),
        ],
    ),
    role(
        "system:kube-scheduler",
        &[
            on("create patch update", "core events.k8s.io", "events"),
            on(
                "create get list patch update watch",
                "coordination.k8s.io",
                "leases",
            ),
            on(
                READ,
                "core",
                "namespaces nodes persistentvolumeclaims persistentvolumes replicationcontrollers services",
            ),
            on("delete get list watch", "core", "pods"),
            on("create", "core", "bindings pods/binding"),
            on(
                "patch update",
                "core",
                "pods/status persistentvolumes persistentvolumeclaims",
            ),
            on(READ, "apps", "replicasets statefulsets"),
            on(READ, "policy", "poddisruptionbudgets"),
            on(READ, "scheduling.k8s.io", "priorityclasses"),
            on(
                READ,
                "storage.k8s.io",
                "csidrivers csinodes csistoragecapacities storageclasses volumeattachments",
            ),
        ],
    ),
    role(
        "system:kube-controller-manager",
        &[
            on("create patch update", "core events.k8s.io", "events"),
            on(
                "create get list patch update watch",
                "coordination.k8s.io",
                "leases",
            ),
            on(
                "create delete get list watch patch update",
                "core",
                "secrets serviceaccounts",
            ),
            on("create", "core", "namespaces serviceaccounts/token"),
            on("create", "authentication.k8s.io", "tokenreviews"),
            on("create", "authorization.k8s.io", "subjectaccessreviews"),
            on(READ, "*", "*"),
        ],
    ),
    role(
        "system:kube-dns",
        &[
            on("list watch", "core", "endpoints namespaces pods services"),
            on("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            on("create delete get list watch", "core", "persistentvolumes"),
            on("get list update watch", "core", "persistentvolumeclaims"),
            on(READ, "storage.k8s.io", "storageclasses"),
            on(READ, "core", "events nodes"),
            on("create patch update", "core", "events"),
        ],
    ),
];

/// Roles that gather others, and which of those.
const GATHERING: &[(&str, &str)] = &[
    ("admin", "admin edit view"),
    ("edit", "edit view"),
    ("view", "view"),
];
/// `admin` is gathered by none, `edit` by `admin`, `view` by `edit`: each role carries its own label, too.
const GATHERED: &[(&str, &str)] = &[("edit", "admin"), ("view", "edit")];

/// Bindings: name, role, kind of the subjects, their names.
const BINDINGS: &[(&str, &str, &str, &str)] = &[
    ("cluster-admin", "cluster-admin", "Group", "system:masters"),
    (
        "system:discovery",
        "system:discovery",
        "Group",
        "system:authenticated",
    ),
    (
        "system:basic-user",
        "system:basic-user",
        "Group",
        "system:authenticated",
    ),
    (
        "system:public-info-viewer",
        "system:public-info-viewer",
        "Group",
        "system:authenticated system:unauthenticated",
    ),
    (
        "system:monitoring",
        "system:monitoring",
        "Group",
        "system:monitoring",
    ),
    (
        "system:service-account-issuer-discovery",
        "system:service-account-issuer-discovery",
        "Group",
        "system:serviceaccounts",
    ),
    ("system:node", "system:node", "Group", ""),
    (
        "system:node-proxier",
        "system:node-proxier",
        "User",
        "system:kube-proxy",
    ),
    (
        "system:kube-scheduler",
        "system:kube-scheduler",
        "User",
        "system:kube-scheduler",
    ),
    (
        "system:kube-controller-manager",
        "system:kube-controller-manager",
        "User",
        "system:kube-controller-manager",
    ),
    ("system:kube-dns", "system:kube-dns", "ServiceAccount", "kube-dns"),
    (
        "weft:node-bootstrapper",
        "system:node-bootstrapper",
        "Group",
        "system:bootstrappers",
    ),
    (
        "weft:node-autoapprove-bootstrap",
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "Group",
        "system:bootstrappers",
    ),
    (
        "weft:node-autoapprove-renewal",
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "Group",
        "system:nodes",
    ),
];

fn words(text: &str) -> Vec<String> {
    text.split_whitespace()
        .map(|word| if word == "core" { "" } else { word }.to_owned())
        .collect()
}

fn label(role: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{role}")
}

fn object(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": format!("{RBAC_GROUP}/v1"), "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {AUTO_UPDATE: "true"},
        },
    })
}

/// The ClusterRoles that every cluster has; those that gather others hold what they gather.
pub(crate) fn cluster_roles() -> Vec<Value> {
    let mut roles: Vec<Value> = ROLES
        .iter()
        .map(|role| {
            let mut value = object("ClusterRole", role.name);
            let mut rules: Vec<_> = role
                .rules
                .iter()
                .map(|(verbs, groups, resources, names)| Rule {
                    verbs: words(verbs),
                    groups: words(groups),
                    resources: words(resources),
                    names: words(names),
                    paths: Vec::new(),
                })
                .collect();
            let paths = if role.name == "cluster-admin" {
                "*"
            } else {
                role.paths
            };
            if !paths.is_empty() {
                rules.push(Rule {
                    verbs: words(if paths == "*" { "*" } else { "get" }),
                    paths: words(paths),
                    ..Rule::default()
                });
            }
            value["rules"] = rules.iter().map(Rule::to_value).collect();
            if !role.gathered_by.is_empty() {
                value["metadata"]["labels"][label(role.gathered_by)] = json!("true");
            }
            value
        })
        .collect();
    let mut gathering: Vec<Value> = GATHERING
        .iter()
        .map(|(name, _)| {
            let mut value = object("ClusterRole", name);
            value["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {label(name): "true"}}]});
            if let Some((_, by)) = GATHERED.iter().find(|(gathered, _)| gathered == name) {
                value["metadata"]["labels"][label(by)] = json!("true");
            }
            value
        })
        .collect();
    for (value, (_, gathers)) in gathering.iter_mut().zip(GATHERING) {
        let rules = roles.iter().filter(|role| {
            let mut of = gathers.split_whitespace();
            of.any(|from| role["metadata"]["labels"][label(from)] == "true")
        });
        let rules = rules.flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default());
        value["rules"] = rules.collect();
    }
    roles.append(&mut gathering);
    roles
}

/// The ClusterRoleBindings that every cluster has.
pub(crate) fn cluster_role_bindings() -> Vec<Value> {
    let bindings = BINDINGS.iter().map(|(name, role, kind, subjects)| {
        let mut value = object("ClusterRoleBinding", name);
        value["roleRef"] = json!({"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role});
        let subjects = subjects.split_whitespace().map(|subject| match *kind {
            "ServiceAccount" => json!({"kind": kind, "name": subject, "namespace": "kube-system"}),
            _ => json!({"apiGroup": RBAC_GROUP, "kind": kind, "name": subject}),
        });
        value["subjects"] = subjects.collect();
        value
    });
    bindings.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::auth::rbac::missing;

    pub(in crate::auth::rbac) fn find(list: &[Value], name: &str) -> Value {
        list.iter()
            .find(|object| object["metadata"]["name"] == name)
            .unwrap()
            .clone()
    }

    #[test]
    fn the_gathering_roles_hold_each_other() {
        let roles = cluster_roles();
        let rules = |name: &str| Rule::list(&find(&roles, name));
        assert!(missing(&rules("edit"), &rules("view")).is_empty());
        assert!(missing(&rules("admin"), &rules("edit")).is_empty());
        assert!(!missing(&rules("edit"), &rules("admin")).is_empty());
        assert!(missing(&rules("cluster-admin"), &rules("admin")).is_empty());
        // Who only looks sees no secrets.
        let secrets =
            Rule::list(&json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]}));
        assert!(!missing(&rules("view"), &secrets).is_empty());
        assert!(missing(&rules("edit"), &secrets).is_empty());
    }

    #[test]
    fn every_binding_has_its_role() {
        let roles = cluster_roles();
        for binding in cluster_role_bindings() {
            find(&roles, binding["roleRef"]["name"].as_str().unwrap());
        }
    }
}
