//! Instances of the standard templates where they arrive: at an adapter out of process, at `noop`, behind `bypass`.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use proto::google::rpc::Status;
use proto::istio::mixer::adapter::model::v1beta1::{
    CheckResult, CreateSessionResponse, QuotaResult, ValidateRequest, quota_result,
};
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::{CheckRequest, ReportRequest};
use proto::istio::policy::v1beta1::{TimeStamp, Value as PolicyValue, value::Value as OneOf};
use proto_mesh::attribute::Attributes;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

use crate::outputs::{Call, adapter_of};
use crate::server::{MANIFEST, TestServer, attributes, eventually, request};

/// What an adapter is called with: an instance's message, or several of them.
#[derive(Clone, PartialEq, Message)]
struct Handle {
    #[prost(bytes = "vec", repeated, tag = "1")]
    instances: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct ApiKey {
    #[prost(string, tag = "72295727")]
    name: String,
    #[prost(string, tag = "1")]
    api: String,
    #[prost(string, tag = "2")]
    api_version: String,
    #[prost(string, tag = "3")]
    api_operation: String,
    #[prost(string, tag = "4")]
    api_key: String,
    #[prost(message, optional, tag = "5")]
    timestamp: Option<TimeStamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Edge {
    #[prost(string, tag = "72295727")]
    name: String,
    #[prost(message, optional, tag = "1")]
    timestamp: Option<TimeStamp>,
    #[prost(string, tag = "11")]
    source_workload_name: String,
    #[prost(string, tag = "25")]
    destination_service_name: String,
    #[prost(string, tag = "30")]
    context_protocol: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "72295727")]
    name: String,
    #[prost(message, optional, tag = "1")]
    value: Option<PolicyValue>,
    #[prost(btree_map = "string, message", tag = "2")]
    dimensions: BTreeMap<String, PolicyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct Quota {
    #[prost(string, tag = "72295727")]
    name: String,
    #[prost(btree_map = "string, message", tag = "1")]
    dimensions: BTreeMap<String, PolicyValue>,
}

fn resource(kind: &str, name: &str, spec: &Json) -> String {
    let document = json!({
        "apiVersion": "config.istio.io/v1alpha2", "kind": kind,
        "metadata": {"name": name, "namespace": "istio-system"}, "spec": spec,
    });
    format!("---\n{document}\n")
}

/// Instances (name, template, params) of templates that are found under `key`, all of them for one handler.
fn config(handler: &Json, key: &str, instances: &[(&str, &str, Json)]) -> String {
    let mut documents = format!("{MANIFEST}{}", resource("handler", "one", handler));
    for (name, template, params) in instances {
        let spec = json!({key: template, "params": params});
        documents += &resource("instance", name, &spec);
    }
    let names: Vec<_> = instances.iter().map(|(name, ..)| name).collect();
    let actions = json!({"actions": [{"handler": "one", "instances": names}]});
    documents + &resource("rule", "all", &actions)
}

async fn start(config: &str) -> TestServer {
    let server = TestServer::start(config).await;
    let page: Json = serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], json!([]));
    server
}

fn me() -> Attributes {
    attributes([
        ("source.name", "me".into()),
        ("my.own", "secret".into()),
        ("source.namespace", "shop".into()),
    ])
}

/// The same, with a quota.
fn asking(quota: &str, amount: i64) -> CheckRequest {
    let params = QuotaParams {
        amount,
        best_effort: false,
    };
    CheckRequest {
        deduplication_id: "1".into(),
        quotas: [(quota.to_owned(), params)].into(),
        ..request(&me())
    }
}

async fn report(server: &mut TestServer) {
    let report = ReportRequest {
        attributes: request(&me()).attributes.into_iter().collect(),
        global_word_count: 222,
        ..ReportRequest::default()
    };
    server.client.report(report).await.unwrap();
}

/// The calls that come, by method, until there are so many of them.
async fn calls(from: &mut mpsc::UnboundedReceiver<Call>, count: usize) -> BTreeMap<String, Call> {
    let mut by_method = BTreeMap::new();
    let come = async {
        while by_method.len() < count {
            let call = from.recv().await.unwrap();
            by_method.insert(call.method.clone(), call);
        }
    };
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, come).await.unwrap();
    by_method
}

