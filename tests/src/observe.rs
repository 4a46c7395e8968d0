//! Looking at a machine with another tool than the one under test: `ip`, `tc` and `/proc`.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::machine::Machine;

/// The JSON that `ip -j <args>` prints on the machine; an empty list if it prints nothing.
///
/// # Errors
/// If `ip` fails.
pub fn ip(machine: &Machine, args: &str) -> Result<Vec<Value>> {
    json(machine, &format!("ip -d -j {args}"))
}

/// The JSON that `tc -j <args>` prints on the machine.
///
/// # Errors
/// If `tc` fails.
pub fn tc(machine: &Machine, args: &str) -> Result<Vec<Value>> {
    json(machine, &format!("tc -j {args}"))
}

fn json(machine: &Machine, line: &str) -> Result<Vec<Value>> {
    let text = machine.run(line)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("what {line} printed"))?;
    // `ip` prints `{}` for what its filters leave out.
    Ok(all
        .into_iter()
        .filter(|value| value.as_object().is_some_and(|object| !object.is_empty()))
        .collect())
}

/// The names of the machine's devices.
///
/// # Errors
/// If `ip` fails.
pub fn link_names(machine: &Machine) -> Result<Vec<String>> {
    Ok(ip(machine, "link show")?
        .iter()
        .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
        .collect())
}

/// A device of the machine, if it exists.
pub fn link(machine: &Machine, name: &str) -> Option<Value> {
    ip(machine, &format!("link show dev {name}"))
        .ok()?
        .into_iter()
        .next()
}

/// The destinations of the machine's routes through `device`, both families.
///
/// # Errors
/// If `ip` fails.
pub fn routes_through(machine: &Machine, device: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for family in ["-4", "-6"] {
        for route in ip(machine, &format!("{family} route show dev {device}"))? {
            out.extend(route["dst"].as_str().map(str::to_owned));
        }
    }
    Ok(out)
}
