//! What the query of a request may ask for, in the words of a Kubernetes server.

use super::Call;
use super::negotiate::content_type;
use super::patch;
use super::request::{Query, Verb};
use super::status::ApiError;
use crate::resources::{Problem, Problems, Reason};

/// Longest name of a field manager.
const MAX_MANAGER: usize = 128;

/// Refuses options that a request cannot have.
pub(super) fn check(call: &Call) -> Result<(), ApiError> {
    let patch_type = content_type(&call.headers);
    check_query(call.verb, &call.query, patch_type)
}

fn check_query(verb: Verb, query: &Query, patch_type: &str) -> Result<(), ApiError> {
    let mut problems = Problems::default();
    let kind = match verb {
        Verb::Get => return Ok(()),
        Verb::List | Verb::DeleteCollection => {
            list(query, &mut problems);
            "ListOptions"
        }
        Verb::Watch => {
            watch(query, &mut problems);
            "ListOptions"
        }
        Verb::Create => {
            write(query, &mut problems);
            "CreateOptions"
        }
        Verb::Update => {
            write(query, &mut problems);
            "UpdateOptions"
        }
        Verb::Patch => {
            write(query, &mut problems);
            let is_apply = patch_type == patch::APPLY;
            if is_apply && query.get("fieldManager").is_none() {
                problems.required("fieldManager", "is required for apply patch");
            }
            if !is_apply && query.get("force").is_some() {
                problems.forbidden("force", "may not be specified for non-apply patch");
            }
            "PatchOptions"
        }
        Verb::Delete => {
            dry_run(query, &mut problems);
            "DeleteOptions"
        }
    };
    if problems.0.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid_options(kind, &problems))
    }
}

fn dry_run(query: &Query, problems: &mut Problems) {
    if let Some(value) = query.get("dryRun").filter(|value| *value != "All") {
        problems.not_supported("dryRun", &value.into(), &["All"]);
    }
}

fn write(query: &Query, problems: &mut Problems) {
    if let Some(manager) = query.get("fieldManager") {
        if manager.len() > MAX_MANAGER {
            problems.0.push(Problem {
                reason: Reason::TooLong,
                field: "fieldManager".to_owned(),
                message: format!("Too long: may not be more than {MAX_MANAGER} bytes"),
            });
        }
        if manager.chars().any(char::is_control) {
            problems.invalid(
                "fieldManager",
                &manager.into(),
                "should only contain printable characters",
            );
        }
    }
    dry_run(query, problems);
    if let Some(value) = query.get("fieldValidation")
        && !matches!(value, "Ignore" | "Warn" | "Strict")
    {
        let known = ["", "Ignore", "Strict", "Warn"];
        problems.not_supported("fieldValidation", &value.into(), &known);
    }
}

fn list(query: &Query, problems: &mut Problems) {
    if let Some(rule) = query.get("resourceVersionMatch") {
        let version = query.get("resourceVersion");
        if version.is_none() {
            problems.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        if query.get("continue").is_some() {
            problems.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }
        if !matches!(rule, "Exact" | "NotOlderThan") {
            let known = ["", "Exact", "NotOlderThan"];
            problems.not_supported("resourceVersionMatch", &rule.into(), &known);
        }
        if rule == "Exact" && version == Some("0") {
            problems.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
    }
    if query.get("sendInitialEvents").is_some() {
        problems.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
}

fn watch(query: &Query, problems: &mut Problems) {
    let rule = query.get("resourceVersionMatch");
    let initial = query.get("sendInitialEvents");
    if initial.is_some() && rule != Some("NotOlderThan") {
        problems.forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if let Some(rule) = rule {
        if initial.is_none() {
            problems.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if rule != "NotOlderThan" {
            problems.not_supported("resourceVersionMatch", &rule.into(), &["NotOlderThan"]);
        }
        if query.get("continue").is_some() {
            problems.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }
    }
    if query.flag("sendInitialEvents") && !query.flag("allowWatchBookmarks") {
        problems.forbidden(
            "sendInitialEvents",
            "sendInitialEvents requires allowWatchBookmarks",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_refused_by_name() {
        let told = |verb, query: &str, patch_type: &str| {
            let query = Query::parse(query).unwrap();
            match check_query(verb, &query, patch_type) {
                Ok(()) => String::new(),
                Err(error) => {
                    assert_eq!((error.code, error.reason), (422, "Invalid"));
                    error.message
                }
            }
        };
        for (verb, query, patch_type, message) in [
            (
                Verb::Create,
                "dryRun=All&fieldValidation=Strict&fieldManager=a",
                "",
                "",
            ),
            (Verb::Patch, "fieldManager=a&force=true", patch::APPLY, ""),
            (
                Verb::List,
                "resourceVersion=1&resourceVersionMatch=Exact&limit=5",
                "",
                "",
            ),
            (
                Verb::Watch,
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
                "",
                "",
            ),
            (
                Verb::Create,
                "dryRun=Some",
                "",
                "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"",
            ),
            (
                Verb::Update,
                "fieldValidation=No",
                "",
                "UpdateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"No\": supported values: \
                 \"\", \"Ignore\", \"Strict\", \"Warn\"",
            ),
            (
                Verb::Patch,
                "",
                patch::APPLY,
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ),
            (
                Verb::Patch,
                "force=true",
                "application/merge-patch+json",
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
            ),
            (
                Verb::Create,
                &format!("fieldManager={}", "x".repeat(129)),
                "",
                "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Too long: may not be more than 128 bytes",
            ),
            (
                Verb::List,
                "resourceVersionMatch=Exact",
                "",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
                 forbidden unless resourceVersion is provided",
            ),
            (
                Verb::List,
                "resourceVersion=0&resourceVersionMatch=Exact&sendInitialEvents=true",
                "",
                "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch \
                 \"exact\" is forbidden for resourceVersion \"0\", sendInitialEvents: Forbidden: sendInitialEvents is \
                 forbidden for list]",
            ),
            (
                Verb::Watch,
                "resourceVersionMatch=NotOlderThan",
                "",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is \
                 forbidden for watch unless sendInitialEvents is provided",
            ),
            (
                Verb::Watch,
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
                "",
                "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents requires \
                 allowWatchBookmarks",
            ),
        ] {
            assert_eq!(told(verb, query, patch_type), message, "{query}");
        }
    }
}
