//! MongoDB: looks at the messages as they pass, counts, and says which collections a connection touches and how. Nothing is
//! changed or held up.
//!
//! QUIRK: as in Envoy, messages of an unknown kind (`OP_MSG` among them) are a decoding error and end the looking.

mod bson;

use super::{FactoryContext, Filter, NetworkFilter, Verdict, frames::Frames};
use crate::{
    invalid::Invalid,
    listener::Connection,
    stat_group,
    stats::{Counter, Scope},
    stream_info::DynamicMetadata,
    transport::Tap,
};
use bson::Document;
use futures::future::{FutureExt as _, LocalBoxFuture};
use parking_lot::{Mutex, RwLock};
use prost_types::{Any, ListValue, Struct, Value, value::Kind};
use proto::envoy::extensions::filters::network::mongo_proxy::v3::MongoProxy as Wire;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

const NAMESPACE: &str = "envoy.filters.network.mongo_proxy";
/// Queries without an answer that are remembered for a connection.
const MOST_ACTIVE: usize = 4096;
/// Collections and commands that are counted by name.
const MOST_NAMES: usize = 1024;

stat_group! {
    /// `mongo.<stat_prefix>.…`
    pub(crate) struct MongoStats {
        cx_destroy_local_with_active_rq: Counter, cx_destroy_remote_with_active_rq: Counter, cx_drain_close: Counter,
        decoding_error: Counter, delays_injected: Counter, op_command: Counter, op_command_reply: Counter,
        op_get_more: Counter, op_insert: Counter, op_kill_cursors: Counter, op_query: Counter, op_query_active: Gauge,
        op_query_await_data: Counter, op_query_exhaust: Counter, op_query_multi_get: Counter,
        op_query_no_cursor_timeout: Counter, op_query_no_max_time: Counter, op_query_scatter_get: Counter,
        op_query_tailable_cursor: Counter, op_reply: Counter, op_reply_cursor_not_found: Counter,
        op_reply_query_failure: Counter, op_reply_valid_cursor: Counter,
    }
}

struct MongoProxy {
    stats: Arc<MongoStats>,
    named: Named,
    commands: HashSet<String>,
    emits_metadata: bool,
}

/// Counters whose names the traffic decides.
struct Named {
    scope: Scope,
    counters: RwLock<HashMap<String, Arc<Counter>>>,
}

/// One connection.
struct Session {
    proxy: Arc<MongoProxy>,
    from_client: Frames,
    from_server: Frames,
    /// Queries that wait for their answer.
    active: HashSet<i32>,
    is_blind: bool,
    seen: Arc<Mutex<DynamicMetadata>>,
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    for (is_set, field) in [
        (wire.delay.is_some(), "delay"),
        (!wire.access_log.is_empty(), "access_log"),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    let scope = context
        .stats
        .scope("mongo")
        .tagged("", "envoy.mongo_prefix", &wire.stat_prefix);
    let usual = ["delete", "insert", "update"].map(str::to_owned);
    let proxy = Arc::new(MongoProxy {
        stats: scope.group(),
        named: Named {
            scope,
            counters: RwLock::default(),
        },
        commands: if wire.commands.is_empty() {
            usual.into()
        } else {
            wire.commands.into_iter().collect()
        },
        emits_metadata: wire.emit_dynamic_metadata,
    });
    Ok(Filter::Passing(Arc::new(Watching(proxy))))
}

/// The filter, in front of what its sessions share.
struct Watching(Arc<MongoProxy>);

impl NetworkFilter for Watching {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        let session = Session::new(self.0.clone(), connection.info.seen.clone());
        connection.stream.add_tap(Box::new(session));
        std::future::ready(Verdict::Continue).boxed_local()
    }
}

impl Named {
    fn count(&self, name: &str) {
        if let Some(known) = self.counters.read().get(name) {
            known.inc();
            return;
        }
        let mut counters = self.counters.write();
        // Names come from outside: there is an end to them.
        if counters.len() < MOST_NAMES {
            let counter = self.scope.counter(name);
            counter.inc();
            counters.insert(name.to_owned(), counter);
        }
    }
}

/// The length of the message at the front; 0 for nonsense.
fn length(bytes: &[u8]) -> Option<usize> {
    let length = i32_at(bytes, 0)?;
    Some(
        usize::try_from(length)
            .ok()
            .filter(|length| *length >= 16)
            .unwrap_or(0),
    )
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    let four = bytes.get(at..at + 4)?;
    Some(i32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

/// The text that ends with a zero byte at `at`, and where it goes on behind it.
fn text_at(bytes: &[u8], at: usize) -> Option<(&str, usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&rest[..end]).ok()?, at + end + 1))
}

