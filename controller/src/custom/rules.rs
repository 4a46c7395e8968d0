//! The rules of a schema (`x-kubernetes-validations`): compiled once per definition, evaluated when objects are written.
//!
//! A rule is evaluated for each value of its schema that is there. One that looks at the value before (`oldSelf`) is
//! evaluated only if there was one that can be told to be the same: a field, an entry of a map, an item of a list with
//! keys. A rule that does not look at it is left out where an update leaves the value as it was, so that a new rule does
//! not lock out old objects.
//!
//! What rules may cost is counted as they are evaluated, per rule and per object; their cost at worst is not estimated when
//! a definition is written.

mod definition;
mod types;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

pub(crate) use self::definition::check as check_definition;
use self::types::Typed;
use super::structural::{list, text};
use crate::cel::{EvaluationError, Program, Type, Value};
use crate::resources::{Problem, Problems, Reason};

/// Most that one evaluation, and all of an object, may cost; the limits of Kubernetes.
const RULE_LIMIT: u64 = 1_000_000;
pub(crate) const OBJECT_LIMIT: u64 = 10_000_000;

/// How large the compiled patterns of a schema may be, in bytes.
const PATTERN_ROOM: usize = 16 << 20;

/// Most bytes that are told of an object's failures: rules with long messages can fail for each of many items.
const MAX_TOLD: usize = 1 << 20;

/// Longest text that a `messageExpression` may give.
const MAX_MESSAGE: usize = 5 * 1024;

/// The field of problems of an object as a whole.
const NO_FIELD: &str = "<nil>";

/// The variables of a rule, by their place.
const OLD_SELF: usize = 1;

/// All rules of a schema.
#[derive(Debug, Default)]
pub(crate) struct Rules(Option<Node>);

/// The rules of a value and of those within it.
#[derive(Debug, Default)]
struct Node {
    /// The JSON type, as problems have it.
    kind: String,
    of: Option<Type>,
    rules: Vec<Rule>,
    properties: Vec<(String, Node)>,
    additional: Option<Box<Node>>,
    items: Option<Box<Node>>,
    /// What items of the list are known by, if they are.
    keys: Option<Vec<String>>,
    /// The map is one value: its entries have no value before.
    atomic: bool,
}

#[derive(Debug)]
struct Rule {
    text: String,
    message: Option<String>,
    reason: Reason,
    field_path: Option<String>,
    optional_old: bool,
    program: Result<Program, String>,
    message_expression: Option<Program>,
}

/// Why a rule cannot be evaluated.
#[derive(Debug, thiserror::Error)]
enum RuleError {
    #[error("compilation failed: {0}")]
    Compile(#[from] crate::cel::CompileError),
    #[error("cel expression must evaluate to a bool")]
    NoBool,
    #[error("messageExpression must evaluate to a string")]
    NoString,
    #[error(
        "rule declared on schema that does not support validation rules type: '{0}' \
         x-kubernetes-preserve-unknown-fields: '{1}'"
    )]
    NoType(String, bool),
}

