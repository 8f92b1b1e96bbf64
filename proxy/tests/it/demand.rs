//! What requests ask for while they wait: clusters (ODCDS) and virtual hosts (VHDS). What is wanted of us is what a real Envoy does (`PROXY_BINARY`).

use crate::{
    delta_server::{Conversation, DeltaServer, source},
    http::echo,
    process::Process,
    running::{PATIENCE, eventually, greeter, static_cluster},
};
use proto::envoy::config::{cluster::v3::Cluster, route::v3::VirtualHost};
use std::net::SocketAddr;
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const NODE: &[&str] = &["--service-node", "test", "--service-cluster", "test"];
/// Never over in a test that goes well.
const TIMEOUT: &str = "60s";

/// An HTTP listener with an on-demand filter, and one that lets nothing through where it is on; a reply of the proxy's own is its flags and details.
fn listener(on_demand: &str, routes: &str) -> String {
    format!(
        "{{name: web, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: hcm, typed_config: {{\
         '@type': {NETWORK}.http_connection_manager.v3.HttpConnectionManager, stat_prefix: web, {routes}, \
         local_reply_config: {{body_format: {{text_format_source: {{inline_string: '%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%'}}}}}}, http_filters: [\
         {{name: closed, disabled: true, typed_config: {{'@type': {HTTP}.rbac.v3.RBAC, rules: {{action: ALLOW}}}}}}, \
         {{name: envoy.filters.http.on_demand, typed_config: {{'@type': {HTTP}.on_demand.v3.OnDemand{on_demand}}}}}, \
         {{name: envoy.filters.http.router, typed_config: {{'@type': {HTTP}.router.v3.Router}}}}]}}}}]}}]}}"
    )
}

fn odcds(authority: &str, timeout: &str) -> String {
    let source = source(authority);
    format!("odcds: {{source: {source}, timeout: {timeout}}}")
}

/// Requests go where `x-cluster` says.
fn routes() -> String {
    format!(
        "route_config: {{virtual_hosts: [{{name: all, domains: ['*'], routes: [\
         {{match: {{prefix: /impatient}}, route: {{cluster_header: x-cluster}}, typed_per_filter_config: {{envoy.filters.http.on_demand: \
         {{'@type': {HTTP}.on_demand.v3.PerRouteConfig, {}}}}}}}, \
         {{match: {{prefix: /known}}, route: {{cluster_header: x-cluster}}, typed_per_filter_config: {{envoy.filters.http.on_demand: \
         {{'@type': {HTTP}.on_demand.v3.PerRouteConfig}}}}}}, \
         {{match: {{prefix: /}}, route: {{cluster_header: x-cluster, timeout: 0s}}}}]}}]}}",
        odcds("route", "0.2s"),
    )
}

/// A request's answer: status and body.
async fn ask(to: SocketAddr, path: &str, header: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\n{header}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .expect("an answer")
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    // The upstream says lengths, and so does the proxy.
    assert!(!head.contains("chunked"), "{head}");
    (status, body.to_owned())
}

fn to_cluster(name: &str) -> String {
    format!("host: a\r\nx-cluster: {name}")
}

async fn say_cluster(to: &mut Conversation, name: &str, host: SocketAddr) {
    let text = static_cluster(name, host);
    to.say::<Cluster>(&[(name, &[], &text)], &[]).await;
}

#[tokio::test]
async fn a_request_waits_for_its_cluster_with_its_body() {
    let (upstream, server) = (echo().await, DeltaServer::start().await);
    let listener = listener(&format!(", {}", odcds("filter", TIMEOUT)), &routes());
    let proxy = Process::serving(&listener, &[server.cluster()], NODE).await;
    let web = proxy.address("web").await;
    let body = "x".repeat(100_000);

    // Several ask for the same, and it is asked for once.
    let header = to_cluster("there");
    let waiting = async { tokio::join!(ask(web, "/", &header, &body), ask(web, "/", &header, "")) };
    let answering = async {
        let mut stream = server.accept().await;
        assert_eq!(stream.asked().await, ["there"]);
        proxy.stat_reaches("http.web.downstream_rq_total", 2).await;
        say_cluster(&mut stream, "there", upstream).await;
        stream
    };
    let ((one, other), mut stream) = tokio::join!(waiting, answering);
    assert_eq!((one, other), ((200, body), (200, String::new())));
    assert_eq!(ask(web, "/", &header, "again").await, (200, "again".into()));

    // It is followed: what is taken away is not known any more, and asked for once more.
    stream.say::<Cluster>(&[], &["there"]).await;
    proxy.stat_is("cluster_manager.cluster_removed", 1).await;
    let known = ask(web, "/known", &header, "").await;
    assert_eq!(known, (503, "NC cluster_not_found".into()));
    proxy
        .stat_reaches("cluster_manager.odcds.update_success", 2)
        .await;
}

