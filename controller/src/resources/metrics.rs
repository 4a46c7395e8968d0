//! `metrics.k8s.io`: what nodes and pods use, as their nodes report it by applying these objects; everybody else only reads. Where
//! nothing reports, there is nothing.
//!
//! A report carries the labels of what it is about, since readers select by them. It goes with what it is about, or when no newer one
//! has come for a while.

use serde_json::Value;

use super::{NAME, READ, Resource, row, text};
use crate::quantity::Quantity;

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        verbs: READ,
        reported: true,
        columns: COLUMNS,
        cells: |metrics, _| {
            cells(
                metrics,
                metrics["usage"]["cpu"].clone(),
                metrics["usage"]["memory"].clone(),
            )
        },
        ..row(
            GROUP,
            VERSION,
            "NodeMetrics",
            ("nodes", ""),
            "metrics.k8s.io/nodes",
        )
    },
    Resource {
        verbs: READ,
        reported: true,
        columns: COLUMNS,
        cells: |metrics, _| cells(metrics, total(metrics, "cpu"), total(metrics, "memory")),
        ..row(GROUP, VERSION, "PodMetrics", ("pods", ""), "metrics.k8s.io/pods")
    },
];

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";

const COLUMNS: &[super::Column] = &[NAME, text("cpu"), text("memory"), text("Window")];

fn cells(metrics: &Value, cpu: Value, memory: Value) -> Vec<Value> {
    vec![
        metrics["metadata"]["name"].clone(),
        cpu,
        memory,
        metrics["window"].clone(),
    ]
}

/// The sum over a pod's containers.
fn total(metrics: &Value, resource: &str) -> Value {
    let containers = metrics["containers"].as_array().into_iter().flatten();
    let used =
        containers.filter_map(|container| container["usage"][resource].as_str()?.parse::<Quantity>().ok());
    used.sum::<Quantity>().to_string().into()
}
