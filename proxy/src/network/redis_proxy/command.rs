//! Commands: which key decides, and what becomes of commands on many keys.

use super::{
    resp::Value,
    route::{Routes, hash_tag, murmur_hash},
};
use crate::{stat_group, stats::Scope, upstream::LoadBalancerContext, worker::Worker};
use bytes::Bytes;
use parking_lot::RwLock;
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

stat_group! {
    /// `redis.<stat_prefix>.splitter.…`
    pub(crate) struct SplitterStats { invalid_request: Counter, unsupported_command: Counter }
}

stat_group! {
    /// `redis.<stat_prefix>.command.<command>.…`
    pub(crate) struct CommandStats { error: Counter, latency: Histogram, success: Counter, total: Counter }
}

/// Commands whose first argument is the key.
const SIMPLE: &[&str] = &[
    "append",
    "bf.add",
    "bf.card",
    "bf.exists",
    "bf.info",
    "bf.insert",
    "bf.loadchunk",
    "bf.madd",
    "bf.mexists",
    "bf.reserve",
    "bf.scandump",
    "bitcount",
    "bitfield",
    "bitfield_ro",
    "bitpos",
    "decr",
    "decrby",
    "dump",
    "expire",
    "expireat",
    "expiretime",
    "geoadd",
    "geodist",
    "geohash",
    "geopos",
    "georadius_ro",
    "georadiusbymember_ro",
    "geosearch",
    "get",
    "getbit",
    "getdel",
    "getex",
    "getrange",
    "getset",
    "hdel",
    "hexists",
    "hget",
    "hgetall",
    "hincrby",
    "hincrbyfloat",
    "hkeys",
    "hlen",
    "hmget",
    "hmset",
    "hrandfield",
    "hscan",
    "hset",
    "hsetnx",
    "hstrlen",
    "hvals",
    "incr",
    "incrby",
    "incrbyfloat",
    "lindex",
    "linsert",
    "llen",
    "lpop",
    "lpos",
    "lpush",
    "lpushx",
    "lrange",
    "lrem",
    "lset",
    "ltrim",
    "persist",
    "pexpire",
    "pexpireat",
    "pexpiretime",
    "pfadd",
    "pfcount",
    "psetex",
    "pttl",
    "publish",
    "restore",
    "rpop",
    "rpush",
    "rpushx",
    "sadd",
    "scard",
    "set",
    "setbit",
    "setex",
    "setnx",
    "setrange",
    "sismember",
    "smembers",
    "smismember",
    "sort",
    "sort_ro",
    "spop",
    "srandmember",
    "srem",
    "sscan",
    "strlen",
    "substr",
    "ttl",
    "type",
    "xack",
    "xadd",
    "xautoclaim",
    "xclaim",
    "xdel",
    "xlen",
    "xpending",
    "xrange",
    "xrevrange",
    "xtrim",
    "zadd",
    "zcard",
    "zcount",
    "zincrby",
    "zlexcount",
    "zmscore",
    "zpopmax",
    "zpopmin",
    "zrandmember",
    "zrange",
    "zrangebylex",
    "zrangebyscore",
    "zrank",
    "zrem",
    "zremrangebylex",
    "zremrangebyrank",
    "zremrangebyscore",
    "zrevrange",
    "zrevrangebylex",
    "zrevrangebyscore",
    "zrevrank",
    "zscan",
    "zscore",
];

/// How the connections and the hashing are set.
pub(super) struct Settings {
    pub(super) patience: Duration,
    pub(super) is_tagged: bool,
    pub(super) is_in_micros: bool,
    pub(super) custom: HashSet<String>,
}

/// Everything that work on commands needs.
pub(super) struct Commands {
    routes: Routes,
    settings: Settings,
    pub(super) stats: Arc<SplitterStats>,
    scope: Scope,
    by_command: RwLock<HashMap<String, Arc<CommandStats>>>,
}

/// What kind of command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// To the owner of the key at this place.
    Key(usize),
    /// One command a key; a list of answers.
    Mget,
    /// One command a key and value; one answer for all.
    Mset,
    /// One command a key; the answers are added up.
    Sum,
    /// Answered here.
    Local,
    Unknown,
}

/// The words of a command: a list of strings with at least a name.
pub(super) fn words(value: &Value) -> Option<Vec<Bytes>> {
    let Value::Array(values) = value else {
        return None;
    };
    let words: Option<Vec<Bytes>> = values
        .iter()
        .map(|value| match value {
            Value::Bulk(bytes) => Some(bytes.clone()),
            _ => None,
        })
        .collect();
    words.filter(|words| !words.is_empty())
}

fn command(words: &[Bytes]) -> Value {
    Value::Array(words.iter().cloned().map(Value::Bulk).collect())
}

impl Commands {
    pub(super) fn new(routes: Routes, settings: Settings, scope: &Scope) -> Self {
        Self {
            routes,
            settings,
            stats: scope.scope("splitter").group(),
            scope: scope.scope("command"),
            by_command: RwLock::default(),
        }
    }

    fn kind(&self, name: &str) -> Kind {
        match name {
            "eval" | "evalsha" => Kind::Key(3),
            "object" => Kind::Key(2),
            "mget" => Kind::Mget,
            "mset" => Kind::Mset,
            "del" | "exists" | "touch" | "unlink" => Kind::Sum,
            "ping" | "echo" | "time" => Kind::Local,
            _ if SIMPLE.contains(&name) || self.settings.custom.contains(name) => Kind::Key(1),
            _ => Kind::Unknown,
        }
    }

