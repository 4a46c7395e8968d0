//! Reads expressions: precedence climbing over tokens, macros expanded as they are met.

use super::ast::{Binding, Expression, Kind, Literal, Loop, LoopKind};
use super::lexer::{Token, TokenKind, tokens};
use super::{Issue, MAX_DEPTH, MAX_LENGTH, MAX_NESTING};

/// Words that no identifier may be.
pub(crate) const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Operators between two operands, with how tightly they bind and what CEL calls them.
const BINARY: &[(&str, u8, &str)] = &[
    ("<", 1, "_<_"),
    ("<=", 1, "_<=_"),
    (">", 1, "_>_"),
    (">=", 1, "_>=_"),
    ("==", 1, "_==_"),
    ("!=", 1, "_!=_"),
    ("in", 1, "@in"),
    ("+", 2, "_+_"),
    ("-", 2, "_-_"),
    ("*", 3, "_*_"),
    ("/", 3, "_/_"),
    ("%", 3, "_%_"),
];

/// Reads an expression.
pub(super) fn parse(source: &[char]) -> Result<Expression, Vec<Issue>> {
    if source.len() > MAX_LENGTH {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_LENGTH}",
            source.len()
        );
        return Err(vec![Issue { position: 0, message }]);
    }
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        nesting: 0,
    };
    let expression = parser.expression().map_err(|issue| vec![issue])?;
    if parser.peek().kind != TokenKind::End {
        // One token too many is told apart from a sentence that goes on.
        let after = parser.tokens.get(parser.at + 1);
        let what = if after.is_some_and(|token| token.kind == TokenKind::End) {
            "extraneous"
        } else {
            "mismatched"
        };
        let message = format!(
            "Syntax error: {what} input '{}' expecting <EOF>",
            parser.peek().text
        );
        return Err(vec![parser.issue(message)]);
    }
    Ok(expression)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
}

type Parsed = Result<Expression, Issue>;

impl Parser {
    fn peek(&self) -> &Token {
        // The end is never stepped over.
        &self.tokens[self.at]
    }

    fn issue(&self, message: String) -> Issue {
        Issue {
            position: self.peek().position,
            message,
        }
    }

    fn is(&self, symbol: &str) -> bool {
        let token = self.peek();
        token.kind == TokenKind::Symbol && token.text == symbol
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if token.kind != TokenKind::End {
            self.at += 1;
        }
        token
    }

    /// Steps over a symbol if it is there.
    fn take(&mut self, symbol: &str) -> bool {
        let there = self.is(symbol);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Issue> {
        if self.take(symbol) {
            return Ok(());
        }
        Err(self.unexpected(&format!("'{symbol}'")))
    }

    fn unexpected(&self, wanted: &str) -> Issue {
        let message = format!(
            "Syntax error: mismatched input '{}' expecting {wanted}",
            self.peek().text
        );
        self.issue(message)
    }

    /// An expression of parts, unless it is so deep that what comes after could not recurse over it.
    fn make(&self, position: usize, kind: Kind) -> Parsed {
        let expression = Expression::new(position, kind);
        if expression.depth > MAX_DEPTH {
            return Err(self.too_deep(MAX_DEPTH));
        }
        Ok(expression)
    }

    fn too_deep(&self, limit: usize) -> Issue {
        self.issue(format!("expression recursion limit exceeded: {limit}"))
    }

    fn expression(&mut self) -> Parsed {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(self.too_deep(MAX_NESTING));
        }
        // What is chosen between, and where; the last has no condition.
        let mut choices = Vec::new();
        let mut expression = self.chain("||")?;
        loop {
            let position = self.peek().position;
            if !self.take("?") {
                break;
            }
            let then = self.chain("||")?;
            self.expect(":")?;
            choices.push((position, expression, then));
            expression = self.chain("||")?;
        }
        while let Some((position, condition, then)) = choices.pop() {
            expression = self.make(position, Kind::If(Box::new([condition, then, expression])))?;
        }
        self.nesting -= 1;
        Ok(expression)
    }

    fn chain(&mut self, operator: &str) -> Parsed {
        let inner = |parser: &mut Self| match operator {
            "||" => parser.chain("&&"),
            _ => parser.binary(1),
        };
        let first = inner(self)?;
        let position = self.peek().position;
        if !self.is(operator) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take(operator) {
            parts.push(inner(self)?);
        }
        let kind = match operator {
            "||" => Kind::Or(parts),
            _ => Kind::And(parts),
        };
        self.make(position, kind)
    }