impl Tap for Session {
    fn on_read(&mut self, bytes: &[u8]) {
        if !self.is_blind {
            let mut frames = std::mem::take(&mut self.from_client);
            let mut is_read = true;
            let is_framed = frames.feed(bytes, length, |message| {
                is_read &= self.message(message).is_some();
            });
            self.from_client = frames;
            self.keep(is_framed && is_read);
        }
    }

    fn on_write(&mut self, bytes: &[u8]) {
        if !self.is_blind {
            let mut frames = std::mem::take(&mut self.from_server);
            let mut is_read = true;
            let is_framed = frames.feed(bytes, length, |message| {
                is_read &= self.message(message).is_some();
            });
            self.from_server = frames;
            self.keep(is_framed && is_read);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.active.is_empty() {
            self.proxy.stats.cx_destroy_remote_with_active_rq.inc();
            for _ in &self.active {
                self.proxy.stats.op_query_active.dec();
            }
        }
    }
}

impl Session {
    fn new(proxy: Arc<MongoProxy>, seen: Arc<Mutex<DynamicMetadata>>) -> Self {
        Self {
            proxy,
            from_client: Frames::default(),
            from_server: Frames::default(),
            active: HashSet::new(),
            is_blind: false,
            seen,
        }
    }

    fn keep(&mut self, is_read: bool) {
        if !is_read {
            self.proxy.stats.decoding_error.inc();
            self.is_blind = true;
        }
    }

    /// Counts a message; none when it cannot be read.
    fn message(&mut self, message: &[u8]) -> Option<()> {
        let (id, answered, kind) = (
            i32_at(message, 4)?,
            i32_at(message, 8)?,
            i32_at(message, 12)?,
        );
        let body = &message[16..];
        let stats = &self.proxy.stats;
        match kind {
            1 => {
                stats.op_reply.inc();
                let flags = i32_at(body, 0)?;
                let cursor = body.get(4..12)?;
                if flags & 1 != 0 {
                    stats.op_reply_cursor_not_found.inc();
                }
                if flags & 2 != 0 {
                    stats.op_reply_query_failure.inc();
                }
                if cursor.iter().any(|byte| *byte != 0) {
                    stats.op_reply_valid_cursor.inc();
                }
                if self.active.remove(&answered) {
                    stats.op_query_active.dec();
                }
            }
            2002 => {
                stats.op_insert.inc();
                let (collection, _) = text_at(body, 4)?;
                self.note(collection, "insert");
            }
            2004 => self.query(id, body)?,
            2005 => stats.op_get_more.inc(),
            2007 => stats.op_kill_cursors.inc(),
            2010 => stats.op_command.inc(),
            2011 => stats.op_command_reply.inc(),
            _ => return None,
        }
        Some(())
    }

    fn query(&mut self, id: i32, body: &[u8]) -> Option<()> {
        let proxy = self.proxy.clone();
        let stats = &proxy.stats;
        let flags = i32_at(body, 0)?;
        let (collection, at) = text_at(body, 4)?;
        let query = Document::parse(body.get(at + 8..)?)?;
        stats.op_query.inc();
        for (bit, counter) in [
            (1, &stats.op_query_tailable_cursor),
            (4, &stats.op_query_no_cursor_timeout),
            (5, &stats.op_query_await_data),
            (6, &stats.op_query_exhaust),
        ] {
            if flags & (1 << bit) != 0 {
                counter.inc();
            }
        }
        if self.active.len() < MOST_ACTIVE && self.active.insert(id) {
            stats.op_query_active.inc();
        }
        if let Some(database) = collection.strip_suffix(".$cmd") {
            let inner = query.document("$query");
            let command = inner.as_ref().unwrap_or(&query).first_name()?;
            let known = proxy.commands.contains(command);
            let name = if known { command } else { "unknown_command" };
            proxy.named.count(&format!("cmd.{name}.total"));
            self.note(database, command);
            return Some(());
        }
        if !query.has("$maxTimeMS") {
            stats.op_query_no_max_time.inc();
        }
        let (_, name) = collection.split_once('.').unwrap_or(("", collection));
        let prefix = format!("collection.{name}.query");
        proxy.named.count(&format!("{prefix}.total"));
        let inner = query.document("$query");
        let asked = inner.as_ref().unwrap_or(&query);
        match asked.document("_id") {
            None if !asked.has("_id") => {
                stats.op_query_scatter_get.inc();
                proxy.named.count(&format!("{prefix}.scatter_get"));
            }
            Some(id) if id.has("$in") => {
                stats.op_query_multi_get.inc();
                proxy.named.count(&format!("{prefix}.multi_get"));
            }
            _ => {}
        }
        self.note(collection, "query");
        Some(())
    }

