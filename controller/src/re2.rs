//! Patterns as Kubernetes reads them, in the syntax of RE2 (<https://github.com/google/re2/wiki/Syntax>), for the crate that
//! searches with them and reads some differently.

use std::iter::Peekable;
use std::str::Chars;

use regex::RegexBuilder;

/// What compiles a pattern.
pub(crate) fn builder(text: &str) -> RegexBuilder {
    RegexBuilder::new(&translated(text))
}

/// The classes that are of all letters and digits otherwise.
const CLASSES: &[(char, &str)] = &[
    ('d', "[0-9]"),
    ('D', "[^0-9]"),
    ('w', "[0-9A-Za-z_]"),
    ('W', "[^0-9A-Za-z_]"),
    ('s', "[\\t\\n\\f\\r ]"),
    ('S', "[^\\t\\n\\f\\r ]"),
];

/// Writes what stands between `\Q` and `\E` so that it stands for itself.
fn quote(rest: &mut Peekable<Chars<'_>>, written: &mut String) {
    let mut quoted = String::new();
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            break;
        }
        quoted.push(c);
    }
    written.push_str(&regex::escape(&quoted));
}

/// Whether a count of repetitions begins here; if not, the bracket stands for itself.
fn is_count(rest: Peekable<Chars<'_>>) -> bool {
    // No count that is allowed is longer.
    let inner: String = rest.take(12).collect();
    let inner = inner.split_once('}').map_or("", |(inner, _)| inner);
    let (least, most) = inner.split_once(',').unwrap_or((inner, ""));
    !least.is_empty()
        && [least, most]
            .iter()
            .all(|part| part.bytes().all(|c| c.is_ascii_digit()))
}

/// A pattern as the crate has it: to RE2 the classes `\d`, `\s` and `\w` are of ASCII characters, sets know no operators,
/// and a brace that counts nothing is a letter.
fn translated(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut in_set = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                let escaped = rest.next().unwrap_or_default();
                let class = CLASSES.iter().find(|(letter, _)| *letter == escaped);
                match (escaped, class) {
                    (_, Some((_, class))) => written.push_str(class),
                    ('b', _) if !in_set => written.push_str("(?-u:\\b)"),
                    ('B', _) if !in_set => written.push_str("(?-u:\\B)"),
                    ('Q', _) => quote(&mut rest, &mut written),
                    ('\0', _) => written.push('\\'),
                    _ => {
                        written.push('\\');
                        written.push(escaped);
                        if matches!(escaped, 'p' | 'P' | 'x') {
                            written.extend(rest.next_if_eq(&'{'));
                        }
                    }
                }
            }
            '[' if !in_set => {
                in_set = true;
                written.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    written.push('^');
                }
                // A bracket in the first place stands for itself.
                if rest.next_if_eq(&']').is_some() {
                    written.push_str("\\]");
                }
            }
            '[' if rest.peek() == Some(&':') => {
                written.push('[');
                for c in rest.by_ref() {
                    written.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' | '&' | '~' if in_set => {
                written.push('\\');
                written.push(c);
            }
            '{' if !in_set && !is_count(rest.clone()) => written.push_str("\\{"),
            c => {
                in_set &= c != ']';
                written.push(c);
            }
        }
    }
    written
}
