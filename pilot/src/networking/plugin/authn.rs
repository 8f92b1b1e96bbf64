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
use proto::istio::authentication::v1alpha1::{StringMatch, string_match::MatchType};
use proto::istio::security::v1beta1::JwtRule;

use crate::networking::wire::{http_filter, regex, seconds};
use crate::networking::{Instance, View};
use crate::push_context::policies::{KeyPlace, PolicyIndex, TokenPolicy};
use crate::push_context::status::Metric;

/// Key under which the filter leaves a token's claims.
pub(super) const PAYLOAD: &str = "payload";
/// Name of the filter; its metadata is found under it.
pub(super) const NAME: &str = "envoy.filters.http.jwt_authn";
/// A key set with one key whose private half nobody has: every token is refused. (Envoy takes no set without keys.)
const NO_KEYS: &str = concat!(
    r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"nobody","#,
    r#""x":"Ehwb2vVyefbZlPirwAGzV35Jv2VCkCYCVPnFwPzD3nU","#,
    r#""y":"kNy2mE_I1oLdubVyImV9xI81CDMrwCsMKUqGIM5bt_M"}]}"#,
);

/// The filter, if any rule is for this workload. The 1.4 line's policies are for a service's port: `instance`.
#[must_use]
pub fn filter(view: &View<'_>, instance: Option<&Instance>) -> Option<HttpFilter> {
    let policies = view.push.policies.request_authentications(view.proxy);
    let mut rules: Vec<&JwtRule> = policies
        .iter()
        .flat_map(|policy| &policy.spec.jwt_rules)
        .collect();
    if rules.is_empty() {
        let legacy = view.push.policies.legacy();
        let tokens =
            instance.and_then(|instance| legacy.tokens(&instance.service, &instance.port))?;
        return Some(legacy_filter(view, &tokens));
    }
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    let requirement = RequirementRule {
        r#match: Some(path_match(PathSpecifier::Prefix("/".to_owned()))),
        requirement_type: Some(RequirementType::Requires(requirement(rules.len()))),
    };
    Some(jwt_filter(view, &rules, vec![requirement]))
}

fn path_match(path: PathSpecifier) -> RouteMatch {
    RouteMatch {
        path_specifier: Some(path),
        ..RouteMatch::default()
    }
}

fn jwt_filter(view: &View<'_>, tokens: &[&JwtRule], rules: Vec<RequirementRule>) -> HttpFilter {
    let providers: BTreeMap<String, JwtProvider> = tokens
        .iter()
        .enumerate()
        .map(|(index, rule)| (provider_name(index), provider(view, rule)))
        .collect();
    let config = JwtAuthentication {
        providers,
        rules,
        bypass_cors_preflight: true,
        ..JwtAuthentication::default()
    };
    http_filter(NAME, &config)
}

/// Tokens as the 1.4 line demands them: one must be good unless they are optional, on the paths that a rule names.
fn legacy_filter(view: &View<'_>, tokens: &TokenPolicy) -> HttpFilter {
    let rules: Vec<&JwtRule> = tokens.rules.iter().map(|(rule, _)| rule).collect();
    let named = (0..rules.len()).map(|index| JwtRequirement {
        requires_type: Some(RequiresType::ProviderName(provider_name(index))),
    });
    let mut alternatives: Vec<JwtRequirement> = named.collect();
    if tokens.is_optional {
        alternatives.push(JwtRequirement {
            requires_type: Some(RequiresType::AllowMissingOrFailed(())),
        });
    }
    let required = if alternatives.len() == 1 {
        alternatives.remove(0)
    } else {
        JwtRequirement {
            requires_type: Some(RequiresType::RequiresAny(JwtRequirementOrList {
                requirements: alternatives,
            })),
        }
    };
    let rule = |path, requirement: Option<&JwtRequirement>| RequirementRule {
        r#match: Some(path_match(path)),
        requirement_type: requirement.cloned().map(RequirementType::Requires),
    };
    let mut requirements = Vec::new();
    let mut has_includes = false;
    // Paths are looked at for a single token only: of several, one that is not asked for would open the path for all.
    if let [(_, triggers)] = &tokens.rules[..] {
        for trigger in triggers {
            let excluded = trigger.excluded_paths.iter().filter_map(path_of);
            requirements.extend(excluded.map(|path| rule(path, None)));
        }
        for trigger in triggers {
            let included = trigger.included_paths.iter().filter_map(path_of);
            has_includes |= !trigger.included_paths.is_empty();
            requirements.extend(included.map(|path| rule(path, Some(&required))));
        }
    }
    if !has_includes {
        let everything = PathSpecifier::Prefix("/".to_owned());
        requirements.push(rule(everything, Some(&required)));
    }
    jwt_filter(view, &rules, requirements)
}

fn path_of(matcher: &StringMatch) -> Option<PathSpecifier> {
    Some(match matcher.match_type.as_ref()? {
        MatchType::Exact(path) => PathSpecifier::Path(path.clone()),
        MatchType::Prefix(path) => PathSpecifier::Prefix(path.clone()),
        MatchType::Suffix(path) => {
            PathSpecifier::SafeRegex(regex(&format!(".*{}", ::regex::escape(path))))
        }
        MatchType::Regex(text) => PathSpecifier::SafeRegex(regex(text)),
    })
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
        // Routes of gateways may ask for claims, which nobody knows when a request's route is first looked for.
        clear_route_cache: view.proxy.is_router(),
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
    let cluster = match PolicyIndex::key_place(view.push, &view.proxy.namespace, rule) {
        KeyPlace::Inline if has_keys(&rule.jwks) => return inline(&rule.jwks),
        KeyPlace::Inline => {
            let text = "jwks holds no key: every token is refused";
            view.record(Metric::InvalidPolicy, &rule.issuer, text);
            return inline(NO_KEYS);
        }
        KeyPlace::Fetched(source) => {
            let fetched = view.push.keys.get(&source);
            if fetched.is_none() {
                let what = format!("{source:?}");
                let text = "the keys have not been fetched yet: every token is refused";
                view.record(Metric::InvalidPolicy, &what, text);
            }
            return inline(fetched.filter(|keys| has_keys(keys)).unwrap_or(NO_KEYS));
        }
        KeyPlace::Cluster(cluster) => cluster,
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

fn has_keys(text: &str) -> bool {
    let parsed = serde_json::from_str::<serde_json::Value>(text);
    parsed.is_ok_and(|set| {
        let keys = set.get("keys").and_then(serde_json::Value::as_array);
        keys.is_some_and(|keys| !keys.is_empty())
    })
}
