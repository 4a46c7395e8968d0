//! What a pod's volumes and variables are made of, read from the API.

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::Api;

use super::{StepError, Worker, in_time};
use crate::{
    local_path,
    pods::{
        environment::Sources,
        projected,
        volumes::{self, Claimed},
    },
    telemetry::chain,
};

impl Worker {
    /// The objects that the pod refers to. Volumes that are made already do without the API if it does not answer.
    pub(in crate::pods) async fn sources(&self, pod: &Pod) -> Result<Sources, StepError> {
        let mut sources = Sources::default();
        self.read(pod, volumes::referred_by_variables(pod), &mut sources)
            .await?;
        let volumes = async {
            self.read(pod, volumes::referred_by_volumes(pod), &mut sources)
                .await?;
            for token in projected::tokens(pod) {
                // One that is there already is kept fresh by whoever fetched it.
                if projected::is_kept(&self.dir, &token) {
                    continue;
                }
                let text = in_time(projected::fetch(&self.context.client, pod, &token))
                    .await?
                    .map_err(StepError::Token)?;
                sources.tokens.insert((token.volume, token.path), text);
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            for name in volumes::claims(pod) {
                let claimed = self.claimed(namespace, &name).await?;
                sources.claims.insert(name, claimed);
            }
            Ok::<(), StepError>(())
        };
        match volumes.await {
            Err(error) if error.is_silence() && self.dir.join(volumes::DIR).is_dir() => {
                tracing::warn!(pod = %self.uid, error = %chain(&error), "volumes stay as they are");
                sources.unreachable = true;
            }
            outcome => outcome?,
        }
        Ok(sources)
    }

    /// Reads objects of the pod's namespace that are not read yet.
    async fn read(
        &self,
        pod: &Pod,
        referred: volumes::Referred,
        sources: &mut Sources,
    ) -> Result<(), StepError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
        for name in referred.config_maps {
            if sources.config_maps.contains_key(&name) {
                continue;
            }
            let found = in_time(api.get_opt(&name)).await?.map_err(StepError::Refer)?;
            let data = found.map(|map| {
                let text = map.data.unwrap_or_default().into_iter();
                let bytes = map.binary_data.unwrap_or_default().into_iter();
                text.map(|(key, value)| (key, value.into_bytes()))
                    .chain(bytes.map(|(key, value)| (key, value.0)))
                    .collect()
            });
            sources.config_maps.insert(name, data);
        }
        let api: Api<Secret> = Api::namespaced(self.context.client.clone(), namespace);
        for name in referred.secrets {
            if sources.secrets.contains_key(&name) {
                continue;
            }
            let found = in_time(api.get_opt(&name)).await?.map_err(StepError::Refer)?;
            let data = found.map(|secret| {
                let data = secret.data.unwrap_or_default().into_iter();
                data.map(|(key, value)| (key, value.0)).collect()
            });
            sources.secrets.insert(name, data);
        }
        Ok(())
    }

    /// What a claim comes to.
    async fn claimed(&self, namespace: &str, name: &str) -> Result<Claimed, StepError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), namespace);
        let Some(claim) = in_time(claims.get_opt(name)).await?.map_err(StepError::Refer)? else {
            return Ok(Claimed::Absent);
        };
        let phase = claim.status.and_then(|status| status.phase);
        let volume = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        if phase.as_deref() != Some("Bound") || volume.is_empty() {
            return Ok(Claimed::Unbound);
        }
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let found = in_time(volumes.get_opt(&volume))
            .await?
            .map_err(StepError::Refer)?;
        let made_in = local_path::directory(&self.context.config.state_dir);
        Ok(found.map_or(Claimed::Unbound, |volume| Claimed::by(&volume, &made_in)))
    }
}