    /// Leaves what is done to a collection.
    fn note(&self, collection: &str, operation: &str) {
        if !self.proxy.emits_metadata {
            return;
        }
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let mut seen = self.seen.lock();
        let before = seen.get(NAMESPACE);
        let before = before.and_then(|before| before.fields.get(collection)?.kind.clone());
        let mut values = match before {
            Some(Kind::ListValue(list)) => list.values,
            _ => Vec::new(),
        };
        if values.contains(&text(operation)) {
            return;
        }
        values.push(text(operation));
        let list = Value {
            kind: Some(Kind::ListValue(ListValue { values })),
        };
        let fields = [(collection.to_owned(), list)].into();
        seen.merge(NAMESPACE, Struct { fields });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Store;
    use proptest::prelude::*;

    fn session() -> Session {
        let scope = Arc::new(Store::default()).root().scope("mongo");
        let proxy = MongoProxy {
            stats: scope.group(),
            named: Named {
                scope,
                counters: RwLock::default(),
            },
            commands: ["insert".to_owned()].into(),
            emits_metadata: true,
        };
        Session::new(Arc::new(proxy), Arc::default())
    }

    fn message(id: i32, answered: i32, kind: i32, body: &[u8]) -> Vec<u8> {
        let length = i32::try_from(body.len() + 16).unwrap();
        let head = [length, id, answered, kind].map(i32::to_le_bytes);
        [head.as_flattened(), body].concat()
    }

    fn document(elements: &[u8]) -> Vec<u8> {
        let length = i32::try_from(elements.len() + 5).unwrap();
        [&length.to_le_bytes()[..], elements, &[0]].concat()
    }

    fn query(collection: &str, elements: &[u8]) -> Vec<u8> {
        let head = [&0_i32.to_le_bytes()[..], collection.as_bytes(), &[0; 9]].concat();
        [head, document(elements)].concat()
    }

    #[test]
    fn queries_replies_and_commands_are_told_apart() {
        let mut session = session();
        let many = document(&[b"\x04$in\0".as_slice(), &document(b"")].concat());
        session.on_read(&message(
            1,
            0,
            2004,
            &query("shop.orders", b"\x10a\0\x01\0\0\0"),
        ));
        session.on_read(&message(
            2,
            0,
            2004,
            &query("shop.orders", &[b"\x03_id\0".as_slice(), &many].concat()),
        ));
        session.on_read(&message(
            3,
            0,
            2004,
            &query("shop.$cmd", b"\x02insert\0\x02\0\0\0x\0"),
        ));
        let proxy = session.proxy.clone();
        assert_eq!(proxy.stats.op_query_active.value(), 3);
        session.on_write(&message(
            9,
            1,
            1,
            &[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ));
        let stats = &proxy.stats;
        for (counter, value) in [
            (&stats.op_query, 3),
            (&stats.op_query_scatter_get, 1),
            (&stats.op_query_multi_get, 1),
            (&stats.op_query_no_max_time, 2),
            (&stats.op_reply_query_failure, 1),
            (&stats.op_reply_valid_cursor, 1),
            (&stats.decoding_error, 0),
        ] {
            assert_eq!(counter.value(), value);
        }
        assert_eq!(stats.op_query_active.value(), 2);
        let counters = proxy.named.counters.read();
        assert_eq!(counters["cmd.insert.total"].value(), 1);
        assert_eq!(counters["collection.orders.query.total"].value(), 2);
        let seen = session.seen.lock();
        assert!(
            seen.get(NAMESPACE)
                .unwrap()
                .fields
                .contains_key("shop.orders")
        );
    }

    #[test]
    fn unknown_messages_end_the_looking() {
        let mut session = session();
        session.on_read(&message(1, 0, 2013, b"\0\0\0\0"));
        session.on_read(&message(2, 0, 2005, b""));
        assert_eq!(session.proxy.stats.decoding_error.value(), 1);
        assert_eq!(session.proxy.stats.op_get_more.value(), 0);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(kind in prop_oneof![Just(1), Just(2002), Just(2004)], body in proptest::collection::vec(any::<u8>(), 0..120), raw: Vec<u8>) {
            session().on_read(&message(1, 1, kind, &body));
            session().on_write(&raw);
        }
    }

    #[test]
    fn fuzz_mongo() {
        crate::fuzz::fuzz("mongo", |bytes| {
            session().on_read(bytes);
            session().on_write(bytes);
            bson::Document::parse(bytes);
        });
    }
}