/// What rules on a value of a type can name.
fn variables(of: &Type, optional_old: bool) -> [(&'static str, Type); 2] {
    let old = if optional_old {
        Type::optional(of.clone())
    } else {
        of.clone()
    };
    [("self", of.clone()), ("oldSelf", old)]
}

/// Compiles the rule itself.
fn program(rule: &Json, schema: &Json, of: Option<&Type>, room: &mut usize) -> Result<Program, RuleError> {
    let Some(of) = of else {
        let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
        return Err(RuleError::NoType(text(&schema["type"]).to_owned(), free));
    };
    let variables = variables(of, rule["optionalOldSelf"] == true);
    let program = Program::compile(text(&rule["rule"]), &variables, room)?;
    match program.type_of() {
        Type::Bool => Ok(program),
        _ => Err(RuleError::NoBool),
    }
}

/// Compiles what words a rule's failure; `None` if the rule has no such expression.
fn message_program(rule: &Json, of: Option<&Type>, room: &mut usize) -> Result<Option<Program>, RuleError> {
    let source = text(&rule["messageExpression"]);
    let Some(of) = of.filter(|_| !source.trim().is_empty()) else {
        return Ok(None);
    };
    let variables = variables(of, rule["optionalOldSelf"] == true);
    let program = Program::compile(source, &variables, room)?;
    match program.type_of() {
        Type::String => Ok(Some(program)),
        _ => Err(RuleError::NoString),
    }
}

/// The value of a text that says something.
fn said(value: &Json) -> Option<String> {
    let text = text(value).trim();
    (!text.is_empty()).then(|| text.to_owned())
}

impl Rule {
    fn compile(rule: &Json, schema: &Json, of: Option<&Type>, room: &mut usize) -> Option<Self> {
        let text = said(&rule["rule"])?;
        let path = said(&rule["fieldPath"]);
        Some(Self {
            message: said(&rule["message"]),
            reason: match rule["reason"].as_str() {
                Some("FieldValueForbidden") => Reason::Forbidden,
                Some("FieldValueRequired") => Reason::Required,
                Some("FieldValueDuplicate") => Reason::Duplicate,
                _ => Reason::Invalid,
            },
            field_path: path.and_then(|path| definition::field_path(schema, &path)),
            optional_old: rule["optionalOldSelf"] == true,
            program: program(rule, schema, of, room).map_err(|error| error.to_string()),
            message_expression: message_program(rule, of, room).ok().flatten(),
            text,
        })
    }

    /// What an error says of the rule.
    fn shown(&self) -> &str {
        self.message.as_deref().unwrap_or(&self.text)
    }

    fn looks_back(&self) -> bool {
        self.program.as_ref().is_ok_and(|program| program.uses(OLD_SELF))
    }
}

impl Node {
    /// The rules of a schema and below; `None` if there are none.
    fn compile(schema: &Json, typed: &Typed, room: &mut usize) -> Option<Self> {
        let rules = list(&schema["x-kubernetes-validations"])
            .filter_map(|rule| Rule::compile(rule, schema, typed.of.as_ref(), room))
            .collect();
        let properties = typed.properties.iter().filter_map(|(name, typed)| {
            let node = Self::compile(&schema["properties"][name], typed, room)?;
            Some((name.clone(), node))
        });
        let properties = properties.collect();
        let mut inner = |key: &str, typed: Option<&Typed>| {
            let node = Self::compile(&schema[key], typed?, room)?;
            Some(Box::new(node))
        };
        let node = Self {
            rules,
            properties,
            additional: inner("additionalProperties", typed.additional.as_deref()),
            items: inner("items", typed.items.as_deref()),
            keys: (schema["x-kubernetes-list-type"] == "map").then(|| {
                let keys = list(&schema["x-kubernetes-list-map-keys"]);
                keys.filter_map(Json::as_str).map(str::to_owned).collect()
            }),
            atomic: schema["x-kubernetes-map-type"] == "atomic",
            kind: text(&schema["type"]).to_owned(),
            of: typed.of.clone(),
        };
        let empty = node.rules.is_empty()
            && node.properties.is_empty()
            && node.additional.is_none()
            && node.items.is_none();
        (!empty).then_some(node)
    }
}

impl Rules {
    /// Compiles the rules of the schema of a version (`openAPIV3Schema`).
    pub(crate) fn compile(schema: &Json) -> Self {
        if !definition::has_rules(schema, 0) {
            return Self(None);
        }
        let typed = Typed::read(schema, true, 0);
        Self(Node::compile(schema, &typed, &mut PATTERN_ROOM.clone()))
    }

    /// Evaluates the rules for an object; on an update the state before is given. Some problems that were found before
    /// make rules pointless.
    pub(crate) fn check(&self, object: &Json, old: Option<&Json>, problems: &mut Problems) {
        let Some(node) = &self.0 else { return };
        let blocks = |problem: &Problem| {
            matches!(
                problem.reason,
                Reason::NotSupported
                    | Reason::Required
                    | Reason::TooLong
                    | Reason::TooMany
                    | Reason::TypeInvalid
            )
        };
        if problems.0.iter().any(blocks) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing \
                          errors to complete validation";
            problems.invalid(NO_FIELD, &json!("null"), detail);
            return;
        }
        let mut walk = Walk::new("", problems);
        let unchanged = old == Some(object);
        // A problem has been told of when it ends the walk.
        let _ = apart(|| walk.value(node, object, old, unchanged));
    }
}

/// Does work that takes seconds at worst: whatever else the worker has to do goes to another thread.
fn apart<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}

