//! The monitoring port as a client sees it.

use super::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn request(address: &Address, line: &str, headers: &str) -> String {
    let Address::Tcp(socket) = address else {
        panic!("not TCP")
    };
    let mut stream = TcpStream::connect(socket).await.unwrap();
    let text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// An address of this machine that is not on loopback; nothing is sent to find it.
fn other_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().unwrap().ip())
}

#[tokio::test]
async fn private_pages_are_for_the_pod_itself() {
    let process = Process::detached("test");
    let page = || get(async || "extra");
    let bound = Monitoring::new(&process)
        .debug("/debug/open", "for everybody", page())
        .private_debug("/debug/private", "for us", page())
        .bind("0.0.0.0:0", "--monitoringPort")
        .await
        .unwrap();
    let Address::Tcp(all) = *bound.address() else {
        panic!("not TCP")
    };
    bound.start(&process);
    let ask = async |address: std::net::IpAddr, path: &str| {
        let address = Address::Tcp((address, all.port()).into());
        request(&address, &format!("GET {path}"), "").await
    };
    let local = std::net::Ipv4Addr::LOCALHOST.into();
    for path in ["/debug/open", "/debug/private"] {
        assert!(ask(local, path).await.ends_with("extra"), "{path}");
    }
    // A machine without a network has nobody else either.
    let Some(other) = other_address() else { return };
    assert!(ask(other, "/debug/open").await.ends_with("extra"));
    let refused = ask(other, "/debug/private").await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(refused.ends_with("only from this pod\n"), "{refused}");
}

async fn started(process: &Process) -> Address {
    let bound = Monitoring::new(process)
        .debug(
            "/debug/extra",
            "a page of the component",
            get(async || "extra"),
        )
        .bind("127.0.0.1:0", "--monitoringPort")
        .await
        .unwrap();
    let address = bound.address().clone();
    bound.start(process);
    address
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let process = Process::detached("test");
    let config = process.readiness.condition("config");
    let address = started(&process).await;
    let answer = request(&address, "GET /ready", "").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("not ready: config\n"), "{answer}");
    config.set();
    assert!(
        request(&address, "GET /ready", "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    process.trigger.drain(std::time::Duration::from_secs(5));
    let answer = request(&address, "GET /ready", "").await;
    assert!(answer.ends_with("not ready: draining\n"), "{answer}");
}

#[tokio::test]
async fn the_pages_every_component_has_answer() {
    let process = Process::detached("test");
    let address = started(&process).await;
    let metrics = request(&address, "GET /metrics", "").await;
    assert!(
        metrics.contains("\nprocess_resident_memory_bytes "),
        "{metrics}"
    );
    let version = request(&address, "GET /version", "accept: application/json\r\n").await;
    assert!(version.contains("\"version\":"), "{version}");
    let listing = request(&address, "GET /debug/", "").await;
    assert!(listing.contains("a page of the component"), "{listing}");
    assert!(
        request(&address, "GET /debug/extra", "")
            .await
            .ends_with("extra")
    );
    let levels = request(&address, "PUT /logging?scope=ads&level=debug", "").await;
    assert!(levels.contains("\"ads\":\"debug\""), "{levels}");
    let refused = request(&address, "PUT /logging?level=loud", "").await;
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
}
