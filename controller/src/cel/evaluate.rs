//! Evaluates checked expressions.
//!
//! An error does not end an evaluation at once: `a || b` is true if one of them is, whether or not the other can be told.
//! The one error that nothing absorbs is that of a spent budget.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Binding, LoopKind};
use super::functions::Call;
use super::value::{Evaluated, Key, Map, Value};
use super::{Cost, EvaluationError};

/// A checked expression: names are places, calls are the functions that may serve them.
#[derive(Debug)]
pub(super) enum Node {
    Constant(Value<'static>),
    Variable(usize),
    /// A field, and whether its absence is an answer.
    Field(Box<Node>, String, bool),
    Has(Box<Node>, String),
    /// Functions, of which the first that takes values like these answers.
    Call(Vec<Call>, Vec<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
    If(Box<[Node; 3]>),
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Loop(Box<LoopNode>),
    Bind(Binding, Box<[Node; 2]>),
}

/// A checked loop.
#[derive(Debug)]
pub(super) struct LoopNode {
    pub(super) kind: LoopKind,
    pub(super) range: Node,
    /// Whether there are two variables.
    pub(super) pairs: bool,
    pub(super) filter: Option<Node>,
    pub(super) body: Node,
}

/// What a list, a map and a step of a loop cost beside what is in them.
const LIST_COST: usize = 10;
const MAP_COST: usize = 30;
const STEP_COST: usize = 3;

/// A running evaluation.
pub(super) struct Evaluation<'a, 'c> {
    pub(super) variables: Vec<Value<'a>>,
    pub(super) cost: &'c mut Cost,
}

impl<'a> Evaluation<'a, '_> {
    pub(super) fn evaluate(&mut self, node: &'a Node) -> Evaluated<'a> {
        // Constants too: long rows of them are work like any other.
        self.cost.charge(1)?;
        match node {
            Node::Constant(value) => Ok(value.clone()),
            Node::Variable(place) => {
                let value = self.variables.get(*place);
                Ok(value.cloned().unwrap_or(Value::Null))
            }
            Node::Field(operand, name, optional) => self.field(operand, name, *optional),
            Node::Has(operand, name) => {
                let operand = self.evaluate(operand)?;
                self.cost.compare(name.len())?;
                let found = match operand {
                    Value::Optional(None) => false,
                    Value::Optional(Some(value)) => value.has_field(name)?,
                    value => value.has_field(name)?,
                };
                Ok(Value::Bool(found))
            }
            Node::Call(functions, arguments) => self.call(functions, arguments),
            Node::And(parts) => self.decide(parts, false),
            Node::Or(parts) => self.decide(parts, true),
            Node::If(parts) => {
                let [condition, then, otherwise] = &**parts;
                match self.evaluate(condition)? {
                    Value::Bool(true) => self.evaluate(then),
                    Value::Bool(false) => self.evaluate(otherwise),
                    _ => Err(EvaluationError::NoSuchOverload),
                }
            }
            Node::List(items) => self.list(items),
            Node::Map(entries) => self.map(entries),
            Node::Loop(inner) => self.run(inner),
            Node::Bind(binding, parts) => self.bind(*binding, parts),
        }
    }

    fn field(&mut self, operand: &'a Node, name: &str, optional: bool) -> Evaluated<'a> {
        let operand = self.evaluate(operand)?;
        self.cost.compare(name.len())?;
        let (operand, optional) = match operand {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => ((*value).clone(), true),
            value => (value, optional),
        };
        match (operand.field(name, self.cost)?, optional) {
            (found, true) => Ok(Value::Optional(found.map(Arc::new))),
            (Some(found), false) => Ok(found),
            (None, false) => Err(EvaluationError::NoSuchKey(name.to_owned())),
        }
    }

    fn call(&mut self, functions: &'a [Call], arguments: &'a [Node]) -> Evaluated<'a> {
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(self.evaluate(argument)?);
        }
        for function in functions {
            match function(self.cost, &values) {
                Err(EvaluationError::NoSuchOverload) => {}
                result => return result,
            }
        }
        Err(EvaluationError::NoSuchOverload)
    }

    /// The first part that decides does; only if none does, an error counts.
    fn decide(&mut self, parts: &'a [Node], decisive: bool) -> Evaluated<'a> {
        let mut verdict = Verdict::new(decisive);
        for part in parts {
            let value = self.evaluate(part);
            if verdict.take(value)? {
                return Ok(Value::Bool(decisive));
            }
        }
        verdict.end()
    }

    fn list(&mut self, items: &'a [(Node, bool)]) -> Evaluated<'a> {
        self.cost.charge(LIST_COST)?;
        let mut list = Vec::with_capacity(items.len());
        for (item, optional) in items {
            match (self.evaluate(item)?, optional) {
                (Value::Optional(value), true) => list.extend(value.as_deref().cloned()),
                (value, false) => list.push(value),
                (_, true) => return Err(EvaluationError::NoSuchOverload),
            }
        }
        Ok(Value::list(list))
    }

    fn map(&mut self, entries: &'a [(Node, Node, bool)]) -> Evaluated<'a> {
        self.cost.charge(MAP_COST)?;
        let mut map = BTreeMap::new();
        for (key, value, optional) in entries {
            let key = self.evaluate(key)?;
            let value = match (self.evaluate(value)?, optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(value)), true) => (*value).clone(),
                (value, false) => value,
                (_, true) => return Err(EvaluationError::NoSuchOverload),
            };
            insert(self.cost, &mut map, &key, value)?;
        }
        Ok(Value::Map(Map::Made(Arc::new(map))))
    }

    fn bind(&mut self, binding: Binding, parts: &'a [Node; 2]) -> Evaluated<'a> {
        let [value, body] = parts;
        let mut value = self.evaluate(value)?;
        if binding != Binding::Value {
            value = match value {
                Value::Optional(None) => return Ok(Value::Optional(None)),
                Value::Optional(Some(value)) => (*value).clone(),
                _ => return Err(EvaluationError::NoSuchOverload),
            };
        }
        self.variables.push(value);
        let result = self.evaluate(body);
        self.variables.pop();
        match binding {
            Binding::Optional => result.map(Value::some),
            Binding::Value | Binding::Flat => result,
        }
    }

    fn run(&mut self, inner: &'a LoopNode) -> Evaluated<'a> {
        let range = self.evaluate(&inner.range)?;
        let depth = self.variables.len();
        let result = self.steps(inner, &range);
        self.variables.truncate(depth);
        result
    }

    fn steps(&mut self, inner: &'a LoopNode, range: &Value<'a>) -> Evaluated<'a> {
        let keys = match range {
            Value::List(_) => None,
            Value::Map(map) => Some(map.keys(self.cost)?),
            _ => return Err(EvaluationError::NoSuchOverload),
        };
        let length = match range {
            Value::List(list) => list.len(),
            _ => keys.as_ref().map_or(0, Vec::len),
        };
        let depth = self.variables.len();
        let mut verdict = Verdict::new(inner.kind == LoopKind::Exists);
        let (mut count, mut list, mut map) = (0, Vec::new(), BTreeMap::new());
        for index in 0..length {
            self.cost.charge(STEP_COST)?;
            self.variables.truncate(depth);
            let (key, value) = self.step(range, keys.as_deref(), index, inner.pairs)?;
            self.variables.push(key.clone());
            self.variables.extend(value);
            if let Some(filter) = &inner.filter {
                match self.evaluate(filter)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    _ => return Err(EvaluationError::NoSuchOverload),
                }
            }
            let result = self.evaluate(&inner.body);
            match inner.kind {
                LoopKind::All | LoopKind::Exists => {
                    if verdict.take(result)? {
                        return Ok(Value::Bool(inner.kind == LoopKind::Exists));
                    }
                }
                LoopKind::ExistsOne => match result? {
                    Value::Bool(fits) => count += u32::from(fits),
                    _ => return Err(EvaluationError::NoSuchOverload),
                },
                LoopKind::List => list.push(result?),
                LoopKind::Map => insert(self.cost, &mut map, &key, result?)?,
                LoopKind::MapEntry => {
                    let Value::Map(entries) = result? else {
                        return Err(EvaluationError::NoSuchOverload);
                    };
                    for key in entries.keys(self.cost)? {
                        if let Some(value) = entries.get(&key, self.cost)? {
                            insert(self.cost, &mut map, &key, value)?;
                        }
                    }
                }
            }
        }
        match inner.kind {
            LoopKind::All | LoopKind::Exists => verdict.end(),
            LoopKind::ExistsOne => Ok(Value::Bool(count == 1)),
            LoopKind::List => Ok(Value::list(list)),
            LoopKind::Map | LoopKind::MapEntry => Ok(Value::Map(Map::Made(Arc::new(map)))),
        }
    }

    /// What the variables of a loop are at a step: of a list its items, of a map its keys, in pairs with what is there.
    fn step(
        &mut self,
        range: &Value<'a>,
        keys: Option<&[Value<'a>]>,
        index: usize,
        pairs: bool,
    ) -> Result<(Value<'a>, Option<Value<'a>>), EvaluationError> {
        match (range, keys) {
            (Value::List(list), _) => {
                let item = list.item(index, self.cost)?;
                Ok(if pairs {
                    (Value::count(index), Some(item))
                } else {
                    (item, None)
                })
            }
            (Value::Map(map), Some(keys)) => {
                let key = keys[index].clone();
                let value = if pairs { map.get(&key, self.cost)? } else { None };
                Ok((key, value))
            }
            _ => Err(EvaluationError::NoSuchOverload),
        }
    }
}

/// Adds an entry to a map that has none of that key.
pub(super) fn insert<'a>(
    cost: &mut Cost,
    map: &mut BTreeMap<Key<'a>, Value<'a>>,
    key: &Value<'a>,
    value: Value<'a>,
) -> Result<(), EvaluationError> {
    let Some(key) = Key::of(key) else {
        return Err(EvaluationError::KeyType(key.type_of().to_string()));
    };
    key.charge(cost)?;
    if map.contains_key(&key) {
        return Err(EvaluationError::RepeatedKey(key.shown()));
    }
    map.insert(key, value);
    Ok(())
}

/// What the parts of `||`, `&&`, `exists` and `all` amount to.
struct Verdict {
    decisive: bool,
    error: Option<EvaluationError>,
}

impl Verdict {
    fn new(decisive: bool) -> Self {
        Self {
            decisive,
            error: None,
        }
    }

    /// Takes in one part; whether it decides.
    fn take(&mut self, part: Evaluated<'_>) -> Result<bool, EvaluationError> {
        let error = match part {
            Ok(Value::Bool(value)) => return Ok(value == self.decisive),
            Ok(_) => EvaluationError::NoSuchOverload,
            Err(EvaluationError::Budget) => return Err(EvaluationError::Budget),
            Err(error) => error,
        };
        self.error.get_or_insert(error);
        Ok(false)
    }

    fn end<'a>(self) -> Evaluated<'a> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Value::Bool(!self.decisive)),
        }
    }
}