/// Evaluates the rules of a schema within a definition for its default, which stands at `at`. Rules that do not compile
/// are told of elsewhere. All defaults of a definition share what they may cost, of which `left` is left.
pub(crate) fn check_default(
    schema: &Json,
    default: &Json,
    at: &str,
    left: &mut u64,
    problems: &mut Problems,
) {
    if *left == 0 || !definition::has_rules(schema, 0) {
        return;
    }
    let embedded = schema["x-kubernetes-embedded-resource"] == true;
    let typed = Typed::read(schema, embedded, 0);
    if let Some(node) = Node::compile(schema, &typed, &mut PATTERN_ROOM.clone()) {
        let mut walk = Walk {
            lenient: true,
            left: *left,
            ..Walk::new(at, problems)
        };
        let ended = walk.value(&node, default, Some(default), false).is_err();
        *left = if ended { 0 } else { walk.left };
    }
}

/// No further rules are evaluated.
struct Ended;

/// A value as its rules see it, and the one before if it can be told.
type Seen<'v> = (Value<'v>, Option<Value<'v>>);

struct Walk<'a> {
    path: String,
    /// What is left to spend.
    left: u64,
    /// Whether rules that do not compile are passed over.
    lenient: bool,
    /// How many bytes were told.
    told: usize,
    problems: &'a mut Problems,
}

impl<'a> Walk<'a> {
    fn new(path: &str, problems: &'a mut Problems) -> Self {
        Self {
            path: path.to_owned(),
            left: OBJECT_LIMIT,
            lenient: false,
            told: 0,
            problems,
        }
    }

    fn within(
        &mut self,
        step: &[&str],
        visit: impl FnOnce(&mut Self) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        let length = self.path.len();
        self.path.extend(step.iter().copied());
        let result = visit(self);
        self.path.truncate(length);
        result
    }

    /// Adds a problem with the value at hand.
    fn invalid(&mut self, node: &Node, detail: &str) {
        self.add(node, Reason::Invalid, None, detail);
    }

    fn add(&mut self, node: &Node, reason: Reason, below: Option<&str>, detail: &str) {
        let field = match below {
            Some(below) if self.path.is_empty() => below,
            Some(below) => &format!("{}.{below}", self.path),
            None if self.path.is_empty() => NO_FIELD,
            None => &self.path,
        };
        match reason {
            Reason::Forbidden => self.problems.forbidden(field, detail),
            Reason::Required => self.problems.required(field, detail),
            Reason::Duplicate => self.problems.duplicate(field, &json!(node.kind)),
            _ => self.problems.invalid(field, &json!(node.kind), detail),
        }
        let told = self.problems.0.last();
        self.told += told.map_or(0, |problem| problem.field.len() + problem.message.len());
    }

    /// The rules of a value and of those within it. `old` is the value before, if it can be told; `unchanged` is whether
    /// the value, or what it is in, is as it was.
    fn value(&mut self, node: &Node, value: &Json, old: Option<&Json>, unchanged: bool) -> Result<(), Ended> {
        if value.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        if !node.rules.is_empty() {
            let seen = node.of.as_ref().map(|of| {
                let old = old.map(|old| Value::new(old, of)).transpose()?;
                Ok((Value::new(value, of)?, old))
            });
            for rule in &node.rules {
                if rule.looks_back() && old.is_none() && !rule.optional_old {
                    continue;
                }
                self.rule(node, rule, seen.as_ref(), unchanged)?;
            }
        }
        match value {
            Json::Object(map) => self.map(node, map, old, unchanged),
            Json::Array(items) => self.list(node, items, old, unchanged),
            _ => Ok(()),
        }
    }

    fn map(
        &mut self,
        node: &Node,
        map: &Map<String, Json>,
        old: Option<&Json>,
        unchanged: bool,
    ) -> Result<(), Ended> {
        let old = old.filter(|_| !node.atomic);
        for (name, child) in &node.properties {
            let Some(value) = map.get(name) else { continue };
            let old = old.and_then(|old| old.get(name));
            let unchanged = unchanged || old == Some(value);
            let dot = if self.path.is_empty() { "" } else { "." };
            self.within(&[dot, name], |walk| walk.value(child, value, old, unchanged))?;
        }
        if let Some(child) = &node.additional {
            for (name, value) in map {
                let old = old.and_then(|old| old.get(name));
                let unchanged = unchanged || old == Some(value);
                self.within(&["[", name, "]"], |walk| walk.value(child, value, old, unchanged))?;
            }
        }
        Ok(())
    }

