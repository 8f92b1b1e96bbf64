//! The health of a machine that registers itself (WorkloadGroup): the agent makes the readiness probe of the proxy's settings
//! (`readinessProbe`) and tells Pilot whenever its outcome changes, on every new stream anew. As in Istio, no error means healthy.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use proto::envoy::service::discovery::v3::DiscoveryRequest;
use proto::istio::networking::v1alpha3::ReadinessProbe;
use proto::istio::networking::v1alpha3::readiness_probe::HealthCheckMethod;
use proto_component::backoff::Backoff;
use proto_component::drain::Drain;
use proto_component::task;
use tokio::process::Command;
use tokio::sync::watch;
use tonic::Code;

use crate::discovery::{Pilot, StreamError};
use crate::status::AppProbers;

const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
const FIRST_RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(10);
/// Name of the only probe.
const PROBE: &str = "readiness";

/// Nothing is known yet, or the last outcome: why the workload is unhealthy, or nothing.
type Health = Option<Result<(), String>>;

enum Method {
    /// A request or a connection.
    Network(AppProbers),
    /// A command; exit code 0 means healthy.
    Command(Vec<String>),
}

/// The probe and its counts, in Kubernetes' meaning.
pub struct Prober {
    method: Method,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Prober {
    /// A prober as `probe` says, with Kubernetes' defaults; `application` is where it listens.
    ///
    /// # Errors
    /// When the probe does nothing or cannot be made.
    pub fn new(probe: &ReadinessProbe, application: IpAddr) -> anyhow::Result<Self> {
        let seconds = |given: i32, default: u64| {
            let given = u64::try_from(given).ok().filter(|seconds| *seconds > 0);
            Duration::from_secs(given.unwrap_or(default))
        };
        let count = |given: i32, default: u32| {
            let given = u32::try_from(given).ok().filter(|count| *count > 0);
            given.unwrap_or(default)
        };
        let method = match &probe.health_check_method {
            Some(HealthCheckMethod::Exec(exec)) => Method::Command(exec.command.clone()),
            Some(_) => {
                let json = proto::json::to_value(probe).context("readinessProbe")?;
                let text = serde_json::json!({ PROBE: json }).to_string();
                Method::Network(AppProbers::parse(&text)?.at(application))
            }
            None => anyhow::bail!("readinessProbe: give httpGet, tcpSocket, exec or grpc"),
        };
        Ok(Self {
            method,
            initial_delay: Duration::from_secs(
                u64::try_from(probe.initial_delay_seconds).unwrap_or(0),
            ),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        })
    }

    /// Probes and reports until the drain's end.
    pub fn start(self, pilot: Pilot, drain: Drain) {
        let (health, told) = watch::channel(None);
        task::spawn("health-report", report(pilot, told, drain.clone()));
        task::spawn("health-probe", async move {
            tokio::select! {
                () = self.run(&health) => {}
                () = drain.signaled() => {}
            }
        });
    }

    async fn run(&self, health: &watch::Sender<Health>) {
        tokio::time::sleep(self.initial_delay).await;
        let (mut successes, mut failures) = (0, 0);
        loop {
            let outcome = match tokio::time::timeout(self.timeout, self.probe()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer within {} s", self.timeout.as_secs())),
            };
            match outcome {
                Ok(()) => (successes, failures) = (successes + 1, 0),
                Err(_) => (successes, failures) = (0, failures + 1),
            }
            // A workload is not healthy before it has been, so its first failure counts at once.
            let counts = match &outcome {
                Ok(()) => successes >= self.successes,
                Err(_) => failures >= self.failures || health.borrow().is_none(),
            };
            if counts {
                health.send_if_modified(|known| {
                    let is_new = known.as_ref().map(Result::is_ok) != Some(outcome.is_ok());
                    if is_new {
                        tracing::info!(target: "health", healthy = outcome.is_ok(), reason = outcome.as_ref().err(), "the workload's health");
                        *known = Some(outcome);
                    }
                    is_new
                });
            }
            tokio::time::sleep(self.period).await;
        }
    }

    async fn probe(&self) -> Result<(), String> {
        match &self.method {
            Method::Network(probers) => {
                let status = probers.probe(PROBE, &http::HeaderMap::new()).await;
                if status.is_success() || status.is_redirection() {
                    Ok(())
                } else {
                    Err(format!("the probe was answered with {status}"))
                }
            }
            Method::Command(command) => {
                let [program, arguments @ ..] = command.as_slice() else {
                    return Err("the probe's command is empty".to_owned());
                };
                let ended = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .status()
                    .await
                    .map_err(|error| format!("{program}: {error}"))?;
                if ended.success() {
                    Ok(())
                } else {
                    Err(format!("{program}: {ended}"))
                }
            }
        }
    }
}

/// Tells Pilot, on one stream after another; what keeps it from that is said once.
async fn report(pilot: Pilot, mut health: watch::Receiver<Health>, drain: Drain) {
    let mut backoff = Backoff::new(FIRST_RETRY, RETRY_CAP);
    let mut said = String::new();
    loop {
        let begun = Instant::now();
        let outcome = tokio::select! {
            outcome = tell(&pilot, &mut health) => outcome,
            () = drain.signaled() => return,
        };
        if begun.elapsed() > RETRY_CAP {
            backoff.reset();
        }
        if let Err(error) = outcome {
            let reason = error.to_string();
            if reason != said {
                tracing::warn!(target: "health", reason, "Pilot does not hear of the workload's health; trying again");
                said = reason;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = drain.signaled() => return,
        }
    }
}

/// One stream, to its end.
async fn tell(pilot: &Pilot, health: &mut watch::Receiver<Health>) -> Result<(), StreamError> {
    // Before the probe has an outcome there is nothing to tell; the proxy's own stream registers the machine.
    let Ok(first) = health
        .wait_for(Option::is_some)
        .await
        .map(|seen| request(&seen))
    else {
        return Ok(());
    };
    let mut stream = pilot.open(first).await?;
    loop {
        tokio::select! {
            answer = stream.answers.message() => {
                if answer?.is_none() {
                    return Ok(());
                }
            }
            changed = health.changed() => {
                let next = request(&health.borrow_and_update());
                if changed.is_err() || stream.requests.send(next).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn request(health: &Health) -> DiscoveryRequest {
    let error = health.as_ref().and_then(|outcome| outcome.as_ref().err());
    DiscoveryRequest {
        type_url: HEALTH.to_owned(),
        error_detail: error.map(|message| proto::google::rpc::Status {
            code: Code::Internal as i32,
            message: message.clone(),
            ..proto::google::rpc::Status::default()
        }),
        ..DiscoveryRequest::default()
    }
}