/// The one instance that a call is about.
fn instance<M: Message + Default>(call: &Call) -> M {
    let handle = Handle::decode(call.message.as_slice()).unwrap();
    let [instance] = handle.instances.as_slice() else {
        panic!("{}: {} instances", call.method, handle.instances.len());
    };
    M::decode(instance.as_slice()).unwrap()
}

fn refusal(message: &str) -> Vec<u8> {
    let status = Status {
        code: 7,
        message: message.into(),
        ..Status::default()
    };
    CheckResult {
        status: Some(status),
        ..CheckResult::default()
    }
    .encode_to_vec()
}

fn text(text: &str) -> PolicyValue {
    PolicyValue {
        value: Some(OneOf::StringValue(text.to_owned())),
    }
}

#[tokio::test]
async fn keys_and_edges_come_to_an_adapter_with_all_their_fields() {
    let (port, mut from) = adapter_of(|method| match method {
        "HandleApiKey" => refusal("an old key"),
        _ => Vec::new(),
    })
    .await;
    let time = "timestamp(\"2017-01-01T00:00:00Z\")";
    let instances = [
        (
            "key",
            "apikey",
            json!({"api": "source.namespace", "api_version": "\"v1\"", "api_key": "my.own",
                "api_operation": "request.headers[\"x-operation\"] | \"read\"", "timestamp": time}),
        ),
        (
            "line",
            "edge",
            json!({"timestamp": time, "source_workload_name": "source.name",
                "destination_service_name": "\"reviews\"", "context_protocol": "\"http\""}),
        ),
        ("nothing", "reportnothing", json!({})),
    ];
    let templates = ["apikey", "edge", "reportnothing"];
    let info = json!({"description": "d", "session_based": false, "templates": templates});
    let handler = json!({"adapter": "own", "connection": {"address": format!("127.0.0.1:{port}")}});
    let config = config(&handler, "template", &instances) + &resource("adapter", "own", &info);
    let mut server = start(&config).await;
    let answer = server.check(request(&me())).await.precondition.unwrap();
    assert_eq!(
        answer.status.unwrap().message,
        "one.istio-system:an old key"
    );
    report(&mut server).await;
    let calls = calls(&mut from, 3).await;
    let new_year = Some(TimeStamp {
        value: Some(prost_types::Timestamp {
            seconds: 1_483_228_800,
            nanos: 0,
        }),
    });
    let key: ApiKey = instance(&calls["HandleApiKey"]);
    let wanted = ApiKey {
        name: "key.instance.istio-system".into(),
        api: "shop".into(),
        api_version: "v1".into(),
        api_operation: "read".into(),
        api_key: "secret".into(),
        timestamp: new_year,
    };
    assert_eq!(key, wanted);
    let edge: Edge = instance(&calls["HandleEdge"]);
    let wanted = Edge {
        name: "line.instance.istio-system".into(),
        timestamp: new_year,
        source_workload_name: "me".into(),
        destination_service_name: "reviews".into(),
        context_protocol: "http".into(),
    };
    assert_eq!(edge, wanted);
    let nothing: Quota = instance(&calls["HandleReportNothing"]);
    assert_eq!(nothing.name, "nothing.instance.istio-system");
}

#[tokio::test]
async fn noop_takes_every_template_and_says_yes() {
    let own = |value: &str| json!({"subject": {"user": value}});
    let instances = [
        ("a", "apikey", json!({"api": "my.own"})),
        ("b", "authorization", own("source.name")),
        ("c", "edge", json!({"source_workload_name": "source.name"})),
        (
            "d",
            "tracespan",
            json!({"traceId": "my.own", "spanId": "my.own"}),
        ),
        ("e", "checknothing", json!({})),
        ("f", "listentry", json!({"value": "source.name"})),
        (
            "limit",
            "quota",
            json!({"dimensions": {"who": "source.name"}}),
        ),
        (
            "h",
            "logentry",
            json!({"severity": "\"info\"", "variables": {"who": "source.name"}}),
        ),
        (
            "i",
            "metric",
            json!({"value": "1", "dimensions": {"who": "source.name"}}),
        ),
        ("j", "reportnothing", json!({})),
        ("k", "kubernetes", json!({"source_uid": "source.name"})),
    ];
    let handler = json!({"compiledAdapter": "noop"});
    let mut server = start(&config(&handler, "compiledTemplate", &instances)).await;
    let answer = server.check(asking("limit", 7)).await;
    assert_eq!(answer.precondition.unwrap().status.unwrap().code, 0);
    let quota = &answer.quotas["limit"];
    // For ever, or nearly so: where no rule has a say it is a minute.
    let granted = (quota.granted_amount, quota.valid_duration.unwrap().seconds);
    assert_eq!(granted, (7, 1_000_000_000));
    report(&mut server).await;
    eventually("each of them is dispatched", || async {
        let metrics = server.page("/metrics").await;
        instances.iter().all(|(_, template, _)| {
            let series = format!(
                "mixer_runtime_dispatches_total{{adapter=\"noop\",error=\"false\",\
                 handler=\"one.istio-system\",meshFunction=\"{template}\"}} "
            );
            let count = metrics
                .lines()
                .find_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok());
            count.is_some_and(|count| count > 0)
        })
    })
    .await;
}

