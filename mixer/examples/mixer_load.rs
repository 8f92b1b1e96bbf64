//! Load for a Mixer, for `e2e/bench/mixer/run.sh`: reports or checks over some connections, as fast as they are answered or at a
//! rate; then a line with what was done, what it cost the server (CPU time of its process), and how long calls took.
//!
//! Calls are encoded before, and all of a connection are made by one task: the load shares the machine with the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::{Parser, ValueEnum};
use h2::client::SendRequest;
use http::Request;
use parking_lot::Mutex;
use prost::Message;
use proto::istio::mixer::v1::check_request::QuotaParams;
use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;
use proto::istio::mixer::v1::{CheckRequest, CheckResponse, ReportRequest};
use proto_component::task;
use proto_mesh::attribute::codec::{self, Encoder};
use proto_mesh::attribute::{Attributes, Value, dictionary};
use tokio::net::TcpStream;
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Report,
    Check,
    /// Reports of nothing: what calls cost by themselves.
    Empty,
}

#[derive(Clone, Debug, Parser)]
struct Args {
    /// What is sent.
    mode: Mode,
    /// Address of Mixer.
    #[arg(long)]
    mixer: String,
    /// Its process.
    #[arg(long)]
    pid: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Calls at once on one connection.
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Different sets of labels.
    #[arg(long, default_value_t = 100)]
    label_sets: usize,
    /// Sets of attributes in one report.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Calls a second; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    rate: u64,
}

#[derive(Default)]
struct Tally {
    calls: AtomicU64,
    failed: AtomicU64,
    /// Checks that were answered with a refusal, or without all of the quota.
    refused: AtomicU64,
    /// Microseconds.
    latencies: Mutex<Vec<u32>>,
}

/// What a sidecar reports of one request.
#[allow(clippy::too_many_lines, reason = "a table")]
fn attributes(number: usize) -> Attributes {
    let text = |text: &str| Value::from(text.to_owned());
    let labels = |app: &str| {
        Value::StringMap(vec![
            ("app".into(), app.to_owned()),
            ("version".into(), "v1".into()),
        ])
    };
    let mut set = Attributes::new();
    let path = format!("/reviews/{number}");
    let workload = format!("reviews-v{number}");
    for (name, value) in [
        ("context.protocol", text("http")),
        ("context.reporter.kind", text("inbound")),
        (
            "context.reporter.uid",
            text("kubernetes://reviews-v1-0.default"),
        ),
        ("context.proxy_error_code", text("-")),
        ("connection.mtls", Value::Bool(true)),
        ("source.uid", text("kubernetes://productpage-v1-0.default")),
        ("source.namespace", text("default")),
        (
            "source.principal",
            text("cluster.local/ns/default/sa/bookinfo-productpage"),
        ),
        ("source.workload.name", text("productpage-v1")),
        ("source.workload.namespace", text("default")),
        ("source.labels", labels("productpage")),
        ("destination.uid", text("kubernetes://reviews-v1-0.default")),
        ("destination.namespace", text("default")),
        (
            "destination.principal",
            text("cluster.local/ns/default/sa/bookinfo-reviews"),
        ),
        ("destination.workload.name", text(&workload)),
        ("destination.workload.namespace", text("default")),
        ("destination.labels", labels("reviews")),
        (
            "destination.service.host",
            text("reviews.default.svc.cluster.local"),
        ),
        ("destination.service.name", text("reviews")),
        ("destination.service.namespace", text("default")),
        ("request.host", text("reviews:9080")),
        ("request.method", text("GET")),
        ("request.path", text(&path)),
        ("request.scheme", text("http")),
        ("request.useragent", text("python-requests/2.31")),
        ("request.size", Value::Int64(0)),
        ("request.total_size", Value::Int64(900)),
        ("response.code", Value::Int64(200)),
        ("response.size", Value::Int64(375)),
        ("response.total_size", Value::Int64(600)),
        (
            "response.duration",
            Value::Duration(prost_types::Duration {
                seconds: 0,
                nanos: 3_000_000,
            }),
        ),
        (
            "request.headers",
            Value::StringMap(vec![
                (":authority".into(), "reviews:9080".into()),
                (":method".into(), "GET".into()),
                (":path".into(), path),
                ("user-agent".into(), "python-requests/2.31".into()),
                (
                    "x-request-id".into(),
                    format!("0f8fad5b-d9cb-469f-a165-{number:012}"),
                ),
            ]),
        ),
    ] {
        set.set(name, value);
    }
    set
}

