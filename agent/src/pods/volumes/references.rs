//! Which objects of its namespace a pod's volumes and variables are made of.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

/// The names of objects that a pod refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Referred {
    /// Config maps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
}

/// What a pod's volumes are made of.
pub fn referred_by_volumes(pod: &Pod) -> Referred {
    let mut referred = Referred::default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for source in projected {
            let map = source.config_map.iter().map(|map| map.name.clone());
            referred.config_maps.extend(map);
            let secret = source.secret.iter().map(|secret| secret.name.clone());
            referred.secrets.extend(secret);
        }
        let map = volume.config_map.iter().map(|source| source.name.clone());
        referred.config_maps.extend(map);
        let secret = volume.secret.iter();
        let secret = secret.filter_map(|source| source.secret_name.clone());
        referred.secrets.extend(secret);
    }
    referred
}

/// What the variables of a pod's containers come from.
pub fn referred_by_variables(pod: &Pod) -> Referred {
    let mut referred = Referred::default();
    let Some(spec) = &pod.spec else {
        return referred;
    };
    let containers = spec.containers.iter();
    for container in containers.chain(spec.init_containers.iter().flatten()) {
        for from in container.env_from.iter().flatten() {
            let map = from.config_map_ref.iter().map(|r| r.name.clone());
            referred.config_maps.extend(map);
            let secret = from.secret_ref.iter().map(|r| r.name.clone());
            referred.secrets.extend(secret);
        }
        let sources = container.env.iter().flatten();
        for source in sources.filter_map(|variable| variable.value_from.as_ref()) {
            let map = source.config_map_key_ref.iter().map(|r| r.name.clone());
            referred.config_maps.extend(map);
            let secret = source.secret_key_ref.iter().map(|r| r.name.clone());
            referred.secrets.extend(secret);
        }
    }
    referred
}
