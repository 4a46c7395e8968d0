//! Roles, bindings, reviews and acting as someone else, with the real client where it has a command for it.

use anyhow::{Result, ensure};
use kube::Client;
use serde_json::{Value, json};

use crate::server::{Server, get, json, send, send_with};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const CLUSTER_BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

/// What `kubectl` prints, whether it fails or not.
fn said(server: &Server, arguments: &[&str]) -> Result<String> {
    let output = server.try_kubectl(arguments)?;
    Ok(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

async fn revision(client: &Client) -> Result<Value> {
    let list = get(client, "/api/v1/namespaces").await?;
    Ok(list["metadata"]["resourceVersion"].clone())
}

/// Sends a request that must be refused with this code and text, and must change nothing.
async fn refused(
    master: &Client,
    client: &Client,
    (method, path, body): (&str, &str, &Value),
    code: u16,
    text: &str,
) -> Result<()> {
    let before = revision(master).await?;
    let (status, answer) = json(client, method, path, body).await?;
    let message = answer["message"].as_str().unwrap_or_default();
    ensure!(
        status.as_u16() == code && message.contains(text),
        "{method} {path}: {status} {answer}, wanted {code} with {text:?}"
    );
    ensure!(answer["kind"] == "Status" && answer["status"] == "Failure");
    ensure!(
        revision(master).await? == before,
        "{method} {path} left something behind"
    );
    Ok(())
}

#[tokio::test]
async fn what_roles_give_is_allowed_at_once_and_nothing_else() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    let bob = server.user("bob", Some("devs")).await?;
    refused(
        &master,
        &bob,
        ("GET", "/api/v1/namespaces/default/pods", &Value::Null),
        403,
        "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
    )
    .await?;
    server.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"])?;
    server.kubectl(&[
        "create",
        "rolebinding",
        "readers",
        "--role=reader",
        "--group=devs",
    ])?;
    get(&bob, "/api/v1/namespaces/default/pods").await?;
    let wide = server.kubectl(&["get", "rolebindings", "-o", "wide"])?;
    ensure!(wide.contains("Role/reader") && wide.contains("devs"), "{wide}");

    let on = |method, path, text| (method, path, text);
    for (method, path, text) in [
        on(
            "GET",
            "/api/v1/pods",
            "cannot list resource \"pods\" in API group \"\" at the cluster scope",
        ),
        on(
            "GET",
            "/api/v1/namespaces/default/pods/a/log",
            "pods \"a\" is forbidden: User \"bob\" cannot get resource \"pods/log\" in API group \"\" in the namespace",
        ),
        on(
            "DELETE",
            "/apis/apps/v1/namespaces/default/deployments/d",
            "deployments.apps \"d\" is forbidden: User \"bob\" cannot delete resource \"deployments\" in API group \"apps\"",
        ),
        on(
            "GET",
            "/metrics",
            "forbidden: User \"bob\" cannot get path \"/metrics\"",
        ),
        on("GET", "/no/such/path", "forbidden: User \"bob\" cannot get path"),
    ] {
        refused(&master, &bob, (method, path, &Value::Null), 403, text).await?;
    }
    // A binding to a role that is gone says so.
    server.kubectl(&["delete", "role", "reader"])?;
    refused(
        &master,
        &bob,
        ("GET", "/api/v1/namespaces/default/pods", &Value::Null),
        403,
        "RBAC: role.rbac.authorization.k8s.io \"reader\" not found",
    )
    .await
}

#[tokio::test]
async fn nobody_gives_away_more_than_they_have() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    let admin = server.user("alice", None).await?;
    server.kubectl(&[
        "create",
        "rolebinding",
        "alice",
        "--clusterrole=admin",
        "--user=alice",
    ])?;
    let role = |verb: &str, resource: &str| {
        json!({
            "metadata": {"name": "r"},
            "rules": [{"verbs": [verb], "apiGroups": [""], "resources": [resource]}],
        })
    };
    let binding = |name: &str, kind: &str, role: &str| {
        json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "carol"}],
        })
    };
    let (status, answer) = json(&admin, "POST", ROLES, &role("get", "pods")).await?;
    ensure!(status == 201, "{answer}");
    ensure!(
        json(&admin, "POST", BINDINGS, &binding("b", "Role", "r"))
            .await?
            .0
            == 201
    );
    ensure!(
        json(&admin, "POST", BINDINGS, &binding("v", "ClusterRole", "view"))
            .await?
            .0
            == 201
    );

    let held = "user \"alice\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:";
    let mut more = role("get", "nodes");
    let own = format!("{ROLES}/r");
    for (method, path, body, text) in [
        ("PUT", own.as_str(), &more, held),
        (
            "PUT",
            own.as_str(),
            &more,
            "\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}",
        ),
        (
            "POST",
            BINDINGS,
            &binding("c", "ClusterRole", "cluster-admin"),
            held,
        ),
        (
            "POST",
            BINDINGS,
            &binding("c", "ClusterRole", "none"),
            "clusterrole.rbac.authorization.k8s.io \"none\" not found",
        ),
        (
            "POST",
            CLUSTER_ROLES,
            &role("get", "pods"),
            "cannot create resource \"clusterroles\"",
        ),
        (
            "POST",
            CLUSTER_BINDINGS,
            &binding("c", "ClusterRole", "view"),
            "cannot create resource",
        ),
    ] {
        refused(&master, &admin, (method, path, body), 403, text).await?;
    }
    // By a label a role is gathered into another, so that is a grant, too.
    server.kubectl(&[
        "create",
        "clusterrole",
        "labels",
        "--verb=patch,get",
        "--resource=clusterroles",
    ])?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "labels",
        "--clusterrole=labels",
        "--user=dora",
    ])?;
    let dora = server.user("dora", None).await?;
    let label = json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}});
    let path = format!("{CLUSTER_ROLES}/cluster-admin");
    let kind = "application/merge-patch+json";
    let (status, answer) = send(&dora, "PATCH", &path, kind, label.to_string()).await?;
    ensure!(status == 403, "{answer}");
    // And what takes minutes to compare is not compared.
    let many = |word: &str| -> Vec<String> { (0..300).map(|number| format!("{word}{number}")).collect() };
    let huge = json!({"metadata": {"name": "huge"}, "rules": [{
        "verbs": many("v"), "apiGroups": many("g"), "resources": many("r"), "resourceNames": many("n")}]});
    refused(&master, &admin, ("POST", ROLES, &huge), 403, "no more than").await?;
    // What is allowed expressly.
    server.kubectl(&[
        "create",
        "role",
        "lift",
        "--verb=escalate,bind",
        "--resource=roles,clusterroles",
    ])?;
    server.kubectl(&["create", "rolebinding", "lift", "--role=lift", "--user=alice"])?;
    ensure!(json(&admin, "PUT", &own, &more).await?.0 == 200);
    let all = binding("c", "ClusterRole", "cluster-admin");
    ensure!(json(&admin, "POST", BINDINGS, &all).await?.0 == 201);
    // Now carol has the namespace, and no more than that.
    let carol = server.user("carol", None).await?;
    get(&carol, "/api/v1/namespaces/default/secrets").await?;
    more["metadata"]["name"] = json!("x");
    refused(
        &master,
        &carol,
        ("POST", CLUSTER_ROLES, &more),
        403,
        "at the cluster scope",
    )
    .await
}

