//! What a namespace may use, and what a pod in it may ask for.

use serde_json::Value;

use crate::resources::Subresource::Status;
use crate::resources::{NAME, Resource, printing, row, text, validation};

pub(super) const RESOURCE_QUOTA: Resource = Resource {
    short_names: &["quota"],
    subresources: &[Status],
    columns: &[NAME, text("Request"), text("Limit"), text("Age")],
    cells: |quota, now| {
        let status = &quota["status"];
        let used = |limits: bool| {
            let hard = status["hard"].as_object().into_iter().flatten();
            let texts: Vec<_> = hard
                .filter(|(name, _)| name.starts_with("limits.") == limits)
                .map(|(name, hard)| {
                    let used = status["used"][name].as_str().unwrap_or("0");
                    format!("{name}: {used}/{}", hard.as_str().unwrap_or("0"))
                })
                .collect();
            Value::from(texts.join(", "))
        };
        vec![
            quota["metadata"]["name"].clone(),
            used(false),
            used(true),
            printing::age(quota, now),
        ]
    },
    validate: validation::quota::quota,
    ..row(
        "",
        "v1",
        "ResourceQuota",
        ("resourcequotas", "resourcequota"),
        "resourcequotas",
    )
};

pub(super) const LIMIT_RANGE: Resource = Resource {
    short_names: &["limits"],
    validate: validation::quota::limit_range,
    ..row(
        "",
        "v1",
        "LimitRange",
        ("limitranges", "limitrange"),
        "limitranges",
    )
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotas_print_as_kubectl_shows_them() {
        let quota = json!({
            "metadata": {"name": "q", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "status": {"hard": {"pods": "4", "limits.cpu": "2", "cpu": "1"}, "used": {"pods": "3", "limits.cpu": "500m"}},
        });
        assert_eq!(
            (RESOURCE_QUOTA.cells)(&quota, "2025-01-01T00:00:05Z".parse().unwrap()),
            ["q", "cpu: 0/1, pods: 3/4", "limits.cpu: 500m/2", "5s"]
        );
    }
}
