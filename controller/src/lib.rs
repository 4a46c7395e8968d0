//! .

pub mod controllers;
pub mod informer;
pub mod queue;
pub mod scheduler;
