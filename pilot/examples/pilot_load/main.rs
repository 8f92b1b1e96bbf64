//! Measures Pilot under load: a source of configuration, and simulated proxies on real ADS streams over loopback, each with a
//! connection of its own.
//!
//! `load --pilot PATH [--services N] [--endpoints N] [--virtual-services N] [--destination-rules N] [--proxies N] [--delta]` starts
//! `pilot-discovery`, lets all proxies subscribe to everything, changes one VirtualService and the endpoints of one service, and
//! prints what that took as one line of JSON. See `e2e/bench/pilot`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use proto_component::drain;
use proto_component::grpc::{self, ClientOptions};
use proto_component::task;
use proto_mcp::snapshot::Snapshot;
use proto_mcp::source::Source;
use serde_json::json;
use tokio::sync::watch;

mod config;
mod pilot;
mod proxy;

use self::config::{snapshot, start_source};
use self::pilot::Pilot;
use self::proxy::Progress;

/// When something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Parser)]
struct Args {
    /// The program.
    #[arg(long)]
    pilot: PathBuf,
    #[arg(long, default_value_t = 1000)]
    services: usize,
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    #[arg(long, default_value_t = 500)]
    virtual_services: usize,
    #[arg(long, default_value_t = 500)]
    destination_rules: usize,
    #[arg(long, default_value_t = 30)]
    proxies: usize,
    /// Increments instead of the state of the world.
    #[arg(long)]
    delta: bool,
}

/// Waits until every proxy has got more of `kind` than before; the seconds that each took since `begun`.
async fn reached(
    all: &mut [watch::Receiver<Progress>],
    kind: usize,
    than: &[u32],
    begun: Instant,
) -> anyhow::Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(all.len());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for (progress, before) in all.iter_mut().zip(than) {
        let wait = progress.wait_for(|now| now.counts[kind] > *before);
        let now = *tokio::time::timeout_at(deadline, wait)
            .await
            .context("no push in time")??;
        seconds.push(
            now.last
                .unwrap_or(begun)
                .duration_since(begun)
                .as_secs_f64(),
        );
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

fn counts(all: &[watch::Receiver<Progress>], kind: usize) -> Vec<u32> {
    all.iter()
        .map(|progress| progress.borrow().counts[kind])
        .collect()
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0.0)
}

/// Publishes `next` and waits until every proxy has got more of `kind`.
async fn change(
    pilot: &Pilot,
    source: &Source,
    next: Arc<Snapshot>,
    all: &mut [watch::Receiver<Progress>],
    kind: usize,
) -> anyhow::Result<serde_json::Value> {
    let (before, cpu) = (counts(all, kind), pilot.cpu()?);
    let begun = Instant::now();
    source.publish(next);
    let times = reached(all, kind, &before, begun).await?;
    // What comes after the last answer belongs to the change too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(json!({
        "cpu_s": pilot.cpu()? - cpu,
        "p50_s": percentile(&times, 50),
        "p99_s": percentile(&times, 99),
        "max_s": percentile(&times, 100),
    }))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    proto_component::tls::install_provider();
    let (_trigger, drain) = drain::channel();
    let (source, mcp) = start_source(&drain).await?;
    source.publish(snapshot(&args, 5, 0));
    let folder = std::env::temp_dir().join(format!("pilot-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let pilot = pilot::start(&args, &folder, mcp).await?;
    let idle = (pilot.cpu()?, pilot.memory("VmRSS")?);

    let begun = Instant::now();
    let mut all = Vec::new();
    let asked = proxy::asked(&args);
    for index in 0..args.proxies {
        let channel = grpc::channel(&pilot.xds, None, &ClientOptions::default())?;
        let (progress, follow) = watch::channel(Progress::default());
        all.push(follow);
        let proxy = proxy::run(args.clone(), index, Arc::clone(&asked), channel, progress);
        task::spawn("proxy", proxy);
    }
    let full = reached(&mut all, 3, &vec![0; args.proxies], begun).await?;
    let cpu = pilot.cpu()? - idle.0;
    let loaded = pilot.memory("VmRSS")?;
    let route = change(&pilot, &source, snapshot(&args, 7, 0), &mut all, 3).await?;
    let endpoint = change(&pilot, &source, snapshot(&args, 7, 40_000), &mut all, 1).await?;
    let ended: u32 = all.iter().map(|progress| progress.borrow().ended).sum();
    let line = json!({
        "services": args.services, "endpoints": args.endpoints, "proxies": args.proxies, "delta": args.delta, "streams_ended": ended,
        "load": {"cpu_s": cpu, "cpu_s_per_proxy": cpu / args.proxies as f64, "wall_s": percentile(&full, 100)},
        "virtual_service": route, "endpoint": endpoint,
        "rss_mib": {"idle": idle.1, "loaded": loaded, "end": pilot.memory("VmRSS")?, "peak": pilot.memory("VmHWM")?},
    });
    #[allow(clippy::print_stdout, reason = "the result")]
    {
        println!("{line}");
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
