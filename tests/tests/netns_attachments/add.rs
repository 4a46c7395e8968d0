use std::{collections::BTreeSet, process::Command};

use weft_agent::endpoint::{AddRequest, AttachmentKey, EndpointError};

use crate::world::{TestNode, host_ends, in_namespaces, ip, ip_json, key, run, wait_for};

#[test]
fn a_pod_gets_its_device_addresses_and_routes() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        let attached = node.add("a", &pod).await.unwrap();

        let ips: Vec<String> = attached.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.7.1.1/32", "fd07:0:0:1::1/128"]);
        assert_eq!(pod.addresses(), attached.ips);
        let link = &pod.ip_json("link show dev eth0")[0];
        assert_eq!(link["mtu"], 1500);
        assert_eq!(link["address"], attached.pod_mac.to_string());
        assert!(
            link["flags"].as_array().unwrap().contains(&"LOWER_UP".into()),
            "{link}"
        );

        let default = &pod.ip_json("route show default")[0];
        assert_eq!(
            (&default["gateway"], &default["dev"]),
            (&"169.254.1.1".into(), &"eth0".into())
        );
        assert_eq!(default["metrics"][0]["mtu"], 1450);
        assert_eq!(default["metrics"][0]["advmss"], 1410);
        let default = &pod.ip_json("-6 route show default")[0];
        assert_eq!(default["gateway"], "fe80::1");
        assert_eq!(default["metrics"][0]["advmss"], 1390);
        let neighbours = pod.ip_json("neigh show dev eth0 nud permanent");
        assert_eq!(neighbours.len(), 2);
        assert!(
            neighbours
                .iter()
                .all(|neighbour| neighbour["lladdr"] == attached.host_mac.to_string())
        );

        let host = &ip_json(&format!("link show dev {}", attached.host_ifname))[0];
        assert_eq!(host["ifindex"], attached.host_ifindex);
        assert_eq!(host["address"], attached.host_mac.to_string());
        assert_eq!(host["operstate"], "UP");
        assert!(
            ip_json(&format!("addr show dev {}", attached.host_ifname))[0]["addr_info"]
                .as_array()
                .unwrap()
                .is_empty()
        );
        let qdiscs = run(Command::new("tc").args(["qdisc", "show", "dev", &attached.host_ifname]));
        assert!(
            qdiscs.contains("clsact ffff: parent ffff:fff1 ingress_block 30566"),
            "{qdiscs}"
        );
        let filters = run(Command::new("tc").args(["filter", "show", "block", "30566"]));
        assert!(filters.contains("from_container"), "{filters}");
        node.endpoints
            .check(key("a"), Some(pod.path.clone()))
            .await
            .unwrap();
    });
}

#[test]
fn what_is_deleted_is_gone_and_its_address_rests() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        let first = node.add("a", &pod).await.unwrap();
        node.endpoints.del(key("a")).await.unwrap();
        assert!(node.entries().is_empty(), "nothing flows from the answer on");
        wait_for("the link's deletion", || {
            host_ends().is_empty() && pod.links() == ["lo"]
        })
        .await;
        node.assert_nothing_left().await;

        let second = node.add("a", &pod).await.unwrap();
        assert_ne!(first.ips, second.ips);
        node.endpoints.del(key("a")).await.unwrap();
        node.endpoints.del(key("a")).await.unwrap();
        node.endpoints.del(key("never-added")).await.unwrap();
        // The same container again, while its old link may still be there.
        node.add("a", &pod).await.unwrap();
        node.endpoints.check(key("a"), None).await.unwrap();
    });
}

#[test]
fn another_container_may_take_over_a_netns_at_once() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        node.endpoints.del(key("a")).await.unwrap();
        node.add("b", &pod).await.unwrap();
        node.endpoints.check(key("b"), None).await.unwrap();
        wait_for("only one link", || host_ends().len() == 1).await;
    });
}

