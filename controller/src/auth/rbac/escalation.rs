//! Nobody gives away more than they have: writes of roles and bindings by those who may write them.

use serde_json::Value;

use super::{Rule, missing};
use crate::auth::Identity;
use crate::auth::authorizer::{Attributes, Authorizer, RBAC_GROUP};
use crate::resources::Resource;

/// Refuses a role with rules, or a binding to a role with rules, that the writer does not have.
///
/// # Errors
/// The sentence that explains the refusal.
pub(crate) fn admits(
    authorizer: &Authorizer,
    identity: &Identity,
    resource: &Resource,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&new["metadata"]["namespace"]);
    let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
        let request = Attributes {
            verb,
            group: RBAC_GROUP,
            resource,
            subresource: "",
            namespace,
            name,
        };
        authorizer.decide(identity, &request).is_allowed()
    };
    let name = text(&new["metadata"]["name"]);
    match resource.plural {
        "roles" | "clusterroles" => {
            let unchanged = |key: &str| old.is_some_and(|old| old[key] == new[key]);
            // By its labels other roles gather what it allows.
            let labels_unchanged =
                old.is_some_and(|old| old["metadata"]["labels"] == new["metadata"]["labels"]);
            if unchanged("rules") && unchanged("aggregationRule") && labels_unchanged {
                return Ok(());
            }
            if may("escalate", resource.plural, &namespace, &name) {
                return Ok(());
            }
            // What a role gathers is not known in advance, so it may be anything.
            if !unchanged("aggregationRule") && new["aggregationRule"].is_object() {
                let all = || vec!["*".to_owned()];
                let everything = Rule {
                    verbs: all(),
                    groups: all(),
                    resources: all(),
                    ..Rule::default()
                };
                holds(authorizer, identity, "", &[everything]).map_err(|_| {
                    "must have cluster-admin privileges to use the aggregationRule".to_owned()
                })?;
            }
            holds(authorizer, identity, &namespace, &Rule::list(new))
        }
        "rolebindings" | "clusterrolebindings" => {
            if old.is_some_and(|old| old["roleRef"] == new["roleRef"] && old["subjects"] == new["subjects"]) {
                return Ok(());
            }
            let role = text(&new["roleRef"]["name"]);
            let (plural, of) = if new["roleRef"]["kind"] == "Role" {
                ("roles", namespace.as_str())
            } else {
                ("clusterroles", "")
            };
            if may("bind", plural, &namespace, &role) {
                return Ok(());
            }
            let Some(rules) = authorizer.role(of, &role) else {
                let kind = plural.trim_end_matches('s');
                return Err(format!("{kind}.{RBAC_GROUP} {role:?} not found"));
            };
            holds(authorizer, identity, &namespace, &rules)
        }
        _ => Ok(()),
    }
}

fn holds(
    authorizer: &Authorizer,
    identity: &Identity,
    namespace: &str,
    wanted: &[Rule],
) -> Result<(), String> {
    /// More would be compared for minutes; whoever needs them may escalate.
    const MAX_PARTS: usize = 20_000;
    let parts = wanted.iter().map(Rule::parts).fold(0, usize::saturating_add);
    if parts > MAX_PARTS {
        return Err(format!(
            "the rules are about {parts} things, and no more than {MAX_PARTS} are compared with what user {:?} holds",
            identity.user
        ));
    }
    let (held, errors) = authorizer.rules(identity, namespace);
    let missing = missing(&held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<_> = missing.iter().map(ToString::to_string).collect();
    lines.sort_unstable();
    let groups: Vec<_> = identity.groups.iter().map(|group| format!("{group:?}")).collect();
    let mut why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        identity.user,
        groups.join(" "),
        lines.join("\n")
    );
    if !errors.is_empty() {
        why = format!("{why}; resolution errors: [{}]", errors.join(", "));
    }
    Err(why)
}
