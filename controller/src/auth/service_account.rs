//! Tokens of service accounts: what they claim, and whether what they claim still holds.

pub mod keys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{AUTHENTICATED, Identity};
use crate::resources;
use crate::store::Store;
use keys::TokenKeys;

/// Who issues bound tokens, and whom they are for unless they say otherwise.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Who issues the tokens that are kept in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The type of the Secrets that hold such tokens.
pub(crate) const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// Names the account that such a Secret is for.
pub(crate) const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";
/// Names the account's uid, as the controller found it.
pub(crate) const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";
/// How long the tokens of an object outlive the moment at which it was to be gone.
const GRACE_SECONDS: i64 = 60;
/// How much clocks of several servers may differ.
const CLOCK_SKEW_SECONDS: i64 = 60;
/// Tokens whose signature was found right. Checking one costs a tenth of a millisecond, and clients use theirs for an hour.
const REMEMBERED: usize = 4096;

/// What a bound token is to say.
#[derive(Clone, Debug)]
pub(crate) struct Claims<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) account: &'a Value,
    pub(crate) audiences: &'a [String],
    pub(crate) issued: Timestamp,
    pub(crate) expires: i64,
    /// When its holder should have fetched another one, for those who keep it longer than they should.
    pub(crate) warn_after: Option<i64>,
    /// Objects that the token dies with or is told about: `pod`, `secret`, `node`.
    pub(crate) bound: Vec<(&'static str, &'a Value)>,
}

impl Claims<'_> {
    pub(crate) fn to_value(&self) -> Value {
        let reference =
            |object: &Value| json!({"name": object["metadata"]["name"], "uid": object["metadata"]["uid"]});
        let mut private = json!({"namespace": self.namespace, "serviceaccount": reference(self.account)});
        for (kind, object) in &self.bound {
            private[*kind] = reference(object);
        }
        if let Some(warn_after) = self.warn_after {
            private["warnafter"] = json!(warn_after);
        }
        let name = self.account["metadata"]["name"].as_str().unwrap_or_default();
        let issued = self.issued.as_second();
        json!({
            "iss": ISSUER, "aud": self.audiences, "sub": subject(self.namespace, name),
            "iat": issued, "nbf": issued, "exp": self.expires, "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": private,
        })
    }
}

fn subject(namespace: &str, name: &str) -> String {
    format!("{}{namespace}:{name}", super::SERVICE_ACCOUNT_USER)
}

/// What the token of a Secret says: it does not expire, and dies with the Secret.
pub(crate) fn legacy_claims(namespace: &str, secret: &str, account: &str, uid: &str) -> Value {
    json!({
        "iss": LEGACY_ISSUER, "sub": subject(namespace, account),
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": secret,
        "kubernetes.io/serviceaccount/service-account.name": account,
        "kubernetes.io/serviceaccount/service-account.uid": uid,
    })
}

/// Someone who showed a token that is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) identity: Identity,
    /// Which of the audiences that were asked about the token is for.
    pub(crate) audiences: Vec<String>,
}

/// Why a token is not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It is none of ours, or forged.
    #[error("invalid bearer token")]
    Unknown,
    /// Its time is over.
    #[error("service account token has expired")]
    Expired,
    /// Its time has not come.
    #[error("service account token is issued in the future")]
    Early,
    /// It is for others.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// What it is bound to is not there any more.
    #[error("service account token has been invalidated")]
    Invalidated,
}

/// Judges the tokens of service accounts.
pub(crate) struct Verifier {
    store: Arc<dyn Store>,
    keys: Arc<TokenKeys>,
    remembered: Mutex<HashMap<[u8; 32], Arc<Value>>>,
}

impl Verifier {
    pub(crate) fn new(store: Arc<dyn Store>, keys: Arc<TokenKeys>) -> Self {
        Self {
            store,
            keys,
            remembered: Mutex::default(),
        }
    }

