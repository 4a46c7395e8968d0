"""A session of the Python client `kubernetes` against the server of $KUBECONFIG: each step checks what it gets back and prints its
name when it held. The test that runs it compares the printed names with the list of steps, so that none can be left out."""

import sys
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

NAMESPACE = "python"
STEPS = []


def step(function):
    STEPS.append(function)
    return function


def refused(status, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except ApiException as error:
        assert error.status == status, f"{error.status} where {status} was expected: {error.body}"
        return error
    raise AssertionError(f"{call.__name__} was not refused")


def eventually(what, condition):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return
    raise AssertionError(f"timed out waiting for {what}")


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"app": "x"}), data=data)


@step
def version_and_discovery():
    assert client.VersionApi().get_code().minor == "33"
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    assert {"apps", "batch", "rbac.authorization.k8s.io"} <= groups, groups
    names = {resource.name for resource in client.CoreV1Api().get_api_resources().resources}
    assert {"pods", "pods/status", "services"} <= names, names


@step
def create_read_replace_delete():
    core = client.CoreV1Api()
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    made = core.create_namespaced_config_map(NAMESPACE, config_map("a", k="1"))
    assert made.metadata.uid and made.metadata.resource_version
    refused(409, core.create_namespaced_config_map, NAMESPACE, config_map("a"))
    made.data["k"] = "2"
    changed = core.replace_namespaced_config_map("a", NAMESPACE, made)
    assert changed.data == {"k": "2"}
    error = refused(409, core.replace_namespaced_config_map, "a", NAMESPACE, made)
    assert "the object has been modified" in error.body
    core.delete_namespaced_config_map("a", NAMESPACE)
    refused(404, core.read_namespaced_config_map, "a", NAMESPACE)


@step
def lists_in_pages_and_by_selectors():
    core = client.CoreV1Api()
    for number in range(7):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number}"))
    names, token, pages = [], None, 0
    while token != "":
        page = core.list_namespaced_config_map(NAMESPACE, limit=3, label_selector="app=x", _continue=token)
        names += [item.metadata.name for item in page.items]
        token, pages = page.metadata._continue or "", pages + 1
    assert names == [f"page-{number}" for number in range(7)] and pages == 3, (names, pages)
    one = core.list_namespaced_config_map(NAMESPACE, field_selector="metadata.name=page-3").items
    assert [item.metadata.name for item in one] == ["page-3"]
    refused(400, core.list_namespaced_config_map, NAMESPACE, field_selector="data.k=1")
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="app=x")
    assert core.list_namespaced_config_map(NAMESPACE, label_selector="app=x").items == []


@step
def watches_go_on_where_a_list_ended():
    core = client.CoreV1Api()
    start = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, config_map("w", k="1"))
    core.patch_namespaced_config_map("w", NAMESPACE, {"data": {"k": "2"}})
    core.delete_namespaced_config_map("w", NAMESPACE)
    seen = []
    stream = watch.Watch().stream(
        core.list_namespaced_config_map, NAMESPACE, resource_version=start, timeout_seconds=10
    )
    for event in stream:
        seen.append((event["type"], event["object"].data["k"]))
        if event["type"] == "DELETED":
            break
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")], seen


@step
def patches_of_three_kinds():
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    container = {"name": "c", "image": "example.com/i:1"}
    body = {
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}},
        },
    }
    apps.create_namespaced_deployment(NAMESPACE, body)
    sidecar = {"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "example.com/d:1"}]}}}}
    merged = apps.patch_namespaced_deployment("web", NAMESPACE, sidecar)
    assert sorted(c.name for c in merged.spec.template.spec.containers) == ["c", "d"]
    core.create_namespaced_config_map(NAMESPACE, config_map("p", a="1", b="2"))
    patched = core.patch_namespaced_config_map("p", NAMESPACE, [{"op": "remove", "path": "/data/a"}])
    assert patched.data == {"b": "2"}
    scale = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 2}})
    assert scale.spec.replicas == 2
    assert apps.read_namespaced_deployment("web", NAMESPACE).spec.replicas == 2
    pods = "app=web"
    eventually("two pods", lambda: len(core.list_namespaced_pod(NAMESPACE, label_selector=pods).items) == 2)


@step
def validation_is_told_field_by_field():
    apps = client.AppsV1Api()
    error = refused(422, apps.patch_namespaced_deployment, "web", NAMESPACE, {"spec": {"replicas": -1}})
    assert '"field":"spec.replicas"' in error.body.replace(" ", ""), error.body


@step
def status_is_a_resource_of_its_own():
    core = client.CoreV1Api()
    node = client.V1Node(metadata=client.V1ObjectMeta(name="python-node"))
    core.create_node(node)
    ready = {"type": "Ready", "status": "True", "reason": "R", "message": ""}
    capacity = {"cpu": "4", "memory": "8Gi", "pods": "110"}
    status = {"conditions": [ready], "capacity": capacity, "allocatable": capacity}
    core.patch_node_status("python-node", {"status": status})
    conditions = core.read_node("python-node").status.conditions
    assert [(c.type, c.status) for c in conditions] == [("Ready", "True")]
    bound = lambda: all(pod.spec.node_name for pod in core.list_namespaced_pod(NAMESPACE).items)
    eventually("the pods to be bound", bound)


