//! The agent's side of the API: joining, the node's registration, and following the other nodes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tracing::Instrument as _;

use super::{RETRY, Shared};
use crate::{
    config::{Config, Runtime},
    datapath::netlink::Netlink,
    join::{self, Connection},
    local_path,
    node::{NodeFacts, Registration},
    node_sync::{NodeSync, memory_path},
    reconcile::{network::NetworkOptions, place::find_place},
};

/// Seeks the API server, then keeps the node registered and follows the others.
pub(super) fn start(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    shared.tasks.clone().spawn(async move {
        let shutdown = shared.shutdown.clone();
        let connection = shutdown.run_until_cancelled(connect(&shared.config)).await;
        let Some(Connection { client, renewal }) = connection else {
            return;
        };
        if let Some(renewal) = renewal {
            shared.tasks.spawn(renewal.run(shutdown.clone()));
        }
        let Some(facts) = shutdown.run_until_cancelled(facts(&shared.config)).await else {
            return;
        };
        shared.view.send_modify(|view| view.joined = true);
        shared.client.send_replace(Some(client.clone()));
        let registration = Registration::new(client.clone(), facts, shared.config.lease_interval);
        let (removals, asked) = watch::channel(local_path::Removals::default());
        let volumes = local_path::run(
            client.clone(),
            shared.config.node_name.clone(),
            local_path::directory(&shared.config.state_dir),
            asked,
            shutdown.clone(),
        );
        let sync = NodeSync {
            client,
            node_name: shared.config.node_name.clone(),
            memory: memory_path(&shared.config.state_dir),
            cluster: shared.cluster.clone(),
            condition: shared.condition.subscribe(),
            removals,
        };
        tokio::join!(
            registration.run(shared.condition.subscribe(), &shared.wrong, shutdown.clone()),
            sync.run(&shared.wrong, shutdown.clone())
                .instrument(tracing::info_span!("nodes")),
            volumes.instrument(tracing::info_span!("volumes")),
        );
    });
}

async fn connect(config: &Config) -> Connection {
    const LONGEST: Duration = Duration::from_secs(15);
    let mut wait = Duration::from_millis(250);
    loop {
        match join::connect(&config.control_plane, &config.node_name, &config.state_dir).await {
            Ok(connection) => return connection,
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
                    annotations: annotations(config),
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

/// A node that runs pods offers volumes for them.
fn annotations(config: &Config) -> BTreeMap<String, String> {
    let directory = local_path::directory(&config.state_dir).display().to_string();
    let offered = config.runtime == Runtime::Embedded;
    let annotation = (local_path::DIRECTORY.to_owned(), directory);
    offered.then_some(annotation).into_iter().collect()
}