fn reports(args: &Args) -> Vec<Bytes> {
    let count = (args.label_sets / args.batch).clamp(1, 5000);
    (0..count)
        .map(|request| {
            let mut encoder = Encoder::new(dictionary::WORDS.len());
            let sets = (0..args.batch).map(|position| {
                let set = attributes((request * args.batch + position) % args.label_sets);
                encoder.encode(set.iter().map(|(name, value)| (name, value.as_ref())))
            });
            let attributes = sets.collect();
            frame(&ReportRequest {
                attributes,
                default_words: encoder.into_words(),
                global_word_count: 222,
                repeated_attributes_semantics: RepeatedAttributesSemantics::IndependentEncoding
                    .into(),
            })
        })
        .collect()
}

fn checks(args: &Args) -> Vec<Bytes> {
    let params = QuotaParams {
        amount: 1,
        best_effort: true,
    };
    (0..args.label_sets.clamp(1, 1000))
        .map(|number| {
            frame(&CheckRequest {
                attributes: Some(codec::encode(&attributes(number), dictionary::WORDS.len())),
                global_word_count: 222,
                quotas: [("ratelimit".to_owned(), params)].into(),
                ..CheckRequest::default()
            })
        })
        .collect()
}

/// A message as it travels.
fn frame(message: &impl Message) -> Bytes {
    let mut buffer = BytesMut::new();
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    message.encode_raw(&mut buffer);
    buffer.freeze()
}

/// CPU seconds that a process has used.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process")?;
    let (_, rest) = stat.rsplit_once(')').context("its state")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn memory_mib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("its memory")?.parse::<u64>()? / 1024)
}

/// One call after the other.
struct Worker {
    number: usize,
    workers: usize,
    begun: Instant,
    requests: Arc<Vec<Bytes>>,
    tally: Arc<Tally>,
    args: Args,
}

