//! A check out of process that answers with more than a verdict, and a rule that puts it into a header.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use prost_types::Duration;
use proto::istio::mixer::adapter::model::v1beta1::CheckResult;
use proto_component::task;
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use base64::Engine as _;

use crate::server::{MANIFEST, TestServer, attributes, referenced, request};

const TEMPLATE: &str = r#"
syntax = "proto3";
package lookup;
import "google/protobuf/any.proto";
import "istio/mixer/adapter/model/v1beta1/model.proto";
import "istio/policy/v1beta1/type.proto";
import "mixer/template/extensions.proto";
option (istio.mixer.adapter.model.v1beta1.template_variety) = TEMPLATE_VARIETY_CHECK_WITH_OUTPUT;
service HandleLookupService {
  rpc HandleLookup(HandleLookupRequest) returns (HandleLookupResponse);
}
message HandleLookupRequest {
  InstanceMsg instance = 1;
  google.protobuf.Any adapter_config = 2;
  string dedup_id = 3;
}
message HandleLookupResponse {
  istio.mixer.adapter.model.v1beta1.CheckResult result = 1;
  OutputMsg output = 2;
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

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    result: Option<CheckResult>,
    #[prost(message, optional, tag = "2")]
    output: Option<Output>,
}

/// The same in all templates of these tests.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Output {
    #[prost(string, tag = "1")]
    team: String,
    #[prost(int64, tag = "2")]
    level: i64,
    #[prost(message, optional, tag = "3")]
    home: Option<proto::istio::policy::v1beta1::IpAddress>,
    #[prost(btree_map = "string, string", tag = "4")]
    marks: std::collections::BTreeMap<String, String>,
}

/// A template's descriptors as they stand in configuration.
pub(crate) fn descriptor(template: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("template.proto"), template).unwrap();
    std::fs::create_dir_all(folder.path().join("google/rpc")).unwrap();
    let status = "syntax = \"proto3\"; package google.rpc; import \"google/protobuf/any.proto\"; message Status { \
                  int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3; }";
    std::fs::write(folder.path().join("google/rpc/status.proto"), status).unwrap();
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let includes = [
        folder.path().to_owned(),
        ours.join("protos"),
        ours.join("../proto/protos"),
    ];
    let mut compiler = protox::Compiler::new(includes).unwrap();
    compiler
        .include_imports(true)
        .open_file("template.proto")
        .unwrap();
    base64::engine::general_purpose::STANDARD.encode(compiler.encode_file_descriptor_set())
}

/// A call as an adapter gets it.
pub(crate) struct Call {
    /// `HandleMetric`.
    pub(crate) method: String,
    /// The session that it names.
    pub(crate) session: String,
    pub(crate) message: Vec<u8>,
}

/// An adapter's answer to a method, by the method's name.
type Answers = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

/// Answers every call of a connection, and tells of it.
async fn answer_all(stream: TcpStream, answers: Answers, calls: mpsc::UnboundedSender<Call>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    // The connection must be looked after while messages come in.
    while let Some(Ok((request, respond))) = connection.accept().await {
        let answered = answer_one(request, respond, answers.clone(), calls.clone());
        task::spawn("call", answered);
    }
}

async fn answer_one(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answers: Answers,
    calls: mpsc::UnboundedSender<Call>,
) {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let session = request.headers().get("session-id");
    let session = session.map_or("", |name| name.to_str().unwrap()).to_owned();
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        message.extend_from_slice(&part.unwrap());
    }
    let answer = answers(&method);
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(answer.len()).unwrap());
    framed.extend_from_slice(&answer);
    // The test has seen enough if nobody listens.
    let _ = calls.send(Call {
        method,
        session,
        message: message.split_off(5),
    });
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    stream.send_data(framed.freeze(), false).unwrap();
    let status = (
        "grpc-status".parse().unwrap(),
        HeaderValue::from_static("0"),
    );
    stream
        .send_trailers(HeaderMap::from_iter([status]))
        .unwrap();
}

