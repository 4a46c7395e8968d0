//! Questions about who one is and what one may do: answered at once, never kept.

use super::{Resource, question};

pub(super) static RESOURCES: &[Resource] = &[
    question(
        "authentication.k8s.io",
        "SelfSubjectReview",
        ("selfsubjectreviews", "selfsubjectreview"),
        false,
    ),
    question(
        "authentication.k8s.io",
        "TokenReview",
        ("tokenreviews", "tokenreview"),
        false,
    ),
    question(
        "authorization.k8s.io",
        "LocalSubjectAccessReview",
        ("localsubjectaccessreviews", "localsubjectaccessreview"),
        true,
    ),
    question(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        ("selfsubjectaccessreviews", "selfsubjectaccessreview"),
        false,
    ),
    question(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        ("selfsubjectrulesreviews", "selfsubjectrulesreview"),
        false,
    ),
    question(
        "authorization.k8s.io",
        "SubjectAccessReview",
        ("subjectaccessreviews", "subjectaccessreview"),
        false,
    ),
];
