//! Starting one container: image, volumes, environment, specification, shim.

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::{
    environment::{Addresses, EnvironmentError, command_line, environment},
    events::Kind,
    files, oci, probes,
    sandbox::{Sandbox, log_dir},
    state::{Ended, Obstacle, Record, Stage},
    users::{self, Databases, UserError},
    volumes::{self, VolumeError},
    worker::{StepError, Worker, next_attempt},
};
use crate::{
    image::{Image, ImageError, Reference},
    shim::protocol::{CreateContainer, Rootfs},
    telemetry::chain,
};

/// How long to wait before a container whose configuration is wrong is looked at again: what it refers to may appear.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
/// The exit code of a container that could not be started, as container engines have it.
const START_ERROR_CODE: i32 = 128;
/// How willing the kernel is to kill a pod that promised nothing, one that was promised all, and the span between.
const OOM_BEST_EFFORT: i32 = 1000;
const OOM_GUARANTEED: i32 = -997;
const OOM_BURSTABLE: i32 = 900;

/// Why a container's configuration does not do.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Oci(#[from] oci::OciError),
    #[error("writing the container's files")]
    Files(#[source] io::Error),
    #[error("{0} is not offered by this runtime")]
    NotOffered(&'static str),
}

impl Worker {
    /// Starts the next attempt of a container, or notes what keeps it from being started.
    pub(super) async fn start_container(
        &mut self,
        pod: &Arc<Pod>,
        container: &Container,
    ) -> Result<(), StepError> {
        let Some(sandbox) = self.sandbox.clone() else {
            return Ok(());
        };
        let image = match self.find_image(pod, container) {
            Ok(image) => image,
            Err(obstacle) => {
                self.block(pod, container, obstacle);
                return Ok(());
            }
        };
        let sources = self.sources(pod).await?;
        let old = self.records.get(&container.name).cloned().unwrap_or_default();
        let (attempt, streak) = next_attempt(&old, &self.context.config.back_off);
        let id = format!("{}.{attempt}", container.name);
        let request =
            self.request(pod, container, &sandbox, &image, &id, &sources)
                .map(|(mut request, warnings)| {
                    request.labels = BTreeMap::from([
                        ("name".to_owned(), container.name.clone()),
                        ("attempt".to_owned(), attempt.to_string()),
                        ("streak".to_owned(), streak.to_string()),
                        ("image-id".to_owned(), image.record.config.to_string()),
                    ]);
                    (request, warnings)
                });
        let (request, mut warnings) = match request {
            Ok(made) => made,
            Err(error) => {
                let reason = match error {
                    ConfigError::Environment(EnvironmentError::NoCommand) => "RunContainerError",
                    _ => "CreateContainerConfigError",
                };
                self.block(pod, container, obstacle(reason, chain(&error), CONFIG_RETRY));
                return Ok(());
            }
        };
        // The attempt before is kept for its exit code, the ones before that are not.
        if let Some(before) = attempt.checked_sub(2) {
            let stale = format!("{}.{before}", container.name);
            sandbox.shim.remove(&stale).await?;
            // What is left of it goes with the pod at the latest.
            let _ = fs::remove_dir_all(container_dir(&sandbox, &stale));
        }
        let turn = self.context.starts.acquire().await;
        let started = async {
            let more = sandbox.shim.create(request).await?;
            self.tell(pod, container, Kind::Normal, "Created", "Created container");
            sandbox.shim.start(&id).await?;
            Ok::<_, crate::shim::CallError>(more)
        }
        .await;
        drop(turn);
        let started = match started {
            // What the shim left behind says how far it came.
            Err(error) if error.is_gone() => return Err(error.into()),
            started => started,
        };
        let record = Record {
            attempt,
            streak,
            last: match &old.stage {
                Stage::Ended(ended) => Some(ended.clone()),
                Stage::Never | Stage::Created | Stage::Running(_) => old.last.clone(),
            },
            image_id: image.record.config.to_string(),
            id: id.clone(),
            stage: Stage::Created,
            ready: container.readiness_probe.is_none() && container.startup_probe.is_none(),
            started: container.startup_probe.is_none(),
            obstacle: None,
            displaced: false,
        };
        let record = self.records.entry(container.name.clone()).insert_entry(record);
        match started {
            Ok(more) => {
                warnings.extend(more);
                record.into_mut().stage = Stage::Running(Timestamp::now());
                self.tell(pod, container, Kind::Normal, "Started", "Started container");
                if attempt == 0 {
                    for warning in warnings {
                        self.context.events.tell(
                            pod,
                            Some(&container.name),
                            Kind::Warning,
                            "NotHonoured",
                            warning,
                        );
                    }
                }
            }
            Err(error) => {
                let message = chain(&error);
                // It may have been made without being started.
                if let Err(error) = sandbox.shim.remove(&id).await {
                    tracing::debug!(%error, id, "removing a container that did not start");
                }
                let now = Timestamp::now();
                record.into_mut().stage = Stage::Ended(Ended {
                    started_at: None,
                    finished_at: now,
                    exit_code: START_ERROR_CODE,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: Some(message.clone()),
                });
                let text = format!("Error: {message}");
                self.context
                    .events
                    .tell(pod, Some(&container.name), Kind::Warning, "Failed", text);
            }
        }
        // News that is on its way may be of before this.
        let status = sandbox.shim.status().await?;
        self.observe(&status);
        Ok(())
    }

    fn tell(&self, pod: &Pod, container: &Container, kind: Kind, reason: &str, what: &str) {
        let text = format!("{what} {}", container.name);
        self.context
            .events
            .tell(pod, Some(&container.name), kind, reason, text);
    }

    /// Finds the image in the node's store; what is not there cannot be pulled.
    fn find_image(&self, pod: &Pod, container: &Container) -> Result<Image, Obstacle> {
        let name = container.image.as_deref().unwrap_or_default();
        let retry = self.context.config.image_retry;
        let reference = Reference::parse(name)
            .map_err(|error| obstacle("InvalidImageName", error.to_string(), CONFIG_RETRY))?;
        match self.context.store.image(&reference) {
            Ok(Some(image)) => {
                if !self.records.contains_key(&container.name) {
                    let text = format!("Container image \"{name}\" already present on machine");
                    self.context
                        .events
                        .tell(pod, Some(&container.name), Kind::Normal, "Pulled", text);
                }
                Ok(image)
            }
            Ok(None) if container.image_pull_policy.as_deref() == Some("Never") => {
                let text = format!("Container image \"{name}\" is not present with pull policy of Never");
                Err(obstacle("ErrImageNeverPull", text, retry))
            }
            Ok(None) => {
                let text = format!(
                    "image \"{name}\" is not in this node's store, and this node does not pull from registries: \
                     load it with `weft image load`"
                );
                // As kubelet has it: the first failure by its own name, then that it is waited for.
                let blocked = self
                    .records
                    .get(&container.name)
                    .and_then(|record| record.obstacle.as_ref())
                    .is_some_and(|o| matches!(o.reason.as_str(), "ErrImagePull" | "ImagePullBackOff"));
                let reason = if blocked {
                    "ImagePullBackOff"
                } else {
                    "ErrImagePull"
                };
                Err(obstacle(reason, text, retry))
            }
            Err(error @ ImageError::Store { .. }) => Err(obstacle("ErrImagePull", chain(&error), retry)),
            Err(error) => Err(obstacle("ImageInspectError", chain(&error), retry)),
        }
    }

    /// Notes what keeps a container from being started, and tells when that is news.
    fn block(&mut self, pod: &Pod, container: &Container, obstacle: Obstacle) {
        let record = self.records.entry(container.name.clone()).or_default();
        let known = record
            .obstacle
            .as_ref()
            .is_some_and(|old| (&old.reason, &old.message) == (&obstacle.reason, &obstacle.message));
        if !known {
            let reason = if obstacle.reason == "ImagePullBackOff" {
                "BackOff"
            } else {
                "Failed"
            };
            let text = format!("Error: {}: {}", obstacle.reason, obstacle.message);
            self.context
                .events
                .tell(pod, Some(&container.name), Kind::Warning, reason, text);
        }
        record.obstacle = Some(obstacle);
    }

    fn request(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: &Sandbox,
        image: &Image,
        id: &str,
        sources: &super::environment::Sources,
    ) -> Result<(CreateContainer, Vec<String>), ConfigError> {
        let context = &self.context;
        if container.lifecycle.is_some() {
            return Err(ConfigError::NotOffered("a lifecycle hook (postStart, preStop)"));
        }
        probes::check(container).map_err(ConfigError::NotOffered)?;
        let spec = pod.spec.clone().unwrap_or_default();
        let addresses = Addresses {
            pod_ips: sandbox.record.pod_ips.clone(),
            node_ips: context.node_ips.clone(),
        };
        let hostname = files::hostname(pod);
        let env = environment(pod, container, &image.run, &hostname, &addresses, sources)?;
        let args = command_line(container, &image.run, &env)?;
        let mut binds = files::write(&sandbox.dir, pod, &addresses.pod_ips, &context.config)
            .map_err(ConfigError::Files)?;
        let volumes = volumes::prepare(&sandbox.dir, pod, container, sources)?;
        // What the pod mounts over one of these files is what it wants there.
        binds.retain(|bind| !volumes.iter().any(|volume| volume.target == bind.target));
        binds.extend(volumes);
        let databases = Databases::of_layers(&image.layers_dir, &image.layers);
        let user = users::resolve(&spec, container, &image.run.user, &databases)?;
        let cwd = [
            container.working_dir.as_deref(),
            Some(image.run.working_dir.as_str()),
        ]
        .into_iter()
        .flatten()
        .find(|path| !path.is_empty())
        .unwrap_or("/");
        let bundle = container_dir(sandbox, id);
        // A name that was used by an attempt whose making was cut short.
        match fs::remove_dir_all(&bundle) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ConfigError::Files(error)),
            Ok(()) | Err(_) => {}
        }
        let cgroup = format!("{}/{id}", sandbox.record.cgroup);
        let (oci, warnings) = oci::spec(&oci::Input {
            pod,
            container,
            args,
            env,
            cwd: PathBuf::from(cwd),
            user,
            rootfs: bundle.join("rootfs"),
            hostname,
            binds,
            cgroup: cgroup.clone(),
            controllers: &context.controllers,
            grantable: &context.grantable,
        })?;
        let logs = log_dir(&context.config, &sandbox.record).join(&container.name);
        fs::create_dir_all(&bundle)
            .and_then(|()| fs::create_dir_all(&logs))
            .and_then(|()| Ok(serde_json::to_vec(&oci)?))
            .and_then(|json| fs::write(bundle.join("config.json"), json))
            .map_err(ConfigError::Files)?;
        let attempt = id.rsplit('.').next().unwrap_or("0");
        let request = CreateContainer {
            id: id.to_owned(),
            labels: BTreeMap::new(),
            rootfs: Rootfs {
                layers_dir: image.layers_dir.clone(),
                layers: image.layers.clone(),
                upper: bundle.join("upper"),
                work: bundle.join("work"),
                merged: bundle.join("rootfs"),
            },
            bundle,
            cgroup,
            oom_score_adj: Some(oom_score(pod)),
            log: logs.join(format!("{attempt}.log")),
            log_max_bytes: context.config.log_max_bytes,
        };
        Ok((request, warnings))
    }
}

fn obstacle(reason: &str, message: String, retry: Duration) -> Obstacle {
    Obstacle {
        reason: reason.to_owned(),
        message,
        retry_at: Timestamp::now().checked_add(retry).unwrap_or(Timestamp::MAX),
    }
}

fn container_dir(sandbox: &Sandbox, id: &str) -> PathBuf {
    sandbox.dir.join("containers").join(id)
}

fn oom_score(pod: &Pod) -> i32 {
    let spec = pod.spec.clone().unwrap_or_default();
    match super::status::qos_class(&spec) {
        "Guaranteed" => OOM_GUARANTEED,
        "Burstable" => OOM_BURSTABLE,
        _ => OOM_BEST_EFFORT,
    }
}
