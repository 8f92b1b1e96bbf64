//! Attributes that an adapter out of process makes: rules, verdicts and telemetry go by them.

use proto::istio::mixer::v1::ReportRequest;
use serde_json::{Value as Json, json};
use tonic::Code;

use crate::outputs::{adapter, descriptor, output};
use crate::server::{MANIFEST, TestServer, attributes, referenced, request};

const TEMPLATE: &str = r#"
syntax = "proto3";
package people;
import "google/protobuf/any.proto";
import "istio/policy/v1beta1/type.proto";
import "mixer/template/extensions.proto";
option (istio.mixer.adapter.model.v1beta1.template_variety) = TEMPLATE_VARIETY_ATTRIBUTE_GENERATOR;
service HandlePeopleService {
  rpc HandlePeople(HandlePeopleRequest) returns (OutputMsg);
}
message HandlePeopleRequest {
  InstanceMsg instance = 1;
  google.protobuf.Any adapter_config = 2;
  string dedup_id = 3;
}
message InstanceMsg {
  string name = 72295727;
  string user = 1;
}
message OutputMsg {
  string team = 1;
  int64 level = 2;
  istio.policy.v1beta1.IPAddress home = 3;
  map<string, string> marks = 4;
  string unsaid = 5;
}
"#;

fn config(port: u16, team: &str) -> String {
    let descriptor = descriptor(TEMPLATE);
    format!(
        r#"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: attributemanifest
metadata: {{name: made, namespace: istio-system}}
spec:
  attributes:
    made.team: {{valueType: STRING}}
    made.level: {{valueType: INT64}}
    made.home: {{valueType: IP_ADDRESS}}
    made.marks: {{valueType: STRING_MAP}}
    made.unsaid: {{valueType: STRING}}
---
apiVersion: config.istio.io/v1alpha2
kind: template
metadata: {{name: people, namespace: istio-system}}
spec: {{descriptor: "{descriptor}"}}
---
apiVersion: config.istio.io/v1alpha2
kind: adapter
metadata: {{name: people, namespace: istio-system}}
spec: {{description: knows people, session_based: false, templates: [people]}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: people, namespace: istio-system}}
spec: {{adapter: people, connection: {{address: "127.0.0.1:{port}", timeout: 30s}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: who, namespace: istio-system}}
spec:
  template: people
  params: {{user: source.name | "nobody"}}
  attributeBindings:
    made.team: {team}
    made.level: output.level
    made.home: $out.home
    made.marks: output.marks
    made.unsaid: output.unsaid
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: make, namespace: istio-system}}
spec: {{match: source.name != "alone", actions: [{{handler: people, instances: [who]}}]}}
---
{RULES}"#
    )
}

/// Rules that go by what was made.
const RULES: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: deny, namespace: istio-system}
spec: {compiledAdapter: denier}
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
  match: made.team == "red" && made.level == 3 && made.home == ip("10.0.0.1") && made.marks["shade"] == "dark" && (made.unsaid | "?") == "?"
  actions: [{handler: deny, instances: [nothing]}]
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: counter, namespace: istio-system}
spec:
  compiledAdapter: prometheus
  params: {metrics: [{name: people_total, instanceName: people.instance.istio-system, kind: COUNTER, labelNames: [team]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: people, namespace: istio-system}
spec: {compiledTemplate: metric, params: {value: "1", dimensions: {team: made.team | "none"}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: count, namespace: istio-system}
spec: {actions: [{handler: counter, instances: [people]}]}
"#;

fn reported(names: &[&'static str]) -> ReportRequest {
    let sets = names.iter();
    let sets =
        sets.filter_map(|name| request(&attributes([("source.name", (*name).into())])).attributes);
    ReportRequest {
        attributes: sets.collect(),
        global_word_count: 222,
        repeated_attributes_semantics: 1,
        ..ReportRequest::default()
    }
}

#[tokio::test]
async fn what_an_adapter_makes_is_judged_and_counted() {
    let port = adapter(&output()).await;
    let mut server = TestServer::start(&config(port, "output.team")).await;
    let page: Json = serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], json!([]));
    let answer = server
        .check(request(&attributes([("source.name", "me".into())])))
        .await;
    // The caller has only what it was made from, and lacks what was not made.
    let looked_at = [
        "-context.reporter.kind",
        "-destination.namespace",
        "-made.unsaid",
        "source.name",
    ];
    assert_eq!(referenced(&answer), looked_at);
    let status = answer.precondition.unwrap().status.unwrap();
    assert_eq!(status.code, Code::FailedPrecondition as i32);
    let names = ["me", "alone", "you"];
    server.client.report(reported(&names)).await.unwrap();
    let text = server.scrape().await;
    for want in ["{team=\"red\"} 2\n", "{team=\"none\"} 1\n"] {
        assert!(text.contains(want), "{want} in {text}");
    }
}

#[tokio::test]
async fn without_its_generator_a_request_is_not_judged() {
    // The port is ours, but nobody listens there.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut server = TestServer::start(&config(port, "output.team")).await;
    for (name, want) in [("me", Some(Code::Internal)), ("alone", None)] {
        let asked = request(&attributes([("source.name", name.into())]));
        let answer = server.client.check(asked).await;
        assert_eq!(answer.as_ref().err().map(tonic::Status::code), want);
        if let Err(status) = answer {
            let text = status.message();
            assert!(text.contains("preprocessing attributes failed"), "{text}");
        }
    }
    // The other set counts.
    let lost = server.client.report(reported(&["me", "alone"])).await;
    assert_eq!(lost.unwrap_err().code(), Code::Unknown);
    assert!(server.scrape().await.contains("{team=\"none\"} 1\n"));
}

#[tokio::test]
async fn bindings_have_the_types_of_their_attributes() {
    let server = TestServer::start(&config(9, "output.level")).await;
    let page = server.page("/debug/config").await;
    let want = "is of type INT64 where STRING is expected";
    assert!(
        page.contains("attributeBindings") && page.contains(want),
        "{page}"
    );
}
