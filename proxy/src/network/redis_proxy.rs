//! Redis: commands of many clients to the servers that own their keys, by prefix and by hash; commands on many keys are taken
//! apart and their answers put together.
//!
//! A client's commands are worked on at the same time and answered in order.

mod client;
mod command;
mod resp;
mod route;

pub(crate) use client::RedisClients;

use super::{FactoryContext, Filter, TerminalFilter};
use crate::{
    invalid::{At as _, Invalid, try_all},
    listener::Connection,
    stat_group,
    stats::{Counter, Scope},
    transport::ByteTotals,
    wire::{data_source, duration},
};
use bytes::BytesMut;
use command::Commands;
use futures::{
    future::{FutureExt as _, LocalBoxFuture},
    stream::{FuturesOrdered, StreamExt as _},
};
use prost_types::Any;
use proto::envoy::extensions::filters::network::redis_proxy::v3::{
    RedisProxy as Wire,
    redis_proxy::{ConnPoolSettings, ProtocolVersion, conn_pool_settings::ReadPolicy},
};
use resp::{Decoder, Value};
use route::Routes;
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Commands of one client that are worked on at once.
const MOST_AT_ONCE: usize = 1024;

stat_group! {
    /// `redis.<stat_prefix>.…`
    pub(crate) struct RedisStats {
        downstream_cx_active: Gauge, downstream_cx_drain_close: Counter, downstream_cx_protocol_error: Counter,
        downstream_cx_rx_bytes_buffered: Gauge, downstream_cx_rx_bytes_total: Counter, downstream_cx_total: Counter,
        downstream_cx_tx_bytes_buffered: Gauge, downstream_cx_tx_bytes_total: Counter, downstream_rq_active: Gauge,
        downstream_rq_total: Counter,
    }
}

impl ByteTotals for RedisStats {
    fn counters(&self) -> (&Counter, &Counter) {
        (
            &self.downstream_cx_rx_bytes_total,
            &self.downstream_cx_tx_bytes_total,
        )
    }
}

/// A checked configuration.
struct RedisProxy {
    commands: Arc<Commands>,
    username: Option<Vec<u8>>,
    passwords: Vec<Vec<u8>>,
    stats: Arc<RedisStats>,
}

/// Builds the filter.
#[allow(deprecated, reason = "control planes still send the one password")]
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    for (is_set, field) in [
        (!wire.faults.is_empty(), "faults"),
        (
            wire.external_auth_provider.is_some(),
            "external_auth_provider",
        ),
        (
            wire.protocol_version() != ProtocolVersion::Resp2,
            "protocol_version",
        ),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    let settings = wire.settings.as_ref();
    let settings = settings.ok_or_else(|| Invalid::new("it is needed").at("settings"))?;
    let patience = patience(settings).at("settings")?;
    let routes = wire.prefix_routes.as_ref();
    let routes = routes.ok_or_else(|| Invalid::new("it is needed").at("prefix_routes"))?;
    let mut passwords = try_all(
        "downstream_auth_passwords",
        &wire.downstream_auth_passwords,
        data_source,
    )?;
    if let Some(password) = wire
        .downstream_auth_password
        .as_ref()
        .filter(|_| passwords.is_empty())
    {
        passwords.push(data_source(password).at("downstream_auth_password")?);
    }
    passwords.retain(|password| !password.is_empty());
    let username = wire.downstream_auth_username.as_ref().map(data_source);
    let username = username.transpose().at("downstream_auth_username")?;
    let scope: Scope =
        context
            .stats
            .scope("redis")
            .tagged("", "envoy.redis_prefix", &wire.stat_prefix);
    Ok(Filter::Terminal(Arc::new(RedisProxy {
        stats: scope.group(),
        commands: Arc::new(Commands::new(
            Routes::try_from(routes).at("prefix_routes")?,
            command::Settings {
                patience,
                is_tagged: settings.enable_hashtagging,
                is_in_micros: wire.latency_in_micros,
                custom: wire
                    .custom_commands
                    .iter()
                    .map(|name| name.to_ascii_lowercase())
                    .collect(),
            },
            &scope,
        )),
        username: username.filter(|name| !name.is_empty()),
        passwords,
    })))
}

fn patience(settings: &ConnPoolSettings) -> Result<Duration, Invalid> {
    for (is_set, field) in [
        (settings.enable_redirection, "enable_redirection"),
        (
            settings.max_buffer_size_before_flush > 0,
            "max_buffer_size_before_flush",
        ),
        (settings.dns_cache_config.is_some(), "dns_cache_config"),
        (settings.enable_command_stats, "enable_command_stats"),
        (settings.read_policy() != ReadPolicy::Master, "read_policy"),
        (
            settings.connection_rate_limit.is_some(),
            "connection_rate_limit",
        ),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    let timeout = settings.op_timeout.as_ref();
    let timeout = timeout.ok_or_else(|| Invalid::new("it is needed").at("op_timeout"))?;
    duration(timeout).at("op_timeout")
}

impl TerminalFilter for RedisProxy {
    fn serve(self: Arc<Self>, mut connection: Connection) -> LocalBoxFuture<'static, ()> {
        async move {
            connection.stream.add_up_in(self.stats.clone());
            self.stats.downstream_cx_total.inc();
            self.stats.downstream_cx_active.inc();
            self.run(connection).await;
            self.stats.downstream_cx_active.dec();
        }
        .boxed_local()
    }
}

