//! The parts of which one may run in a cluster: the controllers and the scheduler.

use kube::Client;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::controllers::pod;
use crate::controllers::selection::SCHEDULER;
use crate::informer::Store;
use crate::leader::{self, Election};
use crate::{RunError, controllers, scheduler};

/// Controllers and scheduler, before they run.
pub(crate) struct Control {
    pub(crate) client: Client,
    pub(crate) settings: controllers::ControllersConfig,
    /// Whether all ends when the work goes on although somebody else may lead: a request over the network can hang for long.
    pub(crate) bounded: bool,
}

impl Control {
    /// Runs them: at once, or while the election is won.
    pub(crate) async fn run(
        self,
        election: Option<Election>,
        shutdown: CancellationToken,
    ) -> Result<&'static str, RunError> {
        match election {
            None => self.work(shutdown).await?,
            Some(mut election) => {
                election.runs = self.settings.selection.parts();
                let grace = self.bounded.then(|| election.grace());
                let this = &self;
                let work = move |stop: CancellationToken| async move {
                    let Some(grace) = grace else {
                        return this.work(stop).await;
                    };
                    let overdue = async {
                        stop.cancelled().await;
                        sleep(grace).await;
                    };
                    tokio::select! {
                        result = this.work(stop.clone()) => result,
                        () = overdue => Err(RunError::Overdue),
                    }
                };
                leader::lead(self.client.clone(), election, shutdown, work).await?;
            }
        }
        Ok("control")
    }

    async fn work(&self, stop: CancellationToken) -> Result<(), RunError> {
        let pods = Store::new();
        let controllers = async {
            let ended = controllers::run(
                self.client.clone(),
                self.settings.clone(),
                pods.clone(),
                stop.clone(),
            )
            .await;
            ended_early(&stop, "controllers", ended.map_err(RunError::from))
        };
        let scheduler = async {
            if !self.settings.selection.includes(SCHEDULER) {
                stop.cancelled().await;
                return Ok(());
            }
            let settings = scheduler::SchedulerConfig::default();
            let ended = scheduler::run(self.client.clone(), settings, pods.clone(), stop.clone()).await;
            ended_early(&stop, "scheduler", ended.map_err(RunError::from))
        };
        // Begun last: both have subscribed by then.
        let follower = async {
            pod::follow(&pods, self.client.clone(), stop.clone()).await;
            Ok(())
        };
        tokio::try_join!(biased; controllers, scheduler, follower).map(drop)
    }
}

/// A part that ends before it is told to takes the others with it.
fn ended_early(
    stop: &CancellationToken,
    part: &'static str,
    result: Result<(), RunError>,
) -> Result<(), RunError> {
    result?;
    if stop.is_cancelled() {
        Ok(())
    } else {
        Err(RunError::Ended(part))
    }
}
