//! Checks: verdicts, what they depended on, quotas, header operations, namespaces, changing configuration.

use proto::istio::mixer::v1::CheckRequest;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto_mesh::attribute::{Attributes, Value};
use tonic::Code;

use crate::server::{
    MANIFEST, TestServer, attributes, eventually, referenced, referenced_text, request,
};

const POLICY: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: deny, namespace: istio-system}
spec:
  compiledAdapter: denier
  params: {status: {code: 7, message: "not today"}, validDuration: 9s, validUseCount: 3}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: nothing, namespace: istio-system}
spec: {compiledTemplate: checknothing}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny, namespace: istio-system}
spec:
  match: source.name == "evil" && request.headers["x-user"] != "admin"
  actions:
  - {handler: deny, instances: [nothing]}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: list, namespace: shop}
spec:
  compiledAdapter: listchecker
  params: {overrides: ["10.0.0.0/8"], entryType: IP_ADDRESSES}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: source, namespace: shop}
spec: {compiledTemplate: listentry, params: {value: source.ip}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: list, namespace: shop}
spec:
  actions:
  - {handler: list, instances: [source]}
  requestHeaderOperations:
  - {name: X-Source, values: ['source.name | "nobody"', '""', my.own], operation: APPEND}
  - {name: x-secret, operation: REMOVE}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: quota, namespace: istio-system}
spec:
  compiledAdapter: memquota
  params:
    quotas:
    - {name: requestcount.instance.istio-system, maxAmount: 10, validDuration: 60s}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: requestcount, namespace: istio-system}
