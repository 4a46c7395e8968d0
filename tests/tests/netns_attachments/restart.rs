use std::fs;

use serde_json::Value;

use crate::world::{TestNode, host_ends, in_namespaces, ip, key, wait_for};

#[test]
fn another_agent_goes_on_with_what_is_there() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let (a, b) = (node.pod("a"), node.pod("b"));
        let before = node.add("a", &a).await.unwrap();
        let node = node.restart(|_| ()).await;
        let after = node.endpoints.check(key("a"), None).await.unwrap();
        assert_eq!(before, after, "the same device, not a new one");
        let other = node.add("b", &b).await.unwrap();
        assert_ne!(before.ips, other.ips);
        node.endpoints.del(key("a")).await.unwrap();
        node.endpoints.del(key("b")).await.unwrap();
        wait_for("the links' deletion", || host_ends().is_empty()).await;
        node.assert_nothing_left().await;
    });
}

#[test]
fn a_freed_address_rests_across_a_restart() {
    in_namespaces(|| async {
        let node = TestNode::with_cidrs(&["10.7.1.0/30"]).await;
        let pods = ["a", "b"].map(|name| node.pod(name));
        let before = node.add("a", &pods[0]).await.unwrap();
        node.endpoints.del(key("a")).await.unwrap();
        let node = node.restart(|_| ()).await;
        let after = node.add("b", &pods[1]).await.unwrap();
        assert_ne!(before.ips, after.ips);
        assert!(
            node.add("a", &pods[0]).await.is_err(),
            "the only other address rests"
        );
    });
}

/// An agent that is killed in the middle of ADD leaves a checkpoint that says so.
#[test]
fn an_unfinished_attachment_is_undone() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        let checkpoint = node.checkpoints().remove(0);
        let node = node
            .restart(|_| {
                let mut document: Value = serde_json::from_slice(&fs::read(&checkpoint).unwrap()).unwrap();
                document["phase"] = "creating".into();
                // As before the link was made known.
                document["attached"]["host_ifindex"] = 0.into();
                fs::write(&checkpoint, document.to_string()).unwrap();
            })
            .await;
        assert_eq!(pod.links(), ["lo"]);
        node.assert_nothing_left().await;
        node.add("a", &pod).await.unwrap();
    });
}

/// An agent that is killed between the lease and the checkpoint leaves a lease alone.
#[test]
fn a_lease_without_an_attachment_is_freed() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        let checkpoint = node.checkpoints().remove(0);
        let node = node.restart(|_| fs::remove_file(&checkpoint).unwrap()).await;
        wait_for("the stray link's deletion", || host_ends().is_empty()).await;
        node.assert_nothing_left().await;
    });
}

#[test]
fn what_died_while_no_agent_looked_is_released() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pods = ["a", "b"].map(|name| node.pod(name));
        node.add("a", &pods[0]).await.unwrap();
        let kept = node.add("b", &pods[1]).await.unwrap();
        let node = node
            .restart(|_| {
                pods[0].remove();
                ip(&format!("link del {}", kept.host_ifname));
            })
            .await;
        assert_eq!(node.checkpoints().len(), 1);
        assert_eq!(node.leased().await, 2);
        let again = node.endpoints.check(key("b"), None).await.unwrap();
        assert_eq!(
            again.ips, kept.ips,
            "a pod whose link was deleted gets it back with its addresses"
        );
        assert_eq!(pods[1].addresses(), kept.ips);
    });
}

#[test]
fn a_reboot_forgets_all_attachments() {
    in_namespaces(|| async {
        let node = TestNode::new().await;
        let pod = node.pod("a");
        node.add("a", &pod).await.unwrap();
        let checkpoint = node.checkpoints().remove(0);
        let node = node
            .restart(|dir| {
                for path in [checkpoint.clone(), dir.join("state/ipam.journal")] {
                    let text = fs::read_to_string(&path).unwrap();
                    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
                    fs::write(&path, text.replace(boot.trim(), "an-earlier-boot")).unwrap();
                }
            })
            .await;
        wait_for("the stray link's deletion", || host_ends().is_empty()).await;
        node.assert_nothing_left().await;
        let attached = node.add("a", &pod).await.unwrap();
        assert_eq!(
            attached.ips[0].to_string(),
            "10.7.1.1/32",
            "nothing rests after a reboot"
        );
    });
}
