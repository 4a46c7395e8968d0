//! What is wrong with the rules of a definition.

use serde_json::{Value as Json, json};

use super::super::schema::MAX_DEPTH;
use super::types::Typed;
use super::{OLD_SELF, PATTERN_ROOM, list, message_program, program, text};
use crate::resources::Problems;

/// The reasons that a rule can give, in the order in which they are told.
const REASONS: &[&str] = &[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// Checks the rules of the schema of a version, which stands at `at`. Whether they compile is looked at only if the schema
/// itself is `sound`: else they would tell of problems that are not theirs.
pub(crate) fn check(schema: &Json, at: &str, sound: bool, problems: &mut Problems) {
    if !has_rules(schema, 0) {
        return;
    }
    let known = problems.0.len();
    let mut walk = Walk {
        path: at.to_owned(),
        problems,
        within: None,
        room: PATTERN_ROOM,
    };
    walk.schema(schema, None, 0);
    if sound && walk.problems.0.len() == known {
        walk.schema(schema, Some(&Typed::read(schema, true, 0)), 0);
    }
}

/// The schemas within a schema.
fn children(schema: &Json) -> impl Iterator<Item = &Json> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let inner = [&schema["items"], &schema["additionalProperties"]];
    properties
        .map(|(_, schema)| schema)
        .chain(inner.into_iter().filter(|schema| schema.is_object()))
}

/// Whether there is any rule in a schema.
pub(super) fn has_rules(schema: &Json, depth: usize) -> bool {
    depth <= MAX_DEPTH
        && (list(&schema["x-kubernetes-validations"]).next().is_some()
            || children(schema).any(|schema| has_rules(schema, depth + 1)))
}

struct Walk<'a> {
    path: String,
    problems: &'a mut Problems,
    /// The outermost schema within which values have none before.
    within: Option<String>,
    /// How large patterns may still be.
    room: usize,
}

