//! Addresses and node ports of Services, and the Service that leads to the API.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json};

use crate::server::{Server, get, json, send};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const MERGE: &str = "application/merge-patch+json";

fn service(name: &str, spec: Value) -> Value {
    let mut all = json!({"selector": {"app": name}, "ports": [{"port": 80}]});
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

async fn create(client: &Client, name: &str, spec: Value) -> Result<Value> {
    let (status, made) = json(client, "POST", SERVICES, &service(name, spec)).await?;
    anyhow::ensure!(status == StatusCode::CREATED, "{made}");
    Ok(made)
}

/// What the server says about a Service that it refuses.
async fn refused(client: &Client, name: &str, spec: Value) -> Result<String> {
    let before = get(client, SERVICES).await?["metadata"]["resourceVersion"].clone();
    let (status, answer) = json(client, "POST", SERVICES, &service(name, spec)).await?;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert_eq!(answer["reason"], "Invalid");
    let after = get(client, SERVICES).await?["metadata"]["resourceVersion"].clone();
    assert_eq!(before, after, "nothing was written");
    Ok(answer["message"].as_str().unwrap_or_default().to_owned())
}

async fn patch(client: &Client, name: &str, spec: Value) -> Result<Value> {
    let body = json!({ "spec": spec }).to_string();
    let (status, patched) = send(client, "PATCH", &format!("{SERVICES}/{name}"), MERGE, body).await?;
    anyhow::ensure!(status.is_success(), "{patched}");
    Ok(patched["spec"].clone())
}

async fn delete(client: &Client, path: &str) -> Result<()> {
    let (status, answer) = send(client, "DELETE", path, "application/json", Vec::new()).await?;
    anyhow::ensure!(status.is_success(), "{answer}");
    Ok(())
}

async fn addresses(client: &Client) -> Result<BTreeSet<String>> {
    let list = get(client, ADDRESSES).await?;
    let names = list["items"].as_array().context("items")?.iter();
    Ok(names
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect())
}

#[tokio::test]
async fn an_address_and_a_node_port_belong_to_one_service_for_as_long_as_it_lives() -> Result<()> {
    let mut server = Server::api_only()?;
    let client = server.client().await?;
    let made = create(&client, "a", json!({"type": "NodePort"})).await?;
    let spec = &made["spec"];
    let address = spec["clusterIP"].as_str().context("an address")?.to_owned();
    let port = spec["ports"][0]["nodePort"].as_u64().context("a node port")?;
    assert!(address.starts_with("10.96."), "{address}");
    assert!((30_000..=32_767).contains(&port), "{port}");
    assert_eq!(spec["clusterIPs"], json!([address]));
    assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
    assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
    assert_eq!(spec["ports"][0]["targetPort"], 80);
    let object = get(&client, &format!("{ADDRESSES}/{address}")).await?;
    assert_eq!(
        object["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "default", "name": "a"})
    );
    assert_eq!(
        object["metadata"]["labels"],
        json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"})
    );

    let taken = format!(
        r#"Service "b" is invalid: spec.clusterIPs: Invalid value: []string{{"{address}"}}: failed to allocate IP {address}: provided IP is already allocated"#
    );
    assert_eq!(refused(&client, "b", json!({"clusterIP": address})).await?, taken);
    let ports = |port: u64| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    assert_eq!(
        refused(&client, "b", ports(port)).await?,
        format!(
            r#"Service "b" is invalid: spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated"#
        )
    );
    assert_eq!(
        refused(&client, "b", ports(80)).await?,
        r#"Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"#
    );
    assert_eq!(
        refused(&client, "b", json!({"clusterIP": "192.0.2.1"})).await?,
        r#"Service "b" is invalid: spec.clusterIPs: Invalid value: []string{"192.0.2.1"}: failed to allocate IP 192.0.2.1: the provided network does not match the current range"#
    );

    server.crash_and_restart(&["--api-only"])?;
    let client = server.client().await?;
    assert_eq!(refused(&client, "b", json!({"clusterIP": address})).await?, taken);
    delete(&client, &format!("{SERVICES}/a")).await?;
    assert!(!addresses(&client).await?.contains(&address));
    let mut both = ports(port);
    both["clusterIP"] = json!(address);
    create(&client, "b", both).await?;
    Ok(())
}

/// Whoever is first has what several want, and those who do not mind get something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_services_never_share_an_address() -> Result<()> {
    let server = Server::start(&["--api-only", "--service-cidr", "10.96.0.0/26"])?;
    let client = server.client().await?;
    let race = (0..8).map(|n| {
        let client = client.clone();
        async move {
            let wanted = service(&format!("same-{n}"), json!({"clusterIP": "10.96.0.9"}));
            json(&client, "POST", SERVICES, &wanted).await
        }
    });
    let won = try_join_all(race).await?;
    let won = won.iter().filter(|(status, _)| *status == StatusCode::CREATED);
    assert_eq!(won.count(), 1);
    // 62 addresses, of which the API's own and the one above are taken.
    let others = (0..60).map(|n| {
        let client = client.clone();
        async move { create(&client, &format!("any-{n}"), json!({"type": "NodePort"})).await }
    });
    let made = try_join_all(others).await?;
    let distinct = |path: &str| {
        made.iter()
            .filter_map(|s| s.pointer(path))
            .map(Value::to_string)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(distinct("/spec/clusterIP").len(), 60);
    assert_eq!(distinct("/spec/ports/0/nodePort").len(), 60);
    assert_eq!(addresses(&client).await?.len(), 62);
    let (status, answer) = json(&client, "POST", SERVICES, &service("late", json!({}))).await?;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        answer["message"],
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    );
    // deletecollection: "delete a collection of services".
    delete(
        &client,
        &format!("{SERVICES}?fieldSelector=metadata.name%21%3Dkubernetes"),
    )
    .await?;
    assert_eq!(
        addresses(&client).await?,
        BTreeSet::from(["10.96.0.1".to_owned()])
    );
    Ok(())
}

/// "Services should be able to change the type from ExternalName to ClusterIP, from ExternalName to NodePort, from
/// ClusterIP to ExternalName, from NodePort to ExternalName."
#[tokio::test]
async fn services_change_their_type() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let made = create(
        &client,
        "s",
        json!({"type": "ExternalName", "externalName": "example.com"}),
    )
    .await?;
    assert!(made["spec"]["clusterIP"].is_null(), "{made}");
    let spec = patch(&client, "s", json!({"type": "ClusterIP", "externalName": null})).await?;
    let address = spec["clusterIP"].as_str().context("an address")?.to_owned();
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    let spec = patch(&client, "s", external.clone()).await?;
    assert!(
        spec["clusterIP"].is_null() && spec["clusterIPs"].is_null(),
        "{spec}"
    );
    assert!(!addresses(&client).await?.contains(&address));
    let spec = patch(&client, "s", json!({"type": "NodePort", "externalName": null})).await?;
    let port = spec["ports"][0]["nodePort"].as_u64().context("a node port")?;
    assert!(spec["clusterIP"].is_string(), "{spec}");
    // A change that leaves out what was allocated keeps it.
    let mut whole = service("s", json!({"type": "NodePort"}));
    whole["metadata"]["labels"] = json!({"a": "b"});
    let (_, replaced) = json(&client, "PUT", &format!("{SERVICES}/s"), &whole).await?;
    assert_eq!(replaced["spec"]["clusterIP"], spec["clusterIP"]);
    assert_eq!(replaced["spec"]["ports"], spec["ports"]);
    let again = patch(&client, "s", external).await?;
    assert!(again["ports"][0]["nodePort"].is_null(), "{again}");
    let named = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    create(&client, "next", named).await?;
    // An address is for life.
    let next = format!("{SERVICES}/next");
    let (status, answer) = send(
        &client,
        "PATCH",
        &next,
        MERGE,
        r#"{"spec":{"clusterIP":"10.96.0.77"}}"#,
    )
    .await?;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        answer["message"],
        r#"Service "next" is invalid: spec.clusterIPs[0]: Invalid value: []string{"10.96.0.77"}: may not change once set"#
    );
    Ok(())
}

