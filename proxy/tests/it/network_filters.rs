//! Network filters: tunnels, Redis, an external service that decides about connections.

use crate::listeners::{NETWORK, greeted, hello, listener, start, tcp_proxy};
use crate::running::{nobody, static_cluster};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn tcp_goes_through_tunnels_of_http1() {
    let terminator = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = terminator.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = terminator.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        // The first bytes of the tunnel come with the answer.
        stream
            .write_all(b"HTTP/1.1 200 OK\r\n\r\nhi")
            .await
            .unwrap();
        let mut more = Vec::new();
        stream.read_to_end(&mut more).await.unwrap();
        (String::from_utf8(head).unwrap(), more)
    });
    let tunneling = ", tunneling_config: {hostname: \"far.test:443\", headers_to_add: [{header: {key: x-from, value: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\"}}]}";
    let proxy = start(
        &[listener("tunnel", &[tcp_proxy("far", tunneling)], "")],
        &[static_cluster("far", address)],
        "",
    )
    .await;
    let mut client = greeted(proxy.address("tunnel").await).await.unwrap();
    client.write_all(b"bytes").await.unwrap();
    client.shutdown().await.unwrap();
    let (head, more) = served.await.unwrap();
    assert_eq!(
        head,
        "CONNECT far.test:443 HTTP/1.1\r\nhost: far.test:443\r\nx-from: 127.0.0.1\r\n\r\n"
    );
    assert_eq!(more, b"bytes");
    proxy.stop().await;
}

#[tokio::test]
async fn tunnels_of_http2_share_a_connection_and_retry_when_refused() {
    let terminator = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = terminator.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = terminator.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut count = 0;
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.method(), "CONNECT");
            assert_eq!(request.uri().authority().unwrap(), "far.test:443");
            count += 1;
            if count == 1 {
                let refusal = http::Response::builder().status(503).body(()).unwrap();
                respond.send_response(refusal, true).unwrap();
                continue;
            }
            let mut send = respond
                .send_response(http::Response::new(()), false)
                .unwrap();
            tokio::spawn(async move {
                send.send_data("hi".into(), false).unwrap();
                let mut body = request.into_body();
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).unwrap();
                    send.send_data(data, false).unwrap();
                }
                send.send_data(bytes::Bytes::new(), true).unwrap();
            });
        }
    });
    let cluster = static_cluster("far", address);
    let cluster = cluster.replacen(
        "{name: far,",
        r#"{name: far, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},"#,
        1,
    );
    let more = ", max_connect_attempts: 2, backoff_options: {base_interval: 0.001s}, tunneling_config: {hostname: \"far.test:443\"}";
    let proxy = start(
        &[listener("tunnel", &[tcp_proxy("far", more)], "")],
        &[cluster],
        "",
    )
    .await;
    let mut client = greeted(proxy.address("tunnel").await).await.unwrap();
    client.write_all(b"over there").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "over there");
    proxy.stat_is("cluster.far.upstream_cx_total", 1).await;
    proxy.stop().await;
}