@step
def evictions():
    core = client.CoreV1Api()
    name = core.list_namespaced_pod(NAMESPACE).items[0].metadata.name
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=NAMESPACE))
    core.create_namespaced_pod_eviction(name, NAMESPACE, eviction)


@step
def jobs_services_and_policies():
    batch, core, network = client.BatchV1Api(), client.CoreV1Api(), client.NetworkingV1Api()
    container = {"name": "c", "image": "example.com/i:1"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    batch.create_namespaced_job(NAMESPACE, {"metadata": {"name": "j"}, "spec": {"template": template}})
    cron = {"schedule": "@hourly", "jobTemplate": {"spec": {"template": template}}}
    batch.create_namespaced_cron_job(NAMESPACE, {"metadata": {"name": "c"}, "spec": cron})
    ports = [{"port": 80, "targetPort": 8080}]
    body = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    service = core.create_namespaced_service(NAMESPACE, body)
    assert service.spec.cluster_ip.startswith("10.96."), service.spec.cluster_ip
    policy = {"metadata": {"name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    network.create_namespaced_network_policy(NAMESPACE, policy)


@step
def who_may_do_what():
    rbac, auth, core = client.RbacAuthorizationV1Api(), client.AuthorizationV1Api(), client.CoreV1Api()
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "robot"}})
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    rbac.create_namespaced_role(NAMESPACE, {"metadata": {"name": "reader"}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "robot", "namespace": NAMESPACE}
    binding = {"metadata": {"name": "reader"}, "roleRef": reference, "subjects": [subject]}
    rbac.create_namespaced_role_binding(NAMESPACE, binding)
    robot = f"system:serviceaccount:{NAMESPACE}:robot"

    def allowed(verb):
        attributes = {"namespace": NAMESPACE, "verb": verb, "resource": "configmaps"}
        review = {"spec": {"user": robot, "resourceAttributes": attributes}}
        return auth.create_subject_access_review(review).status.allowed

    assert allowed("list") and not allowed("delete")
    request = {"spec": {"expirationSeconds": 600}}
    token = core.create_namespaced_service_account_token("robot", NAMESPACE, request).status.token
    settings = client.Configuration.get_default_copy()
    settings.cert_file = settings.key_file = None
    settings.api_key = {"authorization": f"Bearer {token}"}
    as_robot = client.CoreV1Api(client.ApiClient(settings))
    names = [item.metadata.name for item in as_robot.list_namespaced_config_map(NAMESPACE).items]
    assert "p" in names, names
    error = refused(403, as_robot.delete_namespaced_config_map, "p", NAMESPACE)
    assert f'User \\"{robot}\\" cannot delete resource' in error.body, error.body


@step
def custom_resources():
    extensions, custom = client.ApiextensionsV1Api(), client.CustomObjectsApi()
    properties = {"spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": properties}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": "boxes", "singular": "box", "kind": "Box"}
    spec = {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}
    extensions.create_custom_resource_definition({"metadata": {"name": "boxes.example.com"}, "spec": spec})

    def is_served():
        conditions = extensions.read_custom_resource_definition("boxes.example.com").status.conditions or []
        return any(c.type == "Established" and c.status == "True" for c in conditions)

    eventually("the kind to be served", is_served)
    place = ("example.com", "v1", NAMESPACE, "boxes")
    box = {"apiVersion": "example.com/v1", "kind": "Box", "metadata": {"name": "b"}, "spec": {"size": 1}}
    custom.create_namespaced_custom_object(*place, box)
    refused(422, custom.patch_namespaced_custom_object, *place, "b", {"spec": {"size": 0}})
    assert custom.get_namespaced_custom_object(*place, "b")["spec"] == {"size": 1}
    extensions.delete_custom_resource_definition("boxes.example.com")


@step
def the_dynamic_client_applies():
    dynamic_client = dynamic.DynamicClient(client.ApiClient())
    maps = dynamic_client.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": {"k": "1"}}
    maps.server_side_apply(body=body, namespace=NAMESPACE, field_manager="one")
    body["data"]["k"] = "2"
    try:
        maps.server_side_apply(body=body, namespace=NAMESPACE, field_manager="two")
        raise AssertionError("the other manager's field was taken without force")
    except dynamic.exceptions.ConflictError:
        pass
    maps.server_side_apply(body=body, namespace=NAMESPACE, field_manager="two", force_conflicts=True)
    assert maps.get(name="s", namespace=NAMESPACE).data.k == "2"


@step
def a_namespace_takes_everything_with_it():
    core = client.CoreV1Api()
    core.delete_namespace(NAMESPACE)
    core.delete_node("python-node")

    def is_gone():
        for pod in core.list_namespaced_pod(NAMESPACE).items:
            try:
                core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
            except ApiException as error:  # it may have gone since it was listed
                assert error.status == 404, error.body
        return all(item.metadata.name != NAMESPACE for item in core.list_namespace().items)

    eventually("the namespace to be gone", is_gone)


def main():
    config.load_kube_config()
    for function in STEPS:
        try:
            function()
        except BaseException:
            print(f"{function.__name__} failed", file=sys.stderr)
            raise
        print(function.__name__, flush=True)


main()
