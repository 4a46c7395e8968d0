//! Volumes put together from several sources: keys of objects, the pod's own fields, and tokens of its service account,
//! which are fetched anew before they expire.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{DownwardAPIVolumeFile, Pod, ProjectedVolumeSource, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use rand::RngExt as _;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    environment::{Addresses, Sources, field_value},
    volumes::{self, Content, VolumeError},
    worker::API_DEADLINE,
};
use crate::telemetry::chain;

/// How long a token lives whose source does not say.
const DEFAULT_SECONDS: i64 = 3600;
/// A token is fetched anew when this part of its life is over, in hundredths, or after a day.
const RENEW_AT: u32 = 80;
const RENEW_AFTER: Duration = Duration::from_hours(24);
/// Pause after a token could not be had: the shortest and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));
/// The longest sleep between two looks at the tokens: clocks jump, and files of a later container appear.
const LOOK: Duration = Duration::from_mins(1);

/// A token that a pod's volume holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    /// The volume.
    pub volume: String,
    /// Where in it.
    pub path: String,
    /// Whom it is for; `None`: the API server.
    pub audience: Option<String>,
    /// How long it lives.
    pub seconds: i64,
}

impl TokenSource {
    fn file(&self, dir: &Path) -> PathBuf {
        volumes::directory_of(dir, &self.volume).join(&self.path)
    }

    /// How long after its making a token is fetched anew.
    fn renewal(&self) -> Duration {
        let life = Duration::from_secs(u64::try_from(self.seconds).unwrap_or_default());
        (life * RENEW_AT / 100).min(RENEW_AFTER)
    }

    /// How long the token in the pod's directory is still good to be used; `None` if there is none.
    fn left(&self, dir: &Path, now: SystemTime) -> Option<Duration> {
        let made = fs::metadata(self.file(dir))
            .and_then(|file| file.modified())
            .ok()?;
        let age = now.duration_since(made).unwrap_or_default();
        Some(self.renewal().saturating_sub(age))
    }
}

/// The tokens of a pod's volumes.
pub fn tokens(pod: &Pod) -> Vec<TokenSource> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| Some((&volume.name, volume.projected.as_ref()?)));
    projected
        .flat_map(|(volume, projected)| {
            let sources = projected.sources.iter().flatten();
            sources.filter_map(|source| {
                let token = source.service_account_token.as_ref()?;
                Some(TokenSource {
                    volume: volume.clone(),
                    path: token.path.clone(),
                    audience: token.audience.clone().filter(|audience| !audience.is_empty()),
                    seconds: token.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
                })
            })
        })
        .collect()
}

/// Whether a token was fetched before and need not be fetched anew.
pub(super) fn is_kept(dir: &Path, source: &TokenSource) -> bool {
    source
        .left(dir, SystemTime::now())
        .is_some_and(|left| !left.is_zero())
}

/// Asks for a token that is bound to the pod.
pub(super) async fn fetch(client: &Client, pod: &Pod, source: &TokenSource) -> Result<String, kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: source.audience.iter().cloned().collect(),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(source.seconds),
        },
        ..TokenRequest::default()
    };
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let answer = api
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.map(|status| status.token).unwrap_or_default())
}

/// Fills a projected volume's directory.
pub(super) fn write(
    own: &Path,
    pod: &Pod,
    volume: &str,
    projected: &ProjectedVolumeSource,
    sources: &Sources,
) -> Result<(), VolumeError> {
    let mode = projected.default_mode;
    for source in projected.sources.iter().flatten() {
        if let Some(map) = &source.config_map {
            let content = Content {
                what: "config map",
                object: &map.name,
                optional: map.optional == Some(true),
                items: map.items.as_deref(),
                mode,
            };
            content.write(own, volume, &sources.config_maps)?;
        } else if let Some(secret) = &source.secret {
            let content = Content {
                what: "secret",
                object: &secret.name,
                optional: secret.optional == Some(true),
                items: secret.items.as_deref(),
                mode,
            };
            content.write(own, volume, &sources.secrets)?;
        } else if let Some(downward) = &source.downward_api {
            write_fields(own, pod, volume, downward.items.iter().flatten(), mode)?;
        } else if let Some(token) = &source.service_account_token {
            let key = (volume.to_owned(), token.path.clone());
            // A file's time says how old its token is: one that is kept stays as it is.
            if let Some(text) = sources.tokens.get(&key) {
                volumes::file(volume, own, &token.path, text.as_bytes(), mode)?;
            }
        } else {
            return Err(VolumeError::NotOffered(volume.to_owned()));
        }
    }
    Ok(())
}

/// Writes fields of the pod as files.
pub(super) fn write_fields<'a>(
    own: &Path,
    pod: &Pod,
    volume: &str,
    items: impl Iterator<Item = &'a DownwardAPIVolumeFile>,
    mode: Option<i32>,
) -> Result<(), VolumeError> {
    for item in items {
        let unknown = |field: &str| VolumeError::Field {
            volume: volume.to_owned(),
            field: field.to_owned(),
        };
        let field = item
            .field_ref
            .as_ref()
            .ok_or_else(|| unknown(&format!("{} (resourceFieldRef)", item.path)))?;
        let all = |map: &Option<std::collections::BTreeMap<String, String>>| {
            let lines = map
                .iter()
                .flatten()
                .map(|(key, value)| format!("{key}={value:?}"));
            lines.collect::<Vec<_>>().join("\n")
        };
        let text = match field.field_path.as_str() {
            "metadata.labels" => all(&pod.metadata.labels),
            "metadata.annotations" => all(&pod.metadata.annotations),
            path => field_value(pod, &item.path, field, &Addresses::default()).map_err(|_| unknown(path))?,
        };
        volumes::file(volume, own, &item.path, text.as_bytes(), item.mode.or(mode))?;
    }
    Ok(())
}

