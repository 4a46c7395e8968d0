//! Attachments on the real kernel, each test in namespaces of its own: made through the agent's library, looked at with
//! `ip` and `tc`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod add;
mod failures;
mod node_side;
mod restart;
mod world;
