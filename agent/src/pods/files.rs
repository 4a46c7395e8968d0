//! The files that every container finds in `/etc`: host name, hosts, resolver. The texts are pure.

use std::{
    fmt::{self, Write as _},
    fs, io,
    net::IpAddr,
    path::Path,
};

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodSpec};

use super::{PodsConfig, oci::Bind};
use crate::whole_file;

/// The kernel takes 63 bytes and a zero.
const MAX_HOSTNAME_BYTES: usize = 63;

/// The name that a pod's containers call themselves.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned();
    }
    let name = spec
        .and_then(|s| s.hostname.clone())
        .filter(|name| !name.is_empty())
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    let end = name
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= MAX_HOSTNAME_BYTES)
        .last()
        .unwrap_or(0);
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

/// `/etc/hosts` of a pod.
pub fn hosts(pod: &Pod, ips: &[IpAddr], cluster_domain: &str) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    let name = hostname(pod);
    let subdomain = pod
        .spec
        .as_ref()
        .and_then(|s| s.subdomain.clone())
        .filter(|s| !s.is_empty());
    for ip in ips {
        let names = match &subdomain {
            Some(subdomain) => format!(
                "{name}.{subdomain}.{}.svc.{cluster_domain}\t{name}",
                pod.metadata.namespace.as_deref().unwrap_or("default")
            ),
            None => name.clone(),
        };
        push(&mut text, format_args!("{ip}\t{names}\n"));
    }
    for HostAlias { ip, hostnames } in pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        let names = hostnames.clone().unwrap_or_default().join("\t");
        push(&mut text, format_args!("{ip}\t{names}\n"));
    }
    text
}

/// Writing to a text cannot fail.
fn push(text: &mut String, line: fmt::Arguments<'_>) {
    let _ = text.write_fmt(line);
}

/// `/etc/resolv.conf` of a pod; `node` is the node's own.
pub fn resolv_conf(
    spec: &PodSpec,
    namespace: &str,
    node: &str,
    nameservers: &[IpAddr],
    cluster_domain: &str,
) -> String {
    let host_network = spec.host_network == Some(true);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let from_cluster = !nameservers.is_empty()
        && match policy {
            "ClusterFirst" => !host_network,
            "ClusterFirstWithHostNet" => true,
            _ => false,
        };
    let mut text = String::new();
    if from_cluster {
        for server in nameservers {
            push(&mut text, format_args!("nameserver {server}\n"));
        }
        push(
            &mut text,
            format_args!(
                "search {namespace}.svc.{cluster_domain} svc.{cluster_domain} {cluster_domain}\noptions ndots:5\n"
            ),
        );
    } else if policy != "None" {
        text.push_str(node);
        if !node.is_empty() && !node.ends_with('\n') {
            text.push('\n');
        }
    }
    if let Some(config) = &spec.dns_config {
        for server in config.nameservers.iter().flatten() {
            push(&mut text, format_args!("nameserver {server}\n"));
        }
        if let Some(searches) = config.searches.as_ref().filter(|s| !s.is_empty()) {
            push(&mut text, format_args!("search {}\n", searches.join(" ")));
        }
        let options: Vec<String> = config
            .options
            .iter()
            .flatten()
            .filter_map(|option| match (&option.name, &option.value) {
                (Some(name), Some(value)) => Some(format!("{name}:{value}")),
                (Some(name), None) => Some(name.clone()),
                (None, _) => None,
            })
            .collect();
        if !options.is_empty() {
            push(&mut text, format_args!("options {}\n", options.join(" ")));
        }
    }
    text
}