/// Not as in Envoy, where the name is asked for no more and its requests wait in vain.
#[tokio::test]
async fn what_is_gone_is_asked_for_anew_and_what_is_there_on_every_stream() {
    let (upstream, server) = (echo().await, DeltaServer::start().await);
    let listener = listener(&format!(", {}", odcds("filter", TIMEOUT)), &routes());
    let proxy = Process::serving(&listener, &[server.cluster()], NODE).await;
    let web = proxy.address("web").await;
    let header = to_cluster("there");
    let mut stream = None;
    for is_there in [false, true] {
        let answering = async {
            let mut stream = match stream.take() {
                Some(stream) => stream,
                None => server.accept().await,
            };
            assert_eq!(stream.asked().await, ["there"]);
            if is_there {
                say_cluster(&mut stream, "there", upstream).await;
            } else {
                stream.say::<Cluster>(&[], &["there"]).await;
            }
            stream
        };
        let ((status, _), answered) = tokio::join!(ask(web, "/", &header, ""), answering);
        assert_eq!(status, if is_there { 200 } else { 503 });
        stream = Some(answered);
    }
    drop(stream);
    let mut stream = server.accept().await;
    let first = stream.next().await;
    assert_eq!(first.resource_names_subscribe, ["there"]);
    assert_eq!(first.initial_resource_versions["there"], "2");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_no_cluster() {
    let (upstream, server) = (echo().await, DeltaServer::start().await);
    let listener = listener(&format!(", {}", odcds("filter", TIMEOUT)), &routes());
    let proxy = Process::serving(&listener, &[server.cluster()], NODE).await;
    let web = proxy.address("web").await;
    let nothing = (503, "NC cluster_not_found".to_owned());

    // Nobody is asked where the route says so.
    let header = to_cluster("none");
    assert_eq!(ask(web, "/known", &header, "").await, nothing);
    let answering = async {
        let mut stream = server.accept().await;
        assert_eq!(stream.asked().await, ["none"]);
        stream.say::<Cluster>(&[], &["none"]).await;
        stream
    };
    let (answer, _stream) = tokio::join!(ask(web, "/", &header, "body"), answering);
    assert_eq!(answer, nothing);

    // A server that says nothing is waited for only as long as the route says; what it says later is good for the next.
    let header = to_cluster("late");
    assert_eq!(ask(web, "/impatient", &header, "").await, nothing);
    let mut other = server.accept().await;
    assert_eq!(other.asked().await, ["late"]);
    say_cluster(&mut other, "late", upstream).await;
    proxy.stat_is("cluster_manager.cluster_added", 2).await;
    let answer = ask(web, "/impatient", &header, "later").await;
    assert_eq!(answer, (200, "later".into()));
}

#[tokio::test]
async fn a_connection_waits_for_its_cluster() {
    let server = DeltaServer::start().await;
    let listener = |name: &str, timeout: &str| {
        format!(
            "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: tcp, typed_config: {{\
             '@type': {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, cluster: {name}, on_demand: {{odcds_config: {}, timeout: {timeout}}}}}}}]}}]}}",
            source(name)
        )
    };
    let listeners = [
        listener("there", TIMEOUT),
        listener("none", TIMEOUT),
        listener("mute", "0.2s"),
    ];
    let proxy = Process::serving(&listeners.join(", "), &[server.cluster()], NODE).await;
    let greeting = async |name: &str| {
        let mut stream = TcpStream::connect(proxy.address(name).await).await.unwrap();
        let mut text = String::new();
        stream.write_all(b"!").await.unwrap();
        stream.shutdown().await.unwrap();
        // What was not read may reset it.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await;
        text
    };
    let upstream = greeter("hi").await;
    for (name, answer, counter) in [
        ("there", "hi!", "success"),
        ("none", "", "missing"),
        ("mute", "", "timeout"),
    ] {
        let answering = async {
            let mut stream = server.accept().await;
            assert_eq!(stream.asked().await, [name]);
            match name {
                "there" => say_cluster(&mut stream, name, upstream).await,
                "none" => stream.say::<Cluster>(&[], &["none"]).await,
                _ => {}
            }
            stream
        };
        let (got, _stream) = tokio::join!(greeting(name), answering);
        assert_eq!(got, answer);
        let stat = |counter: &str| format!("tcp.{name}.{counter}");
        proxy.stat_is(&stat("on_demand_cluster_attempt"), 1).await;
        proxy
            .stat_is(&stat(&format!("on_demand_cluster_{counter}")), 1)
            .await;
        let refused = u64::from(name != "there");
        proxy
            .stat_is(&stat("downstream_cx_no_route"), refused)
            .await;
    }
}

#[tokio::test]
async fn a_connection_that_is_broken_off_waits_for_no_cluster() {
    let server = DeltaServer::start().await;
    let listener = format!(
        "{{name: tcp, address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}, filter_chains: [{{filters: [{{name: tcp, typed_config: {{\
         '@type': {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: mute, on_demand: {{odcds_config: {}, timeout: 600s}}}}}}]}}]}}",
        source("mute")
    );
    let proxy = Process::serving(&listener, &[server.cluster()], NODE).await;
    let client = TcpStream::connect(proxy.address("tcp").await)
        .await
        .unwrap();
    let mut stream = server.accept().await;
    assert_eq!(stream.asked().await, ["mute"]);
    let active = "listener.127.0.0.1_0.downstream_cx_active";
    proxy.stat_is(active, 1).await;
    socket2::SockRef::from(&client)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(client);
    proxy.stat_is(active, 0).await;
    proxy.stat_is("tcp.tcp.on_demand_cluster_attempt", 1).await;
    proxy.stat_is("tcp.tcp.downstream_cx_no_route", 0).await;
}

/// The route configuration `r`, which has a virtual host of its own and asks for others.
fn routes_with(source: &str) -> String {
    let own = virtual_host("base", "base.test", "direct_response: {status: 200}");
    format!("name: r, vhds: {{config_source: {source}}}, virtual_hosts: [{own}]")
}

/// A file with it.
fn route_file(source: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    let routes = routes_with(source);
    let text = format!("resources: [{{'@type': {kind}, {routes}}}]");
    std::fs::write(file.path(), text).unwrap();
    file
}

fn rds(file: &NamedTempFile) -> String {
    format!(
        "rds: {{route_config_name: r, config_source: {{resource_api_version: V3, path_config_source: {{path: {}}}}}}}",
        file.path().display()
    )
}

fn virtual_host(name: &str, domain: &str, action: &str) -> String {
    format!("{{name: {name}, domains: [{domain}], routes: [{{match: {{prefix: /}}, {action}}}]}}")
}

async fn say_host(to: &mut Conversation, name: &str, aliases: &[&str], text: &str) {
    to.say::<VirtualHost>(&[(name, aliases, text)], &[]).await;
}

const TO_ECHO: &str = "route: {cluster: echo, timeout: 0s}";

/// A proxy with these routes.
async fn with_hosts(server: &DeltaServer, routes: &str) -> Process {
    let bootstrap = format!(
        "static_resources: {{listeners: [{}], clusters: [{}, {}]}}",
        listener("", routes),
        server.cluster(),
        static_cluster("echo", echo().await),
    );
    let arguments = [NODE, &["--concurrency", "1"]].concat();
    Process::start(&bootstrap, &arguments).await
}

#[tokio::test]
async fn a_request_waits_for_its_virtual_host_with_its_body() {
    let (server, file) = (DeltaServer::start().await, route_file(&source("hosts")));
    let proxy = with_hosts(&server, &rds(&file)).await;
    discovers(&proxy, &server).await;
    let (_, dump) = proxy
        .get("/config_dump?resource=dynamic_route_configs")
        .await;
    assert!(
        dump.contains("r/first") && !dump.contains("r/bad"),
        "{dump}"
    );
}

#[tokio::test]
async fn routes_in_their_listener_discover_virtual_hosts_too() {
    let server = DeltaServer::start().await;
    let routes = format!("route_config: {{{}}}", routes_with(&source("hosts")));
    let proxy = with_hosts(&server, &routes).await;
    discovers(&proxy, &server).await;
}

/// Virtual hosts are there in the beginning, asked for, followed and refused.
async fn discovers(proxy: &Process, server: &DeltaServer) {
    // The listener waits for the hosts that are there anyway.
    let mut stream = server.accept().await;
    assert!(stream.next().await.resource_names_subscribe.is_empty());
    assert_ne!(proxy.get("/ready").await.0, 200);
    let first = virtual_host("r/first", "first.test", TO_ECHO);
    say_host(&mut stream, "r/first", &[], &first).await;
    proxy.is_ready().await;
    let web = proxy.address("web").await;
    let ask_host = |host: &'static str, body: &'static str| async move {
        ask(web, "/", &format!("host: {host}"), body).await
    };
    assert_eq!(ask_host("base.test", "").await.0, 200);
    assert_eq!(ask_host("first.test", "").await, (200, String::new()));

    // Others are asked for, once.
    let answering = async {
        assert_eq!(stream.asked().await, ["r/wanted.test"]);
        proxy.stat_reaches("http.web.downstream_rq_total", 4).await;
        let wanted = virtual_host("r/any", "wanted.test", TO_ECHO);
        say_host(&mut stream, "r/any", &["r/wanted.test"], &wanted).await;
    };
    let (one, other, ()) = tokio::join!(
        ask_host("Wanted.test", ""),
        ask_host("wanted.test", ""),
        answering
    );
    assert_eq!((one, other), ((200, String::new()), (200, String::new())));

    // With its body.
    let answering = async {
        assert_eq!(stream.asked().await, ["r/body.test"]);
        let host = virtual_host("r/body", "body.test", TO_ECHO);
        say_host(&mut stream, "r/body", &["r/body.test"], &host).await;
    };
    let (answer, ()) = tokio::join!(ask_host("body.test", "body"), answering);
    assert_eq!(answer, (200, "body".into()));

    // What is not there is not found.
    let answering = async {
        assert_eq!(stream.asked().await, ["r/none.test"]);
        say_host(&mut stream, "r/none.test", &["r/none.test"], "").await;
    };
    let (answer, ()) = tokio::join!(ask_host("none.test", "body"), answering);
    assert_eq!(answer, (404, "NR route_not_found".into()));

    // And what is there is followed.
    let other = virtual_host("r/any", "wanted.test", "direct_response: {status: 201}");
    say_host(&mut stream, "r/any", &["r/wanted.test"], &other).await;
    eventually("the other route", || async {
        (ask_host("wanted.test", "").await.0 == 201).then_some(())
    })
    .await;

    // What is refused leaves all as it was.
    let bad = virtual_host("r/bad", "first.test", "direct_response: {status: 201}");
    say_host(&mut stream, "r/bad", &[], &bad).await;
    let error = stream.refused().await;
    assert!(error.contains("first.test"), "{error}");
    assert_eq!(ask_host("first.test", "").await.0, 200);
}

#[tokio::test]
async fn both_are_asked_for_over_ads() {
    let server = DeltaServer::start().await;
    let ads = "{ads: {}, resource_api_version: V3}";
    let file = route_file(ads);
    let bootstrap = format!(
        "dynamic_resources: {{cds_config: {ads}, ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, \
         grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}}}\nstatic_resources: {{listeners: [{}], clusters: [{}]}}",
        listener(
            &format!(", odcds: {{source: {ads}, timeout: {TIMEOUT}}}"),
            &rds(&file)
        ),
        server.cluster(),
    );
    let arguments = [NODE, &["--concurrency", "1"]].concat();
    let proxy = Process::start(&bootstrap, &arguments).await;
    let mut stream = server.accept().await;
    let upstream = echo().await;
    say_cluster(&mut stream, "known", upstream).await;
    while !stream.next().await.type_url.ends_with("VirtualHost") {}
    stream.say::<VirtualHost>(&[], &[]).await;
    proxy.is_ready().await;
    let web = proxy.address("web").await;
    let header = "host: wanted.test\r\nx-cluster: there";
    let answering = async {
        assert_eq!(stream.asked().await, ["r/wanted.test"]);
        let wanted = virtual_host("r/any", "wanted.test", "route: {cluster_header: x-cluster}");
        say_host(&mut stream, "r/any", &["r/wanted.test"], &wanted).await;
        assert_eq!(stream.asked().await, ["there"]);
        say_cluster(&mut stream, "there", upstream).await;
    };
    let (answer, ()) = tokio::join!(ask(web, "/", header, "body"), answering);
    assert_eq!(answer, (200, "body".into()));
    let header = "host: wanted.test\r\nx-cluster: known";
    assert_eq!(ask(web, "/", header, "body").await.0, 200);
}

/// Not as in Envoy, which goes on with the filters that were on without a route.
#[tokio::test]
async fn filters_are_those_of_the_route_that_was_waited_for() {
    let (server, file) = (DeltaServer::start().await, route_file(&source("hosts")));
    let proxy = with_hosts(&server, &rds(&file)).await;
    let mut stream = server.accept().await;
    stream.next().await;
    stream.say::<VirtualHost>(&[], &[]).await;
    proxy.is_ready().await;
    let web = proxy.address("web").await;
    let filters = format!(
        "typed_per_filter_config: {{closed: {{'@type': {HTTP}.rbac.v3.RBACPerRoute, rbac: {{rules: {{action: ALLOW}}}}}}}}"
    );
    for (host, body) in [("empty.test", ""), ("full.test", "body")] {
        let name = format!("r/{host}");
        let answering = async {
            assert_eq!(stream.asked().await, [name.as_str()]);
            let closed = virtual_host(&name, host, &format!("{TO_ECHO}, {filters}"));
            say_host(&mut stream, &name, &[&name], &closed).await;
        };
        let header = format!("host: {host}");
        let ((status, _), ()) = tokio::join!(ask(web, "/", &header, body), answering);
        assert_eq!(status, 403);
    }
}

/// Not as in Envoy, where the name is asked for no more and its requests wait in vain.
#[tokio::test]
async fn a_virtual_host_that_is_gone_is_asked_for_anew_and_all_are_on_every_stream() {
    let (server, file) = (DeltaServer::start().await, route_file(&source("hosts")));
    let proxy = with_hosts(&server, &rds(&file)).await;
    let mut stream = server.accept().await;
    assert!(stream.next().await.resource_names_subscribe.is_empty());
    let host = |name: &str| virtual_host(name, "wanted.test", TO_ECHO);
    let first = virtual_host("r/first", "first.test", TO_ECHO);
    let both = [
        ("r/first", &[] as &[&str], first.as_str()),
        ("r/any", &[], &host("r/any")),
    ];
    stream.say::<VirtualHost>(&both, &[]).await;
    proxy.is_ready().await;
    let web = proxy.address("web").await;
    let ask_host = || ask(web, "/", "host: wanted.test", "body");
    assert_eq!(ask_host().await.0, 200);
    stream.say::<VirtualHost>(&[], &["r/any"]).await;
    proxy.stat_is("vhds.update_success", 2).await;
    for name in ["r/one", "r/other"] {
        let answering = async {
            assert_eq!(stream.asked().await, ["r/wanted.test"]);
            say_host(&mut stream, name, &["r/wanted.test"], &host(name)).await;
        };
        let (answer, ()) = tokio::join!(ask_host(), answering);
        assert_eq!(answer, (200, "body".into()));
        if name == "r/one" {
            stream.say::<VirtualHost>(&[], &[name]).await;
            proxy.stat_is("vhds.update_success", 4).await;
        }
    }
    drop(stream);
    let first = server.accept().await.next().await;
    assert_eq!(first.resource_names_subscribe, ["*", "r/wanted.test"]);
    let mut held: Vec<_> = first.initial_resource_versions.into_keys().collect();
    held.sort();
    assert_eq!(held, ["r/first", "r/other"]);
}
