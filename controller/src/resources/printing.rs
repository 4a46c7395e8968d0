//! What tables print: ages, and the pieces that several kinds share.

use jiff::Timestamp;
use serde_json::{Value, json};

/// Name and creation time: the cells of a kind without a printer.
pub(super) fn name_and_creation(object: &Value, _now: Timestamp) -> Vec<Value> {
    let metadata = &object["metadata"];
    vec![metadata["name"].clone(), metadata["creationTimestamp"].clone()]
}

/// How long ago the object was created.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now)
}

/// How long ago a time was; `<unknown>` if there is none.
pub(crate) fn since(time: &Value, now: Timestamp) -> Value {
    match time.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(time) => duration(now.as_second() - time.as_second()).into(),
        None => "<unknown>".into(),
    }
}

/// A duration as people read it: two units at most, fewer the longer it is.
pub(super) fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |major: i64, major_unit: char, minor: i64, minor_unit: char| {
        if minor == 0 {
            format!("{major}{major_unit}")
        } else {
            format!("{major}{major_unit}{minor}{minor_unit}")
        }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// The names and images of a template's containers.
pub(super) fn containers(spec: &Value) -> [Value; 2] {
    let join = |key: &str| {
        let list = spec["containers"].as_array().into_iter().flatten();
        let texts: Vec<_> = list.filter_map(|container| container[key].as_str()).collect();
        Value::from(texts.join(","))
    };
    [join("name"), join("image")]
}

/// A label selector in its string form: `<none>` if it is empty.
pub(super) fn selector(selector: &Value) -> Value {
    let mut terms: Vec<String> = labels(&selector["matchLabels"]);
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<_> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    none_if_empty(terms.join(","))
}

/// The first three of a list, and how many more there are.
pub(super) fn first_three(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<_> = texts.collect();
    let shown = texts[..texts.len().min(3)].join(",");
    match texts.len().saturating_sub(3) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

/// Where a load balancer is reached: addresses and names, sorted.
pub(super) fn balancer(status: &Value) -> String {
    let entries = status["ingress"].as_array().into_iter().flatten();
    let places: std::collections::BTreeSet<_> = entries
        .filter_map(|entry| {
            [&entry["ip"], &entry["hostname"]]
                .into_iter()
                .find_map(|place| place.as_str())
        })
        .collect();
    places.into_iter().collect::<Vec<_>>().join(",")
}

/// Labels as `a=b` terms.
pub(super) fn labels(labels: &Value) -> Vec<String> {
    let labels = labels.as_object().into_iter().flatten();
    labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect()
}

/// The text, or `<none>`.
pub(super) fn none_if_empty(text: impl Into<String>) -> Value {
    let text = text.into();
    Value::from(if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    })
}

/// A string field, or `<none>`.
pub(super) fn or_none(value: &Value) -> Value {
    none_if_empty(value.as_str().unwrap_or_default())
}

/// A number field; absent counts as 0.
pub(super) fn count(value: &Value) -> Value {
    json!(value.as_i64().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_read_as_kubectl_prints_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (14_460, "4h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }
}
