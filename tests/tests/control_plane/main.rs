//! The controllers and the scheduler against the real API server over TLS, with simulated nodes: their pods become ready, their
//! leases are renewed, and they can die.

mod crash;
mod garbage;
mod nodes;
mod rollout;
mod scale;
mod world;