    fn binary(&mut self, least: u8) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let token = self.peek();
            let found = BINARY.iter().find(|(symbol, strength, _)| {
                token.kind == TokenKind::Symbol && token.text == *symbol && *strength >= least
            });
            let Some((_, strength, name)) = found else {
                return Ok(left);
            };
            let position = self.next().position;
            let right = self.binary(strength + 1)?;
            left = self.make(position, Kind::Call((*name).to_owned(), None, vec![left, right]))?;
        }
    }

    fn unary(&mut self) -> Parsed {
        let start = self.at;
        let position = self.peek().position;
        let operator = match self.peek() {
            token if token.kind == TokenKind::Symbol && token.text == "!" => "!",
            token if token.kind == TokenKind::Symbol && token.text == "-" => "-",
            _ => return self.member(),
        };
        while self.take(operator) {}
        let mut count = self.at - start;
        if operator == "-" && count == 1 && self.is_number() {
            // The smallest integer has no positive counterpart, so the sign is the literal's.
            let literal = self.literal(true)?;
            let literal = self.make(position, Kind::Literal(literal))?;
            return self.member_of(literal);
        }
        // Two of a kind cancel out.
        count %= 2;
        let operand = self.member()?;
        if count == 0 {
            return Ok(operand);
        }
        let name = if operator == "!" { "!_" } else { "-_" };
        self.make(position, Kind::Call(name.to_owned(), None, vec![operand]))
    }

    fn is_number(&self) -> bool {
        matches!(
            self.peek().kind,
            TokenKind::Integer(..) | TokenKind::Literal(Literal::Double(_))
        )
    }

    fn literal(&mut self, negative: bool) -> Result<Literal, Issue> {
        let wrong = |kind: &str| self.issue(format!("invalid {kind} literal"));
        let literal = match &self.peek().kind {
            TokenKind::Integer(_, true) if negative => return Err(wrong("uint")),
            TokenKind::Integer(number, true) => Literal::Uint(*number),
            TokenKind::Integer(number, false) => {
                let number = i128::from(*number);
                let number = if negative { -number } else { number };
                Literal::Int(i64::try_from(number).map_err(|_| wrong("int"))?)
            }
            TokenKind::Literal(Literal::Double(number)) if negative => Literal::Double(-number),
            TokenKind::Literal(literal) => literal.clone(),
            TokenKind::Identifier | TokenKind::Symbol | TokenKind::End => {
                return Err(self.unexpected("a literal"));
            }
        };
        self.at += 1;
        Ok(literal)
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.member_of(primary)
    }

    fn member_of(&mut self, mut operand: Expression) -> Parsed {
        loop {
            let position = self.peek().position;
            if self.take(".") {
                let optional = self.take("?");
                if self.peek().kind != TokenKind::Identifier {
                    return Err(self.unexpected("IDENTIFIER"));
                }
                let name = self.next().text;
                let open = self.peek().position;
                operand = if !optional && self.take("(") {
                    let arguments = self.arguments(")")?;
                    self.call(open, name, operand, arguments)?
                } else {
                    self.make(position, Kind::Select(Box::new(operand), name, optional))?
                };
            } else if self.take("[") {
                let name = if self.take("?") { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                let kind = Kind::Call(name.to_owned(), None, vec![operand, index]);
                operand = self.make(position, kind)?;
            } else {
                return Ok(operand);
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Result<Vec<Expression>, Issue> {
        let mut arguments = Vec::new();
        if self.take(close) {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.expression()?);
            if self.take(close) {
                return Ok(arguments);
            }
            self.expect(",")?;
        }
    }

    fn primary(&mut self) -> Parsed {
        let token = self.peek().clone();
        let position = token.position;
        match token.kind {
            TokenKind::Integer(..) | TokenKind::Literal(_) => {
                let literal = self.literal(false)?;
                return self.make(position, Kind::Literal(literal));
            }
            TokenKind::Identifier => return self.name(),
            TokenKind::Symbol | TokenKind::End => {}
        }
        if self.take("(") {
            let inner = self.expression()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.take("[") {
            let items = self.list()?;
            return self.make(position, Kind::List(items));
        }
        if self.take("{") {
            let entries = self.map()?;
            return self.make(position, Kind::Map(entries));
        }
        // A leading dot asks for the outermost scope; there is but one.
        if self.take(".") && self.peek().kind == TokenKind::Identifier {
            return self.name();
        }
        Err(self.unexpected(
            "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
             IDENTIFIER}",
        ))
    }

    fn name(&mut self) -> Parsed {
        let token = self.next();
        if RESERVED.contains(&token.text.as_str()) {
            let message = format!("reserved identifier: {}", token.text);
            return Err(Issue {
                position: token.position,
                message,
            });
        }
        let open = self.peek().position;
        if !self.take("(") {
            return self.make(token.position, Kind::Name(token.text));
        }
        let mut arguments = self.arguments(")")?;
        if token.text == "has" && arguments.len() == 1 {
            return match arguments.pop().map(|argument| argument.kind) {
                Some(Kind::Select(operand, field, false)) => self.make(open, Kind::Present(operand, field)),
                _ => Err(Issue {
                    position: open,
                    message: "invalid argument to has() macro".to_owned(),
                }),
            };
        }
        self.make(open, Kind::Call(token.text, None, arguments))
    }

    fn list(&mut self) -> Result<Vec<(Expression, bool)>, Issue> {
        let mut items = Vec::new();
        while !self.take("]") {
            let optional = self.take("?");
            items.push((self.expression()?, optional));
            if !self.take(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(items)
    }

    fn map(&mut self) -> Result<Vec<(Expression, Expression, bool)>, Issue> {
        let mut entries = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?, optional));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(entries)
    }

    /// A call of a member function, or the macro it stands for.
    fn call(
        &self,
        position: usize,
        name: String,
        target: Expression,
        mut arguments: Vec<Expression>,
    ) -> Parsed {
        let is_cel = matches!(&target.kind, Kind::Name(name) if name == "cel");
        let binding = match (name.as_str(), arguments.len()) {
            ("bind", 3) if is_cel => Some(Binding::Value),
            ("optMap", 2) => Some(Binding::Optional),
            ("optFlatMap", 2) => Some(Binding::Flat),
            _ => None,
        };
        if let Some(binding) = binding {
            let variable = variable(&arguments.remove(0))?;
            let mut rest = arguments.into_iter();
            let (Some(first), second) = (rest.next(), rest.next()) else {
                return Err(self.unexpected("an expression"));
            };
            let parts = match second {
                Some(body) => [first, body],
                None => [target, first],
            };
            return self.make(position, Kind::Bind(binding, variable, Box::new(parts)));
        }
        use LoopKind::{All, Exists, ExistsOne, List, Map, MapEntry};
        // The kind, how many variables there are, and whether a filter stands before the body.
        let (kind, variables, filtered) = match (name.as_str(), arguments.len()) {
            ("all", 2) => (All, 1, false),
            ("all", 3) => (All, 2, false),
            ("exists", 2) => (Exists, 1, false),
            ("exists", 3) => (Exists, 2, false),
            ("exists_one" | "existsOne", 2) => (ExistsOne, 1, false),
            ("existsOne", 3) => (ExistsOne, 2, false),
            ("map" | "filter", 2) => (List, 1, name == "filter"),
            ("map", 3) => (List, 1, true),
            ("transformList", 3) => (List, 2, false),
            ("transformList", 4) => (List, 2, true),
            ("transformMap", 3) => (Map, 2, false),
            ("transformMap", 4) => (Map, 2, true),
            ("transformMapEntry", 3) => (MapEntry, 2, false),
            ("transformMapEntry", 4) => (MapEntry, 2, true),
            _ => {
                let kind = Kind::Call(name, Some(Box::new(target)), arguments);
                return self.make(position, kind);
            }
        };
        let first = variable(&arguments[0])?;
        let second = if variables == 2 {
            Some(variable(&arguments[1])?)
        } else {
            None
        };
        let variable_position = arguments[0].position;
        let mut rest = arguments.into_iter().skip(variables);
        let (Some(next), last) = (rest.next(), rest.next()) else {
            return Err(self.unexpected("an expression"));
        };
        let (filter, body) = match last {
            Some(body) => (Some(next), body),
            None if filtered => {
                let item = self.make(variable_position, Kind::Name(first.clone()))?;
                (Some(next), item)
            }
            None => (None, next),
        };
        let inner = Loop {
            kind,
            range: target,
            first,
            second,
            filter,
            body,
        };
        self.make(position, Kind::Loop(Box::new(inner)))
    }
}

fn variable(argument: &Expression) -> Result<String, Issue> {
    match &argument.kind {
        Kind::Name(name) => Ok(name.clone()),
        _ => Err(Issue {
            position: argument.position,
            message: "argument must be a simple name".to_owned(),
        }),
    }
}
