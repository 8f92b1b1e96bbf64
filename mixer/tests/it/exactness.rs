//! How exact a shared quota is: many clients, three replicas of the real program with one Redis, one of them killed in the
//! middle. What a client is told is granted never exceeds the limit; what was on its way to the dead replica is lost, not
//! granted twice.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use proto::istio::mixer::v1::CheckRequest;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::mixer_client::MixerClient;
use proto_component::task;
use tonic::transport::{Channel, Endpoint};

use crate::adapters::{Running, redis};
use crate::server::{MANIFEST, attributes, eventually, request};

const LIMIT: i64 = 500;
const CLIENTS: usize = 24;
/// Of one call, on a busy machine.
const MOST_TRIES: usize = 30;

/// A replica as a process; its gRPC port.
fn replica(config: &Path) -> (Running, u16) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mixs"))
        .args([
            "server",
            "--address=tcp://127.0.0.1:0",
            "--monitoringPort=0",
        ])
        .args(["--prometheusPort=0", "--log_as_json"])
        .arg(format!("--configStoreURL=fs://{}", config.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("grpc_port"))
        .unwrap();
    // The rest must be read, or the program waits for room in the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let digits: String = line["grpc_port"]
        .to_string()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    (Running(child), digits.parse().unwrap())
}

fn channel(port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint.timeout(Duration::from_secs(5)).connect_lazy()
}

async fn ask(channel: &Channel, quota: &str, id: String) -> Option<i64> {
    let params = QuotaParams {
        amount: 1,
        best_effort: false,
    };
    let request = CheckRequest {
        deduplication_id: id,
        quotas: [(quota.to_owned(), params)].into(),
        ..request(&attributes([("source.name", "a".into())]))
    };
    let answer = MixerClient::new(channel.clone())
        .check(request)
        .await
        .ok()?;
    let quota = answer.into_inner().quotas.remove(quota)?;
    let is_told = quota.status.is_none_or(|status| status.code != 14);
    is_told.then_some(quota.granted_amount)
}

/// Whether a replica has its configuration and its server: the grant then lasts as long as the window.
async fn is_limited(channel: &Channel) -> bool {
    let params = QuotaParams {
        amount: 1,
        best_effort: false,
    };
    let request = CheckRequest {
        deduplication_id: "warm up".into(),
        quotas: [("limit".to_owned(), params)].into(),
        ..request(&attributes([("source.name", "a".into())]))
    };
    let answer = MixerClient::new(channel.clone()).check(request).await;
    answer.is_ok_and(|answer| {
        let quota = &answer.into_inner().quotas["limit"];
        quota.valid_duration.is_some_and(|valid| valid.seconds > 60)
    })
}

#[tokio::test]
#[ignore = "needs redis-server"]
async fn a_replica_that_is_killed_breaks_no_quota() {
    let folder = tempfile::tempdir().unwrap();
    let _redis = redis(folder.path());
    let config = folder.path().join("config");
    std::fs::create_dir(&config).unwrap();
    let socket = folder.path().join("socket").display().to_string();
    let documents = format!(
        r"{MANIFEST}---
apiVersion: config.istio.io/v1alpha2
kind: redisquota
metadata: {{name: redis, namespace: istio-system}}
spec:
  redisServerUrl: unix://{socket}
  quotas:
  - {{name: limit.quota.istio-system, maxAmount: {LIMIT}, validDuration: 600s}}
---
apiVersion: config.istio.io/v1alpha2
kind: quota
metadata: {{name: limit, namespace: istio-system}}
spec: {{dimensions: {{source: source.name}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: limit, namespace: istio-system}}
spec: {{actions: [{{handler: redis.redisquota, instances: [limit.quota]}}]}}
"
    );
    std::fs::write(config.join("config.yaml"), documents).unwrap();
    let replicas: Vec<_> = (0..3).map(|_| replica(&config)).collect();
    let channels: Arc<Vec<_>> = Arc::new(replicas.iter().map(|(_, port)| channel(*port)).collect());
    for one in channels.iter() {
        // Repetitions of one call, which is charged once. Before the configuration is in force nobody limits anything, so
        // the validity tells.
        eventually(
            "every replica counts",
            || async move { is_limited(one).await },
        )
        .await;
    }
    let granted = Arc::new(AtomicI64::new(1));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (channels, granted) = (channels.clone(), granted.clone());
        let answered = answered.clone();
        clients.push(task::spawn("client", async move {
            for call in 0..60 {
                let id = format!("{client}-{call}");
                // A call without an answer is made again, elsewhere, as the same call.
                for attempt in 0..MOST_TRIES {
                    let channel = &channels[(client + call + attempt) % channels.len()];
                    if let Some(amount) = ask(channel, "limit", id.clone()).await {
                        granted.fetch_add(amount, Ordering::Relaxed);
                        answered.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                }
            }
        }));
    }
    eventually("clients are at it", || {
        let is_enough = answered.load(Ordering::Relaxed) >= 100;
        async move { is_enough }
    })
    .await;
    // SIGKILL.
    let mut replicas = replicas;
    replicas.remove(0);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(answered.load(Ordering::Relaxed), CLIENTS * 60);
    assert_eq!(granted.load(Ordering::Relaxed), LIMIT);
}
