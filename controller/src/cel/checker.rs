//! Finds the types of expressions, and with them the fields and functions they mean.

mod unify;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::unify::{Unifier, shift};
use super::ast::{Binding, Expression, Kind, Literal, Loop, LoopKind};
use super::evaluate::{LoopNode, Node, insert};
use super::functions;
use super::functions::regex::{MAX_FIXED_BYTES, Pattern};
use super::types::{Type, WORDS};
use super::value::{Map, Text, Value};
use super::{Cost, Issue, MAX_ISSUES, MAX_PATTERNS};

/// Functions that read a text: of a constant they are called once, when the expression is compiled.
const READERS: &[&str] = &["duration", "timestamp", "quantity", "url", "ip", "cidr", "semver"];

/// What checking gives.
pub(super) struct Checked {
    pub(super) node: Node,
    pub(super) of: Type,
    pub(super) patterns: Vec<Pattern>,
    pub(super) used: Vec<bool>,
}

/// Checks an expression in which some variables are known.
pub(super) fn check(
    expression: &Expression,
    variables: &[(&str, Type)],
    room: &mut usize,
) -> Result<Checked, Vec<Issue>> {
    let mut checker = Checker {
        scope: variables
            .iter()
            .map(|(name, of)| ((*name).to_owned(), of.clone()))
            .collect(),
        used: vec![false; variables.len()],
        types: Unifier::default(),
        issues: Vec::new(),
        patterns: Vec::new(),
        room,
    };
    let (node, of) = checker.expression(expression);
    if checker.types.is_exhausted() {
        checker.issue(expression.position, "types are too complex".to_owned());
    }
    if !checker.issues.is_empty() {
        return Err(checker.issues);
    }
    Ok(Checked {
        of: checker.types.substitute(&of),
        node,
        patterns: checker.patterns,
        used: checker.used,
    })
}

struct Checker<'a> {
    /// Variables; an index here is a place at evaluation.
    scope: Vec<(String, Type)>,
    used: Vec<bool>,
    types: Unifier,
    issues: Vec<Issue>,
    patterns: Vec<Pattern>,
    /// How large patterns may still be.
    room: &'a mut usize,
}

type Typed = (Node, Type);

