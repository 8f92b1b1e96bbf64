//! Precedence of filter-chain matches.

use super::*;
use proto::envoy::config::{core::v3::CidrRange, listener::v3::FilterChain as WireChain};

fn criteria(wire: &Wire) -> Criteria {
    Criteria::try_from(wire).unwrap()
}

#[test]
fn longer_prefix_and_exact_name_fit_better() {
    let range = |prefix: &str, len| CidrRange {
        address_prefix: prefix.into(),
        prefix_len: Some(len),
    };
    let narrow = criteria(&Wire {
        prefix_ranges: vec![range("10.1.0.0", 16)],
        ..Wire::default()
    });
    let wide = criteria(&Wire {
        prefix_ranges: vec![range("10.0.0.0", 8)],
        ..Wire::default()
    });
    let ip = "10.1.2.3".parse().unwrap();
    assert!(prefix_fit(&narrow.destinations, ip) > prefix_fit(&wide.destinations, ip));
    assert!(prefix_fit(&wide.destinations, ip) > prefix_fit(&[], ip));
    assert_eq!(
        prefix_fit(&wide.destinations, "11.0.0.1".parse().unwrap()),
        None
    );

    let names = |names: &[&str]| {
        criteria(&Wire {
            server_names: names.iter().map(ToString::to_string).collect(),
            ..Wire::default()
        })
    };
    let exact = names(&["a.example.com"]).server_name_fit(Some("a.example.com"));
    let close = names(&["*.example.com"]).server_name_fit(Some("a.example.com"));
    let far = names(&["*.com"]).server_name_fit(Some("a.example.com"));
    let any = names(&[]).server_name_fit(Some("a.example.com"));
    assert!(exact > close && close > far && far > any && any.is_some());
    assert_eq!(
        names(&["*.example.com"]).server_name_fit(Some("example.com")),
        None
    );
    assert_eq!(names(&["a"]).server_name_fit(None), None);
}

#[test]
fn partial_wildcards_are_refused() {
    let wire = WireChain {
        filter_chain_match: Some(Wire {
            server_names: vec!["w*.example.com".into()],
            ..Wire::default()
        }),
        ..WireChain::default()
    };
    let error = Criteria::try_from(wire.filter_chain_match.as_ref().unwrap()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("server_names[0]: partial wildcards"),
        "{error}"
    );
}
