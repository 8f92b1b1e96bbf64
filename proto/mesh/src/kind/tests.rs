//! Tables of the rules: an object's spec and what is found in it, as `error PATH` and `warning PATH`.

use proptest::prelude::*;
use proto::kind::{KINDS, by_user_name};

use super::*;
use crate::finding::Severity;

mod networking;
mod policy;
mod proxies;
mod virtual_service;

/// Reads `spec` as the spec of a `kind` and lists what is found in it.
fn findings_of(kind: &str, meta: &Metadata, spec: &str) -> Vec<String> {
    let kind = by_user_name(kind).unwrap_or_else(|| panic!("no kind {kind}"));
    let documents = proto::yaml::parse_documents(spec);
    let value = documents
        .into_iter()
        .next()
        .map_or(serde_json::Value::Null, |document| document.unwrap().value);
    let any = proto::json::any_from_value(kind.message, &value)
        .unwrap_or_else(|error| panic!("{error} in {spec}"));
    let describe = |finding: crate::Finding| match finding.severity {
        Severity::Error => format!("error {}", finding.path),
        Severity::Warning => format!("warning {}", finding.path),
    };
    validate(kind, meta, &any)
        .into_iter()
        .map(describe)
        .collect()
}

/// Checks rows of spec and findings for objects called `foo` in the namespace `bar`.
fn check_table(kind: &str, rows: &[(&str, &[&str])]) {
    let meta = Metadata::new("bar", "foo");
    for (spec, want) in rows {
        assert_eq!(findings_of(kind, &meta, spec), *want, "{kind} {spec}");
    }
}

#[test]
fn every_kind_has_rules() {
    for kind in KINDS
        .iter()
        .filter(|kind| kind.message.starts_with("istio."))
    {
        assert!(rules_of(kind.message).is_some(), "{}", kind.message);
    }
}

#[test]
fn a_message_of_another_kind_is_refused() {
    let kind = by_user_name("gateways").unwrap();
    let any = proto::any::pack(&istio::networking::v1alpha3::Sidecar::default());
    assert!(!validate(kind, &Metadata::new("a", "b"), &any).is_valid());
}

#[test]
fn only_what_obeys_the_rules_is_checked() {
    use istio::networking::v1alpha3::{Gateway, WorkloadEntry};

    let meta = Metadata::new("bar", "foo");
    let error = crate::Checked::new(meta.clone(), Gateway::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bar/foo: servers: the gateway has no servers: give at least one"
    );
    let entry = WorkloadEntry {
        network: "n".into(),
        ..WorkloadEntry::default()
    };
    let (checked, warnings) = crate::Checked::new(meta, entry).unwrap();
    assert_eq!((checked.spec.network.as_str(), warnings.0.len()), ("n", 1));
}

#[test]
fn only_authorization_policies_run_dry() {
    let mut meta = Metadata::new("bar", "foo");
    meta.annotations
        .insert("istio.io/dry-run".into(), "true".into());
    assert_eq!(
        findings_of("AuthorizationPolicy", &meta, "rules: [{}]"),
        Vec::<String>::new()
    );
    assert_eq!(
        findings_of("AuthorizationPolicy", &meta, "{action: AUDIT, rules: [{}]}"),
        ["error "]
    );
    assert_eq!(findings_of("PeerAuthentication", &meta, "{}"), ["error "]);
    meta.annotations
        .insert("istio.io/dry-run".into(), "maybe".into());
    assert_eq!(
        findings_of("AuthorizationPolicy", &meta, "rules: [{}]"),
        ["error "]
    );
}

proptest! {
    /// Bytes that happen to be a message of a kind, and bytes that are none, are checked without a panic.
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        for kind in KINDS {
            let any = Any { type_url: kind.type_url(), value: bytes.clone() };
            let _ = validate(kind, &Metadata::new("bar", "foo"), &any);
        }
    }

    /// Fields 1 to 9 with short texts reach deeper than noise does.
    #[test]
    fn nothing_panics_further_down(fields in proptest::collection::vec((1_u8..10, "[\\PC]{0,6}"), 0..8)) {
        let mut bytes = Vec::new();
        for (number, text) in fields {
            bytes.extend([number << 3 | 2, u8::try_from(text.len()).unwrap()]);
            bytes.extend(text.as_bytes());
        }
        for kind in KINDS {
            let any = Any { type_url: kind.type_url(), value: bytes.clone() };
            let _ = validate(kind, &Metadata::new("bar", "foo"), &any);
        }
    }
}
