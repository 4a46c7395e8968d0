//! Which address families a Service has: from its policy, what it names, and what the cluster offers.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Family, is_external_name, is_headless, texts};
use crate::resources::Problems;

const SINGLE: &str = "SingleStack";
const REQUIRE: &str = "RequireDualStack";
const MULTIPLE: &str = "must be 'RequireDualStack' or 'PreferDualStack' when multiple";

/// Sets the families and the policy of a Service, or says why they cannot be. `offered` are the cluster's families, the
/// default first; `old` is the Service before a change.
pub fn settle(service: &mut Value, old: Option<&Value>, offered: &[Family], problems: &mut Problems) {
    let spec = &mut service["spec"];
    let before = old.map(|old| &old["spec"]);
    if is_external_name(spec) || !spec.is_object() || unchanged_preference(spec, before) {
        return;
    }
    let selectorless = spec["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    let free = is_headless(spec) && selectorless;
    if !spec["ipFamilyPolicy"].is_string() {
        spec["ipFamilyPolicy"] = json!(if free { REQUIRE } else { SINGLE });
    }
    let found = problems.0.len();
    agree(spec, problems);
    if problems.0.len() > found {
        return;
    }
    let single = spec["ipFamilyPolicy"] == SINGLE;
    if let Some(before) = before.filter(|before| !is_external_name(before)) {
        change(spec, before, single, problems);
    }
    if single {
        for (key, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if texts(&spec[key]).len() > 1 {
                let detail = format!("{MULTIPLE} {what} are specified");
                problems.invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &detail);
            }
        }
    }
    let mut families: Vec<Family> = texts(&spec["ipFamilies"])
        .into_iter()
        .filter_map(Family::parse)
        .collect();
    for (index, address) in addresses(spec).iter().enumerate().skip(families.len()) {
        let family = Family::of(*address);
        if offered.contains(&family) {
            families.push(family);
        } else {
            let detail = format!("{family} is not configured on this cluster");
            problems.invalid_list(&format!("spec.clusterIPs[{index}]"), &spec["clusterIPs"], &detail);
        }
    }
    if problems.0.len() == found && !free {
        check_offered(spec, &families, offered, problems);
    }
    if problems.0.len() > found {
        return;
    }
    if families.is_empty() {
        families.extend(offered.first());
    }
    if let [only] = families[..]
        && !single
        && (free || offered.contains(&only.other()))
    {
        families.push(only.other());
    }
    spec["ipFamilies"] = families.iter().map(|family| family.name()).collect();
}

/// A Service that prefers both families keeps those it has until its writer says otherwise, whatever becomes of the cluster.
fn unchanged_preference(spec: &Value, before: Option<&Value>) -> bool {
    before.is_some_and(|before| {
        spec["ipFamilyPolicy"] == "PreferDualStack"
            && ["ipFamilyPolicy", "clusterIPs", "ipFamilies"]
                .iter()
                .all(|key| !before[key].is_null() && spec[key] == before[key])
    })
}

/// Checks that every address is of the family named for it.
fn agree(spec: &Value, problems: &mut Problems) {
    let families = texts(&spec["ipFamilies"]).into_iter();
    let written = texts(&spec["clusterIPs"]).into_iter();
    for (index, (address, family)) in written.zip(families).enumerate() {
        if let (Ok(parsed), Some(family)) = (address.parse::<IpAddr>(), Family::parse(family))
            && family != Family::of(parsed)
        {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            problems.invalid(&format!("spec.clusterIPs[{index}]"), &json!(address), &detail);
        }
    }
}

/// Checks what may change: a family never, the second address and family only with the policy. That the first address stays
/// is checked with the rest of the Service.
fn change(spec: &mut Value, before: &Value, single: bool, problems: &mut Problems) {
    for (key, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (new, old) = (texts(&spec[key]), texts(&before[key]));
        let first = usize::from(key == "clusterIPs");
        for (index, (new, old)) in new.iter().zip(&old).enumerate().skip(first) {
            if new != old {
                let field = format!("spec.{key}[{index}]");
                problems.invalid(&field, &json!(new), "may not change once set");
            }
        }
        if single && spec[key] == before[key] && old.len() > 1 {
            // The policy alone was written: its meaning is clear.
            spec[key] = json!([old[0]]);
        } else if !single && !new.is_empty() && new.len() < old.len() {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            problems.invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &detail);
        }
    }
}

fn check_offered(spec: &Value, families: &[Family], offered: &[Family], problems: &mut Problems) {
    if spec["ipFamilyPolicy"] == REQUIRE && offered.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        problems.invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], detail);
    }
    for (index, family) in families.iter().enumerate() {
        if !offered.contains(family) {
            problems.invalid(
                &format!("spec.ipFamilies[{index}]"),
                &json!(family.name()),
                "not configured on this cluster",
            );
        }
    }
}

