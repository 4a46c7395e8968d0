//! Bearer tokens: bootstrap tokens, kept as Secrets in `kube-system` as Kubernetes does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{BOOTSTRAPPERS, Identity};
use crate::store::Store;

/// The identity a bearer token stands for; `None` if it is not valid.
pub(crate) fn authenticate(store: &dyn Store, token: &str, now: Timestamp) -> Option<Identity> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
        return None;
    }
    let object = store
        .get("secrets", &format!("kube-system/bootstrap-token-{id}"))?
        .value();
    if object["type"] != "bootstrap.kubernetes.io/token"
        || object["metadata"]["deletionTimestamp"].is_string()
    {
        return None;
    }
    let data = |key: &str| data(&object, key);
    if data("token-id")? != id
        || !same(data("token-secret")?.as_bytes(), secret.as_bytes())
        || data("usage-bootstrap-authentication").as_deref() != Some("true")
    {
        return None;
    }
    if is_over(&object, now) {
        return None;
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',') {
        if group.starts_with("system:bootstrappers:") {
            groups.push(group.to_owned());
        }
    }
    Some(Identity::known(format!("system:bootstrap:{id}"), groups))
}

/// Whether a token's Secret says that its time is over.
pub(crate) fn is_over(secret: &Value, now: Timestamp) -> bool {
    data(secret, "expiration").is_some_and(|expiration| {
        // A time that nobody can read is no promise.
        expiration.parse::<Timestamp>().map_or(true, |end| end <= now)
    })
}

fn data(secret: &Value, key: &str) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// Compares without telling by its duration how much is equal.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
