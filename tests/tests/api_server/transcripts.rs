//! What a user types and sees: sessions with the real kubectl, written down as what a Kubernetes server of version 1.33 makes it
//! print, and played against our own.
//!
//! A transcript is made of these lines:
//!
//! ```text
//! # a remark
//! > name        a file for -f follows, up to a line `<`
//! $ arguments   kubectl is run; `NAME=value` before them sets its environment
//! $~ arguments  the same, again and again until it prints what is expected
//! ? code        its exit code, where it is not 0
//! ! line        it prints the line to standard error
//! line          it prints the line to standard output
//! ...           any number of lines
//! ```
//!
//! Runs of spaces count as one. In a line `<age>` stands for an age, `<*>` for any characters within a word, `<..>` for the rest.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use weft_lab::wait::wait_until;

use crate::server::Server;

/// One command and what it prints.
#[derive(Debug, Default)]
struct Step {
    line: usize,
    command: String,
    patient: bool,
    code: i32,
    stdout: Vec<String>,
    stderr: Vec<String>,
}

/// Plays a transcript; on a failure says at which line, what was expected and what came.
fn play(server: &Server, name: &str, text: &str) -> Result<()> {
    let mut step: Option<Step> = None;
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let at = || format!("{name}:{}", index + 1);
        if let Some(file) = line.strip_prefix("> ") {
            finish(server, name, step.take())?;
            let body: Vec<&str> = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| *line != "<")
                .collect();
            server.write(file, &(body.join("\n") + "\n"))?;
        } else if let Some(command) = line.strip_prefix('$') {
            finish(server, name, step.take())?;
            step = Some(Step {
                line: index + 1,
                command: command.trim_start_matches('~').trim().to_owned(),
                patient: command.starts_with('~'),
                ..Step::default()
            });
        } else if line.starts_with("# ") || (line.is_empty() && step.is_none()) {
        } else {
            let step = step.as_mut().with_context(at)?;
            if let Some(code) = line.strip_prefix("? ") {
                step.code = code.parse().with_context(at)?;
            } else if let Some(error) = line.strip_prefix("! ") {
                step.stderr.push(error.to_owned());
            } else {
                step.stdout.push(line.to_owned());
            }
        }
    }
    finish(server, name, step)
}

fn finish(server: &Server, name: &str, step: Option<Step>) -> Result<()> {
    let Some(step) = step else { return Ok(()) };
    let what = format!("{name}:{}: kubectl {}", step.line, step.command);
    if step.patient {
        wait_until(&what, Duration::from_secs(30), || step.run(server)).context(what)
    } else {
        step.run(server).context(what)
    }
}

impl Step {
    fn run(&self, server: &Server) -> Result<()> {
        let mut words = split(&self.command)?;
        let first = words
            .iter()
            .position(|word| !word.split_once('=').is_some_and(|(name, _)| is_variable(name)))
            .unwrap_or(words.len());
        let arguments = words.split_off(first);
        let variables: Vec<(&str, &str)> = words.iter().filter_map(|word| word.split_once('=')).collect();
        let output: Output = server.kubectl_at_home(&variables, &arguments)?;
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let came = format!("exit {:?}\n{stdout}{stderr}", output.status.code());
        ensure!(output.status.code() == Some(self.code), "{came}");
        for (expected, text) in [(&self.stdout, &stdout), (&self.stderr, &stderr)] {
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            let expected: Vec<&str> = expected
                .iter()
                .map(String::as_str)
                .filter(|line| !line.trim().is_empty())
                .collect();
            if !all_match(&expected, &lines) {
                bail!("expected:\n{}\n\ncame: {came}", expected.join("\n"));
            }
        }
        Ok(())
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// Takes a command line apart as a shell does, as far as quotes go.
fn split(line: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (None, ' ') => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (_, c) => word.push(c),
        }
    }
    ensure!(quote.is_none(), "an open quote in {line}");
    if any || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

fn all_match(expected: &[&str], lines: &[&str]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((&"...", rest)) => (0..=lines.len()).any(|skipped| all_match(rest, &lines[skipped..])),
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, lines)| line_matches(first, line) && all_match(rest, lines)),
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let mut words = line.split_whitespace();
    for pattern in expected.split_whitespace() {
        if pattern == "<..>" {
            return true;
        }
        if !words.next().is_some_and(|word| word_matches(pattern, word)) {
            return false;
        }
    }
    words.next().is_none()
}

fn word_matches(pattern: &str, word: &str) -> bool {
    if let Some((before, after)) = pattern.split_once("<*>") {
        return word.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter(|at| rest.is_char_boundary(*at))
                .any(|at| word_matches(after, &rest[at..]))
        });
    }
    if let Some((before, after)) = pattern.split_once("<age>") {
        let rest = word
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after));
        return rest.is_some_and(|age| {
            age.starts_with(|c: char| c.is_ascii_digit())
                && age.chars().all(|c| c.is_ascii_digit() || "smhd".contains(c))
        });
    }
    pattern == word
}

#[test]
fn the_notation_means_what_it_says() -> Result<()> {
    assert_eq!(split("get cm 'a b' \"\" -o=x")?, ["get", "cm", "a b", "", "-o=x"]);
    assert!(line_matches("web-<*>-<*>  1/1  <age>", "web-5d-x2   1/1 3m2s"));
    assert!(!line_matches("web <age>", "web soon") && !line_matches("web", "web 1s"));
    assert!(line_matches("Age: <..>", "Age: a b") && line_matches("(<age>)", "(5s)"));
    assert!(all_match(&["a", "...", "c"], &["a", "b", "b", "c"]));
    assert!(!all_match(&["a", "...", "c"], &["a", "b"]));
    Ok(())
}

macro_rules! transcripts {
    ($($name:ident: $start:ident,)+) => {
        $(#[test]
        fn $name() -> Result<()> {
            let server = Server::$start()?;
            let text = include_str!(concat!("transcripts/", stringify!($name), ".txt"));
            play(&server, stringify!($name), text)
        })+
    };
}

// The names of the conformance tests that they are the equal of begin with `kubectl_client_`.
transcripts! {
    objects: api_only,
    create_and_run: api_only,
    apply_and_diff: api_only,
    set_and_edit: api_only,
    errors: api_only,
    nodes: complete,
    rollouts: complete,
    waiting: complete,
    discovery: api_only,
    services: api_only,
}
