//! Certificates for clients: which requests are approved without a human, and what is signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::authorizer::{Attributes, Authorizer};
use super::{Identity, MASTERS, NODES};
use crate::pki::{Authority, ClientRequest, PkiError};

/// The signer of nodes' client certificates.
pub const NODE_CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// The signer of other clients' certificates.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// How long a certificate is valid at most, and if its request does not say.
const LONGEST_SECONDS: u64 = 365 * 86_400;
/// What a client's certificate is used for; the first it must be.
const USAGES: &[&str] = &["client auth", "digital signature", "key encipherment"];

fn attributes<'a>(verb: &'a str, resource: &'a str, subresource: &'a str, name: &'a str) -> Attributes<'a> {
    Attributes {
        verb,
        group: "certificates.k8s.io",
        resource,
        subresource,
        namespace: "",
        name,
    }
}

/// Why a request must not even be made; `None` if it may.
pub fn refusal(csr: &Value) -> Option<String> {
    let asks_for_masters = || asked(csr).is_ok_and(|asked| asked.organization.as_deref() == Some(MASTERS));
    (csr["spec"]["signerName"] == CLIENT_SIGNER && asks_for_masters())
        .then(|| format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"))
}

/// Approves and signs a request for the certificate of a node by someone who may have it: a machine with a join token, or
/// the node itself. Anything else is left for a human.
///
/// # Errors
/// If signing fails.
pub fn approve_and_sign(
    authority: &Authority,
    authorizer: &Authorizer,
    requestor: &Identity,
    csr: &mut Value,
    now: &str,
) -> Result<(), PkiError> {
    if csr["spec"]["signerName"] != NODE_CLIENT_SIGNER {
        return Ok(());
    }
    let Ok(asked) = checked(csr) else { return Ok(()) };
    let own = asked.user == requestor.user;
    let may = |kind: &str| {
        let request = attributes("create", "certificatesigningrequests", kind, "");
        authorizer.decide(requestor, &request).is_allowed()
    };
    let (what, granted) = if own {
        ("self kubelet client certificate", may("selfnodeclient"))
    } else {
        ("kubelet client certificate", may("nodeclient"))
    };
    // Whoever may do everything still approves by hand: that is not what they asked for.
    if !granted || requestor.is_in(MASTERS) {
        return Ok(());
    }
    csr["status"] = json!({"conditions": [{
        "type": "Approved", "status": "True", "reason": "AutoApproved",
        "message": format!("Auto approving {what} after SubjectAccessReview."),
        "lastUpdateTime": now, "lastTransitionTime": now,
    }]});
    sign_approved(authority, csr, now)
}

/// Whether someone may approve or deny requests to a signer.
pub fn may_approve(authorizer: &Authorizer, identity: &Identity, csr: &Value) -> Result<(), String> {
    let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let all_of_domain = format!("{domain}/*");
    let may = [signer, &all_of_domain].into_iter().any(|name| {
        authorizer
            .decide(identity, &attributes("approve", "signers", "", name))
            .is_allowed()
    });
    if may {
        Ok(())
    } else {
        Err(format!(
            "user not permitted to approve requests with signerName {signer:?}"
        ))
    }
}

/// Signs a request that is approved, if it is for a client's certificate; notes what keeps it from being signed.
///
/// # Errors
/// If signing fails.
pub fn sign_approved(authority: &Authority, csr: &mut Value, now: &str) -> Result<(), PkiError> {
    let signer = csr["spec"]["signerName"].as_str().unwrap_or_default();
    if !matches!(signer, NODE_CLIENT_SIGNER | CLIENT_SIGNER) {
        return Ok(());
    }
    let conditions = csr["status"]["conditions"].as_array();
    let has = |kind: &str| conditions.is_some_and(|list| list.iter().any(|c| c["type"] == kind));
    if !has("Approved") || has("Denied") || has("Failed") || csr["status"]["certificate"].is_string() {
        return Ok(());
    }
    let request = match checked(csr) {
        Ok(request) => request,
        Err(why) => {
            if let Some(conditions) = csr["status"]["conditions"].as_array_mut() {
                conditions.push(json!({
                    "type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why,
                    "lastUpdateTime": now, "lastTransitionTime": now,
                }));
            }
            return Ok(());
        }
    };
    let seconds = csr["spec"]["expirationSeconds"]
        .as_u64()
        .unwrap_or(LONGEST_SECONDS);
    let certificate = authority.sign_client(&request, seconds.min(LONGEST_SECONDS))?;
    csr["status"]["certificate"] = json!(STANDARD.encode(certificate));
    Ok(())
}

fn asked(csr: &Value) -> Result<ClientRequest, &'static str> {
    let bytes = STANDARD.decode(csr["spec"]["request"].as_str().unwrap_or_default());
    let pem = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    ClientRequest::read(&pem.ok_or("the request is no text")?)
}

/// The request, if its signer can accept it, or why not.
fn checked(csr: &Value) -> Result<ClientRequest, String> {
    let asked = asked(csr)?;
    let usages: Vec<&str> = csr["spec"]["usages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|usage| usage.as_str().unwrap_or_default())
        .collect();
    if !usages.contains(&USAGES[0]) || usages.iter().any(|usage| !USAGES.contains(usage)) {
        return Err(format!(
            "usages did not match {USAGES:?}, of which {:?} is required",
            USAGES[0]
        ));
    }
    // Nobody becomes a master by a certificate that was asked for.
    if asked.organization.as_deref() == Some(MASTERS) {
        return Err(format!("organization {MASTERS} is not signed for"));
    }
    if csr["spec"]["signerName"] == NODE_CLIENT_SIGNER {
        let name = asked.user.strip_prefix("system:node:").unwrap_or_default();
        if name.is_empty() || asked.organization.as_deref() != Some(NODES) {
            return Err(format!(
                "subject common name does not begin with system:node: or subject organization is not {NODES}"
            ));
        }
    }
    Ok(asked)
}