impl Walk<'_> {
    /// Checks the rules here and below: with types whether they compile, without whether they are complete.
    fn schema(&mut self, schema: &Json, typed: Option<&Typed>, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        for (index, rule) in list(&schema["x-kubernetes-validations"]).enumerate() {
            let at = format!("{}.x-kubernetes-validations[{index}]", self.path);
            match typed {
                None => self.rule(schema, rule, &at),
                Some(typed) => self.compiled(schema, rule, typed, &at),
            }
        }
        let properties = schema["properties"].as_object().into_iter().flatten();
        let atomic = schema["x-kubernetes-map-type"] == "atomic";
        for (place, (name, inner)) in properties.enumerate() {
            let of = typed.and_then(|typed| typed.properties.get(place));
            let of = of.map(|(_, typed)| typed);
            self.below(
                &format!(".properties[{name}]"),
                atomic,
                inner,
                of,
                typed.is_some(),
                depth,
            );
        }
        let additional = &schema["additionalProperties"];
        let of = typed.and_then(|typed| typed.additional.as_deref());
        self.below(
            ".additionalProperties",
            false,
            additional,
            of,
            typed.is_some(),
            depth,
        );
        let keyed = schema["x-kubernetes-list-type"] == "map";
        let of = typed.and_then(|typed| typed.items.as_deref());
        self.below(".items", !keyed, &schema["items"], of, typed.is_some(), depth);
    }

    /// Checks a schema within another; `apart` is whether its values have none before.
    fn below(
        &mut self,
        step: &str,
        apart: bool,
        schema: &Json,
        of: Option<&Typed>,
        compile: bool,
        depth: usize,
    ) {
        if !schema.is_object() || (compile && of.is_none()) {
            return;
        }
        let (length, outer) = (self.path.len(), self.within.clone());
        if apart && outer.is_none() {
            self.within = Some(self.path.clone());
        }
        self.path.push_str(step);
        self.schema(schema, of, depth + 1);
        self.path.truncate(length);
        self.within = outer;
    }

    fn rule(&mut self, schema: &Json, rule: &Json, at: &str) {
        let problems = &mut *self.problems;
        let has_lines = |text: &str| text.contains(['\n', '\r']);
        let blank = |key: &str| !text(&rule[key]).is_empty() && text(&rule[key]).trim().is_empty();
        let (source, message) = (text(&rule["rule"]).trim(), text(&rule["message"]).trim());
        if source.is_empty() {
            problems.required(&format!("{at}.rule"), "rule is not specified");
        } else if blank("message") {
            let detail = "message must be non-empty if specified";
            problems.invalid(&format!("{at}.message"), &rule["message"], detail);
        } else if has_lines(message) {
            let detail = "message must not contain line breaks";
            problems.invalid(&format!("{at}.message"), &rule["message"], detail);
        } else if has_lines(source) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            problems.required(&format!("{at}.message"), detail);
        }
        if blank("messageExpression") {
            let detail = "messageExpression must be non-empty if specified";
            problems.required(&format!("{at}.messageExpression"), detail);
        }
        if rule["reason"].is_string() && !REASONS.contains(&text(&rule["reason"])) {
            problems.not_supported(&format!("{at}.reason"), &rule["reason"], REASONS);
        }
        let path = text(&rule["fieldPath"]);
        let wrong = match path {
            "" => None,
            path if path.trim().is_empty() => Some("fieldPath must be non-empty if specified"),
            path if has_lines(path) => Some("fieldPath must not contain line breaks"),
            path if field_path(schema, path).is_none() => Some("fieldPath must be a valid path"),
            _ => None,
        };
        if let Some(detail) = wrong {
            problems.invalid(&format!("{at}.fieldPath"), &rule["fieldPath"], detail);
        }
    }

    fn compiled(&mut self, schema: &Json, rule: &Json, typed: &Typed, at: &str) {
        let problems = &mut *self.problems;
        let rule_at = format!("{at}.rule");
        match program(rule, schema, typed.of.as_ref(), &mut self.room) {
            Err(error) => problems.invalid(&rule_at, &rule["rule"], &error.to_string()),
            Ok(program) if program.uses(OLD_SELF) => {
                if let Some(within) = &self.within {
                    let detail = format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
                    );
                    problems.invalid(&rule_at, &rule["rule"], &detail);
                }
            }
            Ok(_) if !rule["optionalOldSelf"].is_null() => problems.invalid(
                &format!("{at}.optionalOldSelf"),
                &json!(rule["optionalOldSelf"] == true),
                "may not be set if oldSelf is not used in rule",
            ),
            Ok(_) => {}
        }
        if let Err(error) = message_program(rule, typed.of.as_ref(), &mut self.room) {
            let detail = match error {
                super::RuleError::Compile(error) => {
                    format!("messageExpression compilation failed: {error}")
                }
                error => error.to_string(),
            };
            let at = format!("{at}.messageExpression");
            problems.invalid(&at, &rule["messageExpression"], &detail);
        }
    }
}

/// Reads a path such as `.spec.labels['a.b']`, as problems have it; `None` if the schema has no such field.
pub(super) fn field_path(schema: &Json, path: &str) -> Option<String> {
    let (mut schema, mut rest) = (schema, path.trim());
    let mut shown = String::new();
    while !rest.is_empty() {
        let name;
        (name, rest) = if let Some(after) = rest.strip_prefix("['") {
            quoted(after)?
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        let additional = &schema["additionalProperties"];
        if let Some(properties) = schema["properties"].as_object() {
            schema = properties.get(&name)?;
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.push_str(&name);
        } else if additional.is_object() {
            schema = additional;
            shown.extend(["[", &name, "]"]);
        } else {
            return None;
        }
    }
    (!shown.is_empty()).then_some(shown)
}

/// The name that ends with `']`, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut letters = text.char_indices();
    while let Some((place, c)) = letters.next() {
        match c {
            '\'' => return Some((name, text[place + 1..].strip_prefix(']')?)),
            '\\' => name.push(match letters.next()?.1 {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                c @ ('\'' | '\\') => c,
                _ => return None,
            }),
            c => name.push(c),
        }
    }
    None
}