#[test]
fn many_at_once_all_get_addresses_of_their_own() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pods: Vec<_> = (0..40).map(|n| node.pod(&n.to_string())).collect();
        let adds = pods.iter().enumerate().map(|(n, pod)| {
            let (endpoints, request) = (
                node.endpoints.clone(),
                AddRequest::new(key(&format!("c{n}")), &pod.path),
            );
            tokio::spawn(async move { endpoints.add(request).await.unwrap() })
        });
        let mut ips = BTreeSet::new();
        for add in adds.collect::<Vec<_>>() {
            ips.extend(add.await.unwrap().ips);
        }
        assert_eq!(ips.len(), 80);
        assert_eq!(host_ends().len(), 40);
        for n in 0..40 {
            node.endpoints.check(key(&format!("c{n}")), None).await.unwrap();
            node.endpoints.del(key(&format!("c{n}"))).await.unwrap();
        }
        wait_for("the links' deletion", || host_ends().is_empty()).await;
        node.assert_nothing_left().await;
    });
}

#[test]
fn check_names_what_differs() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        let attached = node.add("a", &pod).await.unwrap();
        let host = attached.host_ifname.clone();
        let dataplane = node.network.datapath();
        let differences = async || match node.endpoints.check(key("a"), None).await {
            Err(EndpointError::Differs { differences, .. }) => differences.join("; "),
            other => panic!("{other:?}"),
        };

        pod.ip("route del default");
        assert!(differences().await.contains("route to 0.0.0.0/0"));
        pod.ip("route add default via 169.254.1.1 dev eth0 mtu 1450 advmss 1410");
        node.endpoints.check(key("a"), None).await.unwrap();

        pod.ip("addr del fd07:0:0:1::1/128 dev eth0");
        assert!(differences().await.contains("lacks address fd07:0:0:1::1/128"));
        pod.ip("addr add fd07:0:0:1::1/128 dev eth0 nodad");

        pod.ip("link set eth0 mtu 1400");
        assert!(differences().await.contains("MTU 1400 and not 1500"));
        pod.ip("link set eth0 mtu 1500");

        dataplane
            .dataplane
            .remove_endpoint("10.7.1.1".parse().unwrap())
            .unwrap();
        assert!(differences().await.contains("10.7.1.1 is not in the datapath"));
        run(Command::new("tc").args(["qdisc", "del", "dev", &host, "clsact"]));
        assert!(differences().await.contains("not on filter block"));
        ip(&format!("link set {host} down"));
        assert!(differences().await.contains("is down"));

        ip(&format!("link del {host}"));
        let text = differences().await;
        assert!(text.contains("interface eth0 is missing"), "{text}");
        assert!(
            text.contains(&format!("host interface {host} is missing")),
            "{text}"
        );
        let unknown = node.endpoints.check(key("b"), None).await;
        assert!(matches!(unknown, Err(EndpointError::NotAttached(_))));
    });
}

#[test]
fn garbage_is_what_the_network_s_runtime_does_not_list() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pods: Vec<_> = ["keep", "lose", "other", "own"]
            .map(|name| (name, node.pod(name)))
            .into();
        for (name, pod) in &pods {
            let mut request = AddRequest::new(key(name), &pod.path);
            request.network = match *name {
                "other" => Some("another".to_owned()),
                "own" => None,
                _ => Some("weft".to_owned()),
            };
            node.endpoints.add(request).await.unwrap();
        }
        node.endpoints
            .gc("weft".to_owned(), vec![key("keep")])
            .await
            .unwrap();
        let left: Vec<String> = node
            .endpoints
            .list()
            .await
            .unwrap()
            .into_iter()
            .map(|summary| summary.key.container_id)
            .collect();
        assert_eq!(left, ["keep", "other", "own"]);
    });
}

#[test]
fn a_pod_may_have_a_smaller_device() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        let mut request = AddRequest::new(AttachmentKey::new("a", "eth0"), &pod.path);
        request.mtu = Some(1300);
        let attached = node.endpoints.add(request).await.unwrap();
        assert_eq!(attached.mtu, 1300);
        assert_eq!(pod.ip_json("route show default")[0]["metrics"][0]["mtu"], 1300);
        node.endpoints.check(key("a"), None).await.unwrap();
    });
}

/// Runtimes turn IPv6 off in a new netns when they know of no IPv6 network.
#[test]
fn a_netns_without_ipv6_gets_it_for_its_device() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        pod.run(
            "sysctl",
            &[
                "-qw",
                "net.ipv6.conf.all.disable_ipv6=1",
                "net.ipv6.conf.default.disable_ipv6=1",
            ],
        );
        let attached = node.add("a", &pod).await.unwrap();
        assert_eq!(pod.addresses(), attached.ips);
        node.endpoints.check(key("a"), None).await.unwrap();
    });
}
