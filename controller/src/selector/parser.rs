//! The string form of label selectors.

use super::{Operator, Requirement, SelectorError};

const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    ClosedPar,
    Comma,
    DoesNotExist,
    DoubleEquals,
    Equals,
    GreaterThan,
    In,
    LessThan,
    NotEquals,
    NotIn,
    OpenPar,
    Identifier,
    End,
    Error,
}

/// Whether `in` and `notin` are operators or ordinary words here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    KeyAndOperator,
    Values,
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedPar,
        "," => Token::Comma,
        "!" => Token::DoesNotExist,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::GreaterThan,
        "in" => Token::In,
        "<" => Token::LessThan,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenPar,
        _ => return None,
    })
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn scan(text: &str) -> Vec<(Token, &str)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let (token, length) = if is_special(first) {
            let longest = [2, 1]
                .into_iter()
                .find_map(|n| symbol(rest.get(..n)?).map(|token| (token, n)));
            longest.unwrap_or((Token::Error, 1))
        } else {
            let end = rest.find(|c| is_special(c) || is_space(c)).unwrap_or(rest.len());
            (symbol(&rest[..end]).unwrap_or(Token::Identifier), end)
        };
        tokens.push((token, &rest[..length]));
        rest = rest[length..].trim_start_matches(is_space);
    }
    tokens
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    position: usize,
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser {
        tokens: scan(text),
        position: 0,
    };
    let mut requirements = Vec::new();
    loop {
        let (token, literal) = parser.look(Context::Values);
        match token {
            Token::Identifier | Token::DoesNotExist => {
                let requirement = parser
                    .requirement()
                    .map_err(|error| SelectorError::new(format!("unable to parse requirement: {error}")))?;
                requirements.push(requirement);
                let (token, literal) = parser.take(Context::Values);
                match token {
                    Token::End => return Ok(requirements),
                    Token::Comma => {
                        let (token, literal) = parser.look(Context::Values);
                        if token != Token::Identifier && token != Token::DoesNotExist {
                            return Err(found(literal, "identifier after ','"));
                        }
                    }
                    _ => return Err(found(literal, "',' or 'end of string'")),
                }
            }
            Token::End => return Ok(requirements),
            _ => return Err(found(literal, "!, identifier, or 'end of string'")),
        }
    }
}

fn found(literal: &str, expected: &str) -> SelectorError {
    SelectorError::new(format!("found '{literal}', expected: {expected}"))
}

impl<'a> Parser<'a> {
    fn look(&self, context: Context) -> (Token, &'a str) {
        let Some(&(token, literal)) = self.tokens.get(self.position) else {
            return (Token::End, "");
        };
        match (context, token) {
            (Context::Values, Token::In | Token::NotIn) => (Token::Identifier, literal),
            _ => (token, literal),
        }
    }

    fn take(&mut self, context: Context) -> (Token, &'a str) {
        let next = self.look(context);
        self.position += 1;
        next
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut literal) = self.take(Context::Values);
        let negated = token == Token::DoesNotExist;
        if negated {
            (token, literal) = self.take(Context::Values);
        }
        if token != Token::Identifier {
            return Err(found(literal, "identifier"));
        }
        let key = literal;
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.look(Context::Values).0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        let (token, literal) = self.take(Context::KeyAndOperator);
        Ok(match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::GreaterThan => Operator::GreaterThan,
            Token::LessThan => Operator::LessThan,
            _ => return Err(found(literal, OPERATORS)),
        })
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let (token, literal) = self.take(Context::Values);
        if token != Token::OpenPar {
            return Err(SelectorError::new(format!("found '{literal}' expected: '('")));
        }
        let (token, literal) = self.look(Context::Values);
        match token {
            Token::Identifier | Token::Comma => {
                let values = self.identifiers()?;
                let (token, literal) = self.take(Context::Values);
                if token != Token::ClosedPar {
                    return Err(found(literal, "')'"));
                }
                Ok(values)
            }
            Token::ClosedPar => {
                self.take(Context::Values);
                Ok(Vec::new())
            }
            _ => Err(found(literal, "',', ')' or identifier")),
        }
    }

    fn identifiers(&mut self) -> Result<Vec<String>, SelectorError> {
        let mut values = Vec::new();
        loop {
            let (token, literal) = self.take(Context::Values);
            match token {
                Token::Identifier => {
                    values.push(literal.to_owned());
                    match self.look(Context::Values) {
                        (Token::Comma, _) => {}
                        (Token::ClosedPar, _) => return Ok(values),
                        (_, literal) => return Err(found(literal, "',' or ')'")),
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.look(Context::Values).0 {
                        Token::ClosedPar => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.take(Context::Values);
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                _ => return Err(found(literal, "',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.look(Context::Values).0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.take(Context::Values) {
            (Token::Identifier, literal) => Ok(literal.to_owned()),
            (_, literal) => Err(found(literal, "identifier")),
        }
    }
}
