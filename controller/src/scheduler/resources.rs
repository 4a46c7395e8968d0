//! Amounts of resources, as integers that can be added and compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container without a CPU request counts as when nodes are compared, in millicores.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container without a memory request counts as when nodes are compared, in bytes.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;
/// Pods a node takes that does not say how many.
const DEFAULT_PODS: i64 = 110;

/// Amounts of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Number of pods.
    pub pods: i64,
    /// Everything else, by name.
    pub extended: BTreeMap<Arc<str>, i64>,
}

impl Resources {
    /// Reads a resource list; CPU in millicores, the rest in units.
    pub fn from_list(list: &BTreeMap<String, Quantity>) -> Self {
        let mut out = Resources::default();
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => out.milli_cpu = milli(quantity),
                "memory" => out.memory = units(quantity),
                "ephemeral-storage" => out.ephemeral_storage = units(quantity),
                "pods" => out.pods = units(quantity),
                other => {
                    out.extended.insert(other.into(), units(quantity));
                }
            }
        }
        out
    }

    /// What a node offers; without a word about pods, the usual number.
    pub fn of_node(list: &BTreeMap<String, Quantity>) -> Self {
        let mut out = Self::from_list(list);
        if !list.contains_key("pods") {
            out.pods = DEFAULT_PODS;
        }
        out
    }

    /// The amount of another resource than the four.
    pub fn extended(&self, name: &str) -> i64 {
        self.extended.get(name).copied().unwrap_or(0)
    }

    /// Adds.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes away.
    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    /// What the pod asks for as a whole, of the resources that it can ask for so.
    fn replace_by(&mut self, whole: &Resources) {
        for (mine, theirs) in [
            (&mut self.milli_cpu, whole.milli_cpu),
            (&mut self.memory, whole.memory),
        ] {
            if theirs != 0 {
                *mine = theirs;
            }
        }
        let huge = whole
            .extended
            .iter()
            .filter(|(name, _)| name.starts_with("hugepages-"));
        self.extended
            .extend(huge.map(|(name, amount)| (name.clone(), *amount)));
    }

    /// The greater of each.
    pub fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Resources, op: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = op(self.milli_cpu, other.milli_cpu);
        self.memory = op(self.memory, other.memory);
        self.ephemeral_storage = op(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = op(self.pods, other.pods);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = op(*mine, *amount);
        }
    }
}

/// What a pod asks for: exactly, and with the usual amounts where it is silent (for comparing nodes only).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// What must fit.
    pub requests: Resources,
    /// Millicores for scoring.
    pub scored_cpu: i64,
    /// Bytes for scoring.
    pub scored_memory: i64,
}

impl Demand {
    /// The demand of a pod: containers together, or the largest step of initialisation, plus overhead.
    pub fn of(spec: &PodSpec) -> Self {
        let (mut requests, mut scored) = (Resources::default(), Resources::default());
        for container in &spec.containers {
            requests.add(&requests_of(container));
            scored.add(&scored_requests_of(container));
        }
        // Sidecars run beside everything that starts after them.
        let (mut sidecars, mut scored_sidecars) = (Resources::default(), Resources::default());
        let (mut init, mut scored_init) = (Resources::default(), Resources::default());
        for container in spec.init_containers.iter().flatten() {
            let (mut own, mut scored_own) = (requests_of(container), scored_requests_of(container));
            if container.restart_policy.as_deref() == Some("Always") {
                requests.add(&own);
                scored.add(&scored_own);
                sidecars.add(&own);
                scored_sidecars.add(&scored_own);
                (own, scored_own) = (sidecars.clone(), scored_sidecars.clone());
            } else {
                own.add(&sidecars);
                scored_own.add(&scored_sidecars);
            }
            init.raise_to(&own);
            scored_init.raise_to(&scored_own);
        }
        requests.raise_to(&init);
        scored.raise_to(&scored_init);
        if let Some(whole) = &spec.resources {
            let whole = whole
                .requests
                .as_ref()
                .map(Resources::from_list)
                .unwrap_or_default();
            requests.replace_by(&whole);
            scored.replace_by(&whole);
        }
        if let Some(overhead) = &spec.overhead {
            let overhead = Resources::from_list(overhead);
            requests.add(&overhead);
            scored.add(&overhead);
        }
        requests.pods = 1;
        Demand {
            requests,
            scored_cpu: scored.milli_cpu,
            scored_memory: scored.memory,
        }
    }
}