impl RedisProxy {
    async fn run(&self, mut connection: Connection) {
        let mut input = BytesMut::with_capacity(4 << 10);
        let mut decoder = Decoder::of_client();
        let mut output = BytesMut::new();
        let mut working: FuturesOrdered<LocalBoxFuture<'static, Value>> = FuturesOrdered::new();
        let mut is_known = self.passwords.is_empty() && self.username.is_none();
        // Set when the client is to hear no more after what it has asked for.
        let mut is_over = false;
        loop {
            tokio::select! {
                biased;
                answer = working.next(), if !working.is_empty() => {
                    let Some(answer) = answer else { continue };
                    answer.encode(&mut output);
                    self.stats.downstream_rq_active.dec();
                    // Whatever else is ready goes out in the same write.
                    while let Some(Some(answer)) = working.next().now_or_never() {
                        answer.encode(&mut output);
                        self.stats.downstream_rq_active.dec();
                    }
                    let sent = async {
                        connection.stream.write_all(&output).await?;
                        connection.stream.flush().await
                    };
                    // A client that does not read must not outlive the drain.
                    let is_sent = tokio::select! {
                        sent = sent => sent.is_ok(),
                        () = connection.drain.expired() => false,
                    };
                    if !is_sent {
                        break;
                    }
                    output.clear();
                    if is_over && working.is_empty() {
                        break;
                    }
                    if connection.drain.is_draining() && working.is_empty() {
                        self.stats.downstream_cx_drain_close.inc();
                        break;
                    }
                }
                count = connection.stream.read_buf(&mut input), if !is_over && working.len() < MOST_AT_ONCE => {
                    if !count.is_ok_and(|count| count > 0) {
                        break;
                    }
                    is_over = self.take(
                        &connection,
                        (&mut decoder, &mut input),
                        &mut working,
                        &mut is_known,
                    );
                }
                () = connection.drain.expired() => break,
            }
        }
        for _ in 0..working.len() {
            self.stats.downstream_rq_active.dec();
        }
        let _ = connection.stream.shutdown().await;
    }

    /// Begins work on every command that is whole; `true` when nothing more is to be read.
    fn take(
        &self,
        connection: &Connection,
        (decoder, input): (&mut Decoder, &mut BytesMut),
        working: &mut FuturesOrdered<LocalBoxFuture<'static, Value>>,
        is_known: &mut bool,
    ) -> bool {
        loop {
            let value = match decoder.decode(input) {
                Ok(Some(value)) => value,
                Ok(None) => return false,
                Err(_) => {
                    self.stats.downstream_cx_protocol_error.inc();
                    self.done(working, Value::error("downstream protocol error"));
                    return true;
                }
            };
            self.stats.downstream_rq_total.inc();
            let Some(words) = command::words(&value) else {
                self.commands.stats.invalid_request.inc();
                self.done(working, Value::error("invalid request"));
                continue;
            };
            let name = words[0].to_ascii_lowercase();
            match name.as_slice() {
                b"auth" => {
                    let answer = self.authenticate(&words);
                    *is_known |= !answer.is_error();
                    self.done(working, answer);
                }
                b"quit" => {
                    self.done(working, Value::simple("OK"));
                    return true;
                }
                _ if !*is_known => {
                    self.done(working, Value::error("NOAUTH Authentication required."));
                }
                _ => {
                    self.stats.downstream_rq_active.inc();
                    let work = self.commands.clone().work(connection.worker.clone(), words);
                    working.push_back(work.boxed_local());
                }
            }
        }
    }

    /// An answer that needs no work.
    fn done(&self, working: &mut FuturesOrdered<LocalBoxFuture<'static, Value>>, value: Value) {
        self.stats.downstream_rq_active.inc();
        working.push_back(std::future::ready(value).boxed_local());
    }

    fn authenticate(&self, words: &[bytes::Bytes]) -> Value {
        let is_right = |password: &[u8]| {
            // Compared as a whole, so that its time says nothing.
            self.passwords
                .iter()
                .fold(false, |found, known| found | (is_equal(known, password)))
        };
        match words {
            [_, password] => {
                if self.passwords.is_empty() {
                    Value::error("ERR Client sent AUTH, but no password is set")
                } else if is_right(password) && self.username.is_none() {
                    Value::simple("OK")
                } else {
                    Value::error("ERR invalid password")
                }
            }
            [_, name, password] => {
                if self.username.is_none() && self.passwords.is_empty() {
                    Value::error("ERR Client sent AUTH, but no username-password pair is set")
                } else {
                    let is_named = match &self.username {
                        Some(username) => is_equal(username, name),
                        None => name.as_ref() == b"default",
                    };
                    if is_named & is_right(password) {
                        Value::simple("OK")
                    } else {
                        Value::error("WRONGPASS invalid username-password pair")
                    }
                }
            }
            _ => {
                self.commands.stats.invalid_request.inc();
                Value::error("invalid request")
            }
        }
    }
}

/// Whether two secrets are the same, without telling by time how much of them is.
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |difference, (left, right)| difference | (left ^ right))
            == 0
}
