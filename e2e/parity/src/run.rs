//! Plays a group's cases against one proxy and writes down the outcome of each.

use crate::{
    bootstrap::bootstrap,
    case::{Case, Group, Seen},
    change, client,
    connection::DEADLINE,
    group::Place,
    normal,
    process::{Process, verdict},
    upstream::Upstreams,
};
use anyhow::Context as _;
use indexmap::IndexMap;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// How long a case may take.
const CASE: Duration = Duration::from_secs(30);
/// How long statistics must stand still.
const SETTLED: Duration = Duration::from_millis(40);
/// How long the proxy may take to notice that the clients are gone.
const BUSY: Duration = Duration::from_secs(3);

/// Outcomes by case.
pub type Outcomes = IndexMap<String, Value>;
type Stats = BTreeMap<String, i64>;

/// Plays the chosen cases of a group.
///
/// # Errors
/// When the proxy does not start, dies, or a case can't be played.
pub async fn run(
    group: &Group,
    cases: &[&Case],
    binary: &Path,
    place: &Place,
) -> anyhow::Result<Outcomes> {
    for (name, content) in &group.files {
        std::fs::write(Path::new(&place.dir).join(name), content)?;
    }
    if group.validate {
        return validate(group, cases, binary, place).await;
    }
    let upstreams = Upstreams::start(group, place)?;
    let config = write(&bootstrap(group, place), place, "bootstrap")?;
    let process = Process::start(binary, &config, place).await?;
    let mut outcomes = Outcomes::new();
    for case in cases {
        let played = timeout(CASE, play(case, group, place, &process, &upstreams)).await;
        let outcome = match played {
            Ok(outcome) => outcome.with_context(|| format!("play {}", case.name))?,
            Err(_) => json!({"failed": "the case takes too long"}),
        };
        outcomes.insert(case.name.clone(), clean(outcome, place));
    }
    let wrong = process.stop().await;
    upstreams.stop().await;
    if let Some(wrong) = wrong {
        outcomes.insert("the process".to_owned(), json!(wrong));
    }
    Ok(outcomes)
}

fn write(config: &Value, place: &Place, name: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(&place.dir).join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(config)?).context("write the bootstrap")?;
    Ok(path)
}

/// Takes the run's address and folder out of an outcome.
fn clean(outcome: Value, place: &Place) -> Value {
    let words = [
        (place.address.to_string(), "ADDRESS"),
        (place.dir.clone(), "DIR"),
        (place.certs.clone(), "CERTS"),
    ];
    normal::value(outcome, &words)
}

async fn validate(
    group: &Group,
    cases: &[&Case],
    binary: &Path,
    place: &Place,
) -> anyhow::Result<Outcomes> {
    let mut outcomes = Outcomes::new();
    for case in cases {
        let mut merged = group.clone();
        let fields = case.config.as_object().cloned().unwrap_or_default();
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("clusters", Value::Object(more)) => merged.clusters.extend(more),
                ("listeners", Value::Object(more)) => merged.listeners.extend(more),
                ("bootstrap", more) => crate::extension::merge(&mut merged.bootstrap, &more),
                (other, _) => {
                    anyhow::bail!("{}: {other} is not a part of a configuration", case.name)
                }
            }
        }
        let config = write(&bootstrap(&merged, place), place, "validate")?;
        let answer = Process::validate(binary, &config).await?;
        outcomes.insert(case.name.clone(), verdict(&answer));
    }
    Ok(outcomes)
}

async fn play(
    case: &Case,
    group: &Group,
    place: &Place,
    process: &Process,
    upstreams: &Upstreams,
) -> anyhow::Result<Value> {
    let wants_stats = !case.stats.is_empty();
    let before = if wants_stats {
        settled(process).await?
    } else {
        Stats::new()
    };
    let logs = Logs::mark(place)?;
    upstreams.begin(&case.answers);
    let mut outcome = Map::new();
    change::replace(&case.write, place)?;
    if let Some(look) = &case.wait {
        outcome.insert("wait".to_owned(), change::look(look, place).await?);
    }
    outcome.insert("client".to_owned(), clients(case, group, place).await?);
    wait_for_upstreams(case, upstreams).await;
    let seen = seen(case.upstream, upstreams);
    if !seen.is_null() {
        outcome.insert("upstream".to_owned(), seen);
    }
    if case.log > 0 {
        outcome.insert("log".to_owned(), logs.wait(case.log).await?);
    }
    if wants_stats || !case.stats_now.is_empty() {
        let after = settled(process).await?;
        if wants_stats {
            outcome.insert("stats".to_owned(), changes(&case.stats, &before, &after)?);
        }
        if !case.stats_now.is_empty() {
            outcome.insert(
                "stats_now".to_owned(),
                changes(&case.stats_now, &Stats::new(), &after)?,
            );
        }
    }
    let mut looks = Vec::new();
    for look in &case.admin {
        looks.push(json!({"path": look.get, "answer": change::look(look, place).await?}));
    }
    if !looks.is_empty() {
        outcome.insert("admin".to_owned(), Value::Array(looks));
    }
    Ok(Value::Object(outcome))
}

