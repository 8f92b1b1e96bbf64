//! Server and channel against each other, plaintext and mutual TLS.

use super::*;
use crate::{
    drain,
    listen::{Listener, Peer},
    tls::{ClientAuth, ClientTls, Pem, PemFiles, ServerIdentity, ServerTls, tests::authority},
};
use std::{convert::Infallible, time::Duration};
use tonic::{body::Body, service::Routes};

/// A service without a protocol: answers every call with the caller's SPIFFE id as the status message.
#[derive(Clone)]
struct WhoAmI;

impl tonic::server::NamedService for WhoAmI {
    const NAME: &'static str = "test.WhoAmI";
}

impl tower::Service<http::Request<Body>> for WhoAmI {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let id = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.spiffe_id.clone())
            .unwrap_or_else(|| "nobody".to_owned());
        std::future::ready(Ok(tonic::Status::not_found(id).into_http()))
    }
}

async fn ask(channel: tonic::transport::Channel) -> String {
    use tower::ServiceExt as _;
    let request = http::Request::post("/test.WhoAmI/Ask")
        .header("content-type", "application/grpc")
        .body(Body::empty())
        .unwrap();
    let response = tokio::time::timeout(Duration::from_secs(60), channel.oneshot(request))
        .await
        .unwrap();
    match response {
        Ok(response) => response.headers()["grpc-message"]
            .to_str()
            .unwrap()
            .to_owned(),
        Err(error) => format!("error: {error:?}"),
    }
}