    /// Who holds a token that is for one of `audiences`.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Holder, TokenError> {
        let claims = self.claims(token).ok_or(TokenError::Unknown)?;
        if claims["iss"] == LEGACY_ISSUER {
            let for_us = audiences.iter().any(|audience| audience == ISSUER);
            let none = || TokenError::Audience(Vec::new(), audiences.to_vec());
            let identity = self.legacy(&claims, token)?;
            return for_us
                .then(|| Holder {
                    identity,
                    audiences: vec![ISSUER.to_owned()],
                })
                .ok_or_else(none);
        }
        if claims["iss"] != ISSUER {
            return Err(TokenError::Unknown);
        }
        let time = |key: &str| claims[key].as_i64().ok_or(TokenError::Unknown);
        if time("exp")? <= now.as_second() {
            return Err(TokenError::Expired);
        }
        if time("nbf")? > now.as_second() + CLOCK_SKEW_SECONDS {
            return Err(TokenError::Early);
        }
        let given: Vec<String> = claims["aud"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|audience| audience.as_str().map(str::to_owned))
            .collect();
        let common: Vec<String> = audiences
            .iter()
            .filter(|audience| given.contains(audience))
            .cloned()
            .collect();
        if common.is_empty() {
            return Err(TokenError::Audience(given, audiences.to_vec()));
        }
        Ok(Holder {
            identity: self.bound(&claims, now)?,
            audiences: common,
        })
    }

    /// The claims of a token that one of our keys has signed.
    fn claims(&self, token: &str) -> Option<Arc<Value>> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let lock = || self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = lock().get(&digest) {
            return Some(Arc::clone(claims));
        }
        let claims = Arc::new(self.keys.verify(token)?);
        let mut remembered = lock();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(digest, Arc::clone(&claims));
        Some(claims)
    }

    /// The identity in a bound token whose account and objects are all still there.
    fn bound(&self, claims: &Value, now: Timestamp) -> Result<Identity, TokenError> {
        let private = &claims["kubernetes.io"];
        let namespace = text(&private["namespace"]);
        let lives = |plural: &str, reference: &Value| {
            let object = self.find(plural, namespace, text(&reference["name"]));
            object
                .is_some_and(|object| object["metadata"]["uid"] == reference["uid"] && !is_over(&object, now))
        };
        let (account, pod, secret, node) = (
            &private["serviceaccount"],
            &private["pod"],
            &private["secret"],
            &private["node"],
        );
        let name = text(&account["name"]);
        if name.is_empty() || claims["sub"] != subject(namespace, name) {
            return Err(TokenError::Unknown);
        }
        // The node of a pod's token is told for information; the pod is what it is bound to.
        let alive = lives("serviceaccounts", account)
            && (pod.is_null() || lives("pods", pod))
            && (secret.is_null() || lives("secrets", secret))
            && (node.is_null() || !pod.is_null() || lives("nodes", node));
        if !alive {
            return Err(TokenError::Invalidated);
        }
        let mut identity = Identity::service_account(namespace, name, text(&account["uid"]));
        let mut extra = |key: &str, value: &Value| {
            if let Some(value) = value.as_str() {
                let key = format!("authentication.kubernetes.io/{key}");
                identity.extra.insert(key, vec![value.to_owned()]);
            }
        };
        extra("pod-name", &pod["name"]);
        extra("pod-uid", &pod["uid"]);
        extra("node-name", &node["name"]);
        extra("node-uid", &node["uid"]);
        if let Some(id) = claims["jti"].as_str() {
            extra("credential-id", &json!(format!("JTI={id}")));
        }
        Ok(identity)
    }

    /// The identity in the token of a Secret that still holds it.
    fn legacy(&self, claims: &Value, token: &str) -> Result<Identity, TokenError> {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        let claim = |key: &str| text(&claims[format!("kubernetes.io/serviceaccount/{key}")]);
        let (namespace, name, uid) = (
            claim("namespace"),
            claim("service-account.name"),
            claim("service-account.uid"),
        );
        let secret = self.find("secrets", namespace, claim("secret.name"));
        let account = self.find("serviceaccounts", namespace, name);
        let (Some(secret), Some(account)) = (secret, account) else {
            return Err(TokenError::Invalidated);
        };
        let gone = |object: &Value| object["metadata"]["deletionTimestamp"].is_string();
        let holds = secret["data"]["token"] == STANDARD.encode(token);
        if !holds || account["metadata"]["uid"] != uid || gone(&secret) || gone(&account) {
            return Err(TokenError::Invalidated);
        }
        Ok(Identity::service_account(namespace, name, uid))
    }

    fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let row = resources::find("", "v1", plural)?;
        let object = self.store.get(row.storage, &row.key(namespace, name))?;
        Some(object.value())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether an object was to be gone some time ago.
fn is_over(object: &Value, now: Timestamp) -> bool {
    let end = object["metadata"]["deletionTimestamp"]
        .as_str()
        .and_then(|end| end.parse::<Timestamp>().ok());
    end.is_some_and(|end| end.as_second() + GRACE_SECONDS < now.as_second())
}

