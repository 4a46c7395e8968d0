//! Which pods are meant: by labels and namespace, or by their controller.

use std::sync::Arc;

use super::pod::{Labels, PodInfo};
use crate::selector::LabelSelector;

/// Pods with certain labels in certain namespaces.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Namespaces by name.
    pub namespaces: Vec<Arc<str>>,
    /// Namespaces by label, besides.
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the pods.
    pub selector: LabelSelector,
}

impl Term {
    /// Whether a pod is meant, whose namespace has these labels.
    pub fn matches(&self, namespace: &str, of_namespace: Option<&Labels>, labels: &Labels) -> bool {
        let by_label = || {
            self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_everything() || of_namespace.is_some_and(|labels| selector.matches(labels))
            })
        };
        (self.namespaces.iter().any(|name| **name == *namespace) || by_label())
            && self.selector.matches(labels)
    }
}

/// What pods have in common as far as selection is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Arc<Labels>,
    pub(super) owner: Option<Arc<str>>,
    pub(super) terminating: bool,
}

impl ClassKey {
    pub(super) fn of(pod: &PodInfo) -> Self {
        ClassKey {
            namespace: pod.namespace().into(),
            labels: pod.labels.clone(),
            owner: pod.owner.clone(),
            terminating: pod.terminating,
        }
    }
}

/// A set of pods that is counted.
#[derive(Debug, Clone, PartialEq)]
pub struct PodSet {
    members: Members,
    /// Whether pods that are being deleted are left out.
    staying: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Members {
    /// Pods of a controller.
    Of(Arc<str>),
    /// Pods that match every term.
    Matching(Vec<Term>),
}

impl PodSet {
    /// Pods of a controller that are not being deleted.
    pub fn owned_by(owner: Arc<str>) -> Self {
        PodSet {
            members: Members::Of(owner),
            staying: true,
        }
    }

    /// Pods of a term that are not being deleted.
    pub fn staying(term: Term) -> Self {
        PodSet {
            members: Members::Matching(vec![term]),
            staying: true,
        }
    }

    /// Pods that every term means.
    pub fn matching(terms: Vec<Term>) -> Self {
        PodSet {
            members: Members::Matching(terms),
            staying: false,
        }
    }

    /// Equal for equal sets.
    pub(super) fn key(&self) -> Arc<str> {
        format!("{self:?}").into()
    }

    /// Whether pods of a class are in it.
    pub(super) fn contains(&self, class: &ClassKey, of_namespace: Option<&Labels>) -> bool {
        if self.staying && class.terminating {
            return false;
        }
        match &self.members {
            Members::Of(owner) => class.owner.as_ref() == Some(owner),
            Members::Matching(terms) => terms
                .iter()
                .all(|term| term.matches(&class.namespace, of_namespace, &class.labels)),
        }
    }

    /// Where its pods are to be looked for.
    pub(super) fn home(&self) -> Home<'_> {
        match &self.members {
            Members::Of(owner) => Home::Owner(owner),
            Members::Matching(terms) => terms
                .iter()
                .find(|term| term.namespace_selector.is_none())
                .map_or(Home::Anywhere, |term| Home::Namespaces(&term.namespaces)),
        }
    }

    /// Whether it depends on the labels of namespaces.
    pub(super) fn follows_namespace_labels(&self) -> bool {
        match &self.members {
            Members::Matching(terms) => terms.iter().any(|term| term.namespace_selector.is_some()),
            Members::Of(_) => false,
        }
    }
}

/// Where the pods of a set can be.
pub(super) enum Home<'a> {
    /// Under one controller.
    Owner(&'a Arc<str>),
    /// In these namespaces.
    Namespaces(&'a [Arc<str>]),
    /// In any namespace.
    Anywhere,
}