/// A Redis server that answers every command with its own name, its arguments joined.
async fn redis_server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                use tokio::io::AsyncBufReadExt as _;
                let mut stream = tokio::io::BufReader::new(stream);
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let count: usize = line.trim_start_matches('*').trim().parse().unwrap();
                    let mut words = Vec::new();
                    for _ in 0..count {
                        let mut word = String::new();
                        stream.read_line(&mut word).await.unwrap();
                        word.clear();
                        stream.read_line(&mut word).await.unwrap();
                        words.push(word.trim_end().to_owned());
                    }
                    let answer = match words[0].to_ascii_lowercase().as_str() {
                        "set" => "+OK\r\n".to_owned(),
                        "del" => ":1\r\n".to_owned(),
                        _ => {
                            let text = format!("{name}:{}", words[1..].join(","));
                            format!("${}\r\n{text}\r\n", text.len())
                        }
                    };
                    stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn redis_commands_go_to_the_owners_of_their_keys_and_come_back_in_order() {
    let (one, two) = (redis_server("one").await, redis_server("two").await);
    let filter = format!(
        r#"{{name: redis, typed_config: {{"@type": {NETWORK}.redis_proxy.v3.RedisProxy, stat_prefix: r, settings: {{op_timeout: 30s}},
          downstream_auth_passwords: [{{inline_string: secret}}],
          prefix_routes: {{routes: [{{prefix: "b:", cluster: two, remove_prefix: true}}], catch_all_route: {{cluster: one}}}}}}}}"#
    );
    let proxy = start(
        &[listener("redis", &[filter], "")],
        &[static_cluster("one", one), static_cluster("two", two)],
        "",
    )
    .await;
    let mut client = TcpStream::connect(proxy.address("redis").await)
        .await
        .unwrap();
    let commands = [
        (
            "*1\r\n$4\r\nPING\r\n",
            "-NOAUTH Authentication required.\r\n",
        ),
        (
            "*2\r\n$4\r\nAUTH\r\n$5\r\nwrong\r\n",
            "-ERR invalid password\r\n",
        ),
        ("*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n", "+OK\r\n"),
        ("*1\r\n$4\r\nPING\r\n", "+PONG\r\n"),
        ("*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "$5\r\none:a\r\n"),
        ("*2\r\n$3\r\nget\r\n$3\r\nb:x\r\n", "$5\r\ntwo:x\r\n"),
        (
            "*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$3\r\nb:y\r\n",
            "*2\r\n$5\r\none:a\r\n$5\r\ntwo:y\r\n",
        ),
        (
            "*5\r\n$4\r\nmset\r\n$1\r\na\r\n$1\r\n1\r\n$3\r\nb:y\r\n$1\r\n2\r\n",
            "+OK\r\n",
        ),
        ("*3\r\n$3\r\ndel\r\n$1\r\na\r\n$3\r\nb:y\r\n", ":2\r\n"),
        (
            "*1\r\n$7\r\nflushdb\r\n",
            "-ERR unknown command 'flushdb', with args beginning with: \r\n",
        ),
        ("*1\r\n$4\r\nquit\r\n", "+OK\r\n"),
    ];
    let asked: String = commands.iter().map(|(command, _)| *command).collect();
    let expected: String = commands.iter().map(|(_, answer)| *answer).collect();
    client.write_all(asked.as_bytes()).await.unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers, expected);
    for (name, count) in [
        ("redis.r.downstream_rq_total", 11),
        ("redis.r.command.get.success", 2),
        ("redis.r.command.mget.total", 1),
        ("redis.r.splitter.unsupported_command", 1),
        ("cluster.two.upstream_cx_total", 1),
    ] {
        proxy.stat_is(name, count).await;
    }
    proxy.stop().await;
}

/// Lets in the first who asks, and nobody else.
#[derive(Clone, Default)]
struct FirstOnly(
    std::sync::Arc<parking_lot::Mutex<Vec<proto::envoy::service::auth::v3::CheckRequest>>>,
);

#[tonic::async_trait]
impl proto::envoy::service::auth::v3::authorization_server::Authorization for FirstOnly {
    async fn check(
        &self,
        request: tonic::Request<proto::envoy::service::auth::v3::CheckRequest>,
    ) -> Result<tonic::Response<proto::envoy::service::auth::v3::CheckResponse>, tonic::Status>
    {
        let mut asked = self.0.lock();
        let code = i32::from(!asked.is_empty()) * 7;
        asked.push(request.into_inner());
        Ok(tonic::Response::new(
            proto::envoy::service::auth::v3::CheckResponse {
                status: Some(proto::google::rpc::Status {
                    code,
                    ..Default::default()
                }),
                ..Default::default()
            },
        ))
    }
}

