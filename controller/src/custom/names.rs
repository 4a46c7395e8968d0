//! Which of a definition's names are accepted, and what its status says of it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// Names that others of the group have already.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Plurals, singulars and abbreviations.
    resources: BTreeSet<String>,
    /// Kinds and those of lists.
    kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds a resource's names.
    pub(crate) fn add<'a>(
        &mut self,
        resources: impl IntoIterator<Item = &'a str>,
        kinds: impl IntoIterator<Item = &'a str>,
    ) {
        let named = |name: &&str| !name.is_empty();
        self.resources
            .extend(resources.into_iter().filter(named).map(str::to_owned));
        self.kinds
            .extend(kinds.into_iter().filter(named).map(str::to_owned));
    }

    /// Adds the names that another definition was given.
    pub(crate) fn add_definition(&mut self, definition: &Value) {
        let names = &definition["status"]["acceptedNames"];
        let text = |key: &str| names[key].as_str().unwrap_or_default();
        let short = names["shortNames"].as_array().into_iter().flatten();
        self.add(
            short
                .filter_map(Value::as_str)
                .chain([text("plural"), text("singular")]),
            [text("kind"), text("listKind")],
        );
    }
}

/// The status that a definition should have: names it asks for and may have, and whether its objects are served.
pub(crate) fn decide(definition: &Value, taken: &Taken, now: &str) -> Value {
    let wanted = &definition["spec"]["names"];
    let mut status = definition["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let had = status["acceptedNames"].clone();
    let mut accepted = if had.is_object() { had.clone() } else { json!({}) };
    // As in Kubernetes the last conflict is the one told of.
    let mut conflict: Option<(&str, String)> = None;
    let mut accept = |key: &str, reason: &'static str, pool: &BTreeSet<String>| {
        let name = wanted[key].as_str().unwrap_or_default();
        if had[key] == name || !pool.contains(name) {
            accepted[key] = json!(name);
            None
        } else {
            Some((reason, format!("{name:?} is already in use")))
        }
    };
    conflict = accept("plural", "PluralConflict", &taken.resources).or(conflict);
    conflict = accept("singular", "SingularConflict", &taken.resources).or(conflict);
    let kind_conflict = accept("kind", "KindConflict", &taken.kinds);
    let list_conflict = accept("listKind", "ListKindConflict", &taken.kinds);
    let own = |name: &Value| had["shortNames"].as_array().is_some_and(|had| had.contains(name));
    let short = wanted["shortNames"].as_array().cloned().unwrap_or_default();
    let in_use: Vec<_> = short
        .iter()
        .filter(|name| !own(name) && name.as_str().is_some_and(|name| taken.resources.contains(name)))
        .map(|name| format!("{name} is already in use"))
        .collect();
    if in_use.is_empty() {
        set_list(&mut accepted, "shortNames", short);
    } else {
        conflict = Some(("ShortNamesConflict", in_use.join(", ")));
    }
    let conflict = list_conflict.or(kind_conflict).or(conflict);
    let categories = wanted["categories"].as_array().cloned().unwrap_or_default();
    set_list(&mut accepted, "categories", categories);
    status["acceptedNames"] = accepted;

    let names = match &conflict {
        None => ("True", "NoConflicts", "no conflicts found"),
        Some((reason, why)) => ("False", *reason, why.as_str()),
    };
    set_condition(&mut status, "NamesAccepted", names, now);
    // What was served once goes on under its old names.
    if !super::has_condition(definition, "Established") {
        let established = if conflict.is_none() {
            (
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
            )
        } else {
            ("False", "NotAccepted", "not all names are accepted")
        };
        set_condition(&mut status, "Established", established, now);
    }
    status
}

fn set_list(names: &mut Value, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        names[key] = Value::Array(list);
    } else if let Some(names) = names.as_object_mut() {
        names.remove(key);
    }
}

/// Sets a condition: status, reason and message. The time of transition is that of the status.
pub(crate) fn set_condition(status: &mut Value, kind: &str, is: (&str, &str, &str), now: &str) {
    let (state, reason, message) = is;
    let mut condition = json!({
        "type": kind, "status": state, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    if !status.is_object() {
        *status = json!({});
    }
    let Some(list) = status["conditions"].as_array_mut() else {
        status["conditions"] = json!([condition]);
        return;
    };
    match list.iter_mut().find(|old| old["type"] == kind) {
        Some(old) => {
            if old["status"] == state {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => list.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2030-01-01T00:00:00Z";

    fn definition(plural: &str, kind: &str, short: &str) -> Value {
        json!({"spec": {"group": "example.com", "names": {
            "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
            "shortNames": [short], "categories": ["all"]}}})
    }

    fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
        let list = status["conditions"].as_array().unwrap();
        list.iter().find(|condition| condition["type"] == kind).unwrap()
    }

    #[test]
    fn free_names_are_accepted_and_the_definition_is_established() {
        let mut first = definition("widgets", "Widget", "wd");
        first["status"] = decide(&first, &Taken::default(), NOW);
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        assert_eq!(
            condition(&first["status"], "NamesAccepted")["reason"],
            "NoConflicts"
        );
        assert_eq!(
            condition(&first["status"], "Established")["reason"],
            "InitialNamesAccepted"
        );
        assert_eq!(
            decide(&first, &Taken::default(), "2031-01-01T00:00:00Z"),
            first["status"],
            "deciding again changes nothing"
        );

        let mut taken = Taken::default();
        taken.add_definition(&first);
        let second = definition("wd", "Other", "x");
        let status = decide(&second, &taken, NOW);
        let names = condition(&status, "NamesAccepted");
        assert_eq!(
            (&names["status"], &names["reason"]),
            (&json!("False"), &json!("PluralConflict"))
        );
        assert_eq!(names["message"], "\"wd\" is already in use");
        assert_eq!(condition(&status, "Established")["reason"], "NotAccepted");
        let status = decide(&definition("gears", "Widget", "g"), &taken, NOW);
        assert_eq!(condition(&status, "NamesAccepted")["reason"], "ListKindConflict");

        // One that is served keeps its names when it asks for others' names.
        let mut third = definition("gears", "Gear", "g");
        third["status"] = decide(&third, &taken, NOW);
        third["spec"]["names"]["shortNames"] = json!(["wd"]);
        let status = decide(&third, &taken, NOW);
        assert_eq!(
            condition(&status, "NamesAccepted")["reason"],
            "ShortNamesConflict"
        );
        assert_eq!(
            condition(&status, "NamesAccepted")["message"],
            "\"wd\" is already in use"
        );
        assert_eq!(status["acceptedNames"]["shortNames"], json!(["g"]));
        assert_eq!(condition(&status, "Established")["status"], "True");
    }
}
