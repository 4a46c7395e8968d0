//! Expressions as they are written, macros already told apart from calls.

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

/// An expression.
#[derive(Debug)]
pub(super) struct Expression {
    /// Where it stands in the source, in characters.
    pub(super) position: usize,
    /// How many expressions are nested in it, itself included. What a variable stands for counts as if it stood there: so no
    /// value nests deeper than this beyond what the document has. Types can, by some hundreds, for their parameters stand
    /// for each other.
    pub(super) depth: usize,
    pub(super) kind: Kind,
}

/// What an expression is.
#[derive(Debug)]
pub(super) enum Kind {
    Literal(Literal),
    Name(String),
    /// `operand.field`, or `operand.?field`.
    Select(Box<Expression>, String, bool),
    /// `has(operand.field)`.
    Present(Box<Expression>, String),
    /// A function or an operator, the latter under the name that CEL gives it.
    Call(String, Option<Box<Expression>>, Vec<Expression>),
    /// `a && b && c`: all at one level, for such chains are long.
    And(Vec<Expression>),
    Or(Vec<Expression>),
    If(Box<[Expression; 3]>),
    /// Items; whether each is optional.
    List(Vec<(Expression, bool)>),
    Map(Vec<(Expression, Expression, bool)>),
    Loop(Box<Loop>),
    /// `cel.bind(name, value, body)`, and the same for the value of an optional.
    Bind(Binding, String, Box<[Expression; 2]>),
}

/// What of a value is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// All of it.
    Value,
    /// `optMap`: what an optional has; the result is optional too.
    Optional,
    /// `optFlatMap`: what an optional has; the body is optional.
    Flat,
}

/// A macro that goes through a list or map.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) kind: LoopKind,
    pub(super) range: Expression,
    pub(super) first: String,
    pub(super) second: Option<String>,
    pub(super) filter: Option<Expression>,
    pub(super) body: Expression,
}

/// What a loop makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopKind {
    All,
    Exists,
    ExistsOne,
    /// `map`, `filter` and `transformList`.
    List,
    /// `transformMap`: the same keys, other values.
    Map,
    /// `transformMapEntry`: the entries of the maps that the body gives.
    MapEntry,
}

impl Expression {
    pub(super) fn new(position: usize, kind: Kind) -> Self {
        let deepest = |list: &[Self]| list.iter().map(|inner| inner.depth).max().unwrap_or_default();
        let below = match &kind {
            Kind::Literal(_) | Kind::Name(_) => 0,
            Kind::Select(operand, ..) | Kind::Present(operand, _) => operand.depth,
            Kind::Call(_, target, arguments) => {
                let target = target.as_ref().map_or(0, |target| target.depth);
                target.max(deepest(arguments))
            }
            Kind::And(list) | Kind::Or(list) => deepest(list),
            Kind::If(parts) => deepest(&**parts),
            Kind::Bind(_, _, parts) => parts[0].depth + parts[1].depth,
            Kind::List(items) => items.iter().map(|(item, _)| item.depth).max().unwrap_or_default(),
            Kind::Map(entries) => {
                let depths = entries.iter().map(|(key, value, _)| key.depth.max(value.depth));
                depths.max().unwrap_or_default()
            }
            Kind::Loop(inner) => {
                let filter = inner.filter.as_ref().map_or(0, |filter| filter.depth);
                inner.range.depth + inner.body.depth.max(filter)
            }
        };
        Self {
            position,
            depth: below + 1,
            kind,
        }
    }

    /// `a.b.c` as a text, if the expression is nothing but that.
    pub(super) fn qualified(&self) -> Option<String> {
        match &self.kind {
            Kind::Name(name) => Some(name.clone()),
            Kind::Select(operand, field, false) => Some(format!("{}.{field}", operand.qualified()?)),
            _ => None,
        }
    }
}
