//! The equals of Kubernetes' conformance tests that need no container to run, and of all of kubectl's.

mod kubectl;
mod machinery;
mod objects;
mod workloads;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// What stands for a conformance test.
enum Equal {
    /// A test of this project.
    Test(&'static str),
    /// None yet, for this reason.
    Later(&'static str),
}
use Equal::{Later, Test};

const EQUALS: &[(&str, Equal)] = &[
    (
        "AggregatedDiscovery should support aggregated discovery interface",
        Test("aggregated_discovery_should_support_aggregated_discovery_interface"),
    ),
    (
        "AggregatedDiscovery should support raw aggregated discovery endpoint Accept headers",
        Test("aggregated_discovery_should_support_raw_aggregated_discovery_endpoint_accept_headers"),
    ),
    (
        "Discovery should locate the groupVersion and a resource within each APIGroup",
        Test("discovery_should_locate_the_group_version_and_a_resource_within_each_api_group"),
    ),
    (
        "Discovery should validate PreferredVersion for each APIGroup",
        Test("discovery_should_validate_preferred_version_for_each_api_group"),
    ),
    (
        "server version should find the server version",
        Test("server_version_should_find_the_server_version"),
    ),
    (
        "Servers with support for API chunking should return chunks of results for list calls",
        Test("pages_show_one_moment_and_old_tokens_expire_usefully"),
    ),
    (
        "Servers with support for API chunking should support continue listing from the last key if the original version has been compacted away, though the list is inconsistent",
        Test("pages_show_one_moment_and_old_tokens_expire_usefully"),
    ),
    (
        "Servers with support for Table transformation should return a 406 for a backend which does not implement metadata",
        Test(
            "servers_with_support_for_table_transformation_should_return_a_406_for_a_backend_which_does_not_implement_metadata",
        ),
    ),
    (
        "Watchers should be able to restart watching from the last resource version observed by the previous watch",
        Test("watchers_should_be_able_to_restart_watching_from_the_last_resource_version_observed"),
    ),
    (
        "Watchers should be able to start watching from a specific resource version",
        Test("a_watch_from_a_list_sees_every_change_in_order"),
    ),
    (
        "Watchers should observe add, update, and delete watch notifications on configmaps",
        Test("watchers_should_observe_add_update_and_delete_watch_notifications_on_configmaps"),
    ),
    (
        "Watchers should observe an object deletion if it stops meeting the requirements of the selector",
        Test("selectors_turn_changes_into_arrivals_and_departures"),
    ),
    (
        "Watchers should receive events on concurrent watches in same order",
        Test("watchers_should_receive_events_on_concurrent_watches_in_same_order"),
    ),
    (
        "Garbage collector should delete RS created by deployment when not orphaning",
        Test("garbage_collector_should_delete_rs_created_by_deployment_when_not_orphaning"),
    ),
    (
        "Garbage collector should delete pods created by rc when not orphaning",
        Test("garbage_collector_should_delete_pods_created_by_rc_when_not_orphaning"),
    ),
    (
        "Garbage collector should keep the rc around until all its pods are deleted if the deleteOptions says so",
        Test("garbage_collector_should_keep_the_rc_around_until_all_its_pods_are_deleted"),
    ),
    (
        "Garbage collector should not be blocked by dependency circle",
        Test("garbage_collector_should_not_be_blocked_by_dependency_circle"),
    ),
    (
        "Garbage collector should not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted",
        Test(
            "garbage_collector_should_not_delete_dependents_that_have_both_valid_owner_and_owner_waiting_for_dependents",
        ),
    ),
    (
        "Garbage collector should orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan",
        Test("garbage_collector_should_orphan_rs_created_by_deployment"),
    ),
    (
        "Garbage collector should orphan pods created by rc if delete options say so",
        Test("garbage_collector_should_orphan_pods_created_by_rc_if_delete_options_say_so"),
    ),
    (
        "Namespaces should apply a finalizer to a Namespace",
        Test("namespaces_should_apply_a_finalizer_to_a_namespace"),
    ),
    (
        "Namespaces should apply an update to a Namespace",
        Test("namespaces_should_patch_and_apply_an_update_to_a_namespace"),
    ),
    (
        "Namespaces should apply changes to a namespace status",
        Test("namespaces_should_apply_changes_to_a_namespace_status"),
    ),
    (
        "Namespaces should ensure that all pods are removed when a namespace is deleted",
        Test("namespaces_should_ensure_that_all_pods_and_services_are_removed_when_a_namespace_is_deleted"),
    ),
    (
        "Namespaces should ensure that all services are removed when a namespace is deleted",
        Test("namespaces_should_ensure_that_all_pods_and_services_are_removed_when_a_namespace_is_deleted"),
    ),
    (
        "Namespaces should patch a Namespace",
        Test("namespaces_should_patch_and_apply_an_update_to_a_namespace"),
    ),
    (
        "OrderedNamespaceDeletion namespace deletion should delete pod first",
        Test("ordered_namespace_deletion_namespace_deletion_should_delete_pod_first"),
    ),
    (
        "FieldValidation should detect unknown and duplicate fields of a typed object",
        Test("field_validation_should_detect_unknown_and_duplicate_fields_of_a_typed_object"),
    ),
    (
        "FieldValidation should detect unknown metadata fields of a typed object",
        Test("field_validation_should_detect_unknown_metadata_fields_of_a_typed_object"),
    ),
    (
        "Deployment should have a working scale subresource",
        Test("deployment_should_have_a_working_scale_subresource"),
    ),
    (
        "Deployment should run the lifecycle of a Deployment",
        Test("deployment_should_run_the_lifecycle_of_a_deployment"),
    ),
    (
        "Deployment should validate Deployment Status endpoints",
        Test("deployment_and_replica_set_should_validate_status_endpoints"),
    ),
    (
        "ReplicaSet Replace and Patch tests",
        Test("replica_set_replace_and_patch_tests"),
    ),
    (
        "ReplicaSet should have a working scale subresource",
        Test("replica_set_should_have_a_working_scale_subresource"),
    ),
    (
        "ReplicaSet should adopt matching pods on creation and release no longer matching pods",
        Test("replica_set_should_adopt_matching_pods_on_creation_and_release_no_longer_matching_pods"),
    ),
    (
        "ReplicaSet should list and delete a collection of ReplicaSets",
        Test("replica_set_should_list_and_delete_a_collection_of_replica_sets"),
    ),
    (
        "ReplicaSet should validate Replicaset Status endpoints",
        Test("deployment_and_replica_set_should_validate_status_endpoints"),
    ),
    (
        "ReplicationController should adopt matching pods on creation",
        Test("replication_controller_should_adopt_matching_pods_and_release_no_longer_matching_pods"),
    ),
    (
        "ReplicationController should release no longer matching pods",
        Test("replication_controller_should_adopt_matching_pods_and_release_no_longer_matching_pods"),
    ),
    (
        "ReplicationController should get and update a ReplicationController scale",
        Test("replication_controller_should_get_and_update_a_replication_controller_scale"),
    ),
    (
        "ReplicationController should surface a failure condition on a common issue like exceeded quota",
        Test(
            "replication_controller_should_surface_a_failure_condition_on_a_common_issue_like_exceeded_quota",
        ),
    ),
    (
        "ReplicationController should test the lifecycle of a ReplicationController",
        Test("replication_controller_should_test_the_lifecycle_of_a_replication_controller"),
    ),
    (
        "DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets",
        Test("disruption_controller_should_list_and_delete_a_collection_in_all_namespaces"),
    ),
    (
        "DisruptionController should block an eviction until the PDB is updated to allow it",
        Test("disruption_controller_should_block_an_eviction_until_the_pdb_is_updated_to_allow_it"),
    ),
    (
        "DisruptionController should create a PodDisruptionBudget",
        Test("disruption_controller_should_create_a_pod_disruption_budget"),
    ),
    (
        "DisruptionController should observe PodDisruptionBudget status updated",
        Test("disruption_controller_should_observe_pod_disruption_budget_status_updated"),
    ),
    (
        "DisruptionController should update/patch PodDisruptionBudget status",
        Test("disruption_controller_should_update_and_patch_its_status"),
    ),
    (
        "ControllerRevision should manage the lifecycle of a ControllerRevision",
        Test("controller_revision_should_manage_the_lifecycle_of_a_controller_revision"),
    ),
    (
        "CronJob should support CronJob API operations",
        Test("cron_job_should_support_cron_job_api_operations"),
    ),
    (
        "Services should provide secure master service",
        Test("services_should_provide_secure_master_service_and_be_found_in_all_namespaces"),
    ),
    (
        "EndpointSlice should have Endpoints and EndpointSlices pointing to API Server",
        Test("what_a_pod_writes_into_its_claim_outlives_it"),
    ),
    (
        "EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service",
        Test("endpoint_slice_should_create_endpoints_and_endpoint_slices_for_pods_matching_a_service"),
    ),
    (
        "EndpointSlice should create and delete Endpoints and EndpointSlices for a Service with a selector specified",
        Test("endpoint_slice_should_create_endpoints_and_endpoint_slices_for_pods_matching_a_service"),
    ),
    (
        "EndpointSlice should support creating EndpointSlice API operations",
        Test("endpoint_slice_should_support_creating_endpoint_slice_api_operations"),
    ),
    (
        "EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete",
        Test("endpoints_written_by_hand_are_mirrored"),
    ),
    (
        "EndpointsController should create Endpoints for Pods matching a Service",
        Test("endpoint_slice_should_create_endpoints_and_endpoint_slices_for_pods_matching_a_service"),
    ),
    (
        "EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods",
        Test("endpoint_slice_should_create_endpoints_and_endpoint_slices_for_pods_matching_a_service"),
    ),
    (
        "Endpoints should test the lifecycle of an Endpoint",
        Test("endpoints_should_test_the_lifecycle_of_an_endpoint"),
    ),
    (
        "Services should complete a service status lifecycle",
        Test("services_should_complete_a_service_status_lifecycle"),
    ),
    (
        "Services should delete a collection of services",
        Test("services_should_delete_a_collection_of_services"),
    ),
    (
        "Services should find a service from listing all namespaces",
        Test("services_should_provide_secure_master_service_and_be_found_in_all_namespaces"),
    ),
    (
        "Ingress API should support creating Ingress API operations",
        Test("ingress_api_should_support_creating_ingress_api_operations"),
    ),
    (
        "IngressClass API should support creating IngressClass API operations",
        Test("ingress_class_api_should_support_creating_ingress_class_api_operations"),
    ),
    (
        "ServiceCIDR and IPAddress API should support ServiceCIDR API operations",
        Test("service_cidr_and_ip_address_api_should_support_service_cidr_api_operations"),
    ),
    (
        "ServiceCIDR and IPAddress API should support IPAddress API operations",
        Test("service_cidr_and_ip_address_api_should_support_ip_address_api_operations"),
    ),
    (
        "SchedulerPredicates validates resource limits of pods that are allowed to run",
        Test("validates_resource_limits_of_pods_that_are_allowed_to_run"),
    ),
    (
        "SchedulerPredicates validates that NodeSelector is respected if matching",
        Test("validates_that_node_selector_is_respected"),
    ),
    (
        "SchedulerPredicates validates that NodeSelector is respected if not matching",
        Test("validates_that_node_selector_is_respected"),
    ),
    (
        "SchedulerPredicates validates that there exists conflict between pods with same hostPort and protocol but one using 0.0.0.0 hostIP",
        Test(
            "validates_that_there_exists_conflict_between_pods_with_same_host_port_and_protocol_but_one_using_0_0_0_0_host_ip",
        ),
    ),
    (
        "SchedulerPreemption validates basic preemption works",
        Test("validates_basic_preemption_works"),
    ),
    (
        "SchedulerPreemption validates lower priority pod preemption by critical pod",
        Test("validates_lower_priority_pod_preemption_by_critical_pod"),
    ),
    (
        "SchedulerPreemption validates pod disruption condition is added to the preempted pod",
        Test("validates_pod_disruption_condition_is_added_to_the_preempted_pod"),
    ),
    (
        "SchedulerPreemption PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods",
        Test("verify_priority_class_endpoints_can_be_operated_with_different_http_methods"),
    ),
    (
        "LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied",
        Test(
            "limit_range_should_create_a_limit_range_with_defaults_and_ensure_pod_has_those_defaults_applied",
        ),
    ),
    (
        "LimitRange should list, patch and delete a LimitRange by collection",
        Test("limit_range_should_list_patch_and_delete_a_limit_range_by_collection"),
    ),
    (
        "Lease lease API should be available",
        Test("lease_lease_api_should_be_available"),
    ),
    (
        "NoExecuteTaintManager Single Pod removing taint cancels eviction",
        Test("no_execute_taint_manager_removing_taint_cancels_eviction"),
    ),
    (
        "NoExecuteTaintManager Multiple Pods evicts pods with minTolerationSeconds",
        Test("no_execute_taint_manager_evicts_pods_with_min_toleration_seconds"),
    ),
    (
        "Pods should delete a collection of pods",
        Test("pods_should_delete_a_collection_of_pods"),
    ),
    (
        "Pods should patch a pod status",
        Test("pods_should_patch_a_pod_status"),
    ),
    (
        "Pods Extended QOS Class should be set on Pods",
        Test("pods_extended_qos_class_should_be_set_on_pods"),
    ),
    (
        "PodTemplates should delete a collection of pod templates",
        Test("pod_templates_should_replace_a_pod_template_and_delete_a_collection"),
    ),
    (
        "PodTemplates should replace a pod template",
        Test("pod_templates_should_replace_a_pod_template_and_delete_a_collection"),
    ),
    (
        "PodTemplates should run the lifecycle of PodTemplates",
        Test("pod_templates_should_run_the_lifecycle_of_pod_templates"),
    ),
    (
        "ConfigMap should run through a ConfigMap lifecycle",
        Test("config_map_should_run_through_a_config_map_lifecycle"),
    ),
    (
        "ConfigMap should fail to create ConfigMap with empty key",
        Test("config_maps_and_secrets_should_fail_to_be_created_with_an_empty_key"),
    ),
    (
        "Secrets should patch a secret",
        Test("secrets_should_patch_a_secret"),
    ),
    (
        "Secrets should fail to create secret due to empty secret key",
        Test("config_maps_and_secrets_should_fail_to_be_created_with_an_empty_key"),
    ),
    (
        "RuntimeClass should support RuntimeClasses API operations",
        Test("runtime_class_should_support_runtime_classes_api_operations"),
    ),
    (
        "ServiceAccounts should run through the lifecycle of a ServiceAccount",
        Test("service_accounts_should_run_through_the_lifecycle_of_a_service_account"),
    ),
    (
        "ServiceAccounts should update a ServiceAccount",
        Test("service_accounts_should_update_a_service_account"),
    ),
    (
        "ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace",
        Test("service_accounts_should_guarantee_kube_root_ca_crt_exist_in_any_namespace"),
    ),
    (
        "ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview",
        Test("service_accounts_should_create_a_service_account_token_and_ensure_a_successful_token_review"),
    ),
    (
        "SubjectReview should support SubjectReview API operations",
        Test("subject_review_should_support_subject_review_api_operations"),
    ),
    (
        "Certificates API should support CSR API operations",
        Test("certificates_api_should_support_csr_api_operations"),
    ),
    (
        "Events should manage the lifecycle of an event",
        Test("events_should_manage_the_lifecycle_of_an_event"),
    ),
    (
        "Events should delete a collection of events",
        Test("events_should_delete_a_collection_of_events"),
    ),
    (
        "Events API should ensure that an event can be fetched, patched, deleted, and listed",
        Test("events_api_should_ensure_that_an_event_can_be_fetched_patched_deleted_and_listed"),
    ),
    (
        "Events API should delete a collection of events",
        Test("events_api_should_delete_a_collection_of_events"),
    ),
    (
        "Kubectl client Guestbook application should create and stop a working application",
        Test("kubectl_client_guestbook_application_should_create_and_stop_a_working_application"),
    ),
    (
        "Kubectl client Kubectl api-versions should check if v1 is in available api versions",
        Test("kubectl_client_kubectl_api_versions_should_check_if_v1_is_in_available_api_versions"),
    ),
    (
        "Kubectl client Kubectl cluster-info should check if Kubernetes control plane services is included in cluster-info",
        Test(
            "kubectl_client_kubectl_cluster_info_should_check_if_kubernetes_control_plane_services_is_included",
        ),
    ),
    (
        "Kubectl client Kubectl describe should check if kubectl describe prints relevant information for rc and pods",
        Test(
            "kubectl_client_kubectl_describe_should_check_if_kubectl_describe_prints_relevant_information_for_rc_and_pods",
        ),
    ),
    (
        "Kubectl client Kubectl diff should check if kubectl diff finds a difference for Deployments",
        Test("kubectl_client_kubectl_diff_should_check_if_kubectl_diff_finds_a_difference_for_deployments"),
    ),
    (
        "Kubectl client Kubectl expose should create services for rc",
        Test("kubectl_client_kubectl_expose_should_create_services_for_rc"),
    ),
    (
        "Kubectl client Kubectl label should update the label on a resource",
        Test("kubectl_client_kubectl_label_should_update_the_label_on_a_resource"),
    ),
    (
        "Kubectl client Kubectl patch should add annotations for pods in rc",
        Test("kubectl_client_kubectl_patch_should_add_annotations_for_pods_in_rc"),
    ),
    (
        "Kubectl client Kubectl replace should update a single-container pod's image",
        Test("kubectl_client_kubectl_replace_should_update_a_single_container_pod_s_image"),
    ),
    (
        "Kubectl client Kubectl run pod should create a pod from an image when restart is Never",
        Test("kubectl_client_kubectl_run_pod_should_create_a_pod_from_an_image_when_restart_is_never"),
    ),
    (
        "Kubectl client Kubectl server-side dry-run should check if kubectl can dry-run update Pods",
        Test("kubectl_client_kubectl_server_side_dry_run_should_check_if_kubectl_can_dry_run_update_pods"),
    ),
    (
        "Kubectl client Kubectl version should check is all data is printed",
        Test("kubectl_client_kubectl_version_should_check_is_all_data_is_printed"),
    ),
    (
        "Kubectl client Proxy server should support --unix-socket=/path",
        Test("kubectl_client_proxy_server_should_support_unix_socket"),
    ),
    (
        "Kubectl client Proxy server should support proxy with --port 0",
        Test("kubectl_client_proxy_server_should_support_proxy_with_port_0"),
    ),
    (
        "Kubectl client Update Demo should create and stop a replication controller",
        Test("kubectl_client_update_demo_should_create_and_stop_a_replication_controller"),
    ),
    (
        "Kubectl client Update Demo should scale a replication controller",
        Test("kubectl_client_update_demo_should_scale_a_replication_controller"),
    ),
    (
        "Kubectl logs logs should be able to retrieve and filter logs",
        Later("the node's half of logs is still to come"),
    ),
];

/// All test sources below a directory.
fn sources(dir: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn every_conformance_test_has_its_equal_or_a_reason_for_none() -> Result<()> {
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut text)?;
    // A function that is a test, or a row of a macro that makes tests.
    let is_test = |name: &str| {
        let function = format!("fn {name}(");
        let row = format!("\n    {name}:");
        text.contains(&row)
            || text
                .split_once(&function)
                .is_some_and(|(before, _)| before.lines().rev().take(4).any(|line| line.contains("test")))
    };
    for (name, equal) in EQUALS {
        match equal {
            Test(test) => ensure!(is_test(test), "{name}: there is no test {test}"),
            Later(reason) => ensure!(!reason.is_empty(), "{name}: neither a test nor a reason"),
        }
    }
    Ok(())
}