    /// Works on one command.
    pub(super) async fn work(self: Arc<Self>, worker: Rc<Worker>, words: Vec<Bytes>) -> Value {
        let name = String::from_utf8_lossy(&words[0]).to_ascii_lowercase();
        let kind = self.kind(&name);
        if kind == Kind::Unknown {
            self.stats.unsupported_command.inc();
            let first = words.get(1).cloned().unwrap_or_default();
            return Value::error(format!(
                "ERR unknown command '{}', with args beginning with: {}",
                printable(&words[0]),
                printable(&first)
            ));
        }
        if kind == Kind::Local {
            return self.local(&name, &words);
        }
        if words.len() < 2 {
            self.stats.invalid_request.inc();
            return Value::error("invalid request");
        }
        let stats = self.stats_of(&name);
        stats.total.inc();
        let began = Instant::now();
        let answer = match kind {
            Kind::Key(at) => self.single(&worker, words, at).await,
            Kind::Mget => {
                let all = self.each(&worker, b"get", words[1..].iter().map(std::slice::from_ref));
                Value::Array(all.await)
            }
            Kind::Mset if words.len().is_multiple_of(2) => {
                self.stats.invalid_request.inc();
                wrong_count("mset")
            }
            Kind::Mset => {
                let all = self.each(&worker, b"set", words[1..].chunks(2)).await;
                let failed = all
                    .iter()
                    .filter(|one| **one != Value::simple("OK"))
                    .count();
                if failed == 0 {
                    Value::simple("OK")
                } else {
                    Value::error(format!("finished with {failed} error(s)"))
                }
            }
            Kind::Sum => {
                let name = words[0].clone();
                let all = self.each(&worker, &name, words[1..].iter().map(std::slice::from_ref));
                add_up(&all.await)
            }
            Kind::Local | Kind::Unknown => Value::error("invalid request"),
        };
        let taken = began.elapsed();
        let taken = if self.settings.is_in_micros {
            taken.as_micros()
        } else {
            taken.as_millis()
        };
        stats
            .latency
            .record(u64::try_from(taken).unwrap_or(u64::MAX));
        if answer.is_error() {
            &stats.error
        } else {
            &stats.success
        }
        .inc();
        answer
    }

    fn local(&self, name: &str, words: &[Bytes]) -> Value {
        match (name, words) {
            ("ping", _) => Value::simple("PONG"),
            ("echo", [_, text]) => Value::Bulk(text.clone()),
            ("time", [_]) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.unwrap_or_default();
                let parts = [now.as_secs(), u64::from(now.subsec_micros())];
                let parts = parts.map(|part| Value::Bulk(part.to_string().into()));
                Value::Array(parts.into())
            }
            _ => {
                self.stats.invalid_request.inc();
                wrong_count(name)
            }
        }
    }

    async fn single(&self, worker: &Rc<Worker>, mut words: Vec<Bytes>, at: usize) -> Value {
        let Some(key) = words.get(at).cloned() else {
            self.stats.invalid_request.inc();
            return wrong_count(&printable(&words[0]).to_ascii_lowercase());
        };
        let Some((route, key)) = self.routes.find(&key) else {
            return no_host();
        };
        let hash = murmur_hash(if self.settings.is_tagged {
            hash_tag(&key)
        } else {
            &key
        });
        words[at] = key;
        let Some(cluster) = worker.clusters.get(&route.cluster) else {
            return no_host();
        };
        let context = LoadBalancerContext {
            random: worker.random(),
            hash: Some(hash),
            ..LoadBalancerContext::default()
        };
        let Ok(host) = cluster.choose_host(&context) else {
            return no_host();
        };
        let patience = self.settings.patience;
        let clients = &worker.redis;
        clients
            .ask(worker, &cluster, &host, patience, command(&words))
            .await
    }

    /// The same command for every group of arguments, all at once.
    async fn each<'a>(
        &self,
        worker: &Rc<Worker>,
        name: &[u8],
        groups: impl Iterator<Item = &'a [Bytes]>,
    ) -> Vec<Value> {
        let one = |group: &[Bytes]| {
            let mut words = vec![Bytes::copy_from_slice(name)];
            words.extend_from_slice(group);
            self.single(worker, words, 1)
        };
        futures::future::join_all(groups.map(one)).await
    }

    fn stats_of(&self, name: &str) -> Arc<CommandStats> {
        if let Some(known) = self.by_command.read().get(name) {
            return known.clone();
        }
        let stats: Arc<CommandStats> = self.scope.scope(name).group();
        self.by_command
            .write()
            .insert(name.to_owned(), stats.clone());
        stats
    }
}

fn add_up(all: &[Value]) -> Value {
    let mut sum = 0_i64;
    let mut failed = 0;
    for one in all {
        match one {
            Value::Integer(number) => sum = sum.saturating_add(*number),
            _ => failed += 1,
        }
    }
    if failed == 0 {
        Value::Integer(sum)
    } else {
        Value::error(format!("finished with {failed} error(s)"))
    }
}

fn no_host() -> Value {
    Value::error("no upstream host")
}

fn wrong_count(name: &str) -> Value {
    Value::error(format!("wrong number of arguments for '{name}' command"))
}

/// Text that fits into one line of an error.
fn printable(bytes: &Bytes) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(128)]);
    text.chars().filter(|c| !c.is_control()).collect()
}