const LIMIT: &str = "limit.instance.istio-system";

/// What an adapter with sessions answers.
fn in_session(method: &str) -> Vec<u8> {
    match method {
        "CreateSession" => CreateSessionResponse {
            session_id: "the first".into(),
            status: None,
        }
        .encode_to_vec(),
        "HandleCheckNothing" => refusal("nothing doing"),
        "HandleQuota" => {
            let result = quota_result::Result {
                granted_amount: 3,
                valid_duration: Some(prost_types::Duration {
                    seconds: 9,
                    nanos: 0,
                }),
                status: None,
            };
            let quotas = [(LIMIT.to_owned(), result)].into();
            QuotaResult { quotas }.encode_to_vec()
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn a_bypass_hands_on_metrics_quotas_and_nothing_in_a_session() {
    let (port, mut from) = adapter_of(in_session).await;
    let dimensions = json!({"who": "source.name"});
    let instances = [
        (
            "count",
            "metric",
            json!({"value": "5", "dimensions": dimensions}),
        ),
        ("limit", "quota", json!({"dimensions": dimensions})),
        ("nothing", "reportnothing", json!({})),
        ("verdict", "checknothing", json!({})),
    ];
    let params = json!({"backendAddress": format!("127.0.0.1:{port}"), "sessionBased": true});
    let handler = json!({"compiledAdapter": "bypass", "params": params});
    let config = config(&handler, "compiledTemplate", &instances);
    let mut server = start(&config).await;
    // A quota is asked for only where the check says yes: first a refusal, then none.
    let answer = server.check(request(&me())).await.precondition.unwrap();
    assert_eq!(
        answer.status.unwrap().message,
        "one.istio-system:nothing doing"
    );
    report(&mut server).await;
    let mut all = calls(&mut from, 5).await;
    server.write(&config.replace(r#","nothing","verdict"]"#, "]"));
    eventually("the quota is granted", || {
        let mut client = server.client.clone();
        async move {
            let answer = client.check(asking("limit", 3)).await.unwrap().into_inner();
            answer.quotas.get("limit").is_some_and(|quota| {
                let valid = quota.valid_duration.map(|valid| valid.seconds);
                (quota.granted_amount, valid) == (3, Some(9))
            })
        }
    })
    .await;
    while !all.contains_key("HandleQuota") {
        all.append(&mut calls(&mut from, 1).await);
    }
    for (method, call) in &all {
        let is_in_session = method.starts_with("Handle");
        let session = if is_in_session { "the first" } else { "" };
        assert_eq!(call.session, session, "{method}");
    }
    let validate = ValidateRequest::decode(all["Validate"].message.as_slice()).unwrap();
    let types: Vec<_> = validate.inferred_types.keys().collect();
    assert!(
        types.contains(&&"count.instance.istio-system".to_owned()),
        "{types:?}"
    );
    let count: Metric = instance(&all["HandleMetric"]);
    let wanted = Metric {
        name: "count.instance.istio-system".into(),
        value: Some(PolicyValue {
            value: Some(OneOf::Int64Value(5)),
        }),
        dimensions: [("who".to_owned(), text("me"))].into(),
    };
    assert_eq!(count, wanted);
    let limit: Quota = instance(&all["HandleQuota"]);
    assert_eq!(limit.name, LIMIT);
    assert_eq!(limit.dimensions, [("who".to_owned(), text("me"))].into());
    let nothing: Quota = instance(&all["HandleReportNothing"]);
    assert_eq!(nothing.name, "nothing.instance.istio-system");
}