#[tokio::test]
async fn services_have_the_families_they_ask_for() -> Result<()> {
    let server = Server::start(&["--api-only", "--service-cidr", "10.96.0.0/16,fd00:10:96::/112"])?;
    let client = server.client().await?;
    let made = create(&client, "both", json!({"ipFamilyPolicy": "PreferDualStack"})).await?;
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let ips = made["spec"]["clusterIPs"]
        .as_array()
        .context("addresses")?
        .clone();
    assert!(
        ips[1].as_str().unwrap_or_default().starts_with("fd00:10:96::"),
        "{ips:?}"
    );
    let spec = patch(&client, "both", json!({"ipFamilyPolicy": "SingleStack"})).await?;
    assert_eq!(spec["clusterIPs"], json!([ips[0]]));
    assert!(
        !addresses(&client)
            .await?
            .contains(ips[1].as_str().unwrap_or_default())
    );
    let six = create(&client, "six", json!({"ipFamilies": ["IPv6"]})).await?;
    assert!(
        six["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .contains(':'),
        "{six}"
    );
    let none = create(&client, "none", json!({"clusterIP": "None"})).await?;
    assert_eq!(none["spec"]["clusterIPs"], json!(["None"]));
    let balanced = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let balanced = create(&client, "balanced", balanced).await?;
    assert!(
        balanced["spec"]["healthCheckNodePort"].as_u64() >= Some(30_000),
        "{balanced}"
    );
    Ok(())
}

/// "ServiceCIDR and IPAddress API operations": a second range, once there is no more room in the first.
#[tokio::test]
async fn more_ranges_give_more_addresses() -> Result<()> {
    let server = Server::start(&["--api-only", "--service-cidr", "10.96.0.0/29"])?;
    let client = server.client().await?;
    let default = get(&client, &format!("{RANGES}/kubernetes")).await?;
    assert_eq!(default["spec"]["cidrs"], json!(["10.96.0.0/29"]));
    for n in 0..5 {
        create(&client, &format!("s{n}"), json!({})).await?;
    }
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/24"]}});
    json(&client, "POST", RANGES, &range).await?;
    let made = create(&client, "s5", json!({})).await?;
    let address = made["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    assert!(address.starts_with("10.97.0."), "{address}");
    let list = server.kubectl(&["get", "ipaddresses", &address])?;
    assert!(list.contains("services/default/s5"), "{list}");
    assert!(server.kubectl(&["get", "servicecidrs"])?.contains("10.97.0.0/24"));
    Ok(())
}

/// "API Server should provide secure master service". Where it is reached from pods is proved with a node.
#[tokio::test]
async fn the_service_kubernetes_has_the_first_address() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let service = get(&client, &format!("{SERVICES}/kubernetes")).await?;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let port = service["spec"]["ports"][0].clone();
    assert_eq!(
        (&port["name"], &port["port"], &port["protocol"]),
        (&json!("https"), &json!(443), &json!("TCP"))
    );
    let endpoints = get(&client, "/api/v1/namespaces/default/endpoints/kubernetes").await?;
    // This server listens on loopback, where no pod reaches it: it is no endpoint. What one looks like is a unit test's matter.
    assert!(endpoints["subsets"].as_array().is_none_or(Vec::is_empty));
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3Dkubernetes";
    let slices = get(&client, slices).await?;
    assert_eq!(slices["items"].as_array().map(Vec::len), Some(0));
    let described = server.kubectl(&["describe", "service", "kubernetes"])?;
    for line in [
        "Port:                     https  443/TCP",
        "IP Families:              IPv4",
        "Session Affinity:         None",
    ] {
        assert!(described.contains(line), "{described}");
    }
    Ok(())
}

#[test]
fn kubectl_makes_and_shows_services() -> Result<()> {
    let server = Server::api_only()?;
    let run = |arguments: &[&str]| server.kubectl(arguments);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    run(&[
        "create",
        "deployment",
        "web",
        "--image=example.com/i:1",
        "--port=8080",
    ])?;
    assert_eq!(
        run(&["expose", "deployment", "web", "--port=80", "--target-port=8080"])?,
        "service/web exposed\n"
    );
    assert_eq!(
        run(&[
            "create",
            "service",
            "nodeport",
            "np",
            "--tcp=80:8080",
            "--node-port=30080"
        ])?,
        "service/np created\n"
    );
    assert_eq!(
        run(&[
            "create",
            "service",
            "clusterip",
            "fixed",
            "--tcp=80",
            "--clusterip=10.96.0.50"
        ])?,
        "service/fixed created\n"
    );
    assert_eq!(
        run(&[
            "create",
            "service",
            "externalname",
            "ext",
            "--external-name=example.com"
        ])?,
        "service/ext created\n"
    );
    let table = run(&["get", "services", "-o", "wide"])?;
    let row = |name: &str| {
        let line = table
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        let mut row = words(line);
        row.remove(5);
        row
    };
    assert_eq!(
        row("fixed"),
        [
            "fixed",
            "ClusterIP",
            "10.96.0.50",
            "<none>",
            "80/TCP",
            "app=fixed"
        ]
    );
    assert_eq!(
        row("ext"),
        [
            "ext",
            "ExternalName",
            "<none>",
            "example.com",
            "<none>",
            "app=ext"
        ]
    );
    assert_eq!(row("np")[3..], ["<none>", "80:30080/TCP", "app=np"]);
    let described = run(&["describe", "service", "web"])?;
    for line in [
        "Type:                     ClusterIP",
        "TargetPort:               8080/TCP",
        "Selector:                 app=web",
    ] {
        assert!(described.contains(line), "{described}");
    }
    let taken = server.try_kubectl(&[
        "create",
        "service",
        "nodeport",
        "np2",
        "--tcp=80",
        "--node-port=30080",
    ])?;
    let error = String::from_utf8(taken.stderr)?;
    assert!(error.contains("provided port is already allocated"), "{error}");
    Ok(())
}