/// The addresses that the Service names.
fn addresses(spec: &Value) -> Vec<IpAddr> {
    texts(&spec["clusterIPs"])
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[Family] = &[Family::V4];
    const DUAL: &[Family] = &[Family::V6, Family::V4];

    fn settled(spec: Value, old: Option<Value>, offered: &[Family]) -> Result<Value, Vec<String>> {
        let mut service = json!({ "spec": spec });
        let old = old.map(|spec| json!({ "spec": spec }));
        super::super::carry::carry_over(&mut service, old.as_ref());
        let mut problems = Problems::default();
        settle(&mut service, old.as_ref(), offered, &mut problems);
        if problems.0.is_empty() {
            Ok(json!([
                service["spec"]["ipFamilyPolicy"],
                service["spec"]["ipFamilies"]
            ]))
        } else {
            Err(problems
                .0
                .iter()
                .map(|p| format!("{}: {}", p.field, p.message))
                .collect())
        }
    }

    #[test]
    fn policies_and_clusters() {
        let selector = json!({"app": "a"});
        for (spec, offered, wanted) in [
            (json!({}), V4, json!(["SingleStack", ["IPv4"]])),
            (json!({}), DUAL, json!(["SingleStack", ["IPv6"]])),
            (
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                V4,
                json!(["PreferDualStack", ["IPv4"]]),
            ),
            (
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                DUAL,
                json!(["PreferDualStack", ["IPv6", "IPv4"]]),
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4"]}),
                DUAL,
                json!(["RequireDualStack", ["IPv4", "IPv6"]]),
            ),
            (
                json!({"ipFamilies": ["IPv4"]}),
                DUAL,
                json!(["SingleStack", ["IPv4"]]),
            ),
            (
                json!({"clusterIP": "10.96.0.5"}),
                DUAL,
                json!(["SingleStack", ["IPv4"]]),
            ),
            (
                json!({"clusterIP": "None"}),
                V4,
                json!(["RequireDualStack", ["IPv4", "IPv6"]]),
            ),
            (
                json!({"clusterIP": "None", "selector": selector}),
                DUAL,
                json!(["SingleStack", ["IPv6"]]),
            ),
            (json!({"type": "ExternalName"}), DUAL, json!([null, null])),
        ] {
            assert_eq!(settled(spec.clone(), None, offered), Ok(wanted), "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_in_kubernetes_words() {
        for (spec, offered, wanted) in [
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                V4,
                r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#,
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                V4,
                r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
            ),
            (
                json!({"clusterIP": "fd00::1"}),
                V4,
                r#"spec.clusterIPs[0]: Invalid value: []string{"fd00::1"}: IPv6 is not configured on this cluster"#,
            ),
            (
                json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}),
                DUAL,
                r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#,
            ),
            (
                json!({"clusterIP": "10.96.0.5", "ipFamilies": ["IPv6"]}),
                DUAL,
                r#"spec.clusterIPs[0]: Invalid value: "10.96.0.5": expected an IPv6 value as indicated by `ipFamilies[0]`"#,
            ),
        ] {
            assert_eq!(
                settled(spec.clone(), None, offered),
                Err(vec![wanted.to_owned()]),
                "{spec}"
            );
        }
    }

    #[test]
    fn a_second_family_comes_and_goes_with_the_policy() {
        let single = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"});
        let dual = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.5"], "ipFamilies": ["IPv6", "IPv4"],
            "ipFamilyPolicy": "RequireDualStack"});
        let with = |spec: &Value, key: &str, value: Value| {
            let mut spec = spec.clone();
            spec[key] = value;
            spec
        };
        let up = with(&single, "ipFamilyPolicy", json!("PreferDualStack"));
        assert_eq!(
            settled(up, Some(single.clone()), DUAL),
            Ok(json!(["PreferDualStack", ["IPv6", "IPv4"]]))
        );
        let down = with(&dual, "ipFamilyPolicy", json!("SingleStack"));
        assert_eq!(
            settled(down, Some(dual.clone()), DUAL),
            Ok(json!(["SingleStack", ["IPv6"]]))
        );
        let fewer = with(&dual, "clusterIPs", json!(["fd00::1"]));
        assert_eq!(
            settled(fewer, Some(dual.clone()), DUAL),
            Err(vec![
                r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": must be 'SingleStack' to release the secondary cluster IP"#.to_owned()
            ])
        );
        let other = with(&single, "ipFamilies", json!(["IPv4"]));
        assert_eq!(
            settled(other, Some(single.clone()), DUAL).unwrap_err()[0],
            r#"spec.clusterIPs[0]: Invalid value: "fd00::1": expected an IPv4 value as indicated by `ipFamilies[0]`"#
        );
        // The cluster has lost a family: what prefers both is left alone.
        let prefers = with(&dual, "ipFamilyPolicy", json!("PreferDualStack"));
        assert!(settled(prefers.clone(), Some(prefers), V4).is_ok());
    }
}
