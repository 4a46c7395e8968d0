//! The API server as clients meet it: the real program over TLS, driven by `kubectl`, by kube-rs and by hand.

mod authorization;
mod custom;
mod identity;
mod kinds;
mod kubectl;
mod loopholes;
mod machinery;
mod objects;
mod parts;
mod protection;
mod python;
mod refusals;
mod rules;
mod server;
mod services;
mod tokens;
mod transcripts;
mod volumes;
mod watching;
