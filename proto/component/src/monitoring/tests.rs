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
