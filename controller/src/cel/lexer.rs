//! Splits the source of an expression into tokens.

use super::Issue;
use super::ast::Literal;

/// A token and where it begins, in characters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) position: usize,
    /// How it is written.
    pub(super) text: String,
    pub(super) kind: TokenKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
    Identifier,
    /// A string, or bytes, or a floating-point number.
    Literal(Literal),
    /// A whole number, whose sign decides whether it fits, and whether it is unsigned.
    Integer(u64, bool),
    /// An operator, a bracket, or the word `in`.
    Symbol,
    End,
}

const TWO: &[&str] = &["==", "!=", "<=", ">=", "&&", "||"];
const ONE: &str = "+-*/%<>!?:.,()[]{}=";

struct Lexer<'a> {
    source: &'a [char],
    at: usize,
    issues: Vec<Issue>,
}

/// All tokens of a source, the end last, or what cannot be read.
pub(super) fn tokens(source: &[char]) -> Result<Vec<Token>, Vec<Issue>> {
    let mut lexer = Lexer {
        source,
        at: 0,
        issues: Vec::new(),
    };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_space();
        let start = lexer.at;
        let kind = match lexer.next() {
            Ok(kind) => kind,
            Err(message) => {
                lexer.issues.push(Issue {
                    position: start,
                    message,
                });
                return Err(lexer.issues);
            }
        };
        let ended = kind == TokenKind::End;
        tokens.push(Token {
            position: start,
            text: if ended {
                "<EOF>".to_owned()
            } else {
                source[start..lexer.at].iter().collect()
            },
            kind,
        });
        if ended {
            return Ok(tokens);
        }
    }
}

fn unrecognised(text: impl IntoIterator<Item = char>) -> String {
    let text: String = text.into_iter().take(40).collect();
    format!("Syntax error: token recognition error at: '{text}'")
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.source.get(self.at + ahead).copied()
    }

    fn is_at(&self, text: &str) -> bool {
        text.chars()
            .enumerate()
            .all(|(index, c)| self.peek(index) == Some(c))
    }

    fn skip_space(&mut self) {
        loop {
            if self
                .peek(0)
                .is_some_and(|c| matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{c}'))
            {
                self.at += 1;
            } else if self.is_at("//") {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<TokenKind, String> {
        let Some(first) = self.peek(0) else {
            return Ok(TokenKind::End);
        };
        if let Some((bytes, raw, prefix)) = self.string_prefix() {
            self.at += prefix;
            return self.string(bytes, raw);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
            return Ok(match word.as_str() {
                "true" => TokenKind::Literal(Literal::Bool(true)),
                "false" => TokenKind::Literal(Literal::Bool(false)),
                "null" => TokenKind::Literal(Literal::Null),
                "in" => TokenKind::Symbol,
                _ => TokenKind::Identifier,
            });
        }
        let digit_after = self.peek(1).is_some_and(|c| c.is_ascii_digit());
        if first.is_ascii_digit() || (first == '.' && digit_after) {
            return self.number();
        }
        if TWO.iter().any(|symbol| self.is_at(symbol)) {
            self.at += 2;
            return Ok(TokenKind::Symbol);
        }
        if first != '=' && ONE.contains(first) {
            self.at += 1;
            return Ok(TokenKind::Symbol);
        }
        Err(unrecognised([first]))
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&fits) {
            self.at += 1;
        }
        self.source[start..self.at].iter().collect()
    }

    fn number(&mut self) -> Result<TokenKind, String> {
        if self.is_at("0x") || self.is_at("0X") {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            let number = u64::from_str_radix(&digits, 16);
            let unsigned = self.suffix();
            let kind = if unsigned { "uint" } else { "int" };
            return number
                .map(|number| TokenKind::Integer(number, unsigned))
                .map_err(|_| format!("invalid {kind} literal"));
        }
        let mut text = self.take_while(|c| c.is_ascii_digit());
        let mut whole = true;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            whole = false;
            self.at += 1;
            text.push('.');
            text += &self.take_while(|c| c.is_ascii_digit());
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                whole = false;
                text.extend(&self.source[self.at..=self.at + sign]);
                self.at += 1 + sign;
                text += &self.take_while(|c| c.is_ascii_digit());
            }
        }
        if !whole {
            let number: f64 = text.parse().map_err(|_| "invalid double literal".to_owned())?;
            return if number.is_finite() {
                Ok(TokenKind::Literal(Literal::Double(number)))
            } else {
                Err("invalid double literal".to_owned())
            };
        }
        let unsigned = self.suffix();
        let kind = if unsigned { "uint" } else { "int" };
        text.parse()
            .map(|number| TokenKind::Integer(number, unsigned))
            .map_err(|_| format!("invalid {kind} literal"))
    }

    fn suffix(&mut self) -> bool {
        let unsigned = matches!(self.peek(0), Some('u' | 'U'));
        self.at += usize::from(unsigned);
        unsigned
    }

    /// Whether a string begins here: of bytes, raw, and after how many letters.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut bytes, mut raw) = (false, false);
        for length in 0..=2 {
            match self.peek(length)? {
                '"' | '\'' => return Some((bytes, raw, length)),
                'b' | 'B' if !bytes => bytes = true,
                'r' | 'R' if !raw => raw = true,
                _ => return None,
            }
        }
        None
    }

    fn string(&mut self, bytes: bool, raw: bool) -> Result<TokenKind, String> {
        let start = self.at;
        let quote = self.peek(0).unwrap_or('"');
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if triple { 3 } else { 1 };
        self.at += width;
        let mut text = Vec::new();
        let unended = |lexer: &Self| unrecognised(lexer.source[start..].iter().copied());
        loop {
            let c = self.peek(0).ok_or_else(|| unended(self))?;
            let ends = (0..width).all(|index| self.peek(index) == Some(quote));
            if ends {
                self.at += width;
                break;
            }
            if !triple && matches!(c, '\n' | '\r') {
                return Err(unended(self));
            }
            self.at += 1;
            if c != '\\' || raw {
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            let escaped = self.peek(0).ok_or_else(|| unended(self))?;
            self.at += 1;
            self.escape(escaped, bytes, &mut text)?;
        }
        Ok(TokenKind::Literal(if bytes {
            Literal::Bytes(text)
        } else {
            Literal::String(String::from_utf8_lossy(&text).into_owned())
        }))
    }

    fn escape(&mut self, escaped: char, bytes: bool, text: &mut Vec<u8>) -> Result<(), String> {
        let simple = match escaped {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '?' | '"' | '\'' | '`' => escaped as u8,
            _ => 0,
        };
        if simple != 0 {
            text.push(simple);
            return Ok(());
        }
        let (radix, length) = match escaped {
            'x' | 'X' => (16, 2),
            'u' if !bytes => (16, 4),
            'U' if !bytes => (16, 8),
            '0'..='3' => {
                self.at -= 1;
                (8, 3)
            }
            _ => return Err(unrecognised(['\\', escaped])),
        };
        let digits: String = self.source.iter().skip(self.at).take(length).collect();
        let wrong = || unrecognised(['\\', escaped].into_iter().chain(digits.chars()));
        if digits.chars().count() != length || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(wrong());
        }
        let code = u32::from_str_radix(&digits, radix).map_err(|_| wrong())?;
        self.at += length;
        if bytes {
            text.push(code as u8);
        } else {
            let c = char::from_u32(code).ok_or_else(wrong)?;
            text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}
