//! RequestAuthentication as the JWT filter.
//!
//! With one rule a token is optional but must be good; with several any good one will do, and none at all is fine as well.
//! Keys come inline, or are fetched by the proxy when their URI is a service of the mesh; rules without usable keys refuse
//! every token.

use std::collections::BTreeMap;

use proto::envoy::config::core::v3::{DataSource, HttpUri, data_source, http_uri};
use proto::envoy::config::route::v3::{RouteMatch, route_match::PathSpecifier};
use proto::envoy::extensions::filters::http::jwt_authn::v3::{
    JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement,
    JwtRequirementAndList, JwtRequirementOrList, RemoteJwks, RequirementRule,
    jwt_provider::{JwksSourceSpecifier, NormalizePayload},
    jwt_requirement::RequiresType,
    requirement_rule::RequirementType,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::istio::security::v1beta1::JwtRule;

use crate::model::ClusterName;
use crate::networking::View;
use crate::networking::wire::{http_filter, seconds};
use crate::push_context::status::Metric;

/// Key under which the filter leaves a token's claims.
pub(super) const PAYLOAD: &str = "payload";
/// Name of the filter; its metadata is found under it.
pub(super) const NAME: &str = "envoy.filters.http.jwt_authn";
/// A key set without keys: every token is refused.
const NO_KEYS: &str = "{\"keys\":[]}";

/// The filter, if any rule is for this workload.
#[must_use]
pub fn filter(view: &View<'_>) -> Option<HttpFilter> {
    let policies = view.push.policies.request_authentications(view.proxy);
    let mut rules: Vec<&JwtRule> = policies
        .iter()
        .flat_map(|policy| &policy.spec.jwt_rules)
        .collect();
    if rules.is_empty() {
        return None;
    }
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    let providers: BTreeMap<String, JwtProvider> = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| (provider_name(index), provider(view, rule)))
        .collect();
    let requirement = RequirementRule {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        requirement_type: Some(RequirementType::Requires(requirement(rules.len()))),
    };
    Some(http_filter(
        NAME,
        &JwtAuthentication {
            providers,
            rules: vec![requirement],
            bypass_cors_preflight: true,
            ..JwtAuthentication::default()
        },
    ))
}

fn provider_name(index: usize) -> String {
    format!("origins-{index}")
}

fn requirement(count: usize) -> JwtRequirement {
    let missing = || JwtRequirement {
        requires_type: Some(RequiresType::AllowMissing(())),
    };
    let named = |index| JwtRequirement {
        requires_type: Some(RequiresType::ProviderName(provider_name(index))),
    };
    let any_of = |requirements| JwtRequirement {
        requires_type: Some(RequiresType::RequiresAny(JwtRequirementOrList {
            requirements,
        })),
    };
    let optional = |index| any_of(vec![named(index), missing()]);
    if count == 1 {
        return optional(0);
    }
    let all = (0..count).map(optional).collect();
    let mut alternatives: Vec<JwtRequirement> = (0..count).map(named).collect();
    alternatives.push(JwtRequirement {
        requires_type: Some(RequiresType::RequiresAll(JwtRequirementAndList {
            requirements: all,
        })),
    });
    any_of(alternatives)
}

fn provider(view: &View<'_>, rule: &JwtRule) -> JwtProvider {
    let mut space_delimited = vec!["scope".to_owned(), "permission".to_owned()];
    space_delimited.extend(rule.space_delimited_claims.iter().cloned());
    JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        forward: rule.forward_original_token,
        forward_payload_header: rule.output_payload_to_header.clone(),
        payload_in_metadata: PAYLOAD.to_owned(),
        normalize_payload_in_metadata: Some(NormalizePayload {
            space_delimited_claims: space_delimited,
        }),
        from_headers: rule
            .from_headers
            .iter()
            .map(|header| JwtHeader {
                name: header.name.clone(),
                value_prefix: header.prefix.clone(),
            })
            .collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        claim_to_headers: rule
            .output_claim_to_headers
            .iter()
            .map(|claim| JwtClaimToHeader {
                header_name: claim.header.clone(),
                claim_name: claim.claim.clone(),
                ..JwtClaimToHeader::default()
            })
            .collect(),
        jwks_source_specifier: Some(keys(view, rule)),
        ..JwtProvider::default()
    }
}

fn keys(view: &View<'_>, rule: &JwtRule) -> JwksSourceSpecifier {
    let inline = |text: &str| {
        JwksSourceSpecifier::LocalJwks(DataSource {
            specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
            ..DataSource::default()
        })
    };
    if !rule.jwks.is_empty() {
        return inline(&rule.jwks);
    }
    let target = rule.jwks_uri.parse::<http::Uri>().ok().and_then(|uri| {
        let port = uri
            .port_u16()
            .unwrap_or(if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            });
        Some((uri.host()?.to_owned(), u32::from(port)))
    });
    let cluster = target.and_then(|(host, port)| {
        let host = if host.ends_with(".svc") {
            format!("{host}.{}", view.push.domain)
        } else {
            host
        };
        let service = view.service(&host)?;
        service
            .port(port)
            .map(|_| ClusterName::outbound(port, "", &service.host).to_string())
    });
    let Some(cluster) = cluster else {
        view.record(
            Metric::InvalidPolicy,
            &rule.issuer,
            "no keys: jwks is empty and jwksUri is not a service of the mesh",
        );
        return inline(NO_KEYS);
    };
    JwksSourceSpecifier::RemoteJwks(RemoteJwks {
        http_uri: Some(HttpUri {
            uri: rule.jwks_uri.clone(),
            timeout: Some(rule.timeout.unwrap_or(seconds(5))),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster)),
        }),
        cache_duration: Some(seconds(300)),
        ..RemoteJwks::default()
    })
}