/// Whether somebody is whom their token or certificate says to the API server, without a word about audiences.
pub(crate) fn for_api_server(identity: Identity, audiences: &[String]) -> Result<Holder, TokenError> {
    debug_assert!(identity.is_in(AUTHENTICATED));
    if audiences.iter().any(|audience| audience == ISSUER) {
        return Ok(Holder {
            identity,
            audiences: vec![ISSUER.to_owned()],
        });
    }
    Err(TokenError::Audience(vec![ISSUER.to_owned()], audiences.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Embedded, Encoded, Expect, Operation, Write};

    struct World {
        _directory: tempfile::TempDir,
        store: Arc<dyn Store>,
        keys: Arc<TokenKeys>,
        verifier: Verifier,
    }

    fn object(namespace: &str, name: &str, uid: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}})
    }

    fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&directory.path().join("store"), resources::index_text).unwrap());
        let keys = Arc::new(TokenKeys::open(directory.path()).unwrap());
        World {
            verifier: Verifier::new(Arc::clone(&store), Arc::clone(&keys)),
            _directory: directory,
            store,
            keys,
        }
    }

    impl World {
        fn put(&self, resource: &'static str, key: &str, object: &Value) {
            let expect = match self.store.get(resource, key) {
                Some(found) => Expect::Revision(found.revision()),
                None => Expect::Absent,
            };
            let operation = Operation::Put(Encoded::new(object, resources::index(resource, object)));
            self.write(resource, key, expect, operation);
        }

        fn delete(&self, resource: &'static str, key: &str) {
            let found = self.store.get(resource, key).unwrap();
            self.write(
                resource,
                key,
                Expect::Revision(found.revision()),
                Operation::Delete,
            );
        }

        fn write(&self, resource: &'static str, key: &str, expect: Expect, operation: Operation) {
            let write = Write {
                resource,
                key: key.to_owned(),
                expect,
                operation,
            };
            futures::executor::block_on(self.store.commit(vec![write])).unwrap();
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_token_is_good_while_its_time_its_account_and_its_pod_last() {
        let world = world();
        let (account, pod) = (object("n", "a", "1"), object("n", "p", "2"));
        world.put("serviceaccounts", "n/a", &account);
        world.put("pods", "n/p", &pod);
        let audiences = [ISSUER.to_owned(), "other".to_owned()];
        let claims = Claims {
            namespace: "n",
            account: &account,
            audiences: &audiences,
            issued: at(1000),
            expires: 4600,
            warn_after: None,
            bound: vec![("pod", &pod)],
        };
        let token = world.keys.sign(&claims.to_value()).unwrap();
        let ask = |audience: &str, now| world.verifier.verify(&token, &[audience.to_owned()], at(now));

        let holder = ask(ISSUER, 1000).unwrap();
        assert_eq!(holder.identity.user, "system:serviceaccount:n:a");
        assert!(holder.identity.is_in("system:serviceaccounts:n"));
        assert_eq!(
            holder.identity.extra["authentication.kubernetes.io/pod-uid"],
            ["2"]
        );
        assert!(ask("other", 4599).is_ok());
        assert_eq!(ask(ISSUER, 4600), Err(TokenError::Expired));
        assert_eq!(ask(ISSUER, 900), Err(TokenError::Early));
        assert!(matches!(ask("third", 1000), Err(TokenError::Audience(..))));
        for at in [10, token.len() / 2, token.len() - 5] {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            let judged = world.verifier.verify(&forged, &audiences, self::at(1000));
            assert_eq!(judged, Err(TokenError::Unknown));
        }

        // A pod of the same name is another pod.
        world.put("pods", "n/p", &object("n", "p", "3"));
        assert_eq!(ask(ISSUER, 1000), Err(TokenError::Invalidated));
        let mut going = pod.clone();
        going["metadata"]["deletionTimestamp"] = json!("1970-01-01T00:20:00Z");
        world.put("pods", "n/p", &going);
        assert!(ask(ISSUER, 1200 + GRACE_SECONDS).is_ok());
        assert_eq!(ask(ISSUER, 1201 + GRACE_SECONDS), Err(TokenError::Invalidated));
        world.put("pods", "n/p", &pod);
        assert!(ask(ISSUER, 1000).is_ok());
        world.delete("serviceaccounts", "n/a");
        assert_eq!(ask(ISSUER, 1000), Err(TokenError::Invalidated));
    }

    #[test]
    fn the_token_of_a_secret_dies_with_it() {
        use base64::Engine as _;
        let world = world();
        world.put("serviceaccounts", "n/a", &object("n", "a", "1"));
        let token = world.keys.sign(&legacy_claims("n", "s", "a", "1")).unwrap();
        let ask = || world.verifier.verify(&token, &[ISSUER.to_owned()], at(1));
        assert_eq!(ask(), Err(TokenError::Invalidated));
        let mut secret = object("n", "s", "2");
        secret["data"]["token"] = json!(base64::engine::general_purpose::STANDARD.encode(&token));
        world.put("secrets", "n/s", &secret);
        assert_eq!(ask().unwrap().identity.user, "system:serviceaccount:n:a");
        world.delete("secrets", "n/s");
        assert_eq!(ask(), Err(TokenError::Invalidated));
    }
}
