//! TLS on both sides, with real handshakes.

use crate::{
    certificates::{Authority, Identity, exchange},
    running::{Running, eventually, greeter, static_cluster},
};
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use std::{net::SocketAddr, sync::Arc};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn pair(identity: &Identity) -> String {
    format!(
        "{{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}",
        quoted(&identity.pem),
        quoted(&identity.key)
    )
}

/// A listener with an echoing cluster behind it; `common` are fields of the common context, `more` of the downstream's.
fn listener(name: &str, common: &str, more: &str) -> String {
    format!(
        r#"{{name: {name}, stat_prefix: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{
        transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.DownstreamTlsContext, {more} common_tls_context: {{{common}}}}}}},
        filters: [{{name: tcp, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
          stat_prefix: {name}, cluster: echo}}}}]}}]}}"#
    )
}

async fn start(listeners: &[String], more: &str) -> Running {
    let echo = static_cluster("echo", greeter("").await);
    let listeners = listeners.join(", ");
    Running::start(&format!(
        "static_resources: {{listeners: [{listeners}], clusters: [{echo}] {more}}}"
    ))
    .await
}

/// One listener that asks for client certificates with these further fields of the validation context.
async fn validating(ca: &Authority, server: &Identity, checks: &str) -> (Running, SocketAddr) {
    let common = format!(
        "tls_certificates: [{}], validation_context: {{trusted_ca: {{inline_string: {}}}, {checks}}}",
        pair(server),
        quoted(&ca.pem)
    );
    let proxy = start(
        &[listener(
            "tls",
            &common,
            "require_client_certificate: true,",
        )],
        "",
    )
    .await;
    let address = proxy.address("tls").await;
    (proxy, address)
}

