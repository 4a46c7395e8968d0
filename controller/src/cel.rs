//! The Common Expression Language, as Kubernetes has it in the rules of custom resources.
//!
//! A text is read, its types are checked, and what comes of it is a [`Program`] that can be evaluated any number of times.
//! Values are parts of a JSON document, seen through the types of its schema; nothing of the document is copied.
//!
//! In it are: the whole syntax but for messages (`Type{field: 1}`), which no rule can name; the macros `has`, `all`,
//! `exists`, `exists_one`, `map`, `filter`, those with two variables (`existsOne`, `transformList`, `transformMap`,
//! `transformMapEntry`), `cel.bind`, `optMap` and `optFlatMap`; optional values; the standard functions; the string
//! functions up to `reverse` and `strings.quote`; Kubernetes' functions of lists, regular expressions, URLs, quantities, IP
//! addresses and ranges, formats, semantic versions; sets.
//!
//! Not in it: the authorizer, which rules of custom resources have no use for; functions of container images; escaped
//! names in backticks; the estimate of what an expression may cost at worst. What it does cost is counted while it is
//! evaluated, much as Kubernetes counts it, and limited: see [`Cost`]. The value of `cel.bind` is evaluated whether or not
//! it is used.

mod ast;
mod checker;
mod evaluate;
mod functions;
mod lexer;
mod parser;
mod types;
mod value;

use std::fmt::Write as _;
use std::sync::Arc;

pub(crate) use self::functions::format::is_uuid;
use self::functions::regex::{MAX_MADE_BYTES, Pattern};
pub(crate) use self::functions::time::parse_lenient_duration;
pub(crate) use self::parser::RESERVED;
pub use self::types::{Field, ListKind, ListType, MapType, Named, ObjectType, Type};
pub use self::value::{Key, List, Map, Text, Value};

/// Longest source, in characters.
const MAX_LENGTH: usize = 100_000;

/// How deep expressions are: checking and evaluating recurse over them, and must fit into a small stack. A sum of three
/// parts is of depth three.
const MAX_DEPTH: usize = 100;

/// How deeply brackets nest: reading recurses too, by larger steps.
const MAX_NESTING: usize = 40;

/// Most issues that are told of one expression.
const MAX_ISSUES: usize = 20;

/// Longest line that is shown with an issue.
const MAX_SHOWN: usize = 2_000;

/// Most patterns that an expression has compiled beforehand, and that an evaluation keeps.
const MAX_PATTERNS: usize = 16;

/// What compiling a pattern costs; it is far dearer than most uses of one.
const PATTERN_COST: usize = 3_000;

/// Something in a source that cannot be read, or does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Issue {
    /// In characters.
    position: usize,
    message: String,
}

/// Why a source is no program: all issues, each with the line it is in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// A function was called with values that it is not for.
    #[error("no such overload")]
    NoSuchOverload,
    /// A field or an entry is absent.
    #[error("no such key: {0}")]
    NoSuchKey(String),
    /// A list has no such item.
    #[error("index out of bounds: {0}")]
    Index(String),
    /// A key of a map is there twice.
    #[error("insert failed: key {0} already exists")]
    RepeatedKey(String),
    /// A value cannot be the key of a map.
    #[error("unsupported key type: {0}")]
    KeyType(String),
    /// A whole number was divided by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// The rest of a division by zero was asked for.
    #[error("modulus by zero")]
    ModulusByZero,
    /// A result is beyond what its type can hold.
    #[error("{0}")]
    Overflow(&'static str),
    /// An argument that a function cannot do with, in the function's words.
    #[error("{0}")]
    Argument(String),
    /// A part of the document is not what its schema says.
    #[error("invalid data, expected a value of type {0}")]
    Data(String),
    /// The evaluation costs more than it may.
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
}

/// What an evaluation has cost and may cost, about in units of Kubernetes: a call, a field, a constant, ten characters are
/// one unit each. What is large is charged before it is made, so that the limit also bounds memory.
#[derive(Debug)]
pub struct Cost {
    spent: u64,
    limit: u64,
    fixed: Arc<[Pattern]>,
    /// The patterns that were searched for last.
    used: Vec<Arc<Pattern>>,
}

impl Cost {
    /// Nothing spent, and no more than `limit` to spend.
    fn new(limit: u64) -> Self {
        Self {
            spent: 0,
            limit,
            fixed: Arc::default(),
            used: Vec::new(),
        }
    }

