use std::{fs, path::PathBuf, process::Command, sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use weft_agent::{
    datapath::{netlink::events, nftables},
    desired::NodeRecord,
    install::{UninstallArgs, uninstall},
};

use crate::world::{TestNode, in_namespaces, ip, ip_json, key, links, run, wait_for};

fn routes() -> Vec<String> {
    let mut routes: Vec<String> = ["route show", "-6 route show"]
        .iter()
        .flat_map(|line| ip_json(line))
        .filter(|route| route["dev"] == "weft0")
        .map(|route| {
            format!(
                "{} src {}",
                route["dst"].as_str().unwrap(),
                route["prefsrc"].as_str().unwrap_or("-")
            )
        })
        .filter(|route| !route.starts_with("fe80"))
        .collect();
    routes.sort();
    routes
}

/// The rules of the table, by digest: no tool to look at them with is everywhere.
fn masquerading() -> Vec<Vec<u8>> {
    nftables::rules().unwrap()
}

#[test]
fn the_overlay_device_is_what_it_should_be() {
    in_namespaces(|| async {
        let _node = TestNode::new().await;
        let link = &ip_json("link show dev weft0")[0];
        assert_eq!(link["address"], "02:77:65:66:74:00");
        assert_eq!(link["mtu"], 1450);
        assert!(link["flags"].as_array().unwrap().contains(&"NOARP".into()));
        let vxlan = &link["linkinfo"]["info_data"];
        assert_eq!((&vxlan["external"], &vxlan["port"]), (&true.into(), &4789.into()));
        assert_eq!(vxlan["learning"], false);
        assert_eq!(
            routes(),
            ["10.7.1.0/24 src 192.0.2.1", "fd07:0:0:1::/64 src 2001:db8::1"]
        );
        assert_eq!(
            fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
                .unwrap()
                .trim(),
            "1"
        );
        assert_eq!(
            fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding")
                .unwrap()
                .trim(),
            "1"
        );
    });
}

#[test]
fn what_another_tool_removes_comes_back() {
    in_namespaces(|| async {
        let mut node = TestNode::new().await;
        let pod = node.pod("a");
        let attached = node.add("a", &pod).await.unwrap();
        let rules = masquerading();
        let (host, wanted) = (attached.host_ifname.clone(), routes());

        ip("route del 10.7.1.0/24 dev weft0");
        nftables::remove().unwrap();
        assert_eq!(masquerading(), Vec::<Vec<u8>>::new());
        run(Command::new("tc").args(["qdisc", "del", "dev", &host, "clsact"]));
        node.network
            .datapath()
            .dataplane
            .remove_endpoint("10.7.1.1".parse().unwrap())
            .unwrap();
        node.reconcile().await;
        assert_eq!(routes(), wanted);
        assert_eq!(masquerading(), rules);
        node.endpoints.check(key("a"), None).await.unwrap();

        ip("link del weft0");
        ip(&format!("link del {host}"));
        node.reconcile().await;
        assert_eq!(routes(), wanted);
        node.endpoints.check(key("a"), None).await.unwrap();
        assert_eq!(pod.addresses(), attached.ips);
    });
}

#[test]
fn what_nobody_wants_goes() {
    in_namespaces(|| async {
        let mut node = TestNode::new().await;
        let peer = NodeRecord {
            ips: vec!["192.0.2.2".parse().unwrap()],
            pod_cidrs: vec!["10.7.2.0/24".parse().unwrap()],
        };
        node.cluster.nodes.insert("node-b".to_owned(), peer);
        node.reconcile().await;
        let peers = || {
            let peers = node.network.datapath().dataplane.peers().unwrap();
            peers
                .into_iter()
                .map(|(cidr, _)| cidr.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(peers().len(), 2);
        assert_eq!(routes().len(), 3);

        node.cluster.nodes.remove("node-b");
        let group = weft_agent::datapath::POD_GROUP;
        ip("link add stray type veth peer name stray-far");
        ip(&format!("link set stray group {group}"));
        node.reconcile().await;
        assert_eq!(node.network.datapath().dataplane.peers().unwrap(), []);
        assert_eq!(routes().len(), 2);
        wait_for("the stray link's deletion", || links() == ["weft0"]).await;
    });
}

#[test]
fn a_changed_underlay_mtu_reaches_every_pod() {
    in_namespaces(|| async {
        let mut node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        for (mtu, tunnel) in [(1400, 1350), (9000, 8950)] {
            ip(&format!("link set under0 mtu {mtu}"));
            node.reconcile().await;
            assert_eq!(ip_json("link show dev weft0")[0]["mtu"], tunnel);
            assert_eq!(pod.ip_json("link show dev eth0")[0]["mtu"], mtu);
            assert_eq!(pod.ip_json("route show default")[0]["metrics"][0]["mtu"], tunnel);
            assert_eq!(
                pod.ip_json("-6 route show default")[0]["metrics"][0]["mtu"],
                tunnel
            );
            node.endpoints.check(key("a"), None).await.unwrap();
        }
    });
}

#[test]
fn uninstalling_leaves_the_host_as_it_was() {
    in_namespaces(|| async {
        let host = || {
            let settings = ["ip_forward", "conf/all/send_redirects"]
                .map(|name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap());
            let forwarding = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
            let accept = fs::read_to_string("/proc/sys/net/ipv6/conf/under0/accept_ra").unwrap();
            let filters = run(Command::new("tc").args(["qdisc", "show"]));
            (
                links(),
                ip("route show"),
                ip("-6 route show"),
                masquerading(),
                settings,
                forwarding,
                accept,
                filters,
            )
        };
        let before = host();
        let node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        assert_ne!(host(), before);
        let dir = node.dir.path().to_owned();
        fs::create_dir_all(dir.join("cni")).unwrap();
        let args = || UninstallArgs {
            bin_dir: dir.join("none"),
            unit_dir: dir.join("none"),
            no_systemctl: true,
            keep_state: false,
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            bpffs_root: dir.join("bpf"),
            overlay_interface: "weft0".to_owned(),
            filter_block: weft_agent::datapath::programs::DEFAULT_FILTER_BLOCK,
            cni_conf_dir: dir.join("cni"),
            cni_bin_dir: dir.join("cni"),
        };
        let node = node.stop().await;
        // As the command does it: outside of any runtime.
        tokio::task::spawn_blocking({
            let args = args();
            move || uninstall(&args).unwrap()
        })
        .await
        .unwrap();
        wait_for("the host as it was", || host() == before).await;
        let left: Vec<PathBuf> = ["state", "run", "bpf"]
            .iter()
            .map(|name| dir.join(name))
            .filter(|path| path.exists())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        let again = args();
        tokio::task::spawn_blocking(move || uninstall(&again).unwrap())
            .await
            .unwrap();
        drop(node);
    });
}

#[test]
fn every_kind_of_change_is_heard_of() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let (changed, shutdown) = (Arc::new(Notify::new()), CancellationToken::new());
        let watch = tokio::spawn(events::watch(Arc::clone(&changed), shutdown.clone()).unwrap());
        let qdisc = || run(Command::new("tc").args(["qdisc", "add", "dev", "under1", "clsact"]));
        let changes: [(&str, &dyn Fn()); 5] = [
            ("link", &|| drop(ip("link add new0 type veth peer name new1"))),
            ("address", &|| drop(ip("addr add 203.0.113.1/24 dev under1"))),
            ("route", &|| drop(ip("route add 198.51.100.0/24 dev under0"))),
            ("qdisc", &|| drop(qdisc())),
            ("masquerading", &|| nftables::remove().unwrap()),
        ];
        for (what, change) in changes {
            let quiet = Duration::from_millis(100);
            while tokio::time::timeout(quiet, changed.notified()).await.is_ok() {}
            change();
            let heard = tokio::time::timeout(Duration::from_secs(5), changed.notified()).await;
            assert!(heard.is_ok(), "{what}");
        }
        shutdown.cancel();
        watch.await.unwrap().unwrap();
        drop(node);
    });
}