impl Worker {
    async fn run(self, client: SendRequest<Bytes>) {
        let until = self.begun + Duration::from_secs(self.args.seconds);
        let mut latencies = Vec::new();
        let mut number = self.number;
        // Workers take turns.
        let workers = self.workers as f64;
        let rate = self.args.rate;
        let period = (rate > 0).then(|| Duration::from_secs_f64(workers / rate as f64));
        let first = period.unwrap_or_default();
        let mut due = self.begun + first.mul_f64(self.number as f64 / workers);
        while Instant::now() < until {
            let mut called = Instant::now();
            if let Some(period) = period {
                if called < due {
                    tokio::time::sleep_until(due).await;
                    // The timer's up to two milliseconds are not the server's.
                    called = Instant::now();
                } else {
                    // From when it was due: a queue is part of the wait.
                    called = due;
                }
                due += period;
            }
            let request = self.requests[number % self.requests.len()].clone();
            let answer = call(&client, self.args.mode, request).await;
            let is_refused = self.args.mode == Mode::Check
                && answer.as_ref().is_ok_and(|answer| is_refusal(answer));
            number += self.workers;
            let count = |counter: &AtomicU64, is: bool| {
                counter.fetch_add(u64::from(is), Ordering::Relaxed);
            };
            count(&self.tally.calls, true);
            count(&self.tally.refused, is_refused);
            count(&self.tally.failed, answer.is_err());
            latencies.push(u32::try_from(called.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        self.tally.latencies.lock().extend(latencies);
    }
}

/// Makes a call; what is answered without its prefix.
async fn call(client: &SendRequest<Bytes>, mode: Mode, body: Bytes) -> anyhow::Result<Bytes> {
    let path = match mode {
        Mode::Check => "http://mixer/istio.mixer.v1.Mixer/Check",
        Mode::Report | Mode::Empty => "http://mixer/istio.mixer.v1.Mixer/Report",
    };
    let request = Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut client = client.clone().ready().await?;
    let (response, mut stream) = client.send_request(request, false)?;
    stream.send_data(body, true)?;
    let mut body = response.await?.into_body();
    let mut answer = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        answer.extend_from_slice(&part);
    }
    let trailers = body.trailers().await?.context("no status")?;
    anyhow::ensure!(
        trailers
            .get("grpc-status")
            .is_some_and(|status| status == "0")
    );
    anyhow::ensure!(answer.len() >= 5, "no message");
    Ok(answer.freeze().slice(5..))
}

/// All calls of one connection, in one task.
async fn connection(address: String, workers: Vec<Worker>) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::Builder::new()
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await
        .context("shake hands")?;
    let working = futures::future::join_all(workers.into_iter().map(|w| w.run(client.clone())));
    tokio::select! {
        ended = connection => ended.context("the connection"),
        _ = working => Ok(()),
    }
}

/// Whether a check was refused, or granted less than was asked for.
fn is_refusal(answer: &[u8]) -> bool {
    let Ok(answer) = CheckResponse::decode(answer) else {
        return true;
    };
    let status = answer
        .precondition
        .as_ref()
        .and_then(|found| found.status.as_ref());
    status.is_some_and(|status| status.code != 0)
        || answer.quotas.values().any(|quota| quota.granted_amount < 1)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let requests = Arc::new(match args.mode {
        Mode::Report => reports(&args),
        Mode::Check => checks(&args),
        Mode::Empty => vec![frame(&ReportRequest::default())],
    });
    let tally = Arc::new(Tally::default());
    let before = (cpu_seconds(args.pid)?, memory_mib(args.pid)?);
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..args.connections {
        let streams = number * args.streams..(number + 1) * args.streams;
        let workers = streams.map(|number| Worker {
            number,
            workers: args.connections * args.streams,
            begun,
            requests: requests.clone(),
            tally: tally.clone(),
            args: args.clone(),
        });
        let calls = connection(args.mixer.clone(), workers.collect());
        tasks.push(task::spawn("load", calls));
    }
    for task in tasks {
        task.await??;
    }
    let summary = summary(&args, &tally, begun, before)?;
    std::io::Write::write_all(&mut std::io::stdout(), summary.as_bytes())?;
    Ok(())
}

fn summary(
    args: &Args,
    tally: &Tally,
    begun: Instant,
    before: (f64, u64),
) -> anyhow::Result<String> {
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu = cpu_seconds(args.pid)? - before.0;
    let calls = tally.calls.load(Ordering::Relaxed);
    let units = match args.mode {
        Mode::Report => calls * args.batch as u64,
        Mode::Check | Mode::Empty => calls,
    };
    let mut latencies = tally.latencies.lock();
    latencies.sort_unstable();
    let at = |share: f64| {
        let position = (latencies.len().saturating_sub(1)) as f64 * share;
        f64::from(latencies.get(position as usize).copied().unwrap_or(0)) / 1000.0
    };
    let memory = memory_mib(args.pid)?;
    let summary = format!(
        "{mode}: {units} in {elapsed:.1} s ({rate:.0}/s), {failed} calls failed, {refused} refused; {cpu:.1} CPU s: {percore:.0}/s a core; \
         p50 {p50:.2} ms, p99 {p99:.2} ms; memory {before} -> {memory} MiB\n",
        mode = format!("{:?}", args.mode).to_lowercase(),
        rate = units as f64 / elapsed,
        failed = tally.failed.load(Ordering::Relaxed),
        refused = tally.refused.load(Ordering::Relaxed),
        percore = units as f64 / cpu,
        p50 = at(0.5),
        p99 = at(0.99),
        before = before.1,
    );
    Ok(summary)
}