    fn list(&mut self, node: &Node, list: &[Json], old: Option<&Json>, unchanged: bool) -> Result<(), Ended> {
        let Some(child) = &node.items else {
            return Ok(());
        };
        let key = |keys: &[String], item: &Json| -> String {
            let values = keys.iter().map(|key| item[key].to_string());
            values.collect::<Vec<_>>().join(",")
        };
        let before: HashMap<String, &Json> = match (&node.keys, old.and_then(Json::as_array)) {
            (Some(keys), Some(old)) => old.iter().map(|item| (key(keys, item), item)).collect(),
            _ => HashMap::new(),
        };
        for (index, value) in list.iter().enumerate() {
            let old = node.keys.as_ref().filter(|_| !before.is_empty());
            let old = old.and_then(|keys| before.get(&key(keys, value)).copied());
            let unchanged = unchanged || old == Some(value);
            self.within(&["[", &index.to_string(), "]"], |walk| {
                walk.value(child, value, old, unchanged)
            })?;
        }
        Ok(())
    }

    fn rule(
        &mut self,
        node: &Node,
        rule: &Rule,
        seen: Option<&Result<Seen<'_>, EvaluationError>>,
        unchanged: bool,
    ) -> Result<(), Ended> {
        if self.told > MAX_TOLD {
            return Err(Ended);
        }
        let (Ok(program), Some(seen)) = (&rule.program, seen) else {
            if let Err(error) = &rule.program
                && !self.lenient
            {
                self.invalid(node, &format!("rule compile error: {error}"));
            }
            return Ok(());
        };
        if unchanged && !rule.looks_back() {
            return Ok(());
        }
        let evaluated = match seen {
            Ok(seen) => self.evaluate(program, rule, seen),
            Err(error) => Some(Err(error.clone())),
        };
        let error = match evaluated {
            None => {
                self.invalid(
                    node,
                    "validation failed due to running out of cost budget, no further validation rules will be run",
                );
                return Err(Ended);
            }
            Some(Ok(Value::Bool(true))) => return Ok(()),
            Some(Ok(_)) => return self.failed(node, rule, seen),
            Some(Err(error)) => error,
        };
        let shown = rule.shown();
        match error {
            EvaluationError::NoSuchOverload => self.invalid(
                node,
                &format!(
                    "'{error}': call arguments did not match a supported operator, function or macro signature for \
                     rule: {shown}"
                ),
            ),
            EvaluationError::Budget => {
                let detail = format!(
                    "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {shown}"
                );
                self.invalid(node, &detail);
                return Err(Ended);
            }
            error => self.invalid(node, &format!("{error} evaluating rule: {shown}")),
        }
        Ok(())
    }

    /// Evaluates a rule's program; `None` if nothing is left to spend.
    fn evaluate<'v>(
        &mut self,
        program: &'v Program,
        rule: &Rule,
        (value, old): &Seen<'v>,
    ) -> Option<Result<Value<'v>, EvaluationError>> {
        let old = match old.clone() {
            old if rule.optional_old => Value::Optional(old.map(Arc::new)),
            old => old.unwrap_or(Value::Null),
        };
        let (result, spent) = program.evaluate(vec![value.clone(), old], RULE_LIMIT);
        if spent > self.left {
            return None;
        }
        self.left -= spent;
        Some(result)
    }

    /// A rule that is false: its own words, or those of its `messageExpression`.
    fn failed(
        &mut self,
        node: &Node,
        rule: &Rule,
        seen: &Result<Seen<'_>, EvaluationError>,
    ) -> Result<(), Ended> {
        let path = rule.field_path.as_deref();
        let mut worded = None;
        if let (Some(program), Ok(seen)) = (&rule.message_expression, seen) {
            match self.evaluate(program, rule, seen) {
                None => {
                    let detail = "messageExpression evaluation failed due to running out of cost budget, no further \
                                  validation rules will be run";
                    self.add(node, Reason::Invalid, path, detail);
                    return Err(Ended);
                }
                Some(Err(EvaluationError::Budget)) => {
                    let detail = "no further validation rules will be run due to call cost exceeds limit for \
                                  messageExpression";
                    self.add(node, Reason::Invalid, path, detail);
                    return Err(Ended);
                }
                Some(Ok(Value::String(text))) => {
                    let text = text.trim();
                    let fits = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
                    worded = fits.then(|| text.to_owned());
                }
                Some(_) => {}
            }
        }
        let detail = worded
            .or_else(|| rule.message.clone())
            .unwrap_or_else(|| format!("failed rule: {}", rule.text));
        self.add(node, rule.reason, path, &detail);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
