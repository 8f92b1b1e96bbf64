//! `mesh-bench`: what the mesh costs and how fast it follows, measured on a local mesh of its own.
//!
//! ```sh
//! cargo build --release && target/release/mesh-bench [--starts 3] [--changes 100] [--requests 2000]
//! ```
//!
//! Prints three Markdown tables: time from `local up` to the first good product page; time from the start of
//! `local apply` of a `VirtualService` to the first request that follows it; memory of every process, idle and after load.

#![allow(clippy::print_stdout, reason = "its tables are what it is for")]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use e2e::load::Answer;
use e2e::memory;
use e2e::mesh::{Mesh, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// Measures a local mesh: start, changes, memory.
#[derive(Debug, Parser)]
struct Args {
    /// How often to start the mesh.
    #[arg(long, default_value_t = 3)]
    starts: usize,
    /// How many changes to apply.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// How many product pages to ask for before memory is read again.
    #[arg(long, default_value_t = 2000)]
    requests: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut starts = Vec::new();
    for start in 0..args.starts.max(1) {
        let began = Instant::now();
        let mut mesh = Mesh::up(&format!("bench-{start}"), &[]).await?;
        eventually("a page", PATIENCE, async || {
            page(&mesh).await.is_ok_and(|page| is_good(&page))
        })
        .await?;
        starts.push(began.elapsed());
        if start + 1 == args.starts.max(1) {
            measure(&mesh, &args, &starts).await?;
        }
        let complaint = mesh.end().await;
        anyhow::ensure!(complaint.is_empty(), "the mesh ended badly: {complaint}");
    }
    Ok(())
}

async fn measure(mesh: &Mesh, args: &Args, starts: &[Duration]) -> anyhow::Result<()> {
    let idle = memory::of_mesh(&mesh.name)?;
    for _ in 0..args.requests {
        let answer = page(mesh).await?;
        anyhow::ensure!(is_good(&answer), "page {}", answer.status);
    }
    let loaded = memory::of_mesh(&mesh.name)?;
    let changes = changes(mesh, args.changes).await?;

    println!("| what | n | p50 | p99 | worst |\n|---|---:|---:|---:|---:|");
    print_times("`local up` to the first good page", starts);
    print_times("`local apply` to the first request that follows", &changes);
    println!(
        "\n| process | n | idle MiB | of it anonymous | after {} pages MiB | of it anonymous |",
        args.requests
    );
    println!("|---|---:|---:|---:|---:|---:|");
    for (name, processes) in &idle {
        let after = loaded.get(name).cloned().unwrap_or_default();
        println!(
            "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
            processes.count,
            processes.resident,
            processes.anonymous,
            after.resident,
            after.anonymous
        );
    }
    Ok(())
}

/// Sends reviews to v1 and v3 in turn, and measures until the page shows it.
async fn changes(mesh: &Mesh, count: usize) -> anyhow::Result<Vec<Duration>> {
    mesh.apply("networking/destination-rule-all.yaml").await?;
    let mut times = Vec::with_capacity(count);
    for change in 0..count + 1 {
        let has_stars = change % 2 == 1;
        let manifest = if has_stars {
            "networking/virtual-service-reviews-v3.yaml"
        } else {
            "networking/virtual-service-all-v1.yaml"
        };
        let began = Instant::now();
        mesh.apply(manifest).await.context("apply")?;
        let follows = async || {
            page(mesh)
                .await
                .is_ok_and(|page| is_good(&page) && page.body.contains("stars red") == has_stars)
        };
        eventually(manifest, PATIENCE, follows).await?;
        times.push(began.elapsed());
    }
    // The first change may have found its state already there.
    times.remove(0);
    Ok(times)
}

async fn page(mesh: &Mesh) -> anyhow::Result<Answer> {
    mesh.get("/productpage").await
}

fn is_good(page: &Answer) -> bool {
    page.status == 200 && page.body.contains("ISBN-10") && page.body.contains("Reviews served by")
}

fn print_times(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort();
    let at = |share: f64| {
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
            .as_secs_f64()
            * 1000.0
    };
    println!(
        "| {what} | {} | {:.0} ms | {:.0} ms | {:.0} ms |",
        sorted.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
