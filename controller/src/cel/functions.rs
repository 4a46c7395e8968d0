//! The functions and operators that expressions can call.
//!
//! Each is a row of a table: its name, the signatures by which the checker finds it, and what it does with values. A
//! signature reads `(int, int) bool`, or `string.(string) bool` if the first argument stands before the name; `A` and `B`
//! are any types.

use std::sync::{Arc, LazyLock};

use super::types::{Named, Type, WORDS};
use super::value::{Evaluated, Value};
use super::{Cost, EvaluationError};

pub(super) mod conversions;
pub(super) mod format;
pub(super) mod lists;
pub(super) mod network;
pub(super) mod operators;
pub(super) mod optionals;
pub(super) mod printing;
pub(super) mod quantities;
pub(super) mod regex;
pub(super) mod semver;
pub(super) mod strings;
pub(super) mod time;
pub(super) mod url;

/// What a function does with its arguments. Arguments of other types than its signatures have are no such overload.
pub(super) type Call = for<'a> fn(&mut Cost, &[Value<'a>]) -> Evaluated<'a>;

/// A row of the table.
pub(super) type Row = (&'static str, Call, &'static [&'static str]);

/// A signature, read.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) member: bool,
    pub(super) parameters: Vec<Type>,
    pub(super) result: Type,
    /// How many of the types are any.
    pub(super) open: usize,
}

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Overload {
    pub(super) call: Call,
    pub(super) signature: Signature,
}

const TABLES: &[&[Row]] = &[
    operators::TABLE,
    conversions::TABLE,
    strings::TABLE,
    printing::TABLE,
    regex::TABLE,
    lists::TABLE,
    optionals::TABLE,
    time::TABLE,
    quantities::TABLE,
    network::TABLE,
    url::TABLE,
    format::TABLE,
    semver::TABLE,
];

static OVERLOADS: LazyLock<Vec<(&'static str, Vec<Overload>)>> = LazyLock::new(|| {
    let mut by_name: Vec<(&str, Vec<_>)> = Vec::new();
    for (name, call, signatures) in TABLES.iter().copied().flatten() {
        let place = by_name.iter().position(|(known, _)| known == name);
        let place = place.unwrap_or_else(|| {
            by_name.push((name, Vec::new()));
            by_name.len() - 1
        });
        for text in *signatures {
            by_name[place].1.push(Overload {
                call: *call,
                signature: signature(text),
            });
        }
    }
    by_name
});

/// All ways to call a function; none if it is not known.
pub(super) fn overloads(name: &str) -> &'static [Overload] {
    let found = OVERLOADS.iter().find(|(known, _)| *known == name);
    found.map_or(&[], |(_, overloads)| overloads.as_slice())
}

fn no_such_overload<'a>() -> Evaluated<'a> {
    Err(EvaluationError::NoSuchOverload)
}

/// What errors show of a text.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// An argument that a function cannot do with.
fn failed<'a>(message: impl Into<String>) -> Evaluated<'a> {
    Err(EvaluationError::Argument(message.into()))
}

fn signature(text: &str) -> Signature {
    let mut reader = Reader { rest: text, open: 0 };
    let mut parameters = Vec::new();
    let member = !text.starts_with('(');
    if member {
        parameters.push(reader.read());
        reader.skip('.');
    }
    reader.skip('(');
    while !reader.rest.starts_with(')') {
        parameters.push(reader.read());
        reader.skip(',');
        reader.skip(' ');
    }
    reader.skip(')');
    reader.skip(' ');
    Signature {
        member,
        parameters,
        result: reader.read(),
        open: reader.open,
    }
}

/// Reads signatures, which are all known to be right.
struct Reader<'a> {
    rest: &'a str,
    open: usize,
}

impl Reader<'_> {
    fn skip(&mut self, c: char) {
        self.rest = self.rest.strip_prefix(c).unwrap_or(self.rest);
    }

    fn read(&mut self) -> Type {
        let end = self.rest.find(|c: char| !c.is_ascii_alphabetic());
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        let parameter = match word {
            "A" => Some(0),
            "B" => Some(1),
            _ => None,
        };
        if let Some(index) = parameter {
            self.open = self.open.max(index + 1);
            return Type::Parameter(index);
        }
        if !matches!(word, "list" | "map" | "optional" | "type") {
            return plain(word);
        }
        self.skip('(');
        let first = self.read();
        let of = match word {
            "list" => Type::list(first),
            "map" => {
                self.skip(',');
                self.skip(' ');
                Type::map(first, self.read())
            }
            "optional" => Type::optional(first),
            _ => Type::Type(Arc::new(first)),
        };
        self.skip(')');
        of
    }
}

fn plain(word: &str) -> Type {
    match word {
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "quantity" => Type::Named(Named::Quantity),
        "url" => Type::Named(Named::Url),
        "ip" => Type::Named(Named::Ip),
        "cidr" => Type::Named(Named::Cidr),
        "format" => Type::Named(Named::Format),
        "semver" => Type::Named(Named::Semver),
        word => {
            let known = WORDS.iter().find(|(known, _)| *known == word);
            known.map_or(Type::Dynamic, |(_, of)| of.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_read_as_they_are_written() {
        for (name, _, signatures) in TABLES.iter().copied().flatten() {
            for text in *signatures {
                let signature = signature(text);
                let mut shown: Vec<_> = signature.parameters.iter().map(ToString::to_string).collect();
                let target = if signature.member {
                    shown.remove(0) + "."
                } else {
                    String::new()
                };
                let shown = format!("{target}({}) {}", shown.join(", "), signature.result);
                let written = text.replace("optional(", "optional_type(");
                let written = written.replace("_type(_type(", "_type(");
                let mut plain = shown.replace("_var0", "A").replace("_var1", "B");
                for (long, short) in [
                    ("kubernetes.Quantity", "quantity"),
                    ("kubernetes.URL", "url"),
                    ("net.IP", "ip"),
                    ("net.CIDR", "cidr"),
                    ("kubernetes.NamedFormat", "format"),
                    ("kubernetes.Semver", "semver"),
                ] {
                    plain = plain.replace(long, short);
                }
                assert_eq!(plain, written, "{name}");
            }
        }
    }
}