#[test]
fn another_pod_cidr_is_leased_from_at_once_and_pods_keep_their_addresses() {
    in_namespaces(|| async {
        let node = TestNode::with_cidrs(&["10.7.1.0/24"]).await;
        let pods = ["a", "b"].map(|name| node.pod(name));
        node.add("a", &pods[0]).await.unwrap();
        node.endpoints
            .set_pod_cidrs(vec!["10.7.9.0/24".parse().unwrap()])
            .await
            .unwrap();
        let attached = node.add("b", &pods[1]).await.unwrap();
        assert_eq!(attached.ips[0].to_string(), "10.7.9.1/32");
        for name in ["a", "b"] {
            node.endpoints.check(key(name), None).await.unwrap();
            node.endpoints.del(key(name)).await.unwrap();
        }
        wait_for("the links' deletion", || links() == ["weft0"]).await;
        node.assert_nothing_left().await;
    });
}

/// As when the Node is deleted and made anew, twice.
#[test]
fn a_pod_cidr_that_comes_back_has_its_leases_still() {
    in_namespaces(|| async {
        let node = TestNode::with_cidrs(&["10.7.1.0/24"]).await;
        let pods = ["a", "b"].map(|name| node.pod(name));
        let before = node.add("a", &pods[0]).await.unwrap();
        for cidr in ["10.7.9.0/24", "10.7.1.0/24"] {
            node.endpoints
                .set_pod_cidrs(vec![cidr.parse().unwrap()])
                .await
                .unwrap();
        }
        let after = node.add("b", &pods[1]).await.unwrap();
        assert_ne!(before.ips, after.ips);
        for name in ["a", "b"] {
            node.endpoints.del(key(name)).await.unwrap();
        }
        wait_for("the links' deletion", || links() == ["weft0"]).await;
        node.assert_nothing_left().await;
    });
}
