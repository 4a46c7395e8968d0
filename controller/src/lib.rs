//! .

pub mod controllers;
pub mod informer;
pub mod quantity;
pub mod queue;
pub mod scheduler;
pub mod schema;
pub mod selector;
