//! The Service `kubernetes`: how pods reach the API. It has the first address of the Services' range, and its Endpoints and
//! EndpointSlices are the API servers that live.
//!
//! Where several API servers share a store, each renews a Lease that carries its address, so that it knows of the others, and
//! one that dies is soon no endpoint any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::allocation::ranges::ServiceRange;
use crate::typed;

/// The Service's name, and that of the range its address is from.
const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
/// Where the API servers' leases are.
const LEASE_NAMESPACE: &str = "kube-system";
/// Marks the leases of API servers.
const IDENTITY: &str = "apiserver.kubernetes.io/identity";
const IDENTITY_VALUE: &str = "kube-apiserver";
/// The address a lease stands for.
const ADDRESS: &str = "weft.dev/address";
/// How often the lease is renewed and the endpoints are looked at.
const RENEW: Duration = Duration::from_secs(10);
/// How long a server that is not heard of stays an endpoint.
const LEASE_SECONDS: i64 = 30;
/// How often a start is tried again while the API comes up around it.
const RETRY: Duration = Duration::from_millis(500);

/// What the Service is made from.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where this process serves the API.
    pub(crate) address: SocketAddr,
    /// Ranges of Services' addresses, the default family first.
    pub(crate) ranges: Vec<ServiceRange>,
    /// Whether other processes may serve the same store.
    pub(crate) shared: bool,
}

/// Makes the `ServiceCIDR`, the Service and its endpoints what they should be.
///
/// # Errors
/// If a request fails.
pub(crate) async fn ensure(client: &Client, settings: &Settings) -> Result<(), kube::Error> {
    ensure_range(client, &settings.ranges).await?;
    ensure_service(client, settings).await?;
    let mut leases = Vec::new();
    if settings.shared {
        renew_lease(client, settings.address).await?;
        let api: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
        let selector = ListParams::default().labels(&format!("{IDENTITY}={IDENTITY_VALUE}"));
        leases = api.list(&selector).await?.items;
    }
    let live = live(&leases, settings.address, Timestamp::now());
    ensure_endpoints(client, &live).await?;
    ensure_slices(client, &live).await
}

/// Keeps it so until `shutdown`, and then takes this server out.
pub(crate) async fn keep(client: Client, settings: Settings, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(RENEW) => {}
        }
        if let Err(error) = ensure(&client, &settings).await
            && !crate::controllers::is_conflict(&error)
        {
            warn!(%error, "the Service kubernetes is not up to date");
            tokio::time::sleep(RETRY).await;
        }
    }
    if !settings.shared {
        return;
    }
    let leases: Api<Lease> = Api::namespaced(client, LEASE_NAMESPACE);
    // Nobody is hurt if it stays: it runs out.
    let _ = leases
        .delete(&lease_name(settings.address), &DeleteParams::default())
        .await;
}

/// A name for the lease of a server.
fn lease_name(address: SocketAddr) -> String {
    let text = address.ip().to_string().replace([':', '.'], "-");
    format!("apiserver-{}-{}", text.trim_matches('-'), address.port())
}

/// The servers whose leases have not run out; this one always is. One that is served on loopback alone is no endpoint: no pod
/// can reach it there.
fn live(leases: &[Lease], own: SocketAddr, now: Timestamp) -> BTreeSet<SocketAddr> {
    let fresh = |lease: &&Lease| {
        let spec = lease.spec.as_ref();
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
        let seconds = spec
            .and_then(|spec| spec.lease_duration_seconds)
            .map_or(LEASE_SECONDS, i64::from);
        renewed.is_some_and(|time| now.duration_since(time.0) < SignedDuration::from_secs(seconds))
    };
    leases
        .iter()
        .filter(fresh)
        .filter_map(|lease| lease.annotations().get(ADDRESS)?.parse().ok())
        .chain([own])
        .filter(|address: &SocketAddr| !address.ip().is_loopback())
        .collect()
}

/// The addresses of each port; most have the same.
fn by_port(live: &BTreeSet<SocketAddr>) -> BTreeMap<u16, Vec<IpAddr>> {
    let mut ports: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for address in live {
        ports.entry(address.port()).or_default().push(address.ip());
    }
    ports
}

fn endpoints(live: &BTreeSet<SocketAddr>) -> Value {
    let subsets: Vec<_> = by_port(live)
        .into_iter()
        .map(|(port, addresses)| {
            let addresses: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]})
        })
        .collect();
    json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    })
}

/// One slice for each port and family; the first has the Service's name.
fn slices(live: &BTreeSet<SocketAddr>) -> Vec<Value> {
    let mut slices = Vec::new();
    for (port, addresses) in by_port(live) {
        for kind in ["IPv4", "IPv6"] {
            let of_kind: Vec<_> = addresses
                .iter()
                .filter(|ip| ip.is_ipv4() == (kind == "IPv4"))
                .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
                .collect();
            if of_kind.is_empty() {
                continue;
            }
            let name = if slices.is_empty() {
                NAME.to_owned()
            } else {
                format!("{NAME}-{}-{port}", kind.to_lowercase())
            };
            slices.push(json!({
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
                "addressType": kind, "endpoints": of_kind,
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }));
        }
    }
    slices
}

async fn ensure_range(client: &Client, ranges: &[ServiceRange]) -> Result<(), kube::Error> {
    let cidrs: Vec<_> = ranges.iter().map(|range| range.network().to_string()).collect();
    let range = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": NAME}, "spec": {"cidrs": cidrs},
    });
    let kind = GroupVersionKind::gvk("networking.k8s.io", "v1", "ServiceCIDR");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    create(&api, range).await.map(|_| ())
}

