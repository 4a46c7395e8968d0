//! Fills the Secrets that hold a token of a service account, and removes them with their account.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::{Context, ControllerError, Outcome, is_conflict, is_not_found, spawn_workers};
use crate::auth::service_account::{ACCOUNT_ANNOTATION, UID_ANNOTATION, legacy_claims};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

pub(crate) fn start(context: &Arc<Context>) {
    if context.config.token_keys.is_none() {
        return;
    }
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.token_secrets.subscribe(move |change| {
        if let Some(secret) = change.new {
            keys.add(ObjectKey::of(&secret.metadata));
        }
    });
    let (keys, secrets) = (queue.clone(), Arc::downgrade(&context.token_secrets));
    context.service_accounts.subscribe(move |change| {
        let (Some(account), Some(secrets)) = (change.latest(), secrets.upgrade()) else {
            return;
        };
        let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
        for secret in secrets.in_namespace(namespace) {
            if account_of(&secret) == account.metadata.name.as_deref() {
                keys.add(ObjectKey::of(&secret.metadata));
            }
        }
    });
    let ready = {
        let (secrets, accounts) = (context.token_secrets.clone(), context.service_accounts.clone());
        async move {
            secrets.wait_synced().await;
            accounts.wait_synced().await;
        }
    };
    let shared = context.clone();
    spawn_workers(context, "serviceaccount-token", &queue, 2, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key).await }
    });
}

fn account_of(secret: &Secret) -> Option<&str> {
    let annotations = secret.metadata.annotations.as_ref()?;
    annotations.get(ACCOUNT_ANNOTATION).map(String::as_str)
}

/// What is to be done with a Secret.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Its account is gone.
    Delete,
    /// It lacks something; whether the token is what it lacks.
    Fill {
        token: bool,
    },
}

/// Decides for a Secret whose account is `account`.
fn decide(secret: &Secret, account: Option<&ServiceAccount>, authority: &str) -> Step {
    if secret.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let Some(uid) = account.and_then(|account| account.metadata.uid.as_ref()) else {
        return Step::Delete;
    };
    let noted = secret
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(UID_ANNOTATION));
    if noted.is_some_and(|noted| noted != uid) {
        // An account of the same name is another account.
        return Step::Delete;
    }
    let has = |key: &str, wanted: &[u8]| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.is_some_and(|ByteString(value)| value == wanted)
    };
    let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
    let token = secret
        .data
        .as_ref()
        .is_none_or(|data| !data.contains_key("token"));
    if token
        || noted.is_none()
        || !has("ca.crt", authority.as_bytes())
        || !has("namespace", namespace.as_bytes())
    {
        return Step::Fill { token };
    }
    Step::Nothing
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(secret) = context.token_secrets.get(key) else {
        return Ok(None);
    };
    let Some(name) = account_of(&secret) else {
        return Ok(None);
    };
    let Some(keys) = &context.config.token_keys else {
        return Ok(None);
    };
    // Asked afresh: an account made a moment ago must not cost its Secret.
    let accounts: Api<ServiceAccount> = Api::namespaced(context.client.clone(), &key.namespace);
    let account = accounts.get_opt(name).await.map_err(ControllerError::api(
        "get",
        format!("service account {}/{name}", key.namespace),
    ))?;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &key.namespace);
    let authority = &context.config.root_ca_pem;
    let (verb, written) = match decide(&secret, account.as_ref(), authority) {
        Step::Nothing => return Ok(None),
        Step::Delete => {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            ("delete", api.delete(&key.name, &params).await.map(drop))
        }
        Step::Fill { token } => {
            let uid = account
                .and_then(|account| account.metadata.uid)
                .unwrap_or_default();
            let mut patch = json!({
                "metadata": {
                    "resourceVersion": secret.metadata.resource_version,
                    "annotations": {UID_ANNOTATION: uid},
                },
                "stringData": {"ca.crt": authority, "namespace": key.namespace},
            });
            if token {
                let claims = legacy_claims(&key.namespace, &key.name, name, &uid);
                let signed = keys.sign(&claims).map_err(|error| ControllerError::Invalid {
                    what: format!("token of {key}"),
                    why: error.to_string(),
                })?;
                patch["stringData"]["token"] = Value::String(signed);
            }
            let patched = api
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            ("patch", patched.map(drop))
        }
    };
    match written {
        Ok(()) => Ok(None),
        Err(error) if is_not_found(&error) || (verb == "delete" && is_conflict(&error)) => Ok(None),
        Err(error) => Err(ControllerError::api(verb, format!("secret {key}"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let account: ServiceAccount = from_value(json!({"metadata": {"name": "a", "uid": "1"}})).unwrap();
        let mut secret: Secret = from_value(json!({
            "metadata": {"namespace": "n", "name": "s", "annotations": {ACCOUNT_ANNOTATION: "a"}},
        }))
        .unwrap();
        assert_eq!(decide(&secret, Some(&account), "CA"), Step::Fill { token: true });
        assert_eq!(decide(&secret, None, "CA"), Step::Delete);
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        secret.data = Some(
            [("token", "t"), ("ca.crt", "old"), ("namespace", "n")]
                .map(|(key, value)| (key.to_owned(), bytes(value)))
                .into(),
        );
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(UID_ANNOTATION.to_owned(), "1".to_owned());
        assert_eq!(decide(&secret, Some(&account), "CA"), Step::Fill { token: false });
        assert_eq!(decide(&secret, Some(&account), "old"), Step::Nothing);
        let another: ServiceAccount = from_value(json!({"metadata": {"name": "a", "uid": "2"}})).unwrap();
        assert_eq!(decide(&secret, Some(&another), "old"), Step::Delete);
    }
}