spec: {compiledTemplate: quota, params: {dimensions: {source: 'source.name | "unknown"'}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: quota, namespace: istio-system}
spec:
  actions:
  - {handler: quota, instances: [requestcount]}
"#;

/// Wrong in every way, and beside it what is right.
const BROKEN: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: bad-match, namespace: istio-system}
spec: {match: nowhere == 1, actions: [{handler: deny, instances: [nothing]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: bad-handler, namespace: istio-system}
spec: {actions: [{handler: gone, instances: [nothing]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: bad, namespace: istio-system}
spec: {compiledTemplate: metric, params: {value: "1", nonsense: 2}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: bad, namespace: istio-system}
spec: {compiledAdapter: denier, oops: 1}
"#;

fn policy() -> String {
    format!("{MANIFEST}---\n{POLICY}")
}

fn headers(entries: &[(&'static str, &str)]) -> Value {
    let entries = entries.iter().map(|(k, v)| ((*k).into(), (*v).to_owned()));
    Value::StringMap(entries.collect())
}

#[tokio::test]
async fn a_verdict_tells_what_it_depended_on() {
    let mut server = TestServer::start(&policy()).await;
    let evil = attributes([
        ("source.name", "evil".into()),
        (
            "request.headers",
            headers(&[("x-user", "eve"), ("x-other", "1")]),
        ),
    ]);
    let response = server.check(request(&evil)).await;
    let precondition = response.precondition.clone().unwrap();
    let status = precondition.status.unwrap();
    assert_eq!(status.code, Code::PermissionDenied as i32);
    assert_eq!(status.message, "deny.istio-system:not today");
    assert_eq!(precondition.valid_duration.unwrap().seconds, 9);
    assert_eq!(precondition.valid_use_count, 3);
    assert_eq!(
        referenced(&response),
        [
            "-context.reporter.kind",
            "-destination.namespace",
            "request.headers[x-user]",
            "source.name"
        ]
    );
    let good = attributes([("source.name", "good".into())]);
    let response = server.check(request(&good)).await;
    let precondition = response.precondition.clone().unwrap();
    assert_eq!(precondition.status.unwrap().code, 0);
    assert_eq!(precondition.valid_duration.unwrap().seconds, 60);
    assert_eq!(precondition.valid_use_count, 10_000);
    assert_eq!(
        referenced(&response),
        [
            "-context.reporter.kind",
            "-destination.namespace",
            "source.name"
        ]
    );
    // A client of the base dictionary gets the rest spelled out.
    let old = CheckRequest {
        global_word_count: 111,
        ..request(&good)
    };
    let response = server.check(old).await;
    let words = response
        .precondition
        .unwrap()
        .referenced_attributes
        .unwrap()
        .words;
    assert_eq!(words, ["context.reporter.kind", "destination.namespace"]);
}

#[tokio::test]
async fn a_namespace_has_rules_of_its_own() {
    let mut server = TestServer::start(&policy()).await;
    let with = |kind: &'static str, namespace: &'static str, ip: [u8; 4]| {
        attributes([
            ("context.reporter.kind", kind.into()),
            ("destination.namespace", namespace.into()),
            ("source.namespace", "shop".into()),
            ("source.ip", Value::Bytes(ip.to_vec())),
            ("my.own", "mine".into()),
        ])
    };
    for (attributes, want) in [
        (with("inbound", "shop", [10, 0, 0, 1]), 0),
        (
            with("inbound", "shop", [11, 0, 0, 1]),
            Code::PermissionDenied as i32,
        ),
        (with("inbound", "other", [11, 0, 0, 1]), 0),
        (
            with("outbound", "other", [11, 0, 0, 1]),
            Code::PermissionDenied as i32,
        ),
    ] {
        let response = server.check(request(&attributes)).await;
        assert_eq!(response.precondition.unwrap().status.unwrap().code, want);
    }
    let response = server
        .check(request(&with("inbound", "shop", [10, 0, 0, 1])))
        .await;
    let directive = response.precondition.unwrap().route_directive.unwrap();
    let operations: Vec<_> = directive
        .request_header_operations
        .iter()
        .map(|o| (o.name.as_str(), o.value.as_str(), o.operation))
        .collect();
    assert_eq!(
        operations,
        [
            ("x-source", "nobody", 2),
            ("x-source", "mine", 2),
            ("x-secret", "", 1)
        ]
    );
    // An instance that cannot be made has no verdict.
    let nothing = attributes([("destination.namespace", "shop".into())]);
    let error = server.client.check(request(&nothing)).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
}

#[tokio::test]
async fn quotas_are_granted_once_a_call() {
    let mut server = TestServer::start(&policy()).await;
    let mut ask = async |id: &str, name: &str, amount: i64| {
        let mut request = request(&attributes([("source.name", "a".into())]));
        request.deduplication_id = id.into();
        let params = QuotaParams {
            amount,
            best_effort: true,
        };
        request.quotas.insert(name.into(), params);
        server.check(request).await.quotas.remove(name).unwrap()
    };
    let first = ask("1", "RequestCount", 7).await;
    assert_eq!(first.granted_amount, 7);
    assert_eq!(first.valid_duration.unwrap().seconds, 60);
    assert_eq!(
        referenced_text(first.referenced_attributes.as_ref().unwrap()),
        [
            "-context.reporter.kind",
            "-destination.namespace",
            "source.name"
        ]
    );
    assert_eq!(ask("1", "RequestCount", 7).await.granted_amount, 7);
    assert_eq!(ask("2", "requestcount", 7).await.granted_amount, 3);
    // What nobody limits is granted.
    assert_eq!(ask("3", "unknown", 1000).await.granted_amount, 1000);
    // A refused request gets no quotas.
    let mut request = request(&attributes([
        ("source.name", "evil".into()),
        ("request.headers", headers(&[])),
    ]));
    let params = QuotaParams {
        amount: 1,
        best_effort: false,
    };
    request.quotas.insert("requestcount".into(), params);
    assert!(server.check(request).await.quotas.is_empty());
}

#[tokio::test]
async fn a_quota_survives_a_change_that_does_not_concern_it() {
    let server = TestServer::start(&policy()).await;
    let ask = async |id: &str| {
        let mut request = request(&attributes([("source.name", "a".into())]));
        request.deduplication_id = id.into();
        let params = QuotaParams {
            amount: 6,
            best_effort: true,
        };
        request.quotas.insert("requestcount".into(), params);
        let answer = server.client.clone().check(request).await.unwrap();
        answer.into_inner().quotas["requestcount"].granted_amount
    };
    assert_eq!(ask("1").await, 6);
    let before = server.page("/debug/config").await;
    let other = "apiVersion: config.istio.io/v1alpha2\nkind: handler\n\
                 metadata: {name: other, namespace: shop}\nspec: {compiledAdapter: noop}\n";
    server.write(&format!("{}---\n{other}", policy()));
    eventually("the change is in force", || {
        let (server, before) = (&server, &before);
        async move { server.page("/debug/config").await != *before }
    })
    .await;
    assert_eq!(ask("2").await, 4);
}

fn errors_have_places(page: &serde_json::Value) {
    let places: Vec<_> = page["errors"].as_array().unwrap().iter().collect();
    let place = |name: &str| {
        let error = places.iter().find(|error| error["name"] == name).unwrap();
        let place = error["place"].as_str().unwrap();
        let (file, line) = place.rsplit_once(':').unwrap();
        assert!(file.ends_with("config.yaml"), "{place}");
        let config = format!("{}---{BROKEN}", policy());
        config
            .lines()
            .nth(line.parse::<usize>().unwrap() - 1)
            .unwrap()
            .to_owned()
    };
    assert!(place("bad.handler.istio-system").contains("oops: 1"));
    assert!(place("bad.instance.istio-system").contains("nonsense: 2"));
    assert!(place("bad-match.rule.istio-system").contains("nowhere == 1"));
}

#[tokio::test]
async fn what_is_wrong_is_left_out_and_the_rest_works() {
    let server = TestServer::start(MANIFEST).await;
    server.write(&format!("{}---{BROKEN}", policy()));
    let evil = attributes([
        ("source.name", "evil".into()),
        ("request.headers", headers(&[])),
    ]);
    let client = server.client.clone();
    eventually("the denier is in force", || {
        let (mut client, request) = (client.clone(), request(&evil));
        async move {
            let response = client.check(request).await.unwrap().into_inner();
            response.precondition.unwrap().status.unwrap().code == Code::PermissionDenied as i32
        }
    })
    .await;
    let page: serde_json::Value =
        serde_json::from_str(&server.page("/debug/config").await).unwrap();
    let errors: Vec<String> = page["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            format!(
                "{} {}",
                error["name"].as_str().unwrap(),
                error["field"].as_str().unwrap()
            )
        })
        .collect();
    assert!(
        errors
            .iter()
            .any(|e| e == "bad.handler.istio-system spec.oops"),
        "{errors:?}"
    );
    errors_have_places(&page);
    for want in [
        "bad.instance.istio-system params",
        "bad-match.rule.istio-system match",
        "bad-handler.rule.istio-system actions[0].handler",
    ] {
        assert!(errors.iter().any(|error| error == want), "{errors:?}");
    }
    let metrics = server.page("/metrics").await;
    for want in [
        "mixer_config_rule_config_match_error_total 1",
        "mixer_config_instance_config_errors_total 1",
        "mixer_config_unsatisfied_action_handler_total 1",
        "mixer_runtime_dispatches_total{adapter=\"denier\",error=\"false\",handler=\"deny.istio-system\",meshFunction=\"checknothing\"} ",
    ] {
        assert!(metrics.contains(want), "{want} in {metrics}");
    }
    assert!(
        server
            .page("/debug/rules")
            .await
            .contains("deny.rule.istio-system")
    );
    assert!(server.page("/debug/handlers").await.contains("denier"));
    // And away with all of it.
    server.write("");
    eventually("everything is let through", || {
        let (mut client, request) = (client.clone(), request(&evil));
        async move {
            let response = client.check(request).await.unwrap().into_inner();
            response.precondition.unwrap().status.unwrap().code == 0
        }
    })
    .await;
}

#[tokio::test]
async fn a_dictionary_we_do_not_know_is_refused() {
    let mut server = TestServer::start(MANIFEST).await;
    let mut request = request(&Attributes::new());
    request.global_word_count = 223;
    let error = server.client.check(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert_eq!(error.message(), "inconsistent global dictionary");
    // Nothing at all is a request, too.
    let response = server.check(CheckRequest::default()).await;
    assert_eq!(response.precondition.unwrap().status.unwrap().code, 0);
}
