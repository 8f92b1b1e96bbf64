//! Rules of the 1.4 line's authentication Policy, which is also MeshPolicy's message: the one without a namespace.

use std::collections::HashSet;

use proto::istio::authentication::v1alpha1::peer_authentication_method::Params;
use proto::istio::authentication::v1alpha1::port_selector::Port;
use proto::istio::authentication::v1alpha1::string_match::MatchType;
use proto::istio::authentication::v1alpha1::{
    Jwt, PeerAuthenticationMethod, Policy, StringMatch, TargetSelector,
};

use crate::finding::Report;
use crate::kind::url;
use crate::labels::is_dns_label;
use crate::port;
use crate::resource::Metadata;

/// The name of the policy that holds where no other does.
const DEFAULT: &str = "default";

/// Reports what is wrong.
pub(super) fn check(spec: &Policy, meta: &Metadata, report: &mut Report) {
    check_scope(spec, meta, report);
    report.each("targets", &spec.targets, check_target);
    let mut issuers = HashSet::new();
    report.each("peers", &spec.peers, |report, peer| {
        if let Some(jwt) = peer_jwt(peer) {
            report.at("jwt", |report| check_jwt(jwt, &mut issuers, report));
        }
    });
    report.each("origins", &spec.origins, |report, origin| {
        match &origin.jwt {
            Some(jwt) => report.at("jwt", |report| check_jwt(jwt, &mut issuers, report)),
            None => report.error_at("jwt", "the token's issuer is missing: give jwt"),
        }
    });
}

#[allow(deprecated, reason = "the old way is still read")]
fn peer_jwt(peer: &PeerAuthenticationMethod) -> Option<&Jwt> {
    match &peer.params {
        Some(Params::Jwt(jwt)) => Some(jwt),
        _ => None,
    }
}

/// A policy has targets, or is called `default`; a cluster's policy has no targets and is called `default`.
fn check_scope(spec: &Policy, meta: &Metadata, report: &mut Report) {
    let is_default = meta.name == DEFAULT;
    if meta.namespace.is_empty() {
        if !is_default {
            report.error(format!(
                "the policy of the whole mesh must be called {DEFAULT:?}, not {:?}",
                meta.name
            ));
        }
        if !spec.targets.is_empty() {
            report.error_at("targets", "the policy of the whole mesh has no targets");
        }
    } else if is_default && !spec.targets.is_empty() {
        report.error_at("targets", "the policy called \"default\" is for the whole namespace: leave targets out, or rename it");
    } else if !is_default && spec.targets.is_empty() {
        report.error(format!("a policy without targets is for the whole namespace: call it {DEFAULT:?}, or give targets"));
    }
}

fn check_target(report: &mut Report, target: &TargetSelector) {
    if !is_dns_label(&target.name) {
        report.error_at(
            "name",
            format!("{:?} is no service's short name", target.name),
        );
    }
    report.each("ports", &target.ports, |report, selected| {
        match &selected.port {
            Some(Port::Number(number)) => report.require_at("number", port::check_number(*number)),
            Some(Port::Name(name)) => report.require_at("name", port::check_name(name)),
            None => report.error("the port is missing: give number or name"),
        }
    });
}

fn check_jwt(jwt: &Jwt, issuers: &mut HashSet<String>, report: &mut Report) {
    if jwt.issuer.is_empty() {
        report.error_at("issuer", "the issuer is missing");
    } else if !issuers.insert(jwt.issuer.clone()) {
        report.error_at(
            "issuer",
            format!("there are two tokens of the issuer {:?}", jwt.issuer),
        );
    }
    if !jwt.jwks_uri.is_empty() {
        report.require_at("jwksUri", url::check_http(&jwt.jwks_uri));
    }
    for (field, values) in [
        ("audiences", &jwt.audiences),
        ("jwtHeaders", &jwt.jwt_headers),
        ("jwtParams", &jwt.jwt_params),
    ] {
        report.each(field, values, |report, value: &String| {
            if value.is_empty() {
                report.error("the value is empty");
            }
        });
    }
    report.each("triggerRules", &jwt.trigger_rules, |report, rule| {
        report.each("excludedPaths", &rule.excluded_paths, check_path);
        report.each("includedPaths", &rule.included_paths, check_path);
    });
}

fn check_path(report: &mut Report, path: &StringMatch) {
    let (field, text) = match &path.match_type {
        Some(MatchType::Exact(text)) => ("exact", text),
        Some(MatchType::Prefix(text)) => ("prefix", text),
        Some(MatchType::Suffix(text)) => ("suffix", text),
        Some(MatchType::Regex(text)) => {
            report.require_at("regex", crate::re2::check(text));
            return;
        }
        None => {
            report.error("the path is missing: give exact, prefix, suffix or regex");
            return;
        }
    };
    if text.is_empty() {
        report.error_at(field, "the path is empty");
    }
}
