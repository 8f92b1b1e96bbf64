//! The rules of every kind, and the one table that finds them.
//!
//! The rules are those of Istio's webhook: today's for the networking, security, telemetry and extension kinds, the 1.4
//! line's for the authentication, RBAC and Mixer kinds. All findings of an object are collected, never the first alone.

use prost::{Message, Name};
use prost_types::Any;
use proto::istio;
use proto::kind::Kind;

use crate::finding::{Findings, Report};
use crate::resource::Metadata;

mod address;
mod attribute_manifest;
mod authentication_policy;
mod authorization_policy;
mod destination;
mod destination_rule;
mod duration;
mod envoy_filter;
mod export_to;
mod gateway;
mod handler;
mod header;
mod http_api_spec;
mod http_api_spec_binding;
mod instance;
mod peer_authentication;
mod proxy_config;
mod quota_spec;
mod quota_spec_binding;
mod rbac_config;
mod request_authentication;
mod rule;
mod selector;
mod service_entry;
mod service_role;
mod service_role_binding;
mod sidecar;
mod telemetry;
mod tls;
mod traffic_policy;
mod url;
mod virtual_service;
mod wasm_plugin;
mod workload_entry;
mod workload_group;

pub(crate) use address::check_range;
pub(crate) use duration::check as check_duration;
pub(crate) use traffic_policy::{check_locality, check_zones};

/// A message that is the content of a kind, with the kind's rules.
pub trait Resource: Message + Name + Default + Clone {
    /// Everything in this message that is wrong or suspicious, `meta` being its name, namespace and annotations.
    fn findings(&self, meta: &Metadata) -> Findings;
}

/// Messages with their rules; from it come [`Resource`] and the table by message name.
macro_rules! rules {
    ($($message:ty => $check:path;)*) => {
        $(impl Resource for $message {
            fn findings(&self, meta: &Metadata) -> Findings {
                let mut report = Report::default();
                check_metadata(&<$message>::full_name(), meta, &mut report);
                $check(self, meta, &mut report);
                report.into_findings()
            }
        })*

        fn rules_of(message: &str) -> Option<fn(&Metadata, &[u8]) -> Findings> {
            $(if message == <$message>::full_name() {
                return Some(decode_and_check::<$message>);
            })*
            None
        }
    };
}

rules! {
    istio::networking::v1alpha3::VirtualService => virtual_service::check;
    istio::networking::v1alpha3::DestinationRule => destination_rule::check;
    istio::networking::v1alpha3::Gateway => gateway::check;
    istio::networking::v1alpha3::ServiceEntry => service_entry::check;
    istio::networking::v1alpha3::WorkloadEntry => workload_entry::check;
    istio::networking::v1alpha3::WorkloadGroup => workload_group::check;
    istio::networking::v1alpha3::Sidecar => sidecar::check;
    istio::networking::v1alpha3::EnvoyFilter => envoy_filter::check;
    istio::networking::v1beta1::ProxyConfig => proxy_config::check;
    istio::security::v1beta1::PeerAuthentication => peer_authentication::check;
    istio::security::v1beta1::RequestAuthentication => request_authentication::check;
    istio::security::v1beta1::AuthorizationPolicy => authorization_policy::check;
    istio::telemetry::v1alpha1::Telemetry => telemetry::check;
    istio::extensions::v1alpha1::WasmPlugin => wasm_plugin::check;
    istio::authentication::v1alpha1::Policy => authentication_policy::check;
    istio::rbac::v1alpha1::RbacConfig => rbac_config::check;
    istio::rbac::v1alpha1::ServiceRole => service_role::check;
    istio::rbac::v1alpha1::ServiceRoleBinding => service_role_binding::check;
    istio::policy::v1beta1::AttributeManifest => attribute_manifest::check;
    istio::policy::v1beta1::Handler => handler::check;
    istio::policy::v1beta1::Instance => instance::check;
    istio::policy::v1beta1::Rule => rule::check;
    istio::mixer::v1::config::client::QuotaSpec => quota_spec::check;
    istio::mixer::v1::config::client::QuotaSpecBinding => quota_spec_binding::check;
    istio::mixer::v1::config::client::HttpapiSpec => http_api_spec::check;
    istio::mixer::v1::config::client::HttpapiSpecBinding => http_api_spec_binding::check;
}

/// Checks what is the same for all kinds.
fn check_metadata(message: &str, meta: &Metadata, report: &mut Report) {
    let has_dry_run = message == istio::security::v1beta1::AuthorizationPolicy::full_name();
    if !has_dry_run && meta.annotation(authorization_policy::DRY_RUN).is_some() {
        report.error(format!(
            "the annotation {} is for authorization policies only: remove it",
            authorization_policy::DRY_RUN
        ));
    }
}

fn decode_and_check<T: Resource>(meta: &Metadata, bytes: &[u8]) -> Findings {
    match T::decode(bytes) {
        Ok(spec) => spec.findings(meta),
        Err(error) => {
            let mut findings = Findings::default();
            findings.error(
                "",
                format!("the bytes are not a {}: {error}", T::full_name()),
            );
            findings
        }
    }
}

/// Checks an object whose type is known at run time only.
#[must_use]
pub fn validate(kind: &Kind, meta: &Metadata, spec: &Any) -> Findings {
    let message = proto::type_url::message_name(&spec.type_url);
    if message != kind.message {
        let mut findings = Findings::default();
        findings.error(
            "",
            format!("a {} is a {}, not a {message}", kind.kind, kind.message),
        );
        return findings;
    }
    rules_of(message).map_or_else(Findings::default, |check| check(meta, &spec.value))
}

#[cfg(test)]
mod tests;
