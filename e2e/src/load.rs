//! Continuous load with every failure counted: what a test of faults looks through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// An HTTP client for tests: a deadline for each request, connections reused.
#[derive(Clone)]
pub struct HttpClient(Client<HttpConnector, Empty<Bytes>>);

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Body as text.
    pub body: String,
}

impl Default for HttpClient {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(DEADLINE));
        HttpClient(Client::builder(TokioExecutor::new()).build(connector))
    }
}

impl HttpClient {
    /// Gets `url`, with further headers.
    ///
    /// # Errors
    /// No connection, or no whole answer in time.
    pub async fn get_with(&self, url: &str, headers: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let mut request = Request::get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).context("build request")?;
        let exchange = async {
            let response = self
                .0
                .request(request)
                .await
                .with_context(|| format!("get {url}"))?;
            let status = response.status();
            let body = response
                .into_body()
                .collect()
                .await
                .with_context(|| format!("read {url}"))?
                .to_bytes();
            Ok(Answer {
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
            })
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .with_context(|| format!("{url} did not answer in time"))?
    }

    /// Gets `url`.
    ///
    /// # Errors
    /// No connection, or no whole answer in time.
    pub async fn get(&self, url: &str) -> anyhow::Result<Answer> {
        self.get_with(url, &[]).await
    }
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests that were answered as wanted.
    pub good: usize,
    /// The others, by what went wrong.
    pub failures: BTreeMap<String, usize>,
    /// The slowest good answer.
    pub slowest: Duration,
}

impl Report {
    /// How many requests failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failures.values().sum()
    }
}

/// A load that runs until it is stopped.
pub struct Load {
    ends: Arc<AtomicBool>,
    workers: tokio::task::JoinHandle<Report>,
}

impl Load {
    /// Gets `url` again and again over `connections` connections; an answer counts as good if `is_good` says so.
    #[must_use]
    pub fn start(url: &str, connections: usize, is_good: fn(&Answer) -> bool) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (url, stop) = (url.to_owned(), ends.clone());
        let run = async move {
            let workers = (0..connections).map(|_| work(&url, &stop, is_good));
            join_all(workers)
                .await
                .into_iter()
                .fold(Report::default(), merge)
        };
        Load {
            ends,
            workers: proto_component::task::spawn("load", run),
        }
    }

    /// Ends the load.
    ///
    /// # Panics
    /// When the load itself panicked.
    pub async fn stop(self) -> Report {
        self.ends.store(true, Ordering::Relaxed);
        self.workers.await.expect("the load does not panic")
    }
}

async fn work(url: &str, stop: &AtomicBool, is_good: fn(&Answer) -> bool) -> Report {
    let client = HttpClient::default();
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        match client.get(url).await {
            Ok(answer) if is_good(&answer) => {
                report.good += 1;
                report.slowest = report.slowest.max(start.elapsed());
            }
            Ok(answer) => {
                let start: String = answer.body.chars().take(80).collect();
                *report
                    .failures
                    .entry(format!("{} {start}", answer.status))
                    .or_default() += 1;
            }
            Err(error) => *report.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    report
}

fn merge(mut left: Report, right: Report) -> Report {
    left.good += right.good;
    left.slowest = left.slowest.max(right.slowest);
    for (failure, count) in right.failures {
        *left.failures.entry(failure).or_default() += count;
    }
    left
}