#[tokio::test]
async fn questions_get_the_answers_that_requests_would() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "viewers",
        "--clusterrole=view",
        "--group=devs",
    ])?;
    let can = |arguments: &[&str]| -> Result<String> {
        let mut all = vec!["auth", "can-i"];
        all.extend(arguments);
        // What it warns of goes elsewhere.
        let output = server.try_kubectl(&all)?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    ensure!(can(&["delete", "nodes"])? == "yes");
    let devs = ["--as", "bob", "--as-group", "devs"];
    let asked = |arguments: &[&str]| can(&[arguments, &devs].concat());
    ensure!(asked(&["list", "pods"])? == "yes");
    ensure!(asked(&["list", "pods", "-A"])? == "yes");
    ensure!(asked(&["get", "secrets"])?.starts_with("no"));
    ensure!(asked(&["get", "pods", "--subresource=log"])? == "yes");
    ensure!(asked(&["get", "/healthz"])? == "yes");
    ensure!(asked(&["get", "/metrics"])?.starts_with("no"));
    let list = asked(&["--list"])?;
    ensure!(
        list.contains("configmaps") && list.contains("selfsubjectaccessreviews.authorization.k8s.io"),
        "{list}"
    );
    ensure!(can(&["--list"])?.contains("*.*"));

    let whoami = said(
        &server,
        &[
            "auth",
            "whoami",
            "--as",
            "bob",
            "--as-uid",
            "7",
            "--as-group",
            "devs",
        ],
    )?;
    for word in ["bob", "devs", "system:authenticated", "7"] {
        ensure!(whoami.contains(word), "{whoami}");
    }

    let review = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = |group: &str| {
        json!({"spec": {
            "user": "bob", "groups": [group],
            "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "n"},
        }})
    };
    let (status, answer) = json(&master, "POST", review, &ask("devs")).await?;
    ensure!(status == 201 && answer["status"]["allowed"] == true, "{answer}");
    ensure!(
        answer["status"]["reason"]
            == "RBAC: allowed by ClusterRoleBinding \"viewers\" of ClusterRole \"view\" to Group \"devs\"",
        "{answer}"
    );
    let (_, answer) = json(&master, "POST", review, &ask("ops")).await?;
    ensure!(answer["status"]["allowed"] == false, "{answer}");
    let local = "/apis/authorization.k8s.io/v1/namespaces/n/localsubjectaccessreviews";
    ensure!(json(&master, "POST", local, &ask("devs")).await?.0 == 201);
    let elsewhere = "/apis/authorization.k8s.io/v1/namespaces/m/localsubjectaccessreviews";
    refused(
        &master,
        &master,
        ("POST", elsewhere, &ask("devs")),
        422,
        "must match metadata.namespace",
    )
    .await?;
    let nobody = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    refused(
        &master,
        &master,
        ("POST", review, &nobody),
        422,
        "at least one of user or group must be specified",
    )
    .await?;
    let nothing = json!({"spec": {"user": "bob"}});
    refused(
        &master,
        &master,
        ("POST", review, &nothing),
        422,
        "exactly one of nonResourceAttributes",
    )
    .await
}