#[tokio::test]
async fn clients_are_checked_by_chain_name_pin_and_revocation() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let server = ca.sign("server.test");
    let (good, bad) = (ca.sign("spiffe://td/good"), ca.sign("spiffe://td/bad"));
    let stranger = other.sign("spiffe://td/good");
    let hash = |identity: &Identity| {
        let digest = Sha256::digest(&identity.der);
        digest
            .iter()
            .fold(String::new(), |text, byte| format!("{text}{byte:02X}"))
    };
    let san = "match_typed_subject_alt_names: [{san_type: URI, matcher: {suffix: /good}}]";
    let pin = format!("verify_certificate_hash: [{}]", hash(&good));
    let crl = format!("crl: {{inline_string: {}}}", quoted(&ca.revoke(&[&bad])));
    for (checks, statistic) in [
        (san, "fail_verify_san"),
        (pin.as_str(), "fail_verify_cert_hash"),
        (crl.as_str(), "fail_verify_error"),
    ] {
        let (proxy, address) = validating(&ca, &server, checks).await;
        let client = |identity: Option<&Identity>| Arc::new(ca.client(identity));
        exchange(&client(Some(&good)), address, "server.test")
            .await
            .unwrap();
        for refused in [Some(&bad), Some(&stranger), None] {
            let outcome = exchange(&client(refused), address, "server.test").await;
            assert!(outcome.is_err(), "{checks}");
        }
        let name = |of: &str| format!("listener.tls.ssl.{of}");
        let failures = u64::from(statistic == "fail_verify_error") + 1;
        proxy.stat_is(&name("fail_verify_error"), failures).await;
        proxy.stat_is(&name("fail_verify_no_cert"), 1).await;
        proxy.stat_reaches(&name(statistic), 1).await;
        proxy.stat_is(&name("handshake"), 1).await;
        proxy.stat_is(&name("versions.TLSv1.3"), 1).await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn public_keys_can_be_pinned_without_any_root() {
    let ca = Authority::new("ca");
    let (server, good, bad) = (ca.sign("server.test"), ca.sign("a"), ca.sign("b"));
    let key = |identity: &Identity| {
        let (_, parsed) = x509_parser::parse_x509_certificate(&identity.der).unwrap();
        let digest = Sha256::digest(parsed.public_key().raw);
        base64::engine::general_purpose::STANDARD.encode(digest)
    };
    let common = format!(
        "tls_certificates: [{}], validation_context: {{verify_certificate_spki: [\"{}\"]}}",
        pair(&server),
        key(&good)
    );
    let proxy = start(
        &[listener(
            "tls",
            &common,
            "require_client_certificate: true,",
        )],
        "",
    )
    .await;
    let address = proxy.address("tls").await;
    let client = |identity: &Identity| Arc::new(ca.client(Some(identity)));
    exchange(&client(&good), address, "server.test")
        .await
        .unwrap();
    assert!(
        exchange(&client(&bad), address, "server.test")
            .await
            .is_err()
    );
    proxy.stop().await;
}

#[tokio::test]
async fn a_trust_domain_cannot_speak_for_another() {
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let server = one.sign("server.test");
    let common = format!(
        "tls_certificates: [{}], validation_context: {{custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {{
           \"@type\": {TLS}.SPIFFECertValidatorConfig, trust_domains: [{{name: one.test, trust_bundle: {{inline_string: {}}}}},
           {{name: two.test, trust_bundle: {{inline_string: {}}}}}]}}}}}}",
        pair(&server), quoted(&one.pem), quoted(&two.pem)
    );
    let proxy = start(
        &[listener(
            "tls",
            &common,
            "require_client_certificate: true,",
        )],
        "",
    )
    .await;
    let address = proxy.address("tls").await;
    for (authority, name, is_welcome) in [
        (&one, "spiffe://one.test/a", true),
        (&two, "spiffe://two.test/a", true),
        (&two, "spiffe://one.test/a", false),
        (&one, "spiffe://three.test/a", false),
        (&one, "one.test", false),
    ] {
        let client = Arc::new(one.client(Some(&authority.sign(name))));
        let outcome = exchange(&client, address, "server.test").await;
        assert_eq!(outcome.is_ok(), is_welcome, "{name}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn sessions_are_resumed_with_shared_keys_and_not_where_it_is_off() {
    let ca = Authority::new("ca");
    let common = format!("tls_certificates: [{}]", pair(&ca.sign("server.test")));
    let keys = base64::engine::general_purpose::STANDARD.encode([7; 80]);
    let keys = format!("session_ticket_keys: {{keys: [{{inline_bytes: \"{keys}\"}}]}},");
    let proxy = start(
        &[
            listener("a", &common, &keys),
            listener("b", &common, &keys),
            listener(
                "never",
                &common,
                "disable_stateless_session_resumption: true,",
            ),
        ],
        "",
    )
    .await;
    let client = Arc::new(ca.client(None));
    for (name, resumed) in [("a", 0), ("b", 1), ("never", 0)] {
        let address = proxy.address(name).await;
        exchange(&client, address, "server.test").await.unwrap();
        proxy
            .stat_is(&format!("listener.{name}.ssl.session_reused"), resumed)
            .await;
    }
    let address = proxy.address("never").await;
    exchange(&client, address, "server.test").await.unwrap();
    proxy.stat_is("listener.never.ssl.session_reused", 0).await;
    proxy.stat_is("listener.never.ssl.handshake", 2).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_rotated_secret_serves_new_handshakes_and_leaves_living_ones_alone() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sds.yaml");
    let write = |authority: &Authority, version: u32| {
        let text = format!(
            "version_info: \"{version}\"\nresources:\n- {{\"@type\": {TLS}.Secret, name: own, tls_certificate: {}}}\n",
            pair(&authority.sign("server.test"))
        );
        let fresh = folder.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &file).unwrap();
    };
    write(&old, 1);
    let common = format!(
        "tls_certificate_sds_secret_configs: [{{name: own, sds_config: {{path_config_source: {{path: {}}}}}}}]",
        file.display()
    );
    let proxy = start(&[listener("tls", &common, "")], "").await;
    let address = proxy.address("tls").await;
    let (client_old, client_new) = (Arc::new(old.client(None)), Arc::new(new.client(None)));
    let mut living = exchange(&client_old, address, "server.test").await.unwrap();
    write(&new, 2);
    eventually("the new certificate", || async {
        exchange(&client_new, address, "server.test").await.ok()
    })
    .await;
    eventually("the end of the old one", || async {
        exchange(&client_old, address, "server.test").await.err()
    })
    .await;
    tokio::io::AsyncWriteExt::write_all(&mut living, b"more")
        .await
        .unwrap();
    let mut more = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut living, &mut more)
        .await
        .unwrap();
    let updates = "listener.tls.server_ssl_socket_factory.ssl_context_update_by_sds";
    proxy.stat_is(updates, 1).await;
    let (_, certs) = proxy.get("/certs").await;
    assert!(certs.contains("\"dns\": \"server.test\""), "{certs}");
    proxy.stop().await;
}

