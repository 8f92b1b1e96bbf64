//! Readiness, liveness and startup probes: httpGet, tcpSocket and exec.
//!
//! Until a container has become ready for the first time it is asked far more often than its period says, and from the
//! start: the mesh is up as soon as it can be, not at the next tick.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use proto_component::task;
use tokio::net::TcpStream;

use super::lifecycle::PodContext;
use crate::local::http_client;

/// Pace before the first success.
const EAGER: Duration = Duration::from_millis(50);

/// How to ask.
#[derive(Clone, Debug)]
enum Question {
    Http {
        address: SocketAddr,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp(SocketAddr),
    Exec(Vec<String>),
}

/// A probe of one container.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    question: Question,
    delay: Duration,
    period: Duration,
    timeout: Duration,
    failures: i32,
}

impl Prober {
    /// The prober of a probe; none if it asks nothing that exists here.
    pub(crate) fn new(
        probe: &Probe,
        container: &Container,
        ip: std::net::Ipv4Addr,
    ) -> Option<Self> {
        let question = if let Some(http) = &probe.http_get {
            let address = address(http.host.as_deref(), ip, &http.port, container)?;
            if http.scheme.as_deref() == Some("HTTPS") {
                // Probes never verify certificates; that the port answers is what is left.
                Question::Tcp(address)
            } else {
                Question::Http {
                    address,
                    path: path(http),
                    headers: headers(http),
                }
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            Question::Tcp(address(tcp.host.as_deref(), ip, &tcp.port, container)?)
        } else {
            Question::Exec(probe.exec.as_ref()?.command.clone()?)
        };
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value
                    .and_then(|value| u64::try_from(value).ok())
                    .unwrap_or(default),
            )
        };
        Some(Self {
            question,
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            failures: probe.failure_threshold.unwrap_or(3).max(1),
        })
    }

    /// Asks again and again and reports every change; eager until the first success.
    pub(crate) async fn watch_readiness(self, pod: Arc<PodContext>, index: usize) {
        let (mut failures, mut was_ready) = (0, false);
        loop {
            let succeeded = self.ask(&pod, index).await;
            failures = if succeeded { 0 } else { failures + 1 };
            if succeeded {
                pod.set_ready(index, true);
                was_ready = true;
            } else if was_ready && failures >= self.failures {
                pod.set_ready(index, false);
            }
            tokio::time::sleep(if was_ready {
                self.period
            } else {
                EAGER.min(self.period)
            })
            .await;
        }
    }

    /// Returns when the container must be started again.
    pub(crate) async fn watch_liveness(self, pod: Arc<PodContext>, index: usize) {
        tokio::time::sleep(self.delay).await;
        let mut failures = 0;
        while failures < self.failures {
            tokio::time::sleep(self.period).await;
            failures = if self.ask(&pod, index).await {
                0
            } else {
                failures + 1
            };
        }
    }

    /// Returns true once the first question succeeds, false when it has failed too often.
    pub(crate) async fn wait_started(self, pod: Arc<PodContext>, index: usize) -> bool {
        tokio::time::sleep(self.delay).await;
        let budget = self
            .period
            .saturating_mul(u32::try_from(self.failures).unwrap_or(1));
        let first_success = async {
            while !self.ask(&pod, index).await {
                tokio::time::sleep(EAGER).await;
            }
        };
        tokio::time::timeout(budget, first_success).await.is_ok()
    }

    async fn ask(&self, pod: &Arc<PodContext>, index: usize) -> bool {
        let answer = async {
            match &self.question {
                Question::Tcp(address) => TcpStream::connect(address).await.is_ok(),
                Question::Http {
                    address,
                    path,
                    headers,
                } => ask_http(*address, path, headers, self.timeout).await,
                Question::Exec(command) => pod.exec_in(index, command).await,
            }
        };
        tokio::time::timeout(self.timeout, answer)
            .await
            .unwrap_or(false)
    }
}

async fn ask_http(
    address: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    timeout: Duration,
) -> bool {
    let Ok(stream) = TcpStream::connect(address).await else {
        return false;
    };
    let Ok(mut request) = http_client::request(http::Method::GET, &address.to_string(), path, None)
    else {
        return false;
    };
    request.headers_mut().insert(
        http::header::USER_AGENT,
        http::HeaderValue::from_static("kube-probe/1.33"),
    );
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), value.parse()) {
            request.headers_mut().insert(name, value);
        }
    }
    let response = http_client::send(stream, request, timeout).await;
    response
        .is_ok_and(|response| response.status().is_success() || response.status().is_redirection())
}

fn address(
    host: Option<&str>,
    ip: std::net::Ipv4Addr,
    port: &IntOrString,
    container: &Container,
) -> Option<SocketAddr> {
    let ip = match host {
        Some(host) if !host.is_empty() => host.parse().ok()?,
        _ => std::net::IpAddr::V4(ip),
    };
    let port = match port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => match name.parse() {
            Ok(port) => port,
            Err(_) => {
                let named = |port: &&k8s_openapi::api::core::v1::ContainerPort| {
                    port.name.as_deref() == Some(name)
                };
                container.ports.iter().flatten().find(named)?.container_port
            }
        },
    };
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

fn path(http: &HTTPGetAction) -> String {
    match http.path.as_deref() {
        Some(path) if path.starts_with('/') => path.to_owned(),
        Some(path) => format!("/{path}"),
        None => "/".to_owned(),
    }
}

fn headers(http: &HTTPGetAction) -> Vec<(String, String)> {
    http.http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect()
}

/// The probes of a running container; they stop when this is dropped. `failed` tells that it must be started again.
pub(crate) struct Probes {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Resolves on a failed liveness or startup probe.
    pub failed: tokio::sync::mpsc::Receiver<&'static str>,
}

impl Probes {
    /// Starts the probes of the container at `index`; to be called on the node.
    pub(crate) fn start(pod: &Arc<PodContext>, index: usize, container: &Container) -> Self {
        let (report, failed) = tokio::sync::mpsc::channel(1);
        let ip = pod.ip();
        let prober =
            |probe: Option<&Probe>| probe.and_then(|probe| Prober::new(probe, container, ip));
        let readiness = prober(container.readiness_probe.as_ref());
        let liveness = prober(container.liveness_probe.as_ref());
        let startup = prober(container.startup_probe.as_ref());
        let pod = pod.clone();
        let task = task::spawn("probes", async move {
            if let Some(startup) = startup
                && !startup.wait_started(pod.clone(), index).await
            {
                // The container is being stopped if nobody listens.
                let _ = report.send("startup probe failed").await;
                return;
            }
            let ready = async {
                match readiness {
                    Some(readiness) => readiness.watch_readiness(pod.clone(), index).await,
                    None => pod.set_ready(index, true),
                }
            };
            let alive = async {
                let Some(liveness) = liveness else { return };
                liveness.watch_liveness(pod.clone(), index).await;
                let _ = report.send("liveness probe failed").await;
            };
            tokio::join!(ready, alive);
            // Keeps `failed` pending for as long as the container runs.
            std::future::pending::<()>().await;
        });
        Self {
            tasks: vec![task],
            failed,
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
