//! Messages by descriptors, and what does not fit them.

use super::*;
use crate::attributes::Unrecorded;
use proto::istio::policy::v1beta1::Value as PolicyValue;
use serde_json::json;

fn vocabulary() -> Vocabulary {
    Vocabulary::new(&[("request.size".to_owned(), ValueType::Int64)].into())
}

#[test]
fn every_standard_template_has_descriptors() {
    for template in crate::template::Template::ALL {
        let known = builtin(template.name());
        let known = known.unwrap_or_else(|| panic!("{template:?}"));
        assert_eq!(known.variety, template.variety());
    }
    assert_eq!(
        builtin("metric").unwrap().method,
        "/metric.HandleMetricService/HandleMetric"
    );
}

#[test]
fn an_instance_becomes_its_message() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Metric {
        #[prost(message, optional, tag = "1")]
        value: Option<PolicyValue>,
        #[prost(btree_map = "string, message", tag = "2")]
        dimensions: std::collections::BTreeMap<String, PolicyValue>,
    }
    let vocabulary = vocabulary();
    let json = json!({"value": "request.size | 3", "dimensions": {"ip": "ip(\"10.0.0.1\")"}});
    let template = builtin("metric").unwrap();
    let fields = RemoteFields::compile(&template, &json, &vocabulary).unwrap();
    let bag = Bag::new(&vocabulary);
    let Payload::Remote { message, .. } = fields.eval(&bag, &mut Unrecorded).unwrap() else {
        panic!("not a message");
    };
    let metric = Metric::decode(message.as_slice()).unwrap();
    assert_eq!(
        metric.value,
        Some(policy_value(&Val::Int64(3), ValueType::Int64))
    );
    let ip = Val::Ip([10, 0, 0, 1].into());
    assert_eq!(
        metric.dimensions["ip"],
        policy_value(&ip, ValueType::IpAddress)
    );
    let types = fields.inferred_type().unwrap();
    assert_eq!(types.type_url, "type.googleapis.com/metric.Type");
    // value = INT64, dimensions[ip] = IP_ADDRESS.
    assert_eq!(types.value, [8, 2, 18, 6, 10, 2, b'i', b'p', 16, 6]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let vocabulary = vocabulary();
    for (template, json, want) in [
        ("metric", json!({"valu": "1"}), "valu: unknown field"),
        ("metric", json!({"dimensions": 1}), "dimensions: a map"),
        (
            "listentry",
            json!({"value": "1"}),
            "value: an expression of type INT64",
        ),
        (
            "apikey",
            json!({"timestamp": "\"x\""}),
            "timestamp: an expression of type STRING",
        ),
        (
            "authorization",
            json!({"subject": "x"}),
            "subject: a message",
        ),
    ] {
        let template = builtin(template).unwrap();
        let error = RemoteFields::compile(&template, &json, &vocabulary).unwrap_err();
        assert!(error.starts_with(want), "{error}");
    }
    assert!(RemoteTemplate::read("x", "!!").is_err());
    assert!(RemoteTemplate::read("x", "").is_err());
}
