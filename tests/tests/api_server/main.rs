//! The API server as clients meet it: the real program over TLS, driven by `kubectl`, by kube-rs and by hand.

mod custom;
mod identity;
mod kubectl;
mod machinery;
mod objects;
mod refusals;
mod server;
mod watching;