    fn charge(&mut self, units: usize) -> Result<(), EvaluationError> {
        self.spent = self.spent.saturating_add(units as u64);
        if self.spent > self.limit {
            return Err(EvaluationError::Budget);
        }
        Ok(())
    }

    /// Charges for going through so many bytes.
    fn traverse(&mut self, bytes: usize) -> Result<(), EvaluationError> {
        self.charge(bytes.div_ceil(10))
    }

    /// Charges for telling a name of so many bytes from others; most are too short to count.
    fn compare(&mut self, bytes: usize) -> Result<(), EvaluationError> {
        self.charge(bytes / 100)
    }

    /// The compiled form of a pattern.
    fn pattern(&mut self, text: &str) -> Result<Arc<Pattern>, EvaluationError> {
        if let Some(used) = self.used.iter().find(|used| used.text == text) {
            return Ok(Arc::clone(used));
        }
        // A copy has what a search needs to itself, and frees it when the evaluation ends.
        let fixed = self.fixed.iter().find(|fixed| fixed.text == text);
        let pattern = if let Some(fixed) = fixed {
            fixed.clone()
        } else {
            self.charge(PATTERN_COST + text.len())?;
            Pattern::compile(text, MAX_MADE_BYTES).map_err(|_| {
                let shown = functions::shortened(text);
                EvaluationError::Argument(format!("error parsing regexp: `{shown}`"))
            })?
        };
        if self.used.len() >= MAX_PATTERNS {
            self.used.clear();
        }
        let pattern = Arc::new(pattern);
        self.used.push(Arc::clone(&pattern));
        Ok(pattern)
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    node: evaluate::Node,
    of: Type,
    used: Vec<bool>,
    patterns: Arc<[Pattern]>,
}

impl Program {
    /// Reads and checks an expression in which some variables are known. Its patterns take of the `room`, in bytes, that
    /// there is for all of some expressions.
    pub fn compile(source: &str, variables: &[(&str, Type)], room: &mut usize) -> Result<Self, CompileError> {
        let characters: Vec<_> = source.chars().collect();
        let checked = parser::parse(&characters)
            .and_then(|expression| checker::check(&expression, variables, room))
            .map_err(|issues| told(&characters, issues))?;
        Ok(Self {
            node: checked.node,
            of: checked.of,
            used: checked.used,
            patterns: checked.patterns.into(),
        })
    }

    /// What the value is of.
    pub fn type_of(&self) -> &Type {
        &self.of
    }

    /// Whether a variable, by its place among those the program was compiled with, plays a part.
    pub fn uses(&self, variable: usize) -> bool {
        self.used.get(variable).copied().unwrap_or_default()
    }

    /// Evaluates the expression with the values of its variables; with the result comes what it cost.
    pub fn evaluate<'a>(
        &'a self,
        variables: Vec<Value<'a>>,
        limit: u64,
    ) -> (Result<Value<'a>, EvaluationError>, u64) {
        let mut cost = Cost {
            fixed: Arc::clone(&self.patterns),
            ..Cost::new(limit)
        };
        let mut evaluation = evaluate::Evaluation {
            variables,
            cost: &mut cost,
        };
        let result = evaluation.evaluate(&self.node);
        (result, cost.spent)
    }
}

impl<'a> Value<'a> {
    /// A part of a document as its type has it.
    pub fn new(json: &'a serde_json::Value, of: &'a Type) -> Result<Self, EvaluationError> {
        Self::from_json(json, of, &mut Cost::new(u64::MAX))
    }
}

/// The issues of a source, in the order of their places, each with its line and a mark below it.
fn told(source: &[char], mut issues: Vec<Issue>) -> CompileError {
    let mut text = String::new();
    issues.sort_by_key(|issue| issue.position);
    for issue in issues {
        let before = &source[..issue.position.min(source.len())];
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let start = before
            .iter()
            .rposition(|c| *c == '\n')
            .map_or(0, |place| place + 1);
        let column = before.len() - start;
        let shown = source[start..].iter().take_while(|c| **c != '\n');
        let shown: String = shown.map(|c| if *c == '\t' { ' ' } else { *c }).collect();
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = write!(text, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message);
        if shown.len() <= MAX_SHOWN {
            let _ = write!(text, "\n | {shown}\n | {}^", ".".repeat(column));
        }
    }
    CompileError(text)
}

#[cfg(test)]
mod tests;
