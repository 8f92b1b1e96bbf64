//! Rules of RequestAuthentication: issuers, their keys, where tokens are found.

use proto::istio::security::v1beta1::{JwtRule, RequestAuthentication};
use serde_json::Value;

use crate::finding::Report;
use crate::kind::{duration, header, selector, url};
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &RequestAuthentication, _meta: &Metadata, report: &mut Report) {
    selector::check_target(
        spec.selector.as_ref(),
        spec.target_ref.as_ref(),
        &spec.target_refs,
        report,
    );
    report.each("jwtRules", &spec.jwt_rules, check_rule);
}

fn check_rule(report: &mut Report, rule: &JwtRule) {
    if rule.issuer.is_empty() && rule.jwks_uri.is_empty() {
        report.error("the rule says nothing about who issues the tokens: give issuer or jwksUri");
    }
    refuse_empty("audiences", &rule.audiences, report);
    if !rule.jwks_uri.is_empty() {
        report.require_at("jwksUri", url::check_http(&rule.jwks_uri));
    }
    if !rule.jwks.is_empty() {
        report.at("jwks", |report| check_keys(&rule.jwks, report));
    }
    report.each("fromHeaders", &rule.from_headers, |report, location| {
        if location.name.is_empty() {
            report.error_at("name", "the header's name is missing");
        }
    });
    refuse_empty("fromParams", &rule.from_params, report);
    refuse_empty("fromCookies", &rule.from_cookies, report);
    refuse_empty("spaceDelimitedClaims", &rule.space_delimited_claims, report);
    report.each(
        "outputClaimToHeaders",
        &rule.output_claim_to_headers,
        |report, output| {
            if output.claim.is_empty() || output.header.is_empty() {
                report.error("give both header and claim");
            } else {
                report.require_at("header", header::check_name(&output.header));
            }
        },
    );
    if let Some(timeout) = &rule.timeout {
        report.require_at("timeout", duration::check(timeout));
    }
}

fn refuse_empty(field: &str, values: &[String], report: &mut Report) {
    report.each(field, values, |report, value: &String| {
        if value.is_empty() {
            report.error("the value is empty");
        }
    });
}

/// Checks a key set, or a single key, in JSON.
fn check_keys(jwks: &str, report: &mut Report) {
    let Ok(Value::Object(set)) = serde_json::from_str(jwks) else {
        report.error("the key set is no JSON object");
        return;
    };
    let single = [Value::Object(set.clone())];
    let keys = match set.get("keys") {
        Some(Value::Array(keys)) => keys.as_slice(),
        Some(_) => {
            report.error("the key set's member keys is no list");
            return;
        }
        None => &single,
    };
    for (index, key) in keys.iter().enumerate() {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let needed: &[&str] = match text("kty") {
            Some("RSA") => &["n", "e"],
            Some("EC") => &["crv", "x", "y"],
            Some("OKP") => &["crv", "x"],
            Some("oct") => &["k"],
            other => {
                report.error(format!(
                    "key {index} has the type (kty) {:?}: give RSA, EC, OKP or oct",
                    other.unwrap_or_default()
                ));
                continue;
            }
        };
        if let Some(missing) = needed.iter().find(|name| text(name).is_none()) {
            report.error(format!("key {index} has no {missing:?}"));
        }
        if text("d").is_some() {
            report.warning(format!("key {index} is a private key: only its public part is needed, do not publish the rest"));
        }
    }
}