impl Checker<'_> {
    fn issue(&mut self, position: usize, message: String) -> Typed {
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue { position, message });
        }
        // Of unknown type, so that one mistake is told once.
        (Node::Constant(Value::Null), Type::Dynamic)
    }

    fn expression(&mut self, expression: &Expression) -> Typed {
        let position = expression.position;
        self.types.allow();
        match &expression.kind {
            Kind::Literal(literal) => constant(literal),
            Kind::Name(name) => self.name(position, name),
            Kind::Select(operand, field, optional) => {
                if let Some(of) = self.qualified_type(expression) {
                    return of;
                }
                let (operand, of) = self.expression(operand);
                let Some(found) = self.field_type(position, &of, field) else {
                    return (operand, Type::Dynamic);
                };
                let optional = *optional || matches!(self.types.resolve(&of), Type::Optional(_));
                let of = if optional { Type::optional(found) } else { found };
                (Node::Field(Box::new(operand), field.clone(), optional), of)
            }
            Kind::Present(operand, field) => {
                let (operand, of) = self.expression(operand);
                self.field_type(position, &of, field);
                (Node::Has(Box::new(operand), field.clone()), Type::Bool)
            }
            Kind::Call(name, target, arguments) => self.call(position, name, target.as_deref(), arguments),
            Kind::And(parts) => (Node::And(self.booleans(position, parts, "_&&_")), Type::Bool),
            Kind::Or(parts) => (Node::Or(self.booleans(position, parts, "_||_")), Type::Bool),
            Kind::If(parts) => self.choice(position, parts),
            Kind::List(items) => self.list(items, false),
            Kind::Map(entries) => self.map(entries),
            Kind::Loop(inner) => self.run(position, inner),
            Kind::Bind(binding, name, parts) => self.bind(*binding, name, parts),
        }
    }

    fn name(&mut self, position: usize, name: &str) -> Typed {
        if let Some(place) = self.scope.iter().rposition(|(known, _)| known == name) {
            if let Some(used) = self.used.get_mut(place) {
                *used = true;
            }
            return (Node::Variable(place), self.scope[place].1.clone());
        }
        type_named(name).unwrap_or_else(|| self.undeclared(position, name))
    }

    fn undeclared(&mut self, position: usize, name: &str) -> Typed {
        self.issue(
            position,
            format!("undeclared reference to '{name}' (in container '')"),
        )
    }

    /// `google.protobuf.Timestamp` and its like.
    fn qualified_type(&self, expression: &Expression) -> Option<Typed> {
        let name = expression.qualified()?;
        let root = name.split('.').next()?;
        let is_variable = self.scope.iter().any(|(known, _)| known == root);
        if is_variable { None } else { type_named(&name) }
    }

    /// The type of a field; an issue if there is none.
    fn field_type(&mut self, position: usize, of: &Type, field: &str) -> Option<Type> {
        let message = match self.types.resolve(of) {
            Type::Dynamic | Type::Parameter(_) => return Some(Type::Dynamic),
            Type::Map(map) => return Some(map.value.clone()),
            Type::Optional(of) => return self.field_type(position, &of, field),
            Type::Object(object) => match object.fields.get(field) {
                Some(field) => return Some(field.of.clone()),
                None => format!("undefined field '{field}'"),
            },
            of => format!(
                "type '{}' does not support field selection",
                self.types.substitute(&of)
            ),
        };
        self.issue(position, message);
        None
    }

    fn call(
        &mut self,
        position: usize,
        name: &str,
        target: Option<&Expression>,
        arguments: &[Expression],
    ) -> Typed {
        // `sets.contains(…)` is written like a call of a member.
        let qualified = target.and_then(Expression::qualified);
        let qualified = qualified.map(|target| format!("{target}.{name}"));
        let qualified = qualified.filter(|name| !functions::overloads(name).is_empty());
        let (name, target) = match &qualified {
            Some(qualified) => (qualified.as_str(), None),
            None => (name, target),
        };
        let (mut nodes, mut types) = (Vec::new(), Vec::new());
        for argument in target.into_iter().chain(arguments) {
            let (node, of) = match &argument.kind {
                // What a text has places for is seldom all of one type.
                Kind::List(items) if name == "format" => self.list(items, true),
                _ => self.expression(argument),
            };
            nodes.push(node);
            types.push(of);
        }
        if functions::overloads(name).is_empty() {
            return self.undeclared(position, name);
        }
        let Some((calls, result)) = self.overload(name, target.is_some(), &types) else {
            return self.no_overload(position, name, target.is_some(), &types);
        };
        self.constant_pattern(position, name, &nodes);
        if READERS.contains(&name)
            && let [Node::Constant(argument)] = &nodes[..]
        {
            return match calls[0](&mut Cost::new(u64::MAX), std::slice::from_ref(argument)) {
                Ok(value) => (Node::Constant(value), result),
                Err(_) if matches!(name, "duration" | "timestamp") => {
                    self.issue(position, format!("invalid {name} argument"))
                }
                Err(_) => (Node::Call(calls, nodes), result),
            };
        }
        (Node::Call(calls, nodes), result)
    }

    /// Compiles a pattern that is there in the expression.
    fn constant_pattern(&mut self, position: usize, name: &str, nodes: &[Node]) {
        if !matches!(name, "matches" | "find" | "findAll") {
            return;
        }
        let Some(Node::Constant(Value::String(text))) = nodes.get(1) else {
            return;
        };
        let known = self.patterns.iter().any(|known| known.text == **text);
        if known || self.patterns.len() >= MAX_PATTERNS {
            return;
        }
        let most = MAX_FIXED_BYTES.min(*self.room);
        match Pattern::compile(text, most) {
            Ok(pattern) => {
                *self.room -= pattern.size;
                self.patterns.push(pattern);
            }
            Err(error) => {
                let wrong = match error {
                    regex::Error::CompiledTooBig(_) => {
                        *self.room -= most;
                        "too large"
                    }
                    _ => "invalid",
                };
                self.issue(position, format!("{wrong} {name} argument"));
            }
        }
    }

    fn no_overload(&mut self, position: usize, name: &str, member: bool, types: &[Type]) -> Typed {
        let mut shown: Vec<_> = types
            .iter()
            .map(|of| self.types.substitute(of).to_string())
            .collect();
        let target = if member {
            format!("{}.", shown.remove(0))
        } else {
            String::new()
        };
        let message = format!(
            "found no matching overload for '{name}' applied to '{target}({})'",
            shown.join(", ")
        );
        self.issue(position, message)
    }

    /// The functions that take arguments like these, and what they give.
    fn overload(&mut self, name: &str, member: bool, types: &[Type]) -> Option<(Vec<functions::Call>, Type)> {
        let mut found: Option<(Vec<functions::Call>, Type)> = None;
        for overload in functions::overloads(name) {
            let signature = &overload.signature;
            if signature.member != member || signature.parameters.len() != types.len() {
                continue;
            }
            let (mark, fresh) = self.types.mark();
            self.types.open(signature.open);
            let fits = signature
                .parameters
                .iter()
                .zip(types)
                .all(|(parameter, of)| self.types.assignable(&shift(parameter, fresh), of));
            if !fits {
                self.types.undo(mark, fresh);
                continue;
            }
            let result = self.types.substitute(&shift(&signature.result, fresh));
            match &mut found {
                None => found = Some((vec![overload.call], result)),
                Some((calls, known)) => {
                    if !calls
                        .iter()
                        .any(|call| std::ptr::fn_addr_eq(*call, overload.call))
                    {
                        calls.push(overload.call);
                    }
                    if *known != result {
                        *known = Type::Dynamic;
                    }
                    self.types.undo(mark, fresh);
                }
            }
        }
        found
    }

    fn booleans(&mut self, position: usize, parts: &[Expression], name: &str) -> Vec<Node> {
        let mut nodes = Vec::new();
        for part in parts {
            let (node, of) = self.expression(part);
            if !self.types.assignable(&Type::Bool, &of) {
                let types = if nodes.is_empty() {
                    [of, Type::Bool]
                } else {
                    [Type::Bool, of]
                };
                self.no_overload(position, name, false, &types);
            }
            nodes.push(node);
        }
        nodes
    }

    fn choice(&mut self, position: usize, parts: &[Expression; 3]) -> Typed {
        let [condition, then, otherwise] = parts;
        let (condition, decides) = self.expression(condition);
        let (then, first) = self.expression(then);
        let (otherwise, second) = self.expression(otherwise);
        let result = self.types.fresh();
        let fits = self.types.assignable(&Type::Bool, &decides)
            && self.types.assignable(&result, &first)
            && self.types.assignable(&result, &second);
        if !fits {
            return self.no_overload(position, "_?_:_", false, &[decides, first, second]);
        }
        let node = Node::If(Box::new([condition, then, otherwise]));
        (node, self.types.substitute(&result))
    }

    /// What an item adds to the type that those before it have.
    fn join(&mut self, position: usize, joined: &Type, of: &Type, optional: bool) {
        let item = match self.types.resolve(of) {
            Type::Optional(of) if optional => (*of).clone(),
            Type::Dynamic if optional => Type::Dynamic,
            of if optional => {
                let shown = self.types.substitute(&of);
                let message = format!("expected type 'optional_type({shown})' but found '{shown}'");
                self.issue(position, message);
                return;
            }
            of => of,
        };
        if !self.types.assignable(joined, &item) {
            let (wanted, found) = (self.types.substitute(joined), self.types.substitute(&item));
            self.issue(position, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    /// A list; `mixed` is whether its items may be of several types.
    fn list(&mut self, items: &[(Expression, bool)], mixed: bool) -> Typed {
        let joined = if mixed { Type::Dynamic } else { self.types.fresh() };
        let mut nodes = Vec::new();
        for (item, optional) in items {
            let (node, of) = self.expression(item);
            self.join(item.position, &joined, &of, *optional);
            nodes.push((node, *optional));
        }
        let of = Type::list(self.types.substitute(&joined));
        let constants: Option<Vec<_>> = nodes
            .iter()
            .map(|(node, optional)| match node {
                Node::Constant(value) if !optional => Some(value.clone()),
                _ => None,
            })
            .collect();
        match constants {
            Some(constants) => (Node::Constant(Value::list(constants)), of),
            None => (Node::List(nodes), of),
        }
    }

    fn map(&mut self, entries: &[(Expression, Expression, bool)]) -> Typed {
        let (keys, values) = (self.types.fresh(), self.types.fresh());
        let mut nodes = Vec::new();
        for (key, value, optional) in entries {
            let (key_node, key_type) = self.expression(key);
            self.join(key.position, &keys, &key_type, false);
            let resolved = self.types.resolve(&keys);
            if !resolved.is_key() {
                self.issue(key.position, format!("unsupported key type: {resolved}"));
            }
            let (value_node, value_type) = self.expression(value);
            self.join(value.position, &values, &value_type, *optional);
            nodes.push((key_node, value_node, *optional));
        }
        let of = Type::map(self.types.substitute(&keys), self.types.substitute(&values));
        let (mut constants, mut free) = (BTreeMap::new(), Cost::new(u64::MAX));
        for entry in &nodes {
            // A key that is there twice is an error, which evaluation tells.
            if let (Node::Constant(key), Node::Constant(value), false) = entry {
                let _ = insert(&mut free, &mut constants, key, value.clone());
            }
        }
        if constants.len() < nodes.len() {
            return (Node::Map(nodes), of);
        }
        let constants = Value::Map(Map::Made(Arc::new(constants)));
        (Node::Constant(constants), of)
    }

    fn run(&mut self, position: usize, inner: &Loop) -> Typed {
        let (range, of) = self.expression(&inner.range);
        let pairs = inner.second.is_some();
        let (key, value) = match self.types.resolve(&of) {
            Type::List(list) if pairs => (Type::Int, list.item.clone()),
            Type::List(list) => (list.item.clone(), Type::Dynamic),
            Type::Map(map) => (map.key.clone(), map.value.clone()),
            Type::Dynamic | Type::Parameter(_) => (Type::Dynamic, Type::Dynamic),
            of => {
                let message = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    self.types.substitute(&of)
                );
                return self.issue(inner.range.position, message);
            }
        };
        let depth = self.scope.len();
        self.scope.push((inner.first.clone(), key.clone()));
        self.scope
            .extend(inner.second.clone().map(|second| (second, value)));
        let filter = inner.filter.as_ref().map(|filter| {
            let (node, of) = self.expression(filter);
            if !self.types.assignable(&Type::Bool, &of) {
                self.no_overload(position, "_?_:_", false, &[of, Type::Bool, Type::Bool]);
            }
            node
        });
        let (body, of) = self.expression(&inner.body);
        self.scope.truncate(depth);
        let name = match inner.kind {
            LoopKind::All => "_&&_",
            LoopKind::Exists => "_||_",
            _ => "_?_:_",
        };
        let of = match inner.kind {
            LoopKind::All | LoopKind::Exists | LoopKind::ExistsOne => {
                if !self.types.assignable(&Type::Bool, &of) {
                    self.no_overload(position, name, false, &[Type::Bool, of]);
                }
                Type::Bool
            }
            LoopKind::List => Type::list(of),
            LoopKind::Map => Type::map(key, of),
            LoopKind::MapEntry => match self.types.resolve(&of) {
                of @ (Type::Map(_) | Type::Dynamic) => of,
                of => {
                    let wanted = Type::map(Type::Dynamic, Type::Dynamic);
                    self.no_overload(position, "cel.@mapInsert", false, &[wanted, of])
                        .1
                }
            },
        };
        let node = LoopNode {
            kind: inner.kind,
            range,
            pairs,
            filter,
            body,
        };
        (Node::Loop(Box::new(node)), of)
    }

    fn bind(&mut self, binding: Binding, name: &str, parts: &[Expression; 2]) -> Typed {
        let [value, body] = parts;
        let position = value.position;
        let (value, mut of) = self.expression(value);
        if binding != Binding::Value {
            of = match self.types.resolve(&of) {
                Type::Optional(of) => (*of).clone(),
                Type::Dynamic => Type::Dynamic,
                of => {
                    let name = if binding == Binding::Flat {
                        "optFlatMap"
                    } else {
                        "optMap"
                    };
                    return self.no_overload(position, name, true, &[of]);
                }
            };
        }
        self.scope.push((name.to_owned(), of));
        let (body, mut of) = self.expression(body);
        self.scope.pop();
        if binding == Binding::Optional {
            of = Type::optional(of);
        }
        (Node::Bind(binding, Box::new([value, body])), of)
    }
}

fn type_named(name: &str) -> Option<Typed> {
    let of = match name {
        "list" => Type::list(Type::Dynamic),
        "map" => Type::map(Type::Dynamic, Type::Dynamic),
        "type" => Type::Type(Arc::new(Type::Dynamic)),
        "optional_type" => Type::optional(Type::Dynamic),
        "dyn" => return None,
        _ => WORDS.iter().find(|(word, _)| *word == name)?.1.clone(),
    };
    let of = Arc::new(of);
    Some((Node::Constant(Value::Type(Arc::clone(&of))), Type::Type(of)))
}

fn constant(literal: &Literal) -> Typed {
    let (value, of) = match literal {
        Literal::Null => (Value::Null, Type::Null),
        Literal::Bool(value) => (Value::Bool(*value), Type::Bool),
        Literal::Int(value) => (Value::Int(*value), Type::Int),
        Literal::Uint(value) => (Value::Uint(*value), Type::Uint),
        Literal::Double(value) => (Value::Double(*value), Type::Double),
        Literal::String(text) => (Value::String(Text::Shared(text.as_str().into())), Type::String),
        Literal::Bytes(bytes) => (Value::Bytes(bytes.as_slice().into()), Type::Bytes),
    };
    (Node::Constant(value), of)
}