#[tokio::test]
async fn who_acts_as_someone_else_must_be_allowed_to() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    let bob = server.user("bob", None).await?;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let act = async |headers: &[(&str, &str)]| send_with(&bob, "POST", whoami, headers, "{}").await;
    let before = revision(&master).await?;
    for (headers, code, text) in [
        (
            &[("impersonate-user", "carol")][..],
            403,
            "users \"carol\" is forbidden: User \"bob\" cannot impersonate resource \"users\" in API group \"\" at the cluster",
        ),
        (
            &[("impersonate-user", "system:serviceaccount:default:default")],
            403,
            "serviceaccounts \"default\" is forbidden: User \"bob\" cannot impersonate resource \"serviceaccounts\" in API \
             group \"\" in the namespace \"default\"",
        ),
        (
            &[("impersonate-group", "g")],
            400,
            "requested groups without impersonating a user",
        ),
        (
            &[("impersonate-extra-x", "g")],
            400,
            "requested extra values without impersonating a user",
        ),
    ] {
        let (status, answer) = act(headers).await?;
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(status.as_u16() == code && message.contains(text), "{answer}");
    }
    ensure!(revision(&master).await? == before);

    server.kubectl(&[
        "create",
        "clusterrole",
        "act",
        "--verb=impersonate",
        "--resource=users",
        "--resource-name=carol",
    ])?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "act",
        "--clusterrole=act",
        "--user=bob",
    ])?;
    let (status, answer) = act(&[("impersonate-user", "carol")]).await?;
    ensure!(status == 201, "{answer}");
    let user = &answer["status"]["userInfo"];
    ensure!(
        user["username"] == "carol" && user["groups"] == json!(["system:authenticated"]),
        "{answer}"
    );
    for (header, value, text) in [
        (
            "impersonate-group",
            "system:masters",
            "cannot impersonate resource \"groups\"",
        ),
        (
            "impersonate-uid",
            "1",
            "cannot impersonate resource \"uids\" in API group \"authentication.k8s.io\"",
        ),
        (
            "impersonate-extra-scopes",
            "all",
            "cannot impersonate resource \"userextras/scopes\"",
        ),
    ] {
        let (status, answer) = act(&[("impersonate-user", "carol"), (header, value)]).await?;
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(status == 403 && message.contains(text), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn the_default_roles_are_there_and_come_back() -> Result<()> {
    let mut server = Server::complete()?;
    let roles = server.kubectl(&["get", "clusterroles", "-o", "name"])?;
    for role in [
        "cluster-admin",
        "admin",
        "edit",
        "view",
        "system:discovery",
        "system:node",
    ] {
        ensure!(
            roles.contains(&format!("clusterrole.rbac.authorization.k8s.io/{role}\n")),
            "{roles}"
        );
    }
    // A role that asks to be gathered is, without a restart.
    server.kubectl(&[
        "create",
        "clusterrole",
        "crontabs",
        "--verb=get",
        "--resource=secrets",
    ])?;
    let label = "rbac.authorization.k8s.io/aggregate-to-view=true";
    server.kubectl(&["label", "clusterrole", "crontabs", label])?;
    let may = |server: &Server| said(server, &["auth", "can-i", "get", "secrets", "--as", "bob"]);
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "b",
        "--clusterrole=view",
        "--user=bob",
    ])?;
    weft_lab::wait::wait_for(
        "view to gather the role",
        std::time::Duration::from_secs(10),
        || may(&server).ok().filter(|answer| answer.starts_with("yes")),
    )?;
    server.kubectl(&["delete", "clusterrolebinding", "system:basic-user"])?;
    server.crash_and_restart(&[])?;
    server.kubectl(&["get", "clusterrolebinding", "system:basic-user"])?;
    Ok(())
}