fn requests_of(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.map(Resources::from_list).unwrap_or_default()
}

fn scored_requests_of(container: &Container) -> Resources {
    let mut requests = requests_of(container);
    if requests.milli_cpu == 0 {
        requests.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if requests.memory == 0 {
        requests.memory = DEFAULT_MEMORY;
    }
    requests
}

/// The quantity in whole units, rounded up. Unreadable ones, which the API refuses, count as nothing.
pub(super) fn units(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1).unwrap_or_default()
}

/// The quantity in thousandths, rounded up.
fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1000).unwrap_or_default()
}

/// `text × by`, rounded up, within `i64`.
fn scaled(text: &str, by: i128) -> Option<i64> {
    const NANO: i128 = 1_000_000_000;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nano = whole.checked_mul(NANO)?;
    let padded: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    nano = nano.checked_add(padded.parse::<i128>().ok()?)?;
    // Factors as a ratio, so that "n" and "m" stay exact.
    let (up, down): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let ten = 10_i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, ten) } else { (ten, 1) }
        }
    };
    let numerator = nano.checked_mul(up)?.checked_mul(by)?;
    let denominator = NANO.checked_mul(down)?;
    let mut value = numerator / denominator;
    if numerator % denominator != 0 {
        value += 1;
    }
    let value = if negative { -value } else { value };
    Some(i64::try_from(value).unwrap_or(if negative { i64::MIN } else { i64::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_integers_rounded_up() {
        for (text, by, value) in [
            ("100m", 1000, 100),
            ("0.1", 1000, 100),
            ("2", 1000, 2000),
            ("1500u", 1000, 2),
            ("1n", 1000, 1),
            ("128Mi", 1, 128 << 20),
            ("1.5Gi", 1, 3 << 29),
            ("1e3", 1, 1000),
            ("5E", 1, 5_000_000_000_000_000_000),
            ("1e-1", 1, 1),
            (".5", 1000, 500),
            ("-1", 1, -1),
            ("99E", 1, i64::MAX),
        ] {
            assert_eq!(scaled(text, by), Some(value), "{text}");
        }
        for text in ["", ".", "x", "1x", "1e", "Mi"] {
            assert_eq!(scaled(text, 1), None, "{text}");
        }
    }

    fn container(cpu: &str, sidecar: bool) -> Container {
        serde_json::from_value(serde_json::json!({
            "name": "c", "resources": { "requests": { "cpu": cpu } },
            "restartPolicy": sidecar.then_some("Always"),
        }))
        .unwrap()
    }

    #[test]
    fn the_demand_of_a_pod_is_its_dearest_moment() {
        let mut spec = PodSpec {
            containers: vec![container("100m", false); 2],
            ..PodSpec::default()
        };
        assert_eq!(Demand::of(&spec).requests.milli_cpu, 200);
        spec.init_containers = Some(vec![container("50m", true), container("500m", false)]);
        assert_eq!(
            Demand::of(&spec).requests.milli_cpu,
            550,
            "the init container beside the sidecar"
        );
        spec.init_containers = Some(vec![container("500m", false), container("50m", true)]);
        assert_eq!(
            Demand::of(&spec).requests.milli_cpu,
            500,
            "the sidecar starts later"
        );
        spec.init_containers = Some(vec![container("50m", true)]);
        assert_eq!(Demand::of(&spec).requests.milli_cpu, 250);
        assert_eq!(Demand::of(&spec).scored_memory, 3 * DEFAULT_MEMORY);
    }
}
