use std::{fs, path::Path};

use weft_agent::{
    datapath::netns::NetnsError,
    endpoint::{AddRequest, AttachmentKey, EndpointError},
    ipam::IpamError,
    reconcile::network::NetworkError,
};

use crate::world::{TestNode, bring_up, cluster, host_ends, in_namespaces, key, links, wait_for};

#[test]
fn a_path_that_is_no_netns_is_refused() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let file = node.dir.path().join("file");
        fs::write(&file, "").unwrap();
        let add = async |path: &Path| {
            node.endpoints
                .add(AddRequest::new(key("a"), path))
                .await
                .unwrap_err()
        };
        for path in [
            file.as_path(),
            Path::new("/proc/self/ns/uts"),
            Path::new("/dev/null"),
            Path::new("/proc"),
        ] {
            let error = add(path).await;
            assert!(
                matches!(error, EndpointError::Netns(NetnsError::NotNetns(_))),
                "{path:?}: {error}"
            );
        }
        let absent = add(Path::new("/nowhere")).await;
        assert!(matches!(absent, EndpointError::Netns(NetnsError::Open(..))));
        let own = add(Path::new("/proc/thread-self/ns/net")).await;
        assert!(
            matches!(
                own,
                EndpointError::Netns(NetnsError::Own(_) | NetnsError::NotNetns(_))
            ),
            "{own}"
        );
        node.assert_nothing_left().await;
    });
}

#[test]
fn an_interface_that_is_there_is_left_alone() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        pod.ip("link add eth0 type veth peer name other");
        let error = node.add("a", &pod).await.unwrap_err();
        assert!(
            matches!(&error, EndpointError::InterfaceExists { ifname, .. } if ifname == "eth0"),
            "{error}"
        );
        assert!(error.to_string().contains("already has an interface eth0"));
        assert_eq!(pod.links().len(), 3, "the pod's own link is still there");
        node.assert_nothing_left().await;
    });
}

#[test]
fn names_the_kernel_would_not_take_are_refused() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        for ifname in ["", "..", "lo", "sixteen-byte-nam", "a/b", "a b"] {
            let request = AddRequest::new(AttachmentKey::new("a", ifname), &pod.path);
            let error = node.endpoints.add(request).await.unwrap_err();
            assert!(
                matches!(error, EndpointError::InvalidInterfaceName { .. }),
                "{ifname:?}: {error}"
            );
        }
        let request = AddRequest::new(AttachmentKey::new("../a", "eth0"), &pod.path);
        let error = node.endpoints.add(request).await.unwrap_err();
        assert!(matches!(error, EndpointError::InvalidContainerId(_)));
        node.assert_nothing_left().await;
    });
}

#[test]
fn a_repeated_add_fails_and_changes_nothing() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        let error = node.add("a", &pod).await.unwrap_err();
        assert!(matches!(error, EndpointError::AlreadyAttached(_)));
        node.endpoints.check(key("a"), None).await.unwrap();
        assert_eq!(node.leased().await, 2);
    });
}

#[test]
fn an_exhausted_pod_cidr_says_so_and_leaves_nothing() {
    in_namespaces(|| async {
        let node = TestNode::with_cidrs(&["10.7.1.0/30"]).await;
        let pods: Vec<_> = ["a", "b", "c"].map(|name| node.pod(name)).into();
        node.add("a", &pods[0]).await.unwrap();
        node.endpoints.status().await.unwrap();
        node.add("b", &pods[1]).await.unwrap();
        assert!(node.endpoints.status().await.is_err());
        let error = node.add("c", &pods[2]).await.unwrap_err();
        assert!(matches!(error, EndpointError::Ipam(IpamError::Exhausted { .. })));
        assert!(
            error
                .to_string()
                .contains("10.7.1.0/30 is exhausted: 2 addresses are leased"),
            "{error}"
        );
        assert_eq!(pods[2].links(), ["lo"]);
        assert_eq!(node.checkpoints().len(), 2);
        node.endpoints.del(key("a")).await.unwrap();
        assert!(node.add("c", &pods[2]).await.is_err(), "the freed address rests");
    });
}

/// The last step fails: all before it must be taken back.
#[test]
fn a_route_that_is_there_undoes_the_attachment() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        pod.ip("link add other type veth peer name far");
        pod.ip("addr add 198.51.100.1/24 dev other");
        pod.ip("link set other up");
        pod.ip("route add default via 198.51.100.2 dev other");
        let error = node.add("a", &pod).await.unwrap_err();
        assert!(error.to_string().contains("add route to 0.0.0.0/0"), "{error}");
        assert_eq!(pod.links(), ["lo", "far", "other"]);
        node.assert_nothing_left().await;

        pod.ip("link del other");
        node.add("a", &pod).await.unwrap();
        node.endpoints.check(key("a"), None).await.unwrap();
    });
}

/// The first step fails: no lease may stay.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_nothing() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        let dir = node.dir.path().join("state/endpoints");
        fs::remove_dir(&dir).unwrap();
        let error = node.add("a", &pod).await.unwrap_err();
        assert!(matches!(error, EndpointError::Checkpoint(_)), "{error}");
        fs::create_dir(&dir).unwrap();
        node.assert_nothing_left().await;
        node.add("a", &pod).await.unwrap();
    });
}

#[test]
fn a_netns_that_vanishes_is_released() {
    in_namespaces(|| async {
        let mut node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        pod.remove();
        wait_for("the kernel to drop the link", || host_ends().is_empty()).await;
        node.reconcile().await;
        node.assert_nothing_left().await;
        // The runtime says it late.
        node.endpoints.del(key("a")).await.unwrap();
    });
}

#[test]
fn a_pod_cidr_that_overlaps_the_underlay_is_refused_whole() {
    in_namespaces(|| async {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = bring_up(dir.path(), &cluster(&["192.0.0.0/16"])) else {
            panic!("accepted")
        };
        assert!(matches!(error, NetworkError::Conflict(_)));
        assert!(
            error
                .to_string()
                .contains("pod CIDR 192.0.0.0/16 of node node-a overlaps the underlay network")
        );
        assert_eq!(links(), Vec::<String>::new());
        assert!(!dir.path().join("bpf").exists());
    });
}

#[test]
fn a_pod_cidr_that_is_another_node_s_is_refused_whole() {
    in_namespaces(|| async {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = cluster(&["10.7.1.0/24"]);
        let other = cluster.nodes["node-a"].clone();
        cluster.nodes.insert("node-b".to_owned(), other);
        let Err(error) = bring_up(dir.path(), &cluster) else {
            panic!("accepted")
        };
        assert!(
            error.to_string().contains("overlaps 10.7.1.0/24 of node node-b"),
            "{error}"
        );
        assert_eq!(links(), Vec::<String>::new());
    });
}