/// Writes the files into the pod's directory, and says where containers get them.
pub fn write(dir: &Path, pod: &Pod, ips: &[IpAddr], config: &PodsConfig) -> io::Result<Vec<Bind>> {
    let etc = dir.join("etc");
    fs::create_dir_all(&etc)?;
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let node_resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolver = resolv_conf(
        &spec,
        namespace,
        &node_resolver,
        &config.nameservers,
        &config.cluster_domain,
    );
    let files = [
        ("hosts", hosts(pod, ips, &config.cluster_domain)),
        ("hostname", format!("{}\n", hostname(pod))),
        ("resolv.conf", resolver),
    ];
    let mut binds = Vec::new();
    for (name, text) in files {
        let source = etc.join(name);
        // Running containers have this very file mounted, and may be reading it.
        whole_file::replace_if_changed(&source, text.as_bytes(), 0o644)?;
        binds.push(Bind {
            source,
            target: Path::new("/etc").join(name),
            read_only: false,
        });
    }
    Ok(binds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_host_name_is_the_pods_and_fits_the_kernel() {
        let long = format!("{}-{}", "a".repeat(62), "b".repeat(20));
        assert_eq!(
            hostname(&pod(serde_json::json!({"metadata": {"name": long}}))),
            "a".repeat(62)
        );
        let named =
            serde_json::json!({"metadata": {"name": "p"}, "spec": {"hostname": "h", "containers": []}});
        assert_eq!(hostname(&pod(named)), "h");
    }

    #[test]
    fn hosts_name_the_pod_by_all_its_addresses() {
        let pod = pod(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"subdomain": "s", "containers": [], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]},
        }));
        let ips = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let text = hosts(&pod, &ips, "cluster.local");
        assert!(
            text.contains("\n10.0.0.1\tp.s.n.svc.cluster.local\tp\n"),
            "{text}"
        );
        assert!(text.contains("\nfd00::1\tp.s.n.svc.cluster.local\tp\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\tx\ty\n"), "{text}");
    }

    #[test]
    fn the_resolver_follows_the_dns_policy() {
        let spec = |json| -> PodSpec { serde_json::from_value(json).unwrap() };
        let node = "nameserver 9.9.9.9\n";
        let dns = ["10.96.0.10".parse().unwrap()];
        let plain = spec(serde_json::json!({"containers": []}));
        assert_eq!(resolv_conf(&plain, "n", node, &[], "c.l"), node);
        assert_eq!(
            resolv_conf(&plain, "n", node, &dns, "c.l"),
            "nameserver 10.96.0.10\nsearch n.svc.c.l svc.c.l c.l\noptions ndots:5\n"
        );
        let own = spec(
            serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["1.1.1.1"], "searches": ["a", "b"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
            }}),
        );
        assert_eq!(
            resolv_conf(&own, "n", node, &dns, "c.l"),
            "nameserver 1.1.1.1\nsearch a b\noptions ndots:2 edns0\n"
        );
        let host = spec(serde_json::json!({"containers": [], "hostNetwork": true}));
        assert_eq!(resolv_conf(&host, "n", node, &dns, "c.l"), node);
    }

    #[test]
    fn a_containers_start_leaves_the_files_of_the_running_ones_alone() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = tempfile::tempdir().unwrap();
        let config = PodsConfig::new(dir.path(), "n");
        let pod = pod(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": []}}));
        let ips = ["10.0.0.1".parse().unwrap()];
        let inodes = |binds: Vec<Bind>| -> Vec<u64> {
            let inode = |bind: &Bind| bind.source.metadata().unwrap().ino();
            binds.iter().map(inode).collect()
        };
        let first = inodes(write(dir.path(), &pod, &ips, &config).unwrap());
        // A reader of the file would see it cut off otherwise.
        let mut reader = fs::File::open(dir.path().join("etc/hosts")).unwrap();
        assert_eq!(inodes(write(dir.path(), &pod, &ips, &config).unwrap()), first);
        let moved = ["10.0.0.2".parse().unwrap()];
        write(dir.path(), &pod, &moved, &config).unwrap();
        let text = io::read_to_string(&mut reader).unwrap();
        assert!(text.ends_with("10.0.0.1\tp\n"), "{text}");
    }
}
