//! `weft-cni`, the CNI plugin. A runtime starts it once per request; it asks the agent and prints the answer.

#![forbid(unsafe_code)]

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Instant,
};

use weft_cni::{
    environment,
    plugin::{self, Outcome},
    version::SpecVersion,
};

fn main() -> ExitCode {
    let started = Instant::now();
    match env::args().nth(1).as_deref() {
        Some("--version" | "-V") => {
            return print(
                &format!("weft-cni {}", env!("CARGO_PKG_VERSION")),
                ExitCode::SUCCESS,
            );
        }
        Some("--help" | "-h") => return print(&help(), ExitCode::SUCCESS),
        Some(other) => {
            let _ = writeln!(io::stderr(), "weft-cni: unknown argument `{other}`; try --help");
            return ExitCode::from(2);
        }
        None => {}
    }
    let stdin = io::stdin();
    if env::var_os("CNI_COMMAND").is_none() && stdin.is_terminal() {
        return print(&help(), ExitCode::SUCCESS);
    }
    let command = environment::read(|name| env::var_os(name));
    match plugin::run(command, stdin, started) {
        Outcome::Done(None) => ExitCode::SUCCESS,
        Outcome::Done(Some(result)) => print(&result.to_string(), ExitCode::SUCCESS),
        Outcome::Failed(error) => print(&error.to_string(), ExitCode::FAILURE),
    }
}

/// Prints one line. A runtime that cannot be told the result must not take it for success.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn help() -> String {
    format!(
        "weft-cni {}: Weft's CNI plugin
CNI versions {}

Container runtimes start this program to attach containers to the pod network; it is not meant to be called by hand.
It needs `weft agent` on the node, and a configuration such as

  {{\"cniVersion\": \"{}\", \"name\": \"weft\", \"plugins\": [{{\"type\": \"weft-cni\"}}]}}

in /etc/cni/net.d/10-weft.conflist. Optional keys of the plugin:
  agentSocket  the agent's socket                          (/run/weft/agent.sock)
  queueDir     where deletions wait for an agent that is down (/var/lib/weft/cni-queue)
  timeoutMs    the longest a call may take                 (30000)
  mtu          the MTU of the pod's interface              (the underlay's)
  logLevel     error, warn, info or debug, to stderr       (warn)
  logFile      a file to log to as well

To try it: echo '{{\"cniVersion\":\"1.1.0\",\"name\":\"weft\",\"type\":\"weft-cni\"}}' | CNI_COMMAND=STATUS weft-cni && echo ready",
        env!("CARGO_PKG_VERSION"),
        SpecVersion::ALL.map(SpecVersion::as_str).join(", "),
        SpecVersion::LATEST,
    )
}
