//! Each analyzer finds its mistake and nothing else, in text as users write it.

use super::{super::*, all};

mod cases;

/// `CODE Kind name` of each message about the text.
fn codes(source: &str) -> Vec<String> {
    found(source, "default", &[])
}

fn found(source: &str, namespace: &str, suppress: &[String]) -> Vec<String> {
    let mut input = Input::new(namespace);
    input.add_usual_gateway();
    input.add_text(source, "x.yaml");
    let (context, problems) = input.into_context().unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    let suppressions = Suppressions::parse(suppress).unwrap();
    let messages = analyze(&context, &all(), &suppressions);
    let mut codes: Vec<String> = messages
        .iter()
        .map(|message| format!("{} {} {}", message.code, message.kind, message.name))
        .collect();
    codes.dedup();
    codes
}

const ROUTE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [reviews]
  gateways: [none, mesh]
  http:
  - route:
    - destination: {host: reviews, subset: v1, port: {number: 81}}
      weight: 50
    - destination: {host: ratings}
      weight: 50
---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{name: http, port: 80}, {name: grpc, port: 90}]}
";

#[test]
fn references_that_lead_nowhere_are_found_with_their_lines() {
    let mut input = Input::new("default");
    input.add_text(ROUTE, "x.yaml");
    let (context, _) = input.into_context().unwrap();
    let messages = analyze(&context, &all(), &Suppressions::default());
    let told: Vec<(String, usize)> = messages
        .iter()
        .filter(|message| message.code == Code::ReferencedResourceNotFound)
        .map(|message| (message.text.clone(), message.line))
        .collect();
    assert_eq!(
        told,
        [
            ("Referenced gateway not found: \"none\"".to_owned(), 7),
            (
                "Referenced host+subset in destinationrule not found: \"reviews+v1\"".to_owned(),
                10
            ),
            (
                "Referenced host:port not found: \"reviews:81\"".to_owned(),
                10
            ),
            ("Referenced host not found: \"ratings\"".to_owned(), 12),
        ]
    );
}

#[test]
fn suppressions_cover_by_flag_and_by_annotation() {
    assert!(codes(ROUTE).contains(&"IST0101 VirtualService a".to_owned()));
    let flag = [
        "IST0101=VirtualService *".to_owned(),
        "IST0132=*".to_owned(),
    ];
    assert_eq!(found(ROUTE, "default", &flag), [""; 0]);
    let annotated = ROUTE.replace(
        "{name: a}",
        "{name: a, annotations: {galley.istio.io/analyze-suppress: 'IST0101, IST0132'}}",
    );
    assert_eq!(codes(&annotated), [""; 0]);
}

#[test]
fn gateways_are_compared_with_their_workload_and_each_other() {
    let gateway = |name: &str, port: u16| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\nspec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: {port}, name: http, protocol: HTTP}}\n    hosts: [a.example]\n---\n"
        )
    };
    assert_eq!(codes(&gateway("a", 80)), [""; 0]);
    assert_eq!(codes(&gateway("a", 81)), ["IST0162 Gateway a"]);
    let both = gateway("a", 80) + &gateway("b", 80);
    assert_eq!(codes(&both), ["IST0145 Gateway a", "IST0145 Gateway b"]);
}

#[test]
fn namespaces_and_pods_without_injection_are_told() {
    let source = "
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Namespace
metadata: {name: b, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: c, labels: {istio-injection: enabled, istio.io/rev: x}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: b}
spec: {containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: Pod
metadata: {name: q, namespace: b}
spec: {containers: [{name: app, image: app}], initContainers: [{name: istio-proxy, image: proxyv2}]}
";
    let want = [
        "IST0102 Namespace a",
        "IST0123 Namespace c",
        "IST0103 Pod p",
    ];
    assert_eq!(codes(source), want);
}

#[test]
fn an_object_without_mistakes_is_passed_over() {
    let source = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-1, labels: {app: reviews, version: v1}}
spec: {containers: [{name: app, image: app}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v1}}]}]
";
    assert_eq!(codes(source), [""; 0]);
}

#[test]
fn unknown_fields_are_errors_although_the_rest_is_read() {
    let source = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec: {host: nowhere, hots: x}
";
    assert_eq!(
        codes(source),
        ["IST0133 DestinationRule a", "IST0174 DestinationRule a"]
    );
}

#[test]
fn whoever_may_not_read_secrets_does_not_miss_any() {
    let gateway = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: SIMPLE, credentialName: nowhere}
";
    let missed = |leave_out: bool| {
        let mut input = Input::new("default");
        input.add_usual_gateway();
        input.add_text(gateway, "x.yaml");
        if leave_out {
            input.leave_out("", "Secret");
        }
        let (context, _) = input.into_context().unwrap();
        let messages = analyze(&context, &all(), &Suppressions::default());
        messages
            .iter()
            .any(|message| message.code == Code::ReferencedResourceNotFound)
    };
    assert!(missed(false) && !missed(true));
}

#[test]
fn policies_of_the_1_4_line_are_told() {
    let policy = |kind: &str| {
        format!(
            "apiVersion: authentication.istio.io/v1alpha1\nkind: {kind}\nmetadata: {{name: default}}\n\
             spec: {{peers: [{{mtls: {{}}}}]}}\n"
        )
    };
    assert_eq!(codes(&policy("Policy")), ["IST0120 Policy default"]);
    assert_eq!(codes(&policy("MeshPolicy")), ["IST0121 MeshPolicy default"]);
}