/// Keeps the tokens in a pod's volumes fresh for as long as it is not dropped.
pub(super) struct TokenKeeper(JoinHandle<()>);

impl Drop for TokenKeeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl TokenKeeper {
    /// Starts to look after the tokens; `None` if the pod has none.
    pub(super) fn start(client: Client, dir: PathBuf, pod: Arc<Pod>) -> Option<Self> {
        let tokens = tokens(&pod);
        (!tokens.is_empty()).then(|| Self(tokio::spawn(keep(client, dir, pod, tokens))))
    }
}

async fn keep(client: Client, dir: PathBuf, pod: Arc<Pod>, tokens: Vec<TokenSource>) {
    let mut retry = RETRY.0;
    loop {
        let mut wait = LOOK;
        for token in &tokens {
            // What no container has mounted yet is fetched with the first one that does.
            let Some(left) = token.left(&dir, SystemTime::now()) else {
                continue;
            };
            if !left.is_zero() {
                wait = wait.min(left);
                continue;
            }
            match renew(&client, &dir, &pod, token).await {
                Ok(()) => retry = RETRY.0,
                Err(error) => {
                    tracing::warn!(error, "a pod's token cannot be renewed and is tried again");
                    wait = wait.min(retry);
                    retry = (retry * 2).min(RETRY.1);
                }
            }
        }
        // Pods that were started together do not come back together.
        let spread = rand::rng().random_range(0..1000);
        sleep(wait + Duration::from_millis(spread)).await;
    }
}

async fn renew(client: &Client, dir: &Path, pod: &Pod, source: &TokenSource) -> Result<(), String> {
    let token = timeout(API_DEADLINE, fetch(client, pod, source))
        .await
        .map_err(|_| "the API did not answer".to_owned())?
        .map_err(|error| chain(&error))?;
    let own = volumes::directory_of(dir, &source.volume);
    let projected = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .find(|volume| volume.name == source.volume)
        .and_then(|volume| volume.projected.as_ref());
    let mode = projected.and_then(|projected| projected.default_mode);
    volumes::file(&source.volume, &own, &source.path, token.as_bytes(), mode).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b", "c": "d"}},
            "spec": {"containers": [], "volumes": [{"name": "v", "projected": {"defaultMode": 288, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 1000}},
                {"serviceAccountToken": {"path": "other", "audience": "vault"}},
                {"configMap": {"name": "m", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                ]}},
            ]}}]},
        }))
        .unwrap()
    }

    #[test]
    fn all_sources_land_in_one_directory() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let pod = pod();
        let mut sources = Sources::default();
        sources.config_maps.insert(
            "m".to_owned(),
            Some([("ca.crt".to_owned(), b"CA".to_vec())].into()),
        );
        sources
            .tokens
            .insert(("v".to_owned(), "token".to_owned()), "secret".to_owned());
        let projected = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0]
            .projected
            .clone()
            .unwrap();
        write(dir.path(), &pod, "v", &projected, &sources).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("token"), "secret");
        assert_eq!(read("ca.crt"), "CA");
        assert_eq!(read("namespace"), "n");
        assert_eq!(read("labels"), "a=\"b\"\nc=\"d\"");
        let mode = fs::metadata(dir.path().join("token"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o440);
        // The age of a token is not forgotten because another container starts.
        let made = |name: &str| fs::metadata(dir.path().join(name)).unwrap().modified().unwrap();
        let old = made("token") - Duration::from_hours(1);
        let file = fs::File::options()
            .write(true)
            .open(dir.path().join("token"))
            .unwrap();
        file.set_modified(old).unwrap();
        sources.tokens.clear();
        write(dir.path(), &pod, "v", &projected, &sources).unwrap();
        assert_eq!(made("token"), old);
        sources.config_maps.clear();
        assert!(write(dir.path(), &pod, "v", &projected, &sources).is_err());
    }

    #[test]
    fn a_token_is_kept_for_most_of_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let [token, other] = <[_; 2]>::try_from(tokens(&pod())).unwrap();
        assert_eq!((token.seconds, other.seconds), (1000, DEFAULT_SECONDS));
        assert_eq!(other.audience.as_deref(), Some("vault"));
        assert!(!is_kept(dir.path(), &token));
        let file = token.file(dir.path());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "t").unwrap();
        assert!(is_kept(dir.path(), &token));
        let made = fs::metadata(&file).unwrap().modified().unwrap();
        let left = |seconds| {
            token
                .left(dir.path(), made + Duration::from_secs(seconds))
                .unwrap()
        };
        assert_eq!(left(790), Duration::from_secs(10));
        assert_eq!(left(800), Duration::ZERO);
        let long = TokenSource {
            seconds: 365 * 86_400,
            ..token
        };
        assert_eq!(long.renewal(), RENEW_AFTER);
    }
}