#[tokio::test]
async fn plaintext_calls_are_served_counted_and_drained() {
    let registry = prometheus::Registry::new();
    let metrics = GrpcMetrics::register(&registry, &[("/test.WhoAmI/Ask", "bidi_stream")]).unwrap();
    let (trigger, drain) = drain::channel();
    let listener = Listener::bind_text("127.0.0.1:0", "--grpcAddr")
        .await
        .unwrap();
    let target = listener.address().to_string();
    let server = crate::task::spawn("grpc", {
        let incoming = listener.plaintext(&drain);
        async move {
            serve(
                incoming,
                Routes::new(WhoAmI),
                &ServerOptions::default(),
                Some(metrics),
                drain,
            )
            .await
        }
    });
    let channel = channel(&target, None, &ClientOptions::default()).unwrap();
    assert_eq!(ask(channel).await, "nobody");
    trigger.drain(Duration::from_secs(5));
    tokio::time::timeout(Duration::from_secs(60), server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    assert!(
        text.contains(r#"grpc_server_handled_total{grpc_code="NotFound",grpc_method="Ask",grpc_service="test.WhoAmI",grpc_type="bidi_stream"} 1"#),
        "{text}"
    );
}

#[test]
fn a_method_that_there_is_not_never_becomes_a_label() {
    let registry = prometheus::Registry::new();
    let metrics = GrpcMetrics::register(&registry, &[]).unwrap();
    drop(metrics.begin("/made.up/Dropped"));
    metrics
        .begin("/made.up/Refused")
        .end(tonic::Code::Unimplemented);
    metrics.begin("/real.one/Ask").end(tonic::Code::Internal);
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    assert!(!text.contains("made.up"), "{text}");
    for started in [
        r#"grpc_server_started_total{grpc_method="Ask",grpc_service="real.one",grpc_type="unary"} 1"#,
        r#"grpc_server_started_total{grpc_method="unknown",grpc_service="unknown",grpc_type="unary"} 2"#,
    ] {
        assert!(text.contains(started), "{text}");
    }
}

#[tokio::test]
async fn mutual_tls_gives_the_servers_the_callers_spiffe_id() {
    let ca = authority();
    let server = ca.issue(
        "spiffe://cluster.local/ns/istio-system/sa/galley",
        "localhost",
    );
    let client = ca.issue("spiffe://cluster.local/ns/istio-system/sa/pilot", "");
    let drain = drain::Drain::never();
    let listener = Listener::bind_text("127.0.0.1:0", "--grpcAddr")
        .await
        .unwrap();
    let target = listener.address().to_string();
    let tls = ServerTls::from_pem(&server, ClientAuth::Required, &["h2"]).unwrap();
    let incoming = listener.tls(tls, &drain);
    let _server = crate::task::spawn("grpc", async move {
        serve(
            incoming,
            Routes::new(WhoAmI),
            &ServerOptions::default(),
            None,
            drain,
        )
        .await
    });
    let with = |identity: ServerIdentity| {
        let tls = ClientTls::from_pem(&client, identity, &["h2"]).unwrap();
        channel(&target, Some(tls), &ClientOptions::default()).unwrap()
    };
    let galley = "spiffe://cluster.local/ns/istio-system/sa/galley";
    let answer = ask(with(ServerIdentity::AnyOf(vec![galley.into()]))).await;
    assert_eq!(answer, "spiffe://cluster.local/ns/istio-system/sa/pilot");
    let answer = ask(with(ServerIdentity::AnyOf(vec![
        "spiffe://cluster.local/x".into(),
    ])))
    .await;
    assert!(answer.starts_with("error"), "{answer}");
    // Dialled by address, which the certificate does not name.
    assert!(ask(with(ServerIdentity::Name)).await.starts_with("error"));
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_what_it_has_open_is_closed() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let ca = authority();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let own = ca.issue("spiffe://td/ns/istio-system/sa/pilot", "localhost");
    for (name, text) in [
        ("c.pem", &own.chain),
        ("k.pem", &own.key),
        ("r.pem", &own.roots),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let files = PemFiles::new(at("c.pem"), at("k.pem"), Some(at("r.pem")));
    let drain = drain::Drain::never();
    let listener = Listener::bind_text("127.0.0.1:0", "--grpcAddr").await;
    let listener = listener.unwrap();
    let target = listener.address().to_string();
    let tls = ServerTls::from_files(files, ClientAuth::Required, &["h2"]).unwrap();
    let incoming = listener.tls(tls, &drain);
    let _server = crate::task::spawn("grpc", async move {
        let options = ServerOptions::default();
        serve(incoming, Routes::new(WhoAmI), &options, None, drain).await
    });
    let [bad, good] = ["bad", "good"].map(|name| ca.issue(&format!("spiffe://td/{name}"), ""));
    // Of the same name, but another certificate.
    let renewed = ca.issue("spiffe://td/bad", "");
    let client = |pem: &Pem| ClientTls::from_pem(pem, ServerIdentity::Trusted, &["h2"]).unwrap();
    let ask_as = async |pem: &Pem| {
        ask(channel(&target, Some(client(pem)), &ClientOptions::default()).unwrap()).await
    };
    let open = async |pem: &Pem| {
        let tls = client(pem);
        let name = tls.server_name("localhost").unwrap();
        let tcp = tokio::net::TcpStream::connect(&target).await.unwrap();
        let mut line = tls.connector().connect(name, tcp).await.unwrap();
        line.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        // The server's settings: it is served.
        line.read_exact(&mut [0; 9]).await.unwrap();
        line
    };
    assert_eq!(ask_as(&bad).await, "spiffe://td/bad");
    let (mut bad_line, mut good_line) = (open(&bad).await, open(&good).await);

    std::fs::write(at("ca-crl.pem"), ca.revoke(&[&bad])).unwrap();
    let mut rest = Vec::new();
    let end = bad_line.read_to_end(&mut rest);
    // However it ends: the server may not say goodbye.
    let _ = tokio::time::timeout(Duration::from_secs(60), end)
        .await
        .unwrap();
    let answer = ask_as(&bad).await;
    assert!(answer.starts_with("error"), "{answer}");
    assert_eq!(ask_as(&renewed).await, "spiffe://td/bad");
    assert_eq!(ask_as(&good).await, "spiffe://td/good");
    good_line
        .write_all(b"\0\0\x08\x06\0\0\0\0\0 bireme.")
        .await
        .unwrap();
    // The answer to the ping, after whatever else the server has said.
    let mut heard = Vec::new();
    while !heard.ends_with(b" bireme.") {
        let byte = tokio::time::timeout(Duration::from_secs(60), good_line.read_u8()).await;
        heard.push(byte.unwrap().unwrap());
    }

    std::fs::write(at("ca-crl.pem"), "").unwrap();
    let start = tokio::time::Instant::now();
    while ask_as(&bad).await.starts_with("error") {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
