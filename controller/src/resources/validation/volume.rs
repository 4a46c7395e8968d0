//! The volumes of pods.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Problems, is_set, items, name_in, supported, text};

/// Checks the volumes; returns their names.
pub(super) fn volumes<'a>(list: &'a Value, at: &str, problems: &mut Problems) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (field, volume) in items(list, at) {
        name_in(&volume["name"], &format!("{field}.name"), &mut names, problems);
        let sources = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null());
        let sources: Vec<_> = sources.collect();
        let [(kind, source), others @ ..] = &sources[..] else {
            problems.required(&field, "must specify a volume type");
            continue;
        };
        for (kind, _) in others {
            problems.forbidden(
                &format!("{field}.{kind}"),
                "may not specify more than 1 volume type",
            );
        }
        check_source(kind, source, &format!("{field}.{kind}"), problems);
    }
    names
}

fn check_source(kind: &str, source: &Value, at: &str, problems: &mut Problems) {
    let needed = match kind {
        "secret" => Some("secretName"),
        "configMap" => Some("name"),
        "hostPath" | "nfs" => Some("path"),
        "persistentVolumeClaim" => Some("claimName"),
        "csi" => Some("driver"),
        _ => None,
    };
    if let Some(needed) = needed
        && !is_set(&source[needed])
    {
        problems.required(&format!("{at}.{needed}"), "");
    }
    if let Some(mode) = source["defaultMode"].as_i64()
        && !(0..=0o777).contains(&mode)
    {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        problems.invalid(&format!("{at}.defaultMode"), &json!(mode), detail);
    }
    if kind == "hostPath" {
        if text(&source["path"]).split('/').any(|part| part == "..") {
            problems.invalid(&format!("{at}.path"), &source["path"], "must not contain '..'");
        }
        let types = [
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ];
        supported(source, at, "type", &types, problems);
    }
    for (field, item) in items(&source["items"], &format!("{at}.items")) {
        for key in ["key", "path"] {
            if !is_set(&item[key]) && (key == "path" || matches!(kind, "secret" | "configMap")) {
                problems.required(&format!("{field}.{key}"), "");
            }
        }
        relative_path(&item["path"], &format!("{field}.path"), problems);
    }
}

/// A path below a volume's root.
pub(super) fn relative_path(path: &Value, field: &str, problems: &mut Problems) {
    if text(path).starts_with('/') {
        problems.invalid(field, path, "must be a relative path");
    }
    if text(path).split('/').any(|part| part == "..") {
        problems.invalid(field, path, "must not contain '..'");
    }
}
