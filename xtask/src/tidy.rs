//! `cargo xtask tidy`: house rules that no other tool checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::workspace::{self, cargo, note, step};

/// Which of our crates a crate may depend on. The direction is the design: see ARCHITECTURE.md.
const DIRECTION: &[(&str, &[&str])] = &[
    ("weft-ebpf-common", &[]),
    ("weft-ebpf", &["weft-ebpf-common"]),
    ("weft-cni", &[]),
    ("weft-controller", &[]),
    ("weft-agent", &["weft-cni", "weft-controller", "weft-ebpf-common"]),
    (
        "weft-tests",
        &["weft-agent", "weft-cni", "weft-controller", "weft-ebpf-common"],
    ),
    ("xtask", &[]),
];

/// What the plugin and the layouts shared with the kernel may depend on. They are small by promise.
const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-cni", &["serde", "serde_json", "thiserror"]),
    ("weft-ebpf-common", &["aya", "zerocopy"]),
];

/// File names that say nothing about what is inside.
const VAGUE: &[&str] = &[
    "utils.rs",
    "util.rs",
    "helpers.rs",
    "helper.rs",
    "misc.rs",
    "core_utils.rs",
];

/// Checks all rules; the error lists every breach.
pub(crate) fn run() -> Result<()> {
    step("tidy: house rules");
    let mut breaches = Vec::new();
    let metadata = workspace::output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"]
        .as_array()
        .context("packages in cargo metadata")?;
    check_direction(packages, &mut breaches);
    check_sources(packages, &mut breaches)?;
    if breaches.is_empty() {
        note("ready: no breach");
        return Ok(());
    }
    for breach in &breaches {
        note(breach);
    }
    bail!("{} breaches of the house rules", breaches.len());
}

fn check_direction(packages: &[Value], breaches: &mut Vec<String>) {
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = DIRECTION.iter().find(|(known, _)| *known == name) else {
            breaches.push(format!(
                "{name}: a member that xtask/src/tidy.rs has no dependency rule for"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let is_dev = dependency["kind"] == "dev";
            if ours.contains(on) && !allowed.contains(&on) {
                breaches.push(format!(
                    "{name} depends on {on}, against the direction of dependencies"
                ));
            }
            let list = ALLOWED
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, list)| *list);
            if !is_dev && !ours.contains(on) && list.is_some_and(|list| !list.contains(&on)) {
                breaches.push(format!("{name} depends on {on}, which is not on its allow-list"));
            }
        }
    }
}

fn check_sources(packages: &[Value], breaches: &mut Vec<String>) -> Result<()> {
    let root = workspace::root();
    for package in packages {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let dir = manifest.parent().context("a manifest has a directory")?;
        let mut reached = BTreeSet::new();
        for target in package["targets"].as_array().into_iter().flatten() {
            let source = PathBuf::from(target["src_path"].as_str().unwrap_or_default());
            reach(&source, true, &mut reached);
        }
        let mut files = Vec::new();
        for sub in ["src", "tests", "benches", "examples"] {
            collect(&dir.join(sub), &mut files);
        }
        files.extend(Some(dir.join("build.rs")).filter(|path| path.is_file()));
        for file in files {
            let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
            if !reached.contains(&file) {
                breaches.push(format!("{shown}: in no module tree, so it is never compiled"));
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if VAGUE.contains(&name.as_ref()) {
                breaches.push(format!("{shown}: name the concept"));
            }
            check_text(&shown, &fs::read_to_string(&file)?, breaches);
        }
    }
    Ok(())
}

fn check_text(shown: &str, text: &str, breaches: &mut Vec<String>) {
    // A module of tests is described by the module that it tests.
    let is_test_module = shown.ends_with("/tests.rs") || shown.starts_with("tests/tests/");
    let header = text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !is_test_module && !header.is_some_and(|line| line.starts_with("//!")) {
        breaches.push(format!("{shown}: begins with no `//!` that says what it is"));
    }
    for (number, line) in text.lines().enumerate() {
        for word in ["TODO", "FIXME", "XXX"] {
            // A mark with a reference, such as one in parentheses, says where it is tracked.
            let is_mark = line
                .split_once("//")
                .is_some_and(|(_, comment)| comment.trim_start_matches(['/', '!', ' ']).starts_with(word));
            if is_mark && !line.contains(&format!("{word}(")) {
                breaches.push(format!("{shown}:{}: a bare {word}", number + 1));
            }
        }
    }
}

/// Follows `mod name;` from a file to the files it names.
fn reach(file: &Path, is_root: bool, reached: &mut BTreeSet<PathBuf>) {
    let Ok(text) = fs::read_to_string(file) else {
        return;
    };
    if !reached.insert(file.to_owned()) {
        return;
    }
    let parent = file.parent().unwrap_or(Path::new(""));
    let dir = if is_root {
        parent.to_owned()
    } else {
        file.with_extension("")
    };
    let mut path_attribute = None;
    for line in text.lines().map(str::trim) {
        if let Some(path) = line
            .strip_prefix("#[path = \"")
            .and_then(|rest| rest.strip_suffix("\"]"))
        {
            path_attribute = Some(parent.join(path));
        }
        let Some(name) = module_name(line) else { continue };
        let target = path_attribute
            .take()
            .unwrap_or_else(|| dir.join(format!("{name}.rs")));
        reach(&target, false, reached);
    }
}

/// The name in `mod name;` with any visibility before it.
fn module_name(line: &str) -> Option<&str> {
    let statement = line.strip_suffix(';')?;
    let (before, name) = statement.rsplit_once("mod ").unwrap_or(("?", ""));
    let visible = before.is_empty() || before.trim_end() == "pub" || before.trim_end().starts_with("pub(");
    (visible && !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then_some(name)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_declarations_are_recognised() {
        assert_eq!(module_name("mod name;"), Some("name"));
        assert_eq!(module_name("pub(crate) mod name;"), Some("name"));
        assert_eq!(module_name("mod name {"), None);
        assert_eq!(module_name("use a::mod_name;"), None);
    }

    #[test]
    fn a_bare_mark_is_a_breach_and_one_with_a_reference_is_not() {
        let mut breaches = Vec::new();
        check_text(
            "f.rs",
            "//! A file.\n// TODO: this\n// TODO(12): that\nlet s = \"TODO\";\n",
            &mut breaches,
        );
        assert_eq!(breaches, ["f.rs:2: a bare TODO"]);
    }
}