#[tokio::test]
async fn keys_are_logged_only_for_the_named_addresses_and_suites_are_narrowed() {
    let ca = Authority::new("ca");
    let own = pair(&ca.sign("server.test"));
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str| folder.path().join(name);
    let common = |file: &str, range: &str| {
        format!(
            "tls_certificates: [{own}], tls_params: {{tls_maximum_protocol_version: TLSv1_2, cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384]}},
             key_log: {{path: {}, local_address_range: [{{address_prefix: {range}, prefix_len: 8}}]}}",
            log(file).display()
        )
    };
    let proxy = start(
        &[
            listener("near", &common("near", "127.0.0.0"), ""),
            listener("far", &common("far", "10.0.0.0"), ""),
        ],
        "",
    )
    .await;
    let client = Arc::new(ca.client(None));
    for name in ["near", "far"] {
        exchange(&client, proxy.address(name).await, "server.test")
            .await
            .unwrap();
    }
    let near = std::fs::read_to_string(log("near")).unwrap();
    assert!(near.starts_with("CLIENT_RANDOM "), "{near}");
    assert_eq!(std::fs::read_to_string(log("far")).unwrap(), "");
    proxy
        .stat_is("listener.near.ssl.ciphers.ECDHE-ECDSA-AES256-GCM-SHA384", 1)
        .await;
    proxy.stat_is("listener.near.ssl.versions.TLSv1.2", 1).await;
    proxy.stop().await;
}

