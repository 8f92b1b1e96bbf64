//! Load on a running Citadel: signing requests one after the other over a few connections, then many agents at once, each over
//! a connection of its own. `e2e/bench/citadel/run.sh` starts the Citadel for it.

#![allow(clippy::print_stdout, reason = "what it prints is its result")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use citadel::testing::TokenIssuer;
use clap::{Parser, Subcommand};
use futures::future::join_all;
use parking_lot::Mutex;
use proto::istio::v1::auth::IstioCertificateRequest;
use proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use proto_component::backoff::Backoff;
use proto_component::grpc::{self, ClientOptions};
use proto_component::task;
use proto_component::tls::{ClientTls, Pem, ServerIdentity};
use rcgen::{CertificateParams, KeyPair};
use tonic::transport::Channel;
use tonic::{Code, Request};

/// Certificates a second that Citadel must be able to issue.
const WANTED: usize = 500;

/// Load on a running Citadel.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Makes a token issuer: writes its keys and one token.
    Issuer {
        /// Folder for `jwks.json` and `token`.
        folder: std::path::PathBuf,
    },
    /// Puts load on `127.0.0.1:PORT`.
    Run {
        /// Folder with `token` and `root.pem`.
        folder: std::path::PathBuf,
        /// Citadel's port.
        #[arg(long)]
        port: u16,
        /// Citadel's process.
        #[arg(long)]
        pid: u32,
        /// How long the first part takes, in seconds.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Connections of the first part.
        #[arg(long, default_value_t = 16)]
        connections: usize,
        /// Agents of the second part.
        #[arg(long, default_value_t = 2000)]
        agents: usize,
    },
}

#[derive(Clone)]
struct Caller {
    address: String,
    tls: ClientTls,
    token: String,
    csr: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().step {
        Step::Issuer { folder } => {
            let issuer = TokenIssuer::new();
            std::fs::write(folder.join("jwks.json"), issuer.jwks())?;
            std::fs::write(folder.join("token"), issuer.token("bench", "agent"))?;
            Ok(())
        }
        Step::Run {
            folder,
            port,
            pid,
            seconds,
            connections,
            agents,
        } => {
            let caller = Caller::new(&folder, port)?;
            let time = Duration::from_secs(seconds);
            one_after_the_other(&caller, pid, connections, time).await?;
            all_at_once(&caller, pid, agents).await
        }
    }
}

impl Caller {
    fn new(folder: &std::path::Path, port: u16) -> anyhow::Result<Self> {
        let pem = Pem {
            roots: std::fs::read(folder.join("root.pem")).context("read root.pem")?,
            ..Pem::default()
        };
        let tls = ClientTls::from_pem(&pem, ServerIdentity::Name, &["h2"])?;
        let key = KeyPair::generate()?;
        Ok(Self {
            address: format!("127.0.0.1:{port}"),
            tls: tls.with_server_name("istio-citadel.istio-system.svc")?,
            token: std::fs::read_to_string(folder.join("token")).context("read token")?,
            csr: CertificateParams::default()
                .serialize_request(&key)?
                .pem()?,
        })
    }

    fn connect(&self) -> anyhow::Result<IstioCertificateServiceClient<Channel>> {
        let options = ClientOptions {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Some(Duration::from_secs(10)),
            ..ClientOptions::default()
        };
        let channel = grpc::channel(&self.address, Some(self.tls.clone()), &options)?;
        Ok(IstioCertificateServiceClient::new(channel))
    }

    async fn ask(
        &self,
        client: &mut IstioCertificateServiceClient<Channel>,
    ) -> Result<(), tonic::Status> {
        let mut request = Request::new(IstioCertificateRequest {
            csr: self.csr.clone(),
            ..IstioCertificateRequest::default()
        });
        let value = format!("Bearer {}", self.token).parse();
        let value = value.map_err(|_| tonic::Status::internal("token"))?;
        request.metadata_mut().insert("authorization", value);
        client.create_certificate(request).await.map(drop)
    }
}

async fn one_after_the_other(
    caller: &Caller,
    pid: u32,
    connections: usize,
    time: Duration,
) -> anyhow::Result<()> {
    let (begin, cpu) = (Instant::now(), cpu_seconds(pid)?);
    let workers = (0..connections).map(|_| {
        let caller = caller.clone();
        task::spawn("caller", async move {
            let mut client = caller.connect()?;
            let mut times = Vec::new();
            while begin.elapsed() < time {
                let start = Instant::now();
                caller.ask(&mut client).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        })
    });
    let mut times = Vec::new();
    for outcome in join_all(workers).await {
        times.extend(outcome??);
    }
    times.sort();
    let at = |share: usize| {
        let place = times.get(times.len() * share / 100);
        place.copied().unwrap_or_default()
    };
    println!(
        "{connections} connections: {}; p50 {:.1?}, p99 {:.1?}",
        rates(times.len(), begin, cpu_seconds(pid)? - cpu),
        at(50),
        at(99),
    );
    let wanted = WANTED * usize::try_from(time.as_secs())?;
    let count = times.len();
    anyhow::ensure!(
        count >= wanted,
        "{count} certificates, {WANTED} a second are {wanted}"
    );
    Ok(())
}

async fn all_at_once(caller: &Caller, pid: u32, agents: usize) -> anyhow::Result<()> {
    let (begin, cpu) = (Instant::now(), cpu_seconds(pid)?);
    let refusals: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let workers = (0..agents).map(|_| {
        let (caller, refusals) = (caller.clone(), refusals.clone());
        task::spawn("agent", async move {
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
            loop {
                let mut client = caller.connect()?;
                match caller.ask(&mut client).await {
                    Ok(()) => return anyhow::Ok(begin.elapsed()),
                    Err(error) if error.code() == Code::Unauthenticated => return Err(error.into()),
                    // As the agent does.
                    Err(error) => {
                        let reason = format!("{:?}: {}", error.code(), error.message());
                        *refusals.lock().entry(reason).or_default() += 1;
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
            }
        })
    });
    let mut slowest = Duration::ZERO;
    for outcome in join_all(workers).await {
        slowest = slowest.max(outcome??);
    }
    println!(
        "{agents} agents at once: {}; the last has its certificate after {slowest:.1?}; failed starts: {:?}",
        rates(agents, begin, cpu_seconds(pid)? - cpu),
        refusals.lock(),
    );
    let refused: usize = refusals.lock().values().sum();
    anyhow::ensure!(refused == 0, "{refused} starts have failed");
    Ok(())
}

/// What was issued, a second and for each of the server's CPU seconds.
#[allow(clippy::cast_precision_loss, reason = "a count of seconds of work")]
fn rates(count: usize, begin: Instant, cpu: f64) -> String {
    let elapsed = begin.elapsed().as_secs_f64();
    format!(
        "{count} certificates in {elapsed:.1} s ({:.0} a second); {cpu:.2} CPU s of istio_ca: {:.0} a CPU second",
        count as f64 / elapsed,
        count as f64 / cpu.max(0.01),
    )
}

/// CPU seconds that a process has used.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server")?;
    let (_, rest) = stat.rsplit_once(')').context("its state")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
