//! Reads metrics through the API: of resources from `metrics.k8s.io`, others from `custom.metrics.k8s.io` and
//! `external.metrics.k8s.io`, where somebody serves these.

use std::fmt::Write as _;

use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::core::GroupVersionKind;
use kube::{Client, discovery};
use serde_json::Value;

use super::replicas::{Sample, Samples};
use crate::controllers::said;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;

/// The group of metrics of objects, and its versions that we read.
const CUSTOM: &str = "custom.metrics.k8s.io";
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// Taken for the window of a metric that does not say.
const DEFAULT_WINDOW: SignedDuration = SignedDuration::from_mins(1);

/// The metrics of one namespace.
pub(super) struct Metrics<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
}

impl Metrics<'_> {
    /// What pods use of a resource: all of their containers, or the one named.
    pub(super) async fn resource(
        &self,
        resource: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods?labelSelector={}",
            self.namespace,
            encode(selector)
        );
        let list = self.get(path, "pods.metrics.k8s.io").await;
        let list = list.map_err(|why| format!("unable to fetch metrics from resource metrics API: {why}"))?;
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let samples = items.iter().filter_map(|item| {
            let name = item["metadata"]["name"].as_str()?.to_owned();
            let containers = item["containers"].as_array()?;
            let mut wanted = containers
                .iter()
                .filter(|own| container.is_none_or(|name| own["name"] == name));
            // One container that does not say makes the pod's sum worthless.
            let value = wanted.try_fold(None, |sum: Option<i64>, own| {
                let used = own["usage"][resource].as_str()?.parse::<Quantity>().ok()?;
                Some(Some(sum.unwrap_or_default() + used.milli_value()))
            });
            Some((name, sample(item, value??)))
        });
        Ok(samples.collect())
    }

    /// A metric of each pod.
    pub(super) async fn pods(&self, metric: &MetricIdentifier, selector: &str) -> Result<Samples, String> {
        let path = format!(
            "pods/*/{}?labelSelector={}&metricLabelSelector={}",
            encode(&metric.name),
            encode(selector),
            encode(&of_metric(metric)?),
        );
        let list = self.custom(&path, "pods", "*").await?;
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        if items.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        let samples = items.iter().filter_map(|item| {
            let name = item["describedObject"]["name"].as_str()?.to_owned();
            Some((name, sample(item, milli(&item["value"])?)))
        });
        Ok(samples.collect())
    }

    /// A metric of another object, in thousandths.
    pub(super) async fn object(
        &self,
        object: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
    ) -> Result<i64, String> {
        let (group, version) = object
            .api_version
            .as_deref()
            .map_or(("", "v1"), |text| text.split_once('/').unwrap_or(("", text)));
        let kind = GroupVersionKind::gvk(group, version, &object.kind);
        let (resource, _) = discovery::pinned_kind(self.client, &kind)
            .await
            .map_err(|error| {
                format!(
                    "unable to fetch metrics from custom metrics API: {}",
                    said(&error)
                )
            })?;
        let plural = if group.is_empty() {
            resource.plural
        } else {
            format!("{}.{group}", resource.plural)
        };
        let path = format!(
            "{plural}/{}/{}?metricLabelSelector={}",
            encode(&object.name),
            encode(&metric.name),
            encode(&of_metric(metric)?),
        );
        let list = self.custom(&path, &plural, &object.name).await?;
        let value = milli(&list["items"][0]["value"]);
        value.ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
    }

    /// The sum of a metric of something outside, in thousandths.
    pub(super) async fn external(&self, metric: &MetricIdentifier) -> Result<i64, String> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?labelSelector={}",
            self.namespace,
            encode(&metric.name),
            encode(&of_metric(metric)?),
        );
        let list = self
            .get(path, &format!("{}.external.metrics.k8s.io", metric.name))
            .await;
        let list = list.map_err(|why| format!("unable to fetch metrics from external metrics API: {why}"))?;
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(items.iter().filter_map(|item| milli(&item["value"])).sum())
    }

    /// Metrics of objects in the namespace, in whichever version they are served.
    async fn custom(&self, path: &str, resource: &str, name: &str) -> Result<Value, String> {
        let failed = |why: String| format!("unable to fetch metrics from custom metrics API: {why}");
        let groups = self.client.list_api_groups().await;
        let groups = groups.map_err(|error| failed(said(&error)))?.groups;
        let served = groups.into_iter().find(|group| group.name == CUSTOM);
        let served = served.ok_or_else(|| failed(format!("no custom metrics API ({CUSTOM}) registered")))?;
        let has = |version: &&&str| served.versions.iter().any(|served| served.version == **version);
        let version = CUSTOM_VERSIONS.iter().find(has).unwrap_or(&CUSTOM_VERSIONS[0]);
        let path = format!("/apis/{CUSTOM}/{version}/namespaces/{}/{path}", self.namespace);
        self.get(path, &format!("{resource}.{CUSTOM} {name}"))
            .await
            .map_err(failed)
    }

    /// What is at a path, which errors call `what`.
    async fn get(&self, path: String, what: &str) -> Result<Value, String> {
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await;
        answer.map_err(|error| general(&error, what).unwrap_or_else(|| said(&error)))
    }
}

/// What clients say of an error whose body says no more than its code does.
fn general(error: &kube::Error, what: &str) -> Option<String> {
    const MISSING: &str = "the server could not find the requested resource";
    let kube::Error::Api(status) = error else {
        return None;
    };
    // What kube-rs makes of a body that is no `Status`.
    let unexplained = status.reason == "Failed to parse error data";
    let message = match status.code {
        404 if unexplained || status.message == MISSING => MISSING,
        503 if unexplained => "the server is currently unable to handle the request",
        _ => return None,
    };
    Some(format!("{message} (get {what})"))
}

fn of_metric(metric: &MetricIdentifier) -> Result<String, String> {
    let Some(selector) = &metric.selector else {
        return Ok(String::new());
    };
    let selector = LabelSelector::from_object(Some(selector)).map_err(|error| error.to_string())?;
    Ok(selector.to_string())
}

fn milli(value: &Value) -> Option<i64> {
    Some(value.as_str()?.parse::<Quantity>().ok()?.milli_value())
}

fn sample(item: &Value, value: i64) -> Sample {
    let at = item["timestamp"].as_str().and_then(|text| text.parse().ok());
    let window = item["window"].as_str().and_then(|text| text.parse().ok());
    Sample {
        value,
        at: at.unwrap_or_else(Timestamp::now),
        window: window.unwrap_or(DEFAULT_WINDOW),
    }
}

/// The text as a part of a query or a path.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn samples_have_the_time_and_window_of_their_metric() {
        let item = json!({"timestamp": "2025-01-01T00:00:00Z", "window": "1m0s"});
        let read = sample(&item, 3);
        assert_eq!(
            (read.at.to_string().as_str(), read.window),
            ("2025-01-01T00:00:00Z", SignedDuration::from_secs(60))
        );
        assert_eq!(
            sample(&json!({"window": "30s"}), 3).window,
            SignedDuration::from_secs(30)
        );
        assert_eq!(encode("a in (b,c),!d"), "a%20in%20%28b%2Cc%29%2C%21d");
    }
}
