//! `discovery.k8s.io`: where the pods of Services are.

use serde_json::Value;

use super::{NAME, Resource, printing, row, text, validation};

pub(super) static RESOURCES: &[Resource] = &[Resource {
    generation: true,
    columns: &[
        NAME,
        text("AddressType"),
        text("Ports"),
        text("Endpoints"),
        text("Age"),
    ],
    cells: |slice, now| {
        let items = |key: &str| slice[key].as_array().into_iter().flatten();
        let ports = items("ports").map(|port| match (port["port"].as_i64(), port["name"].as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        });
        let addresses = items("endpoints")
            .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
            .filter_map(|address| address.as_str().map(str::to_owned));
        let unset = |text: String| {
            Value::from(if text.is_empty() {
                "<unset>".to_owned()
            } else {
                text
            })
        };
        vec![
            slice["metadata"]["name"].clone(),
            slice["addressType"].clone(),
            unset(printing::first_three(ports)),
            unset(printing::first_three(addresses)),
            printing::age(slice, now),
        ]
    },
    validate: validation::service::endpoint_slice,
    ..row(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        ("endpointslices", "endpointslice"),
        "discovery.k8s.io/endpointslices",
    )
}];