/// An adapter with these answers; its port, and the calls that it gets.
pub(crate) async fn adapter_of(
    answers: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> (u16, mpsc::UnboundedReceiver<Call>) {
    let answers: Answers = Arc::new(answers);
    let (sender, calls) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    task::spawn("adapter", async move {
        while let Ok((stream, _)) = listener.accept().await {
            task::spawn(
                "connection",
                answer_all(stream, answers.clone(), sender.clone()),
            );
        }
    });
    (port, calls)
}

/// An adapter that answers every call with this; its port.
pub(crate) async fn adapter(answer: &impl Message) -> u16 {
    let message = answer.encode_to_vec();
    adapter_of(move |_| message.clone()).await.0
}

/// What is known of everybody.
pub(crate) fn output() -> Output {
    Output {
        team: "red".into(),
        level: 3,
        home: Some(proto::istio::policy::v1beta1::IpAddress {
            value: vec![10, 0, 0, 1],
        }),
        marks: [("shade".to_owned(), "dark".to_owned())].into(),
    }
}

fn answer() -> Answer {
    Answer {
        result: Some(CheckResult {
            valid_duration: Some(Duration {
                seconds: 5,
                nanos: 0,
            }),
            valid_use_count: 7,
            ..CheckResult::default()
        }),
        output: Some(output()),
    }
}

fn config(port: u16, values: &str) -> String {
    let descriptor = descriptor(TEMPLATE);
    format!(
        r#"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: template
metadata: {{name: lookup, namespace: istio-system}}
spec: {{descriptor: "{descriptor}"}}
---
apiVersion: config.istio.io/v1alpha2
kind: adapter
metadata: {{name: people, namespace: istio-system}}
spec: {{description: knows people, session_based: false, templates: [lookup]}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: people, namespace: istio-system}}
spec: {{adapter: people, connection: {{address: "127.0.0.1:{port}"}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: who, namespace: istio-system}}
spec: {{template: lookup, params: {{user: source.name | "nobody"}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: people, namespace: istio-system}}
spec:
  actions: [{{handler: people, instances: [who], name: x}}]
  requestHeaderOperations: [{{name: x-team, values: [{values}]}}]
"#
    )
}

#[tokio::test]
async fn outputs_become_headers() {
    let port = adapter(&answer()).await;
    let values = r#"'x.output.team', 'x.output.marks["shade"]', 'conditional(x.output.level == 3 && x.output.home == ip("10.0.0.1"), source.name, "?")', 'x.output.unsaid'"#;
    let mut server = TestServer::start(&config(port, values)).await;
    let page: Json = serde_json::from_str(&server.page("/debug/config").await).unwrap();
    assert_eq!(page["errors"], json!([]));
    let me = attributes([("source.name", "me".into())]);
    let answer = server.check(request(&me)).await;
    // What was made here is nothing that the caller could compare.
    let looked_at = [
        "-context.reporter.kind",
        "-destination.namespace",
        "source.name",
    ];
    assert_eq!(referenced(&answer), looked_at);
    let precondition = answer.precondition.unwrap();
    assert_eq!(precondition.valid_use_count, 7);
    let operations = precondition
        .route_directive
        .unwrap()
        .request_header_operations;
    let values: Vec<_> = operations.iter().map(|o| o.value.as_str()).collect();
    assert_eq!(values, ["red", "dark", "me"]);
    assert!(
        operations
            .iter()
            .all(|operation| operation.name == "x-team")
    );
}

#[tokio::test]
async fn an_output_that_no_action_has_is_an_error() {
    let server = TestServer::start(&config(9, "y.output.team")).await;
    let page = server.page("/debug/config").await;
    assert!(page.contains("unknown attribute y.output.team"), "{page}");
}

#[tokio::test]
async fn an_adapter_that_says_nothing_fails_its_check_in_time() {
    // It is connected to, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let address = format!("address: \"127.0.0.1:{port}\"");
    let config =
        config(port, "x.output.team").replace(&address, &format!("{address}, timeout: 300ms"));
    let mut server = TestServer::start(&config).await;
    let me = attributes([("source.name", "me".into())]);
    let answer = tokio::time::timeout(
        std::time::Duration::from_secs(60),
        server.client.check(request(&me)),
    );
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::Internal);
    assert!(error.message().contains("the adapter failed"), "{error}");
}
