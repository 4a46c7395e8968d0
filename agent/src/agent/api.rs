//! The agent's side of the API: joining, the node's registration, and following the other nodes.

use std::{sync::Arc, time::Duration};

use kube::Client;
use tokio::time::sleep;
use tracing::Instrument as _;

use super::{RETRY, Shared};
use crate::{
    config::{Config, Runtime},
    datapath::netlink::Netlink,
    join,
    node::{NodeFacts, Registration},
    node_sync::{NodeSync, memory_path},
    reconcile::{network::NetworkOptions, place::find_place},
};

/// Seeks the API server, then keeps the node registered and follows the others.
pub(super) fn start(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    shared.tasks.clone().spawn(async move {
        let shutdown = shared.shutdown.clone();
        let Some(client) = shutdown.run_until_cancelled(connect(&shared.config)).await else {
            return;
        };
        let Some(facts) = shutdown.run_until_cancelled(facts(&shared.config)).await else {
            return;
        };
        shared.view.send_modify(|view| view.joined = true);
        shared.client.send_replace(Some(client.clone()));
        let registration = Registration::new(client.clone(), facts, shared.config.lease_interval);
        let sync = NodeSync {
            client,
            node_name: shared.config.node_name.clone(),
            memory: memory_path(&shared.config.state_dir),
            cluster: shared.cluster.clone(),
            condition: shared.condition.subscribe(),
        };
        tokio::join!(
            registration.run(shared.condition.subscribe(), &shared.wrong, shutdown.clone()),
            sync.run(&shared.wrong, shutdown.clone())
                .instrument(tracing::info_span!("nodes")),
        );
    });
}

async fn connect(config: &Config) -> Client {
    const LONGEST: Duration = Duration::from_secs(15);
    let mut wait = Duration::from_millis(250);
    loop {
        match join::connect(&config.control_plane, &config.node_name, &config.state_dir).await {
            Ok(client) => return client,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, retry_in = ?wait, "no way to the API server");
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST);
    }
}

/// What the node says of itself, as soon as it has an address.
async fn facts(config: &Config) -> NodeFacts {
    let options = NetworkOptions::from(config);
    loop {
        let options = options.clone();
        let place = tokio::task::spawn_blocking(move || find_place(&Netlink::open()?, &options)).await;
        match place {
            Ok(Ok(place)) => {
                return NodeFacts {
                    name: config.node_name.clone(),
                    ips: place.ips,
                    labels: config.node_labels.clone(),
                    max_pods: config.max_pods,
                    runtime: if config.runtime == Runtime::Embedded {
                        "weft"
                    } else {
                        "cni"
                    },
                };
            }
            Ok(Err(error)) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the node has no address yet"
            ),
            Err(error) => tracing::error!(%error, "looking for the node's address broke down"),
        }
        sleep(RETRY).await;
    }
}