#[tokio::test]
async fn upstream_names_are_checked_where_the_context_says_so() {
    let ca = Authority::new("ca");
    let common = format!("tls_certificates: [{}]", pair(&ca.sign("server.test")));
    let server = start(&[listener("tls", &common, "")], "").await;
    let host = server.address("tls").await;
    let cluster = |name: &str, sni: &str, hostname: &str, options: &str| {
        format!(
            r#"{{name: {name}, connect_timeout: 30s, transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.UpstreamTlsContext, sni: {sni}, {options}
               common_tls_context: {{validation_context: {{trusted_ca: {{inline_string: {}}}}}}}}}}},
               load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{hostname: "{hostname}", address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}}}"#,
            quoted(&ca.pem),
            host.ip(),
            host.port()
        )
    };
    let clusters = [
        cluster("unchecked", "other.test", "", ""),
        cluster(
            "checked",
            "other.test",
            "",
            "auto_sni_san_validation: true,",
        ),
        cluster("right", "server.test", "", "auto_sni_san_validation: true,"),
        cluster(
            "host",
            "other.test",
            "server.test",
            "auto_host_sni: true, auto_sni_san_validation: true,",
        ),
    ];
    let names = ["unchecked", "checked", "right", "host"];
    let listeners = names.map(|name| crate::running::tcp_listener(name, name));
    let proxy = Running::start(&format!(
        "static_resources: {{listeners: [{}], clusters: [{}]}}",
        listeners.join(", "),
        clusters.join(", ")
    ))
    .await;
    for (name, is_trusted) in [
        ("unchecked", true),
        ("checked", false),
        ("right", true),
        ("host", true),
    ] {
        let mut stream = tokio::net::TcpStream::connect(proxy.address(name).await)
            .await
            .unwrap();
        // A refused connection may be gone already.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"ping").await;
        let mut answer = [0; 4];
        let read = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await;
        assert_eq!(read.is_ok(), is_trusted, "{name}");
        proxy
            .stat_is(
                &format!("cluster.{name}.ssl.fail_verify_san"),
                u64::from(!is_trusted),
            )
            .await;
    }
    proxy.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_secret_made_of_files_follows_them() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |authority: &Authority| {
        let identity = authority.sign("server.test");
        std::fs::write(path("cert"), identity.pem).unwrap();
        std::fs::write(path("key"), identity.key).unwrap();
    };
    write(&old);
    let secret = format!(
        "resources:\n- {{\"@type\": {TLS}.Secret, name: own, tls_certificate: {{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}}}\n",
        path("cert"),
        path("key")
    );
    std::fs::write(path("sds.yaml"), secret).unwrap();
    let common = format!(
        "tls_certificate_sds_secret_configs: [{{name: own, sds_config: {{path_config_source: {{path: {}}}}}}}]",
        path("sds.yaml")
    );
    let proxy = start(&[listener("tls", &common, "")], "").await;
    let address = proxy.address("tls").await;
    let client = Arc::new(old.client(None));
    exchange(&client, address, "server.test").await.unwrap();
    write(&new);
    let client = Arc::new(new.client(None));
    eventually("the new certificate", || async {
        exchange(&client, address, "server.test").await.ok()
    })
    .await;
    proxy.stop().await;
}

/// A connection manager as a filter, with these routes.
fn manager(routes: &str) -> String {
    format!(
        r#"{{name: http, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h,
          http_filters: [{{name: envoy.filters.http.router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}],
          route_config: {{virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, {routes}}}]}}]}}}}}}"#
    )
}

#[tokio::test]
async fn the_requests_host_must_be_in_the_certificate_where_that_is_asked_for() {
    let ca = Authority::new("ca");
    let fine = manager("direct_response: {status: 200, body: {inline_string: fine}}");
    let tls = format!(
        r#"{{name: tls, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{fine}],
          transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{}]}}}}}}}}]}}"#,
        pair(&ca.sign("server.test"))
    );
    let server = Running::start(&format!("static_resources: {{listeners: [{tls}]}}")).await;
    let host = server.address("tls").await;
    let cluster = format!(
        r#"{{name: checked, connect_timeout: 30s, transport_socket: {{name: tls, typed_config: {{"@type": {TLS}.UpstreamTlsContext,
           common_tls_context: {{validation_context: {{trusted_ca: {{inline_string: {}}}}}}}}}}},
           typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
             upstream_http_protocol_options: {{auto_sni: true, auto_san_validation: true}}, explicit_http_config: {{http_protocol_options: {{}}}}}}}},
           load_assignment: {{cluster_name: checked, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]}}}}"#,
        quoted(&ca.pem),
        host.ip(),
        host.port()
    );
    let forward = manager("route: {cluster: checked}");
    let plain = format!(
        "{{name: plain, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{forward}]}}]}}"
    );
    let proxy = Running::start(&format!(
        "static_resources: {{listeners: [{plain}], clusters: [{cluster}]}}"
    ))
    .await;
    let address = proxy.address("plain").await;
    for (name, status) in [("server.test", "200"), ("other.test", "503")] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer)
            .await
            .unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{name}: {answer}");
    }
    proxy
        .stat_reaches("cluster.checked.ssl.fail_verify_san", 1)
        .await;
    proxy.stop().await;
    server.stop().await;
}
