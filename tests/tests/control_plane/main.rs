//! The controllers and the scheduler against the real API server over TLS, with simulated nodes: their pods become ready, their
//! leases are renewed, and they can die.

#![expect(clippy::unwrap_used, reason = "what the tests share is test code, too")]

mod autoscaling;
mod conformance;
mod crash;
mod daemons;
mod garbage;
mod jobs;
mod limits;
mod nodes;
mod remote;
mod rollout;
mod scale;
mod scheduling;
mod services;
mod stateful;
mod volumes;
mod world;
