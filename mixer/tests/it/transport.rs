//! Calls frame by frame: what is no call, what is none of ours, what is too much, what takes too long, the drain.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use h2::client::SendRequest;
use http::Request;
use prost::Message as _;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::{CheckRequest, CompressedAttributes, ReportRequest};
use proto_component::task;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::Code;

use crate::server::{MANIFEST, TestServer, attributes, eventually, request};

const CHECK: &str = "/istio.mixer.v1.Mixer/Check";
const REPORT: &str = "/istio.mixer.v1.Mixer/Report";

async fn connect(port: u16) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    task::spawn("client", async move {
        // The test sees it when the server hangs up.
        let _ = connection.await;
    });
    client
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], length.to_be_bytes().as_slice(), message].concat()
}

/// Sends parts of a body; the HTTP status and that of the call.
async fn call(
    client: &SendRequest<Bytes>,
    path: &str,
    headers: &[(&str, &str)],
    parts: &[&[u8]],
) -> (u16, Option<Code>) {
    let mut request = Request::post(format!("http://mixer{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut stream) = client
        .send_request(request.body(()).unwrap(), parts.is_empty())
        .unwrap();
    for (position, part) in parts.iter().enumerate() {
        let is_last = position + 1 == parts.len();
        stream
            .send_data(Bytes::copy_from_slice(part), is_last)
            .unwrap();
        // The parts travel one by one.
        tokio::task::yield_now().await;
    }
    let response = response.await.unwrap();
    let code = |headers: &http::HeaderMap| {
        let status = headers.get("grpc-status")?;
        Some(Code::from_bytes(status.as_bytes()))
    };
    let status = response.status().as_u16();
    let first = code(response.headers());
    let mut body = response.into_body();
    while let Some(part) = body.data().await {
        part.unwrap();
    }
    let last = body.trailers().await.unwrap();
    (status, first.or(last.as_ref().and_then(code)))
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn calls_are_told_from_what_is_none() {
    let server = TestServer::start(MANIFEST).await;
    let client = connect(server.grpc).await;
    let me = attributes([("source.name", "me".into())]);
    let message = request(&me).encode_to_vec();
    let body = framed(&message);
    let mut compressed = body.clone();
    compressed[0] = 1;
    let large = framed(&vec![0; (1 << 20) + 1]);
    let many = CheckRequest {
        quotas: (0..100_000)
            .map(|n| (format!("{n:05}"), QuotaParams::default()))
            .collect(),
        ..CheckRequest::default()
    };
    let many_quotas = framed(&many.encode_to_vec());
    let many = ReportRequest {
        attributes: vec![CompressedAttributes::default(); 10_001],
        ..ReportRequest::default()
    };
    let many_sets = framed(&many.encode_to_vec());
    let grpc = [("content-type", "application/grpc")];
    let long = "x".repeat(20 << 10);
    let long = [grpc[0], ("x-long", long.as_str())];
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    for (what, path, headers, parts, want) in [
        (
            "a call",
            CHECK,
            &grpc[..],
            vec![body.as_slice()],
            (200, Some(Code::Ok)),
        ),
        (
            "one byte a frame",
            CHECK,
            &grpc,
            bytes,
            (200, Some(Code::Ok)),
        ),
        (
            "nothing to report",
            REPORT,
            &grpc,
            vec![&[0; 5]],
            (200, Some(Code::Ok)),
        ),
        (
            "too many quotas",
            CHECK,
            &grpc,
            vec![&many_quotas],
            (200, Some(Code::InvalidArgument)),
        ),
        (
            "too many sets",
            REPORT,
            &grpc,
            vec![&many_sets],
            (200, Some(Code::InvalidArgument)),
        ),
        ("too long headers", CHECK, &long, vec![&body], (431, None)),
        ("no gRPC", CHECK, &[], vec![&body], (415, None)),
        (
            "no such method",
            "/istio.mixer.v1.Mixer/Guess",
            &grpc,
            vec![&body],
            (200, Some(Code::Unimplemented)),
        ),
        (
            "no such method, and no message",
            "/made.up.Service/Guess",
            &grpc,
            vec![],
            (200, Some(Code::Unimplemented)),
        ),
        (
            "compressed",
            CHECK,
            &grpc,
            vec![&compressed],
            (200, Some(Code::Unimplemented)),
        ),
        (
            "cut off",
            CHECK,
            &grpc,
            vec![&body[..body.len() - 1]],
            (200, Some(Code::Internal)),
        ),
        (
            "nothing at all",
            CHECK,
            &grpc,
            vec![],
            (200, Some(Code::Internal)),
        ),
        (
            "no message",
            CHECK,
            &grpc,
            vec![&framed(&[0xff])],
            (200, Some(Code::Internal)),
        ),
        (
            "too large",
            REPORT,
            &grpc,
            vec![&large],
            (200, Some(Code::OutOfRange)),
        ),
    ] {
        let got = call(&client, path, headers, &parts).await;
        assert_eq!(got, want, "{what}");
    }
    // What unknown methods are called does not become a label.
    eventually("all calls are counted", || async {
        let metrics = server.page("/metrics").await;
        metrics.contains(
            "grpc_method=\"Check\",grpc_service=\"istio.mixer.v1.Mixer\",grpc_type=\"unary\"} 2\n",
        ) && metrics.contains("grpc_code=\"Unimplemented\",grpc_method=\"unknown\"")
    })
    .await;
    let metrics = server.page("/metrics").await;
    assert!(!metrics.contains("Guess"), "{metrics}");
}

/// A policy agent that takes questions and never answers.
async fn silent_agent() -> (u16, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = mpsc::unbounded_channel();
    task::spawn("agent", async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.readable().await.unwrap();
            asked.send(stream).unwrap();
        }
    });
    (port, questions)
}

pub(crate) fn asking(port: u16) -> String {
    format!(
        r#"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {{name: agent, namespace: istio-system}}
spec:
  compiledAdapter: opa
  params: {{serverUrl: "http://127.0.0.1:{port}", checkMethod: data.a.allow, failClose: true, timeout: 60s}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {{name: who, namespace: istio-system}}
spec: {{compiledTemplate: authorization, params: {{subject: {{user: source.name}}}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: agent, namespace: istio-system}}
spec: {{match: source.name == "slow", actions: [{{handler: agent, instances: [who]}}]}}
"#
    )
}

#[tokio::test]
async fn a_call_that_waits_holds_up_nobody_and_has_an_end() {
    let (port, mut questions) = silent_agent().await;
    let server = TestServer::start(&asking(port)).await;
    let client = connect(server.grpc).await;
    let body = |name: &'static str| {
        framed(&request(&attributes([("source.name", name.into())])).encode_to_vec())
    };
    let (slow, quick) = (body("slow"), body("quick"));
    let grpc = ("content-type", "application/grpc");
    let timed = [grpc, ("grpc-timeout", "5000m")];
    let slow = [slow.as_slice()];
    let waiting = call(&client, CHECK, &timed, &slow);
    let meanwhile = async {
        let question = questions.recv().await.unwrap();
        let answered = call(&client, CHECK, &[grpc], &[quick.as_slice()]).await;
        assert_eq!(answered, (200, Some(Code::Ok)));
        // The agent would hang up with it.
        question
    };
    let (ended, _question) = tokio::join!(waiting, meanwhile);
    assert_eq!(ended, (200, Some(Code::DeadlineExceeded)));
}

#[tokio::test]
async fn a_call_in_flight_is_judged_by_the_configuration_that_it_came_under() {
    let (port, mut questions) = silent_agent().await;
    let mut server = TestServer::start(&asking(port)).await;
    let ask = |name: &'static str| {
        let mut client = server.client.clone();
        let request = request(&attributes([("source.name", name.into())]));
        async move {
            let answer = client.check(request).await.unwrap().into_inner();
            answer.precondition.unwrap().status.unwrap()
        }
    };
    let waiting = task::spawn("waiting", ask("slow"));
    let mut question = questions.recv().await.unwrap();
    server.write(&format!(
        r"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {{name: deny, namespace: istio-system}}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {{name: nothing, namespace: istio-system}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: deny, namespace: istio-system}}
spec: {{actions: [{{handler: deny.denier, instances: [nothing.checknothing]}}]}}
"
    ));
    eventually("everybody is denied", || async {
        ask("quick").await.message == "deny.istio-system:"
    })
    .await;
    let mut asked = [0; 4096];
    assert_ne!(question.read(&mut asked).await.unwrap(), 0);
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"result\":true}";
    question.write_all(answer).await.unwrap();
    // The agent said yes, and nobody asked the denier.
    assert_eq!(waiting.await.unwrap().code, 0);
    let again = server.check(request(&attributes([("source.name", "slow".into())])));
    let status = again.await.precondition.unwrap().status.unwrap();
    assert_eq!(status.message, "deny.istio-system:");
}

#[tokio::test]
async fn new_calls_do_not_keep_one_that_waits_from_its_answer() {
    let server = TestServer::start(MANIFEST).await;
    let client = connect(server.grpc).await;
    let begin = |is_whole: bool| {
        let request = Request::post(format!("http://mixer{REPORT}"))
            .header("content-type", "application/grpc");
        let mut client = client.clone();
        client
            .send_request(request.body(()).unwrap(), is_whole)
            .unwrap()
    };
    let (waiting, mut body) = begin(false);
    // Who comes second is answered second: the one that waits has begun by then.
    let grpc = [("content-type", "application/grpc")];
    let answered = call(&client, REPORT, &grpc, &[]).await;
    assert_eq!(answered, (200, Some(Code::Internal)));
    // It goes on, and at once there are more calls than are answered at one go.
    body.send_data(Bytes::from(framed(&[])), true).unwrap();
    let later: Vec<_> = (0..500).map(|_| begin(true).0).collect();
    let answers: FuturesUnordered<_> = std::iter::once(waiting)
        .chain(later)
        .enumerate()
        .map(|(number, answer)| async move { answer.await.map(|_| number).unwrap() })
        .collect();
    let order: Vec<usize> = answers.collect().await;
    let position = order.iter().position(|number| *number == 0).unwrap();
    assert!(position < 250, "answered as number {position}");
}

#[tokio::test]
async fn a_drain_ends_connections() {
    let server = TestServer::start(MANIFEST).await;
    let client = connect(server.grpc).await;
    let body = framed(&ReportRequest::default().encode_to_vec());
    let grpc = [("content-type", "application/grpc")];
    let answered = call(&client, REPORT, &grpc, &[body.as_slice()]).await;
    assert_eq!(answered, (200, Some(Code::Ok)));
    drop(server);
    let ended = async {
        while let Ok(mut client) = client.clone().ready().await {
            let request = Request::post("http://mixer/").body(()).unwrap();
            if client.send_request(request, true).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .unwrap();
}
