//! Role-based access control: what a rule allows, and whether some rules hold all that others do. Pure; the objects that
//! say who has which rules are in [`index`].

mod default_roles;
pub(crate) mod escalation;
pub(crate) mod index;
pub(crate) mod seed;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::authorizer::{Attributes, PathAttributes};

/// What some verbs may be used on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The verbs; `*` stands for all, here and below.
    pub verbs: Vec<String>,
    /// API groups.
    pub groups: Vec<String>,
    /// Resources, or `resource/subresource`, or `*/subresource`.
    pub resources: Vec<String>,
    /// Objects; empty for all.
    pub names: Vec<String>,
    /// Paths that are no resource's; one that ends with `*` stands for all that begin so.
    pub paths: Vec<String>,
}

impl Rule {
    /// Reads a rule of a role.
    pub fn from_value(rule: &Value) -> Self {
        let list = |key: &str| -> Vec<String> {
            let values = rule[key].as_array().into_iter().flatten();
            values
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            paths: list("nonResourceURLs"),
        }
    }

    /// Reads the rules of a role.
    pub fn list(role: &Value) -> Vec<Self> {
        let rules = role["rules"].as_array().into_iter().flatten();
        rules.map(Self::from_value).collect()
    }

    /// The rule as a role has it.
    pub fn to_value(&self) -> Value {
        let mut value = json!({"verbs": self.verbs});
        for (key, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ] {
            if !list.is_empty() {
                value[key] = json!(list);
            }
        }
        value
    }

    /// Whether it allows a request on a resource.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        has(&self.verbs, request.verb)
            && has(&self.groups, request.group)
            && self
                .resources
                .iter()
                .any(|resource| resource_matches(resource, request.resource, request.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.name))
    }

    /// Whether it allows a request on a path.
    pub fn allows_path(&self, request: &PathAttributes<'_>) -> bool {
        has(&self.verbs, request.verb) && self.paths.iter().any(|path| path_matches(path, request.path))
    }

    /// Whether it holds all of a rule about one thing.
    fn covers(&self, one: &Rule) -> bool {
        if !one.verbs.iter().all(|verb| has(&self.verbs, verb)) {
            return false;
        }
        if !one.paths.is_empty() {
            return one
                .paths
                .iter()
                .all(|path| self.paths.iter().any(|own| path_matches(own, path)));
        }
        let names = self.names.is_empty()
            || (!one.names.is_empty() && one.names.iter().all(|n| self.names.contains(n)));
        names
            && one.groups.iter().all(|group| has(&self.groups, group))
            && one.resources.iter().all(|resource| {
                let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                self.resources
                    .iter()
                    .any(|own| resource_matches(own, plural, subresource))
            })
    }

    /// How many things it is about.
    pub(crate) fn parts(&self) -> usize {
        let objects = self.resources.len().saturating_mul(self.names.len().max(1));
        let things = self
            .paths
            .len()
            .saturating_add(self.groups.len().saturating_mul(objects));
        self.verbs.len().saturating_mul(things)
    }

    /// The rule as rules about one thing each.
    fn broken_down(&self) -> Vec<Rule> {
        let mut parts = Vec::new();
        let one = |text: &String| vec![text.clone()];
        for verb in &self.verbs {
            for path in &self.paths {
                parts.push(Rule {
                    verbs: one(verb),
                    paths: one(path),
                    ..Rule::default()
                });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let part = Rule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        parts.push(part.clone());
                    }
                    parts.extend(self.names.iter().map(|name| Rule {
                        names: one(name),
                        ..part.clone()
                    }));
                }
            }
        }
        parts
    }
}

/// As Kubernetes prints a rule in a refusal.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |list: &[String]| {
            let list: Vec<_> = list.iter().map(|text| format!("{text:?}")).collect();
            list.join(" ")
        };
        let parts = [
            ("APIGroups", &self.groups),
            ("NonResourceURLs", &self.paths),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<_> = parts
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:[{}]", quoted(list)))
            .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((plural, below)) => below == subresource && (plural == "*" || plural == resource),
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == path
        || rule
            .strip_suffix('*')
            .is_some_and(|beginning| path.starts_with(beginning))
}

