//! `certificates.k8s.io`: certificate signing requests.

use serde_json::{Value, json};

use super::Subresource::{Approval, Status};
use super::{NAME, Resource, field, printing, row, text, validation};

pub(super) static RESOURCES: &[Resource] = &[Resource {
    short_names: &["csr"],
    namespaced: false,
    subresources: &[Approval, Status],
    fields: &[field("spec.signerName")],
    columns: &[
        NAME,
        text("Age"),
        text("SignerName"),
        text("Requestor"),
        text("RequestedDuration"),
        text("Condition"),
    ],
    cells: |csr, now| {
        let spec = &csr["spec"];
        let duration = spec["expirationSeconds"]
            .as_i64()
            .map_or_else(|| "<none>".to_owned(), printing::duration);
        vec![
            csr["metadata"]["name"].clone(),
            printing::age(csr, now),
            spec["signerName"].clone(),
            spec["username"].clone(),
            duration.into(),
            condition(csr).into(),
        ]
    },
    validate: |csr, old, problems| {
        for key in ["request", "signerName"] {
            if csr["spec"][key].as_str().unwrap_or_default().is_empty() {
                problems.required(&format!("spec.{key}"), "");
            }
        }
        if csr["spec"]["usages"].as_array().is_none_or(Vec::is_empty) {
            problems.required("spec.usages", "");
        }
        if csr["spec"]["expirationSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds < 600)
        {
            let value = &csr["spec"]["expirationSeconds"];
            problems.invalid(
                "spec.expirationSeconds",
                value,
                "may not specify a duration less than 600 seconds",
            );
        }
        validation::immutable(csr, old, "spec", problems);
    },
    ..row(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        ("certificatesigningrequests", "certificatesigningrequest"),
        "certificates.k8s.io/certificatesigningrequests",
    )
}];

fn condition(csr: &Value) -> String {
    let status = &csr["status"];
    let has = |kind: &str| {
        let conditions = status["conditions"].as_array();
        conditions.is_some_and(|list| list.iter().any(|condition| condition["type"] == json!(kind)))
    };
    let mut text = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if status["certificate"]
        .as_str()
        .is_some_and(|certificate| !certificate.is_empty())
    {
        text.push_str(",Issued");
    }
    text
}
