//! The revisions of DaemonSets and StatefulSets: one ControllerRevision per pod template, which `kubectl rollout history` lists
//! and `kubectl rollout undo` brings back.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::debug;

use super::claim::{claims, controller_reference, settle};
use super::deployment::template;
use super::{Context, ControllerError, is_conflict, is_not_found};
use crate::typed;

/// Label of pods and revisions: the revision's hash.
pub const HASH_LABEL: &str = "controller-revision-hash";

/// What a revision keeps: a patch that puts the template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = typed::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    typed::from_value(revision.data.as_ref()?.0.pointer("/spec/template")?).ok()
}

/// Whether a revision keeps this template.
pub fn keeps(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|kept| template::same(&kept, template))
}

/// Those to delete, the oldest first: beyond the limit, neither current nor in use.
pub fn surplus<'a>(
    revisions: &'a [Arc<ControllerRevision>],
    live: &BTreeSet<String>,
    limit: usize,
) -> Vec<&'a Arc<ControllerRevision>> {
    let mut idle: Vec<_> = revisions
        .iter()
        .filter(|revision| !live.contains(&revision.name_any()))
        .collect();
    idle.sort_by_key(|revision| (revision.revision, revision.name_any()));
    let count = idle.len().saturating_sub(limit);
    idle.truncate(count);
    idle
}

/// The revisions of one workload.
pub(crate) struct History {
    /// All of them, oldest first.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// The one of the workload's template.
    pub(crate) update: Arc<ControllerRevision>,
    /// How often a name was taken; to be kept in the status.
    pub(crate) collisions: i32,
}

/// What of a workload its revisions are made from.
pub(crate) struct Subject<'a, K> {
    pub(crate) context: &'a Context,
    pub(crate) owner: &'a K,
    pub(crate) owners: &'a Api<K>,
    pub(crate) selector: &'a Selector,
    pub(crate) template: &'a PodTemplateSpec,
    pub(crate) collisions: i32,
}

impl<K> Subject<'_, K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    fn api(&self) -> Api<ControllerRevision> {
        let namespace = self.owner.meta().namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// Finds the revision of the workload's template, or makes it; one that comes back gets the highest number.
    pub(crate) async fn history(&self) -> Result<History, ControllerError> {
        let api = self.api();
        let owned = claims(&self.context.revisions, self.owner.meta(), self.selector, |_| {
            true
        });
        let mut revisions = settle(owned, self.owner, self.owners, &api).await?;
        revisions.sort_by_key(|revision| (revision.revision, revision.name_any()));
        let highest = revisions.last().map_or(0, |revision| revision.revision);
        let known = revisions
            .iter()
            .rposition(|revision| keeps(revision, self.template));
        let Some(known) = known else {
            let (update, collisions) = self.create(&api, highest + 1).await?;
            revisions.retain(|revision| revision.metadata.uid != update.metadata.uid);
            revisions.push(update.clone());
            return Ok(History {
                revisions,
                update,
                collisions,
            });
        };
        let mut update = revisions[known].clone();
        if update.revision < highest {
            let name = update.name_any();
            let patch = json!({ "metadata": { "resourceVersion": update.metadata.resource_version },
                "revision": highest + 1 });
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(ControllerError::api(
                    "patch",
                    format!("controller revision {name}"),
                ))?;
            update = Arc::new(patched);
            revisions.remove(known);
            revisions.push(update.clone());
        }
        Ok(History {
            revisions,
            update,
            collisions: self.collisions,
        })
    }

    async fn create(
        &self,
        api: &Api<ControllerRevision>,
        number: i64,
    ) -> Result<(Arc<ControllerRevision>, i32), ControllerError> {
        let meta = self.owner.meta();
        let mut collisions = self.collisions;
        // Each collision gives another hash; that many in a row are no accident.
        const NAMES: usize = 5;
        for _ in 0..NAMES {
            let hash = template::hash(self.template, collisions);
            let name = format!("{}-{hash}", meta.name.as_deref().unwrap_or_default());
            let labels = self
                .template
                .metadata
                .as_ref()
                .and_then(|meta| meta.labels.clone());
            let mut labels = labels.unwrap_or_default();
            labels.insert(HASH_LABEL.into(), hash);
            let mut annotations = meta.annotations.clone().unwrap_or_default();
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: meta.namespace.clone(),
                    labels: Some(labels),
                    annotations: Some(annotations).filter(|all| !all.is_empty()),
                    owner_references: Some(vec![controller_reference(self.owner)]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data(self.template))),
                revision: number,
            };
            let what = || format!("controller revision {name}");
            match api.create(&PostParams::default(), &revision).await {
                Ok(made) => return Ok((Arc::new(made), collisions)),
                Err(error) if is_conflict(&error) => {
                    let found = api
                        .get(&name)
                        .await
                        .map_err(ControllerError::api("get", what()))?;
                    let owner = crate::informer::controller_of(&found.metadata).map(|owner| &owner.uid);
                    if owner == meta.uid.as_ref() && keeps(&found, self.template) {
                        return Ok((Arc::new(found), collisions));
                    }
                    collisions += 1;
                }
                Err(error) => return Err(ControllerError::api("create", what())(error)),
            }
        }
        Err(ControllerError::Invalid {
            what: format!("the history of {}", meta.name.as_deref().unwrap_or_default()),
            why: format!("{NAMES} names of revisions are taken"),
        })
    }

    /// Deletes the oldest revisions beyond the limit; those named in `live` stay.
    pub(crate) async fn trim(
        &self,
        history: &History,
        live: &BTreeSet<String>,
        limit: i32,
    ) -> Result<(), ControllerError> {
        let api = self.api();
        let limit = usize::try_from(limit).unwrap_or(0);
        for revision in surplus(&history.revisions, live, limit) {
            let name = revision.name_any();
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => debug!(revision = name, "old revision deleted"),
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    return Err(ControllerError::api(
                        "delete",
                        format!("controller revision {name}"),
                    )(error));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({ "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "c", "image": image }] } }))
        .unwrap()
    }

    fn revision(name: &str, number: i64) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(&template(name)))),
            revision: number,
        })
    }

    #[test]
    fn a_revision_brings_its_template_back() {
        let kept = revision("img:1", 1);
        assert!(keeps(&kept, &template("img:1")) && !keeps(&kept, &template("img:2")));
        assert_eq!(
            kept.data.as_ref().unwrap().0["spec"]["template"]["$patch"],
            "replace",
            "kubectl applies it as a patch"
        );
    }

    #[test]
    fn the_oldest_idle_revisions_are_surplus() {
        let all = [
            revision("a", 1),
            revision("b", 4),
            revision("c", 2),
            revision("d", 3),
        ];
        let live = BTreeSet::from(["a".to_owned()]);
        let names = |limit| {
            surplus(&all, &live, limit)
                .iter()
                .map(|revision| revision.name_any())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["c", "d"]);
        assert_eq!(names(0), ["c", "d", "b"]);
        assert!(names(3).is_empty());
    }
}