#[tokio::test]
async fn an_external_service_decides_about_connections() {
    use proto::envoy::service::auth::v3::authorization_server::AuthorizationServer;
    let service = FirstOnly::default();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AuthorizationServer::new(service.clone()))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(socket)),
    );
    let filter = |prefix: &str, cluster: &str, more: &str| {
        format!(
            r#"{{name: authz, typed_config: {{"@type": {NETWORK}.ext_authz.v3.ExtAuthz, stat_prefix: {prefix}, {more} grpc_service: {{envoy_grpc: {{cluster_name: {cluster}}}, timeout: 30s}}}}}}"#
        )
    };
    let http2 = static_cluster("authz", address).replacen(
        "{name: authz,",
        r#"{name: authz, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},"#,
        1,
    );
    let (_held, dead) = nobody();
    // Marks every connection, as a policy's rules do those that they match.
    let mark = format!(
        r#"{{name: mark, typed_config: {{"@type": {NETWORK}.rbac.v3.RBAC, stat_prefix: tcp., shadow_rules_stat_prefix: mark_, shadow_rules: {{action: DENY, policies: {{ours: {{permissions: [{{any: true}}], principals: [{{any: true}}]}}}}}}}}}}"#
    );
    let marked = |mark: &str| {
        let wanted = format!(
            "filter_enabled_metadata: {{filter: envoy.filters.network.rbac, path: [{{key: mark_shadow_effective_policy_id}}], value: {{string_match: {{exact: {mark}}}}}}},"
        );
        filter("marked", "dead", &wanted)
    };
    let plain = || tcp_proxy("hello", "");
    let proxy = start(
        &[
            listener("asks", &[filter("asks", "authz", ""), plain()], ""),
            listener(
                "open",
                &[filter("open", "dead", "failure_mode_allow: true,"), plain()],
                "",
            ),
            listener("shut", &[filter("shut", "dead", ""), plain()], ""),
            listener("ours", &[mark.clone(), marked("ours"), plain()], ""),
            listener("theirs", &[mark, marked("theirs"), plain()], ""),
        ],
        &[hello().await, http2, static_cluster("dead", dead)],
        "",
    )
    .await;
    assert!(greeted(proxy.address("asks").await).await.is_some());
    assert!(greeted(proxy.address("asks").await).await.is_none());
    assert!(greeted(proxy.address("open").await).await.is_some());
    assert!(greeted(proxy.address("shut").await).await.is_none());
    assert!(greeted(proxy.address("ours").await).await.is_none());
    assert!(greeted(proxy.address("theirs").await).await.is_some());
    for (name, count) in [
        ("asks.ok", 1),
        ("asks.denied", 1),
        ("asks.cx_closed", 1),
        ("open.failure_mode_allowed", 1),
        ("shut.error", 1),
        ("marked.error", 1),
        ("marked.disabled", 1),
    ] {
        proxy.stat_is(&format!("ext_authz.{name}"), count).await;
    }
    let asked = service.0.lock().clone();
    let attributes = asked[0].attributes.clone().unwrap();
    assert!(attributes.source.unwrap().address.is_some());
    assert!(attributes.destination.unwrap().address.is_some());
    proxy.stop().await;
}

/// The first record of a client that asks for `name`.
fn client_hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn tls_goes_where_its_server_name_says() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = upstream.local_addr().unwrap().port();
    let cache = "dns_cache_config: {name: dns, dns_lookup_family: V4_ONLY}";
    let resolver = format!(
        r#"{{name: names, typed_config: {{"@type": {NETWORK}.sni_dynamic_forward_proxy.v3.FilterConfig, port_value: {port}, {cache}}}}}"#
    );
    let cluster = format!(
        "{{name: names, connect_timeout: 30s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: envoy.clusters.dynamic_forward_proxy, \
         typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache}}}}}}}"
    );
    let inspector = "listener_filters: [{name: envoy.filters.listener.tls_inspector, typed_config: {\"@type\": \
        type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}],";
    let filters = [resolver, tcp_proxy("names", "")];
    let proxy = start(&[listener("tls", &filters, inspector)], &[cluster], "").await;
    let address = proxy.address("tls").await;

    let hello = client_hello("localhost");
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&hello).await.unwrap();
    let (mut served, _) = upstream.accept().await.unwrap();
    let mut received = vec![0; hello.len()];
    served.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    served.write_all(b"back").await.unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"back");
    proxy.stat_is("dns_cache.dns.host_added", 1).await;

    // A name without an address, and no name at all: there is no host.
    for first_bytes in [client_hello("no-such-name.invalid"), b"plain".to_vec()] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&first_bytes).await.unwrap();
        // Whether it is a reset or an end is up to what has been read of the bytes.
        let closed = client.read(&mut [0; 8]).await;
        assert!(!matches!(closed, Ok(1..)), "{closed:?}");
    }
    proxy.stop().await;
}