/// What of `wanted` is not held by `held`; verbs on the same thing in one rule.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut found: BTreeMap<[Vec<String>; 4], Vec<String>> = BTreeMap::new();
    for part in wanted.iter().flat_map(Rule::broken_down) {
        if held.iter().any(|rule| rule.covers(&part)) {
            continue;
        }
        let key = [part.groups, part.paths, part.resources, part.names];
        let verbs = found.entry(key).or_default();
        for verb in part.verbs {
            if !verbs.contains(&verb) {
                verbs.push(verb);
            }
        }
    }
    found
        .into_iter()
        .map(|([groups, paths, resources, names], verbs)| Rule {
            verbs,
            groups,
            resources,
            names,
            paths,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |text: &str| -> Vec<String> {
            if text.is_empty() {
                return Vec::new();
            }
            text.split(',')
                .map(|entry| if entry == "core" { "" } else { entry }.to_owned())
                .collect()
        };
        Rule {
            verbs: list(verbs),
            groups: list(groups),
            resources: list(resources),
            names: list(names),
            paths: Vec::new(),
        }
    }

    fn paths(verbs: &str, urls: &[&str]) -> Rule {
        Rule {
            paths: urls.iter().map(|&url| url.to_owned()).collect(),
            ..rule(verbs, "", "", "")
        }
    }

    fn ask<'a>(
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        below: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes {
            verb,
            group,
            resource,
            subresource: below,
            namespace: "n",
            name,
        }
    }

    #[test]
    fn a_rule_allows_what_it_names_and_no_more() {
        let pods = rule("get,list", "core", "pods", "");
        assert!(pods.allows(&ask("get", "", "pods", "", "a")));
        assert!(!pods.allows(&ask("get", "", "pods", "log", "a")));
        assert!(!pods.allows(&ask("delete", "", "pods", "", "a")));
        assert!(!pods.allows(&ask("get", "apps", "pods", "", "a")));
        let scale = rule("update", "apps", "*/scale", "");
        assert!(scale.allows(&ask("update", "apps", "deployments", "scale", "a")));
        assert!(!scale.allows(&ask("update", "apps", "deployments", "", "a")));
        let log = rule("get", "core", "pods/log", "");
        assert!(log.allows(&ask("get", "", "pods", "log", "a")));
        assert!(!log.allows(&ask("get", "", "pods", "", "a")));
        let all = rule("*", "*", "*", "");
        assert!(all.allows(&ask("impersonate", "x", "y", "z", "")));
        let named = rule("get,create", "core", "secrets", "a");
        assert!(named.allows(&ask("get", "", "secrets", "", "a")));
        assert!(!named.allows(&ask("get", "", "secrets", "", "b")));
        // The name is not known yet when an object is created.
        assert!(!named.allows(&ask("create", "", "secrets", "", "")));
    }

    #[test]
    fn paths_match_exactly_or_by_their_beginning() {
        let rule = paths("get", &["/healthz", "/healthz/*", "/api*"]);
        let allows = |path| rule.allows_path(&PathAttributes { verb: "get", path });
        assert!(allows("/healthz") && allows("/healthz/ping") && allows("/apis/apps") && allows("/api"));
        assert!(!allows("/healthzz") && !allows("/version"));
        assert!(!rule.allows_path(&PathAttributes {
            verb: "post",
            path: "/healthz"
        }));
        assert!(paths("*", &["*"]).allows_path(&PathAttributes {
            verb: "put",
            path: "/x"
        }));
    }

    #[test]
    fn what_is_not_held_is_named_as_kubernetes_names_it() {
        let held = [
            rule("get", "core", "pods", ""),
            rule("get", "core", "secrets", "a,b"),
            rule("list", "core", "pods", ""),
        ];
        let covered = |wanted: Rule| missing(&held, &[wanted]).is_empty();
        // Rules add up.
        assert!(covered(rule("get,list", "core", "pods", "")));
        assert!(covered(rule("get", "core", "pods", "x")));
        assert!(covered(rule("get", "core", "secrets", "b")));
        assert!(!covered(rule("get", "core", "secrets", "")));
        assert!(!covered(rule("get", "core", "secrets", "b,c")));
        let lacking = missing(&held, &[rule("get,delete,update", "core", "pods", "")]);
        assert_eq!(lacking.len(), 1);
        assert_eq!(
            lacking[0].to_string(),
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "update"]}"#
        );
        let lacking = missing(&held, &[paths("get", &["/metrics"])]);
        assert_eq!(
            lacking[0].to_string(),
            r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}"#
        );
        assert!(missing(&[rule("*", "*", "*", "")], &[rule("*", "*", "*", "")]).is_empty());
        assert!(missing(&[paths("get", &["/a*"])], &[paths("get", &["/ab", "/a*"])]).is_empty());
        assert!(!missing(&[paths("get", &["/ab*"])], &[paths("get", &["/a*"])]).is_empty());
        assert!(
            missing(
                &[rule("get", "core", "*/log", "")],
                &[rule("get", "core", "pods/log", "")]
            )
            .is_empty()
        );
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let some = |words: &'static [&'static str], most: usize| {
            let word = prop::sample::select(words).prop_map(str::to_owned);
            prop::collection::vec(word, 1..=most)
        };
        let names = prop_oneof![Just(Vec::new()), some(&["x", "y"], 2)];
        let on = (
            some(&["get", "list", "*"], 2),
            some(&["", "apps", "*"], 2),
            some(&["pods", "pods/log", "nodes", "*/log", "*"], 3),
            names,
        );
        on.prop_map(|(verbs, groups, resources, names)| Rule {
            verbs,
            groups,
            resources,
            names,
            paths: Vec::new(),
        })
    }

    proptest! {
        /// What some rules allow and others do not is all in what is called missing, and that is enough.
        #[test]
        fn who_lacks_nothing_may_do_everything(
            held in prop::collection::vec(any_rule(), 0..4),
            wanted in prop::collection::vec(any_rule(), 1..3),
        ) {
            let lacking = missing(&held, &wanted);
            let allows = |rules: &[Rule], request: &Attributes<'_>| rules.iter().any(|rule| rule.allows(request));
            for verb in ["get", "list", "delete"] {
                for group in ["", "apps", "batch"] {
                    for (resource, below) in [("pods", ""), ("pods", "log"), ("nodes", ""), ("jobs", "log")] {
                        for name in ["", "x", "z"] {
                            let request = ask(verb, group, resource, below, name);
                            if allows(&wanted, &request) && !allows(&held, &request) {
                                prop_assert!(allows(&lacking, &request), "{request:?} {lacking:?}");
                            }
                        }
                    }
                }
            }
            // What is given then is enough.
            let together: Vec<_> = held.iter().chain(&lacking).cloned().collect();
            prop_assert!(missing(&together, &wanted).is_empty());
        }
    }
}
