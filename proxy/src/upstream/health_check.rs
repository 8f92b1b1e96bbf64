//! Active health checks, HTTP and TCP: each host of a cluster is asked at its interval; thresholds decide.

use super::{
    Cluster, Host, circuit_breaker::Priority, connect::connect_for_health_check, host::HealthFlag,
};
use crate::{
    invalid::{At as _, Invalid, try_all},
    wire::duration_or,
};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use proto::envoy::config::core::v3::{
    HealthCheck as Wire,
    health_check::{HealthChecker, Payload, payload},
};
use proto_component::task;
use std::{collections::HashSet, ops::Range, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A checked health check.
#[derive(Clone, Debug)]
pub(crate) struct HealthCheckConfig {
    timeout: Duration,
    interval: Duration,
    unhealthy_threshold: u32,
    healthy_threshold: u32,
    probe: Probe,
}

#[derive(Clone, Debug)]
enum Probe {
    Http {
        host: String,
        path: String,
        expected: Vec<Range<u16>>,
    },
    Tcp {
        send: Vec<u8>,
        receive: Vec<Vec<u8>>,
    },
}

impl TryFrom<&Wire> for HealthCheckConfig {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        let probe = match &wire.health_checker {
            Some(HealthChecker::HttpHealthCheck(http)) => {
                if http.codec_client_type != 0 {
                    return Err(
                        Invalid::unsupported("HTTP/2").at("http_health_check.codec_client_type")
                    );
                }
                let expected = http
                    .expected_statuses
                    .iter()
                    .map(|range| status(range.start)..status(range.end))
                    .collect::<Vec<_>>();
                Probe::Http {
                    host: http.host.clone(),
                    path: http.path.clone(),
                    expected: if expected.is_empty() {
                        std::iter::once(200..201).collect()
                    } else {
                        expected
                    },
                }
            }
            Some(HealthChecker::TcpHealthCheck(tcp)) => Probe::Tcp {
                send: tcp
                    .send
                    .as_ref()
                    .map(payload)
                    .transpose()
                    .at("tcp_health_check.send")?
                    .unwrap_or_default(),
                receive: try_all("tcp_health_check.receive", &tcp.receive, payload)?,
            },
            _ => return Err(Invalid::unsupported("this health checker")),
        };
        Ok(Self {
            timeout: duration_or(wire.timeout.as_ref(), Duration::from_secs(1), "timeout")?,
            interval: duration_or(wire.interval.as_ref(), Duration::from_secs(5), "interval")?
                .max(Duration::from_millis(10)),
            unhealthy_threshold: wire.unhealthy_threshold.unwrap_or(1).max(1),
            healthy_threshold: wire.healthy_threshold.unwrap_or(1).max(1),
            probe,
        })
    }
}

fn status(value: i64) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn payload(wire: &Payload) -> Result<Vec<u8>, Invalid> {
    match &wire.payload {
        Some(payload::Payload::Binary(bytes)) => Ok(bytes.clone()),
        Some(payload::Payload::Text(hex)) => {
            let byte = |at: usize| {
                hex.get(at..at + 2)
                    .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            };
            (0..hex.len())
                .step_by(2)
                .map(|at| byte(at).ok_or_else(|| Invalid::new("not hexadecimal")))
                .collect()
        }
        None => Ok(Vec::new()),
    }
}

/// Checks the hosts of `cluster` until it is closed.
pub(crate) async fn run_health_checks(cluster: Arc<Cluster>) {
    let Some(config) = cluster.config.health_checks.first().cloned() else {
        return;
    };
    let mut known: HashSet<u64> = HashSet::new();
    loop {
        let hosts: Vec<Arc<Host>> = cluster.hosts().hosts().cloned().collect();
        for host in &hosts {
            if known.insert(host.id) {
                task::spawn(
                    "health-check-host",
                    check_host(cluster.clone(), host.clone(), config.clone()),
                );
            }
        }
        known.retain(|id| hosts.iter().any(|host| host.id == *id));
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
            () = cluster.closed.cancelled() => return,
        }
    }
}

async fn check_host(cluster: Arc<Cluster>, host: Arc<Host>, config: HealthCheckConfig) {
    let (mut good, mut bad) = (0, 0);
    let mut is_first = true;
    while !host.is_removed() && !cluster.closed.is_cancelled() {
        let stats = &cluster.health_stats;
        stats.attempt.inc();
        let is_good = matches!(
            tokio::time::timeout(config.timeout, probe(&cluster, &host, &config.probe)).await,
            Ok(Ok(true))
        );
        let mut has_changed = false;
        if is_good {
            stats.success.inc();
            (good, bad) = (good + 1, 0);
            // The first answer decides at once, so that a new host need not wait for its threshold.
            if is_first || good >= config.healthy_threshold {
                has_changed |= host.lower(HealthFlag::FAILED_ACTIVE);
            }
        } else {
            stats.failure.inc();
            (good, bad) = (0, bad + 1);
            if is_first || bad >= config.unhealthy_threshold {
                has_changed |= host.raise(HealthFlag::FAILED_ACTIVE);
            }
        }
        has_changed |= host.lower(HealthFlag::PENDING_ACTIVE);
        is_first = false;
        if has_changed {
            cluster.rebuild();
            let healthy = cluster
                .hosts()
                .hosts()
                .filter(|host| !host.has(HealthFlag::FAILED_ACTIVE))
                .count();
            stats.healthy.set(healthy as u64);
        }
        tokio::time::sleep(config.interval).await;
    }
}

async fn probe(
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    probe: &Probe,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let room = cluster.breakers.first_connection(Priority::Default);
    let mut stream = connect_for_health_check(cluster, host, room).await?;
    match probe {
        Probe::Tcp { send, receive } => {
            stream.write_all(send).await?;
            let mut buffer = vec![0; 4096];
            let mut got = Vec::new();
            let mut wanted = receive.iter();
            let mut next = wanted.next();
            while let Some(block) = next {
                if let Some(at) = got
                    .windows(block.len().max(1))
                    .position(|part| part == block.as_slice())
                {
                    got.drain(..at + block.len());
                    next = wanted.next();
                    continue;
                }
                let count = stream.read(&mut buffer).await?;
                if count == 0 || got.len() > 1 << 20 {
                    return Ok(false);
                }
                got.extend_from_slice(&buffer[..count]);
            }
            Ok(true)
        }
        Probe::Http {
            host: name,
            path,
            expected,
        } => {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let authority = if name.is_empty() {
                cluster.name().to_string()
            } else {
                name.clone()
            };
            let request = http::Request::get(path.as_str())
                .header("host", authority)
                .header("user-agent", "Envoy/HC")
                .body(Empty::<Bytes>::new())?;
            let answer = async { sender.send_request(request).await };
            tokio::pin!(connection);
            let response = tokio::select! {
                response = answer => response?,
                ended = &mut connection => {
                    ended?;
                    return Ok(false);
                }
            };
            Ok(expected
                .iter()
                .any(|range| range.contains(&response.status().as_u16())))
        }
    }
}
