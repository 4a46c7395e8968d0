//! Events: one store, served as `v1` (the form that is stored) and as `events.k8s.io/v1`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Conversion, Field, NAME, Resource, field, number, printing, row, text, wide};

pub(super) static RESOURCES: &[Resource] = &[Resource {
    short_names: &["ev"],
    columns: COLUMNS,
    cells: |event, now| {
        let mut stored = event.clone();
        to_core(&mut stored);
        cells(&stored, now)
    },
    fields: FIELDS,
    prepare: |_| {},
    conversion: Some(Conversion {
        served: from_core,
        stored: to_core,
    }),
    ..row("events.k8s.io", "v1", "Event", ("events", "event"), "events")
}];

/// The row of the core group.
pub(super) const CORE: Resource = Resource {
    short_names: &["ev"],
    columns: COLUMNS,
    cells,
    fields: FIELDS,
    validate: |event, old, problems| {
        let (namespace, about) = (
            &event["metadata"]["namespace"],
            event["involvedObject"]["namespace"].as_str().unwrap_or_default(),
        );
        let expected = if about.is_empty() { "default" } else { about };
        if old.is_none() && namespace != expected && !(about.is_empty() && namespace == "kube-system") {
            problems.invalid(
                "involvedObject.namespace",
                &json!(about),
                "does not match event.namespace",
            );
        }
    },
    ..row("", "v1", "Event", ("events", "event"), "events")
};

const COLUMNS: &[super::Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    super::Column {
        priority: 1,
        ..number("Count")
    },
    super::Column { priority: 1, ..NAME },
];

const FIELDS: &[Field] = &[
    field("involvedObject.kind"),
    field("involvedObject.namespace"),
    field("involvedObject.name"),
    field("involvedObject.uid"),
    field("involvedObject.apiVersion"),
    field("involvedObject.resourceVersion"),
    field("involvedObject.fieldPath"),
    field("reason"),
    field("reportingComponent"),
    Field {
        path: "source.component",
        ..field("source")
    },
    field("type"),
    Field {
        path: "involvedObject.kind",
        ..field("regarding.kind")
    },
    Field {
        path: "involvedObject.namespace",
        ..field("regarding.namespace")
    },
    Field {
        path: "involvedObject.name",
        ..field("regarding.name")
    },
    Field {
        path: "involvedObject.uid",
        ..field("regarding.uid")
    },
    Field {
        path: "reportingComponent",
        ..field("reportingController")
    },
];

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let about = &event["involvedObject"];
    let object = format!(
        "{}/{}",
        about["kind"].as_str().unwrap_or_default().to_lowercase(),
        about["name"].as_str().unwrap_or_default()
    );
    let first = [&event["firstTimestamp"], &event["eventTime"]];
    let last = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["firstTimestamp"],
    ];
    let seen = |times: &[&Value]| {
        let time = times.iter().find(|time| time.is_string());
        printing::since(time.copied().unwrap_or(&Value::Null), now)
    };
    let component = [&event["source"]["component"], &event["reportingComponent"]];
    let component = component.iter().find_map(|c| c.as_str()).unwrap_or_default();
    let instance = [&event["source"]["host"], &event["reportingInstance"]];
    let instance = instance.iter().find_map(|c| c.as_str()).unwrap_or_default();
    let source = if instance.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {instance}")
    };
    let count = [&event["series"]["count"], &event["count"]];
    let count = count.iter().find_map(|c| c.as_i64()).unwrap_or(1);
    vec![
        seen(&last),
        event["type"].clone(),
        event["reason"].clone(),
        object.into(),
        about["fieldPath"].as_str().unwrap_or_default().into(),
        source.into(),
        event["message"].as_str().unwrap_or_default().trim().into(),
        seen(&first),
        count.into(),
        event["metadata"]["name"].clone(),
    ]
}

/// The names of the same things in the two versions: core, then `events.k8s.io`.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn from_core(event: &mut Value) {
    rename(event, "events.k8s.io/v1", RENAMED.iter().copied());
}

fn to_core(event: &mut Value) {
    rename(event, "v1", RENAMED.iter().map(|(core, new)| (*new, *core)));
}

fn rename<'a>(event: &mut Value, api_version: &str, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(fields) = event.as_object_mut() else {
        return;
    };
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
    fields.insert("apiVersion".to_owned(), api_version.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_versions_convert_there_and_back() {
        let event = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "a"}, "count": 2});
        let mut other = event.clone();
        from_core(&mut other);
        assert_eq!(other["note"], "m");
        assert_eq!(other["regarding"]["name"], "a");
        to_core(&mut other);
        assert_eq!(other, event);
    }
}
