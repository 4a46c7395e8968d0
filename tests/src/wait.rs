//! Waiting for something to become true, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at. Short against everything the lab waits for, long against what a look costs.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` yields a value.
///
/// `what` ends the sentence "timed out waiting for …".
///
/// # Errors
/// If the deadline passes first.
pub fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("timed out after {deadline:?} waiting for {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Waits until `condition` succeeds with a value; the last failure says why it did not.
///
/// # Errors
/// If the deadline passes first; the condition's last error is the cause.
pub fn wait_until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= deadline => {
                return Err(error.context(format!("timed out after {deadline:?} waiting for {what}")));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