async fn renew_lease(client: &Client, address: SocketAddr) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let name = lease_name(address);
    let spec = json!({
        "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": format!("{:.6}", Timestamp::now()),
    });
    let patch = Patch::Merge(json!({ "spec": spec }));
    match api.patch(&name, &PatchParams::default(), &patch).await {
        Err(error) if crate::controllers::is_not_found(&error) => {
            let lease = json!({
                "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "labels": {IDENTITY: IDENTITY_VALUE},
                    "annotations": {ADDRESS: address.to_string()}},
                "spec": spec,
            });
            create(&api, lease).await.map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

async fn ensure_service(client: &Client, settings: &Settings) -> Result<(), kube::Error> {
    let api: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let port = settings.address.port();
    let ports = json!([{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]);
    let address = settings.ranges.first().map(|range| range.first().to_string());
    let service = json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE,
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "ports": ports, "sessionAffinity": "None",
            "ipFamilyPolicy": "SingleStack"},
    });
    let Some(found) = create(&api, service).await? else {
        return Ok(());
    };
    let spec = found.spec.unwrap_or_default();
    let right = spec.type_.as_deref() == Some("ClusterIP")
        && spec.ports.as_ref().is_some_and(|ports| {
            // Of several servers any port will do.
            ports.len() == 1 && ports[0].port == 443 && ports[0].name.as_deref() == Some("https")
        });
    if right {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"spec": {"type": "ClusterIP", "ports": ports}}));
    api.patch(NAME, &PatchParams::default(), &patch).await.map(|_| ())
}

async fn ensure_endpoints(client: &Client, live: &BTreeSet<SocketAddr>) -> Result<(), kube::Error> {
    let api: Api<Endpoints> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted = endpoints(live);
    let Some(found) = create(&api, wanted.clone()).await? else {
        return Ok(());
    };
    replace_if_different(&api, &found, wanted, &["subsets"]).await
}

async fn ensure_slices(client: &Client, live: &BTreeSet<SocketAddr>) -> Result<(), kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted = slices(live);
    let names: BTreeSet<String> = wanted
        .iter()
        .filter_map(|slice| slice["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    for slice in wanted {
        let Some(found) = create(&api, slice.clone()).await? else {
            continue;
        };
        if json!(found)["addressType"] == slice["addressType"] {
            replace_if_different(&api, &found, slice, &["endpoints", "ports"]).await?;
        } else {
            // The type cannot change.
            api.delete(&found.name_any(), &DeleteParams::default()).await?;
            create(&api, slice).await?;
        }
    }
    let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={NAME}"));
    for slice in api.list(&selector).await?.items {
        let name = slice.name_any();
        let managed = slice
            .labels()
            .contains_key("endpointslice.kubernetes.io/managed-by");
        if !managed && !names.contains(&name) {
            api.delete(&name, &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

/// Creates an object; returns the one that is there already.
async fn create<K>(api: &Api<K>, object: Value) -> Result<Option<K>, kube::Error>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned + kube::Resource,
{
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if let Some(found) = api.get_opt(&name).await? {
        return Ok(Some(found));
    }
    let object: K = typed::from_value(&object).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(None),
        Err(error) if crate::controllers::is_conflict(&error) => api.get_opt(&name).await,
        Err(error) => Err(error),
    }
}

async fn replace_if_different<K>(
    api: &Api<K>,
    found: &K,
    wanted: Value,
    parts: &[&str],
) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned + kube::Resource<DynamicType = ()>,
{
    let current = typed::to_value(found).map_err(kube::Error::SerdeError)?;
    // Through the type, so that both have the same shape.
    let shaped: K = typed::from_value(&wanted).map_err(kube::Error::SerdeError)?;
    let wanted = typed::to_value(&shaped).map_err(kube::Error::SerdeError)?;
    if parts.iter().all(|part| current[*part] == wanted[*part]) {
        return Ok(());
    }
    let mut next = current;
    for part in parts {
        next[*part] = wanted[*part].clone();
    }
    let next: K = serde_json::from_value(next).map_err(kube::Error::SerdeError)?;
    api.replace(&found.name_any(), &PostParams::default(), &next)
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_silent_are_no_endpoints() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let lease = |address: &str, ago: i64| -> Lease {
            let time = now.checked_sub(SignedDuration::from_secs(ago)).unwrap();
            serde_json::from_value(json!({
                "metadata": {"annotations": {ADDRESS: address}},
                "spec": {"leaseDurationSeconds": 30, "renewTime": format!("{time:.6}")},
            }))
            .unwrap()
        };
        let own = "10.0.0.1:6443".parse().unwrap();
        let live = live(
            &[lease("10.0.0.2:6443", 29), lease("10.0.0.3:6443", 31)],
            own,
            now,
        );
        assert_eq!(live, BTreeSet::from([own, "10.0.0.2:6443".parse().unwrap()]));
        assert!(super::live(&[], "127.0.0.1:6443".parse().unwrap(), now).is_empty());
        let endpoints = endpoints(&live);
        assert_eq!(
            endpoints["subsets"],
            json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
                "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}])
        );
    }

    #[test]
    fn every_port_and_family_has_a_slice() {
        let live = ["10.0.0.1:6443", "10.0.0.2:6444", "[fd00::1]:6443"].map(|text| text.parse().unwrap());
        let slices = slices(&live.into());
        let names: Vec<_> = slices
            .iter()
            .map(|slice| slice["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["kubernetes", "kubernetes-ipv6-6443", "kubernetes-ipv4-6444"]
        );
        assert_eq!(
            lease_name("[fd00::1]:6443".parse().unwrap()),
            "apiserver-fd00--1-6443"
        );
    }
}