async fn clients(case: &Case, group: &Group, place: &Place) -> anyhow::Result<Value> {
    if case.together {
        let all = case
            .clients
            .iter()
            .map(|client| client::play(client, group, place));
        let all: anyhow::Result<Vec<Value>> =
            futures::future::join_all(all).await.into_iter().collect();
        return Ok(Value::Array(all?));
    }
    let mut all = Vec::new();
    for client in &case.clients {
        all.push(client::play(client, group, place).await?);
    }
    Ok(Value::Array(all))
}

async fn wait_for_upstreams(case: &Case, upstreams: &Upstreams) {
    let start = Instant::now();
    while upstreams.count() < case.upstream_requests && start.elapsed() < DEADLINE {
        sleep(Duration::from_millis(5)).await;
    }
}

/// What upstreams saw, as far as the case compares it.
fn seen(how: Seen, upstreams: &Upstreams) -> Value {
    let seen = upstreams.seen();
    match how {
        Seen::Nothing => Value::Null,
        Seen::Count => seen
            .iter()
            .map(|(name, all)| (name.clone(), json!(all.len())))
            .collect(),
        Seen::Requests => seen
            .into_iter()
            .map(|(name, all)| {
                (
                    name,
                    Value::Array(all.into_iter().map(|(_, request)| request).collect()),
                )
            })
            .collect(),
        Seen::Connections => {
            // Numbered within the case.
            let mut numbers: Vec<u64> = Vec::new();
            let mut list = Map::new();
            for (name, all) in seen {
                let all: Vec<Value> = all
                    .into_iter()
                    .map(|(number, request)| {
                        let index = numbers
                            .iter()
                            .position(|known| *known == number)
                            .unwrap_or_else(|| {
                                numbers.push(number);
                                numbers.len() - 1
                            });
                        json!({"connection": index, "request": request})
                    })
                    .collect();
                list.insert(name, Value::Array(all));
            }
            Value::Object(list)
        }
    }
}

/// Statistics once the clients' connections and all requests are over for the proxy, and nothing moves any more.
async fn settled(process: &Process) -> anyhow::Result<Stats> {
    let start = Instant::now();
    let mut last = process.stats().await?;
    loop {
        sleep(SETTLED).await;
        let next = process.stats().await?;
        let is_same = next
            .iter()
            .all(|(name, value)| is_moving(name) || last.get(name) == Some(value));
        let is_busy = next
            .iter()
            .any(|(name, value)| *value > 0 && counts_work(name) && !is_moving(name));
        // What a case leaves behind on purpose (an upstream that holds) is there for good.
        if (is_same && !is_busy) || start.elapsed() > BUSY {
            return Ok(next);
        }
        last = next;
    }
}

/// Gauges that are back at 0 when the clients are gone.
fn counts_work(name: &str) -> bool {
    [
        ".downstream_cx_active",
        ".downstream_rq_active",
        ".upstream_rq_active",
        ".upstream_rq_pending_active",
    ]
    .iter()
    .any(|gauge| name.ends_with(gauge))
}

/// Statistics that a look at them moves.
fn is_moving(name: &str) -> bool {
    [
        "server.",
        "http.admin.",
        "listener.admin.",
        "filesystem.",
        "main_thread",
        "workers.",
        "dispatcher",
        "access_logs",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

fn changes(patterns: &[String], before: &Stats, after: &Stats) -> anyhow::Result<Value> {
    let patterns: Vec<Regex> = patterns
        .iter()
        .map(|pattern| Regex::new(pattern))
        .collect::<Result<_, _>>()?;
    let fits = |name: &str| patterns.iter().any(|pattern| pattern.is_match(name));
    Ok(after
        .iter()
        .filter(|(name, _)| fits(name))
        .map(|(name, value)| (name.clone(), json!(value - before.get(name).unwrap_or(&0))))
        .collect())
}

/// The access logs of a run: where each ended when a case began.
struct Logs {
    dir: PathBuf,
    marks: BTreeMap<PathBuf, usize>,
}

impl Logs {
    fn mark(place: &Place) -> anyhow::Result<Self> {
        let dir = PathBuf::from(&place.dir);
        let marks = files(&dir)?
            .into_iter()
            .map(|(path, text)| (path, text.len()))
            .collect();
        Ok(Self { dir, marks })
    }

    /// The lines that were written since, once there are so many.
    async fn wait(&self, wanted: usize) -> anyhow::Result<Value> {
        let start = Instant::now();
        loop {
            let mut lines = Vec::new();
            for (path, text) in files(&self.dir)? {
                let from = self.marks.get(&path).copied().unwrap_or_default();
                let new = text.get(from..).unwrap_or_default();
                let name = path
                    .file_stem()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
                lines.extend(new.lines().map(|line| line_json(&name, line)));
            }
            if lines.len() >= wanted || start.elapsed() > Duration::from_secs(4) {
                return Ok(Value::Array(lines));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn line_json(log: &str, line: &str) -> Value {
    match serde_json::from_str::<Value>(line) {
        Ok(value @ Value::Object(_)) => json!({log: value}),
        _ => json!({log: line}),
    }
}

fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        if !is_log {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        if path.file_stem().is_none_or(|name| name != "bootstrap") {
            files.push((path, text));
        } else {
            // What the proxy says of itself is not compared, what it logs there of requests is.
            let lines = text.split_inclusive('\n');
            let logged = lines.filter(|line| line.starts_with("access: ")).collect();
            files.push((path.with_file_name("stdout"), logged));
        }
    }
    files.sort();
    Ok(files)
}
