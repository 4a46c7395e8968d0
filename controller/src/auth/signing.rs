//! Certificates for nodes: which requests are approved without a human, and their signing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{BOOTSTRAPPERS, Identity, NODES};
use crate::pki::{Authority, PkiError};

/// The signer of nodes' client certificates.
pub const NODE_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// How long a node's certificate is valid.
const NODE_CERTIFICATE_DAYS: u64 = 365;
/// What a node's client certificate is used for.
const USAGES: &[&str] = &["client auth", "digital signature", "key encipherment"];

/// Approves and signs a request by a machine with a join token, or by the node itself, for the certificate of a node. Anything
/// else is left for a human.
///
/// # Errors
/// If signing fails.
pub fn approve_and_sign(
    authority: &Authority,
    requestor: &Identity,
    csr: &mut Value,
    now: &str,
) -> Result<(), PkiError> {
    let Some(request) = node_request(requestor, csr) else {
        return Ok(());
    };
    let seconds = csr["spec"]["expirationSeconds"]
        .as_u64()
        .unwrap_or(NODE_CERTIFICATE_DAYS * 86_400);
    let pem = authority.sign_client(&request, seconds.min(NODE_CERTIFICATE_DAYS * 86_400))?;
    csr["status"] = json!({
        "conditions": [{
            "type": "Approved", "status": "True", "reason": "AutoApproved",
            "message": "the requestor may have this node's client certificate",
            "lastUpdateTime": now, "lastTransitionTime": now,
        }],
        "certificate": STANDARD.encode(pem),
    });
    Ok(())
}

/// The request's PEM if it is for a node's client certificate and its requestor may have it.
fn node_request(requestor: &Identity, csr: &Value) -> Option<String> {
    let spec = &csr["spec"];
    if spec["signerName"] != NODE_CLIENT_SIGNER {
        return None;
    }
    let usages = spec["usages"].as_array()?;
    let fits = usages
        .iter()
        .all(|usage| usage.as_str().is_some_and(|usage| USAGES.contains(&usage)));
    if !fits || !usages.iter().any(|usage| usage == "client auth") {
        return None;
    }
    let pem = String::from_utf8(STANDARD.decode(spec["request"].as_str()?).ok()?).ok()?;
    let (user, organizations) = crate::pki::request_subject(&pem)?;
    let is_node = user
        .strip_prefix("system:node:")
        .is_some_and(|name| !name.is_empty());
    let may = requestor.is_in(BOOTSTRAPPERS) || (requestor.node().is_some() && requestor.user == user);
    (is_node && may && organizations == [NODES]).then_some(pem)
}

/// Signs a request that a human has approved, if it is for a client's certificate.
///
/// # Errors
/// If signing fails.
pub fn sign_approved(authority: &Authority, csr: &mut Value) -> Result<(), PkiError> {
    let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
    if !matches!(signer, NODE_CLIENT_SIGNER | "kubernetes.io/kube-apiserver-client") {
        return Ok(());
    }
    let conditions = csr["status"]["conditions"].as_array();
    let has = |kind: &str| conditions.is_some_and(|list| list.iter().any(|c| c["type"] == kind));
    if !has("Approved") || has("Denied") || csr["status"]["certificate"].is_string() {
        return Ok(());
    }
    let encoded = csr["spec"]["request"].as_str().unwrap_or_default();
    let request = STANDARD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(request) = request else { return Ok(()) };
    // Nobody becomes a master by a certificate that was asked for.
    let asks_for = crate::pki::request_subject(&request).map(|(_, organizations)| organizations);
    if asks_for.is_none_or(|organizations| organizations.iter().any(|o| o == super::MASTERS)) {
        return Ok(());
    }
    let seconds = csr["spec"]["expirationSeconds"]
        .as_u64()
        .unwrap_or(NODE_CERTIFICATE_DAYS * 86_400);
    let pem = authority.sign_client(&request, seconds.min(NODE_CERTIFICATE_DAYS * 86_400))?;
    csr["status"]["certificate"] = json!(STANDARD.encode(pem));
    Ok(())
}
