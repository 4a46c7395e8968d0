//! `coordination.k8s.io`: leases.

use super::{NAME, Resource, printing, row, text, validation};

pub(super) static RESOURCES: &[Resource] = &[Resource {
    columns: &[NAME, text("Holder"), text("Age")],
    cells: |lease, now| {
        let holder = lease["spec"]["holderIdentity"].clone();
        vec![
            lease["metadata"]["name"].clone(),
            holder,
            printing::age(lease, now),
        ]
    },
    validate: |lease, _, problems| {
        if lease["spec"]["leaseDurationSeconds"]
            .as_i64()
            .is_some_and(|n| n <= 0)
        {
            problems.invalid(
                "spec.leaseDurationSeconds",
                &lease["spec"]["leaseDurationSeconds"],
                "must be greater than 0",
            );
        }
        validation::non_negative(lease, "spec.leaseTransitions", problems);
    },
    ..row(
        "coordination.k8s.io",
        "v1",
        "Lease",
        ("leases", "lease"),
        "coordination.k8s.io/leases",
    )
}];
