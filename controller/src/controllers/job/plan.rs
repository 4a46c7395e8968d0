//! Which pods a Job that is not over needs, and which it does not: without any IO.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::backoff;
use super::decide::{Tally, size};
use super::terms::{Terms, index_failures};
use crate::controllers::pod::PodView;
use crate::controllers::replication::decide::victims;

/// What to do to the pods of a Job that is not over.
#[derive(Debug)]
pub enum Plan {
    /// Nothing.
    Keep,
    /// Nothing for a while: pods failed.
    Wait(Duration),
    /// Make so many pods.
    Create(usize),
    /// Make pods for these indexes.
    CreateIndexed(Vec<i32>),
    /// Delete these: they are too many.
    Delete(Vec<Arc<PodView>>),
}

/// Compares the active pods with what is asked for; at most `burst` change at a time. `failures` are those of the whole Job.
pub fn plan(
    terms: &Terms,
    tally: &Tally,
    failures: &backoff::Record,
    base: Duration,
    burst: usize,
    now: Timestamp,
) -> Plan {
    let active = size(tally.active.len());
    let wanted = match terms.completions {
        _ if terms.suspended => 0,
        // A queue that one pod found empty is left to the pods that still run.
        None if tally.succeeded > 0 => active,
        None => terms.parallelism,
        Some(completions) => (completions - tally.succeeded - tally.failed_indexes.len())
            .min(terms.parallelism)
            .max(0),
    };
    let surplus = removable(terms, tally, active - wanted, now);
    if !surplus.is_empty() {
        let mut surplus = surplus;
        surplus.truncate(burst);
        return Plan::Delete(surplus);
    }
    let leaving = if terms.only_replace_failed {
        size(tally.leaving.len())
    } else {
        0
    };
    let missing = usize::try_from(wanted - active - leaving).unwrap_or(0);
    if missing == 0 {
        return Plan::Keep;
    }
    if terms.per_index.is_none()
        && let Some(wait) = failures.left(base, now)
    {
        return Plan::Wait(wait);
    }
    if !terms.indexed {
        return Plan::Create(missing.min(burst));
    }
    let (mut indexes, soonest) = pending(terms, tally, missing.min(burst), base, now);
    match soonest {
        Some(wait) if indexes.is_empty() => Plan::Wait(wait),
        _ if indexes.is_empty() => Plan::Keep,
        _ => {
            indexes.truncate(burst);
            Plan::CreateIndexed(indexes)
        }
    }
}

/// Active pods to delete: those with an index that is done, unknown or taken, then as many others as are too many.
fn removable(terms: &Terms, tally: &Tally, surplus: i32, now: Timestamp) -> Vec<Arc<PodView>> {
    let mut out = Vec::new();
    let mut rest: Vec<Arc<PodView>> = tally.active.clone();
    if terms.indexed {
        // Of several with one index, the one that would be missed most stays.
        let mut taken = BTreeSet::new();
        rest = victims(&rest, &rest, rest.len(), now);
        rest.reverse();
        rest.retain(|pod| {
            let of_use = terms
                .index(pod)
                .is_some_and(|index| !tally.succeeded_indexes.contains(index) && taken.insert(index));
            if !of_use {
                out.push(pod.clone());
            }
            of_use
        });
    }
    let more = usize::try_from(surplus).unwrap_or(0).saturating_sub(out.len());
    if more > 0 {
        out.extend(victims(&rest, &rest, more, now));
    }
    out
}

/// The lowest indexes that need a pod, and when the next of those that wait may have one.
fn pending(
    terms: &Terms,
    tally: &Tally,
    count: usize,
    base: Duration,
    now: Timestamp,
) -> (Vec<i32>, Option<Duration>) {
    let leaving = tally.leaving.iter().filter(|_| terms.only_replace_failed);
    let busy: BTreeSet<i32> = tally
        .active
        .iter()
        .chain(leaving)
        .filter_map(|pod| terms.index(pod))
        .collect();
    let (mut out, mut soonest) = (Vec::new(), None::<Duration>);
    for index in 0..terms.completions.unwrap_or(0) {
        if out.len() == count {
            break;
        }
        if busy.contains(&index)
            || tally.succeeded_indexes.contains(index)
            || tally.failed_indexes.contains(index)
        {
            continue;
        }
        let wait = tally.kept_back.get(&index).and_then(|pod| {
            let (counted, ignored) = index_failures(terms, pod);
            let failures = backoff::Record {
                failures: (counted + ignored).unsigned_abs(),
                last: pod.end.as_ref().and_then(|end| end.at),
            };
            failures.left(base, now)
        });
        match wait {
            Some(wait) => soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait))),
            None => out.push(index),
        }
    }
    (out, soonest)
}
