//! MySQL: looks at the protocol as it passes, counts, and says which tables a connection touches and how. Nothing is changed or
//! held up; behind a switch to TLS nothing is seen any more.

mod statement;

use super::{FactoryContext, Filter, NetworkFilter, Verdict, frames::Frames};
use crate::{
    invalid::Invalid, listener::Connection, stat_group, stream_info::DynamicMetadata,
    transport::Tap,
};
use futures::future::{FutureExt as _, LocalBoxFuture};
use parking_lot::Mutex;
use prost_types::{Any, ListValue, Struct, Value, value::Kind};
use proto::envoy::extensions::filters::network::mysql_proxy::v3::MySqlProxy as Wire;
use std::sync::Arc;

const NAMESPACE: &str = "envoy.filters.network.mysql_proxy";
/// The client's wish for TLS, among its capabilities.
const CLIENT_SSL: u32 = 0x0800;
/// The length of the packet that asks for TLS.
const SSL_REQUEST: usize = 32;
const COM_INIT_DB: u8 = 2;
const COM_QUERY: u8 = 3;

stat_group! {
    /// `mysql.<stat_prefix>.…`
    pub(crate) struct MySqlStats {
        auth_switch_request: Counter, decoder_errors: Counter, login_attempts: Counter, login_failures: Counter,
        protocol_errors: Counter, queries_parse_error: Counter, queries_parsed: Counter, sessions: Counter,
        upgraded_to_ssl: Counter,
    }
}

struct MySqlProxy(Arc<MySqlStats>);

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The server greets.
    Greeting,
    /// The client says who it is.
    Login,
    /// The server says whether it believes it.
    Answer,
    /// The server wants to know more.
    More,
    /// Commands and their results.
    Commands,
    /// Not understood, or not readable.
    Blind,
}

/// One session.
struct Session {
    state: State,
    stats: Arc<MySqlStats>,
    database: Option<String>,
    from_client: Frames,
    from_server: Frames,
    seen: Arc<Mutex<DynamicMetadata>>,
}

/// Builds the filter.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let wire: Wire = proto::any::unpack(any)?;
    if wire.stat_prefix.is_empty() {
        return Err(Invalid::new("it is needed").at("stat_prefix"));
    }
    if !wire.access_log.is_empty() {
        return Err(Invalid::new("not supported").at("access_log"));
    }
    Ok(Filter::Passing(Arc::new(MySqlProxy(
        context
            .stats
            .scope("mysql")
            .tagged("", "envoy.mysql_prefix", &wire.stat_prefix)
            .group(),
    ))))
}

impl NetworkFilter for MySqlProxy {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        self.0.sessions.inc();
        let session = Session::new(self.0.clone(), connection.info.seen.clone());
        connection.stream.add_tap(Box::new(session));
        std::future::ready(Verdict::Continue).boxed_local()
    }
}

/// The length of the packet at the front, header included.
fn length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..4)?;
    Some(4 + (usize::from(header[0]) | usize::from(header[1]) << 8 | usize::from(header[2]) << 16))
}

impl Tap for Session {
    fn on_read(&mut self, bytes: &[u8]) {
        if self.state == State::Blind {
            return;
        }
        let mut frames = std::mem::take(&mut self.from_client);
        let is_kept = frames.feed(bytes, length, |packet| self.client_says(packet));
        self.keep(is_kept);
        self.from_client = frames;
    }

    fn on_write(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Blind | State::Commands) {
            return;
        }
        let mut frames = std::mem::take(&mut self.from_server);
        let is_kept = frames.feed(bytes, length, |packet| self.server_says(packet));
        self.keep(is_kept);
        self.from_server = frames;
    }
}

impl Session {
    fn new(stats: Arc<MySqlStats>, seen: Arc<Mutex<DynamicMetadata>>) -> Self {
        Self {
            state: State::Greeting,
            stats,
            database: None,
            from_client: Frames::default(),
            from_server: Frames::default(),
            seen,
        }
    }

    fn keep(&mut self, is_kept: bool) {
        if !is_kept {
            self.stats.decoder_errors.inc();
            self.state = State::Blind;
        }
    }

    fn server_says(&mut self, packet: &[u8]) {
        let (sequence, kind) = (packet[3], packet.get(4).copied());
        match (self.state, kind) {
            (State::Greeting, Some(10)) if sequence == 0 => self.state = State::Login,
            (State::Greeting, _) => self.protocol_error(),
            (State::Answer | State::More, Some(0x00)) => self.state = State::Commands,
            (State::Answer | State::More, Some(0x01)) => self.state = State::More,
            (State::Answer | State::More, Some(0xfe)) => {
                self.stats.auth_switch_request.inc();
                self.state = State::More;
            }
            (State::Answer | State::More, Some(0xff)) => {
                self.stats.login_failures.inc();
                self.state = State::Blind;
            }
            (State::Answer | State::More, _) => self.protocol_error(),
            (State::Login | State::Commands | State::Blind, _) => {}
        }
    }

    fn client_says(&mut self, packet: &[u8]) {
        let body = &packet[4..];
        match self.state {
            State::Login => {
                let capabilities = body
                    .get(..4)
                    .map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
                match capabilities {
                    None => self.protocol_error(),
                    Some(wanted) if wanted & CLIENT_SSL != 0 && body.len() == SSL_REQUEST => {
                        self.stats.upgraded_to_ssl.inc();
                        self.state = State::Blind;
                    }
                    Some(_) => {
                        self.stats.login_attempts.inc();
                        self.state = State::Answer;
                    }
                }
            }
            State::Commands => self.command(body),
            State::Greeting => self.protocol_error(),
            State::Answer | State::More | State::Blind => {}
        }
    }

    fn command(&mut self, body: &[u8]) {
        match body.split_first() {
            Some((&COM_INIT_DB, name)) => {
                self.database = Some(String::from_utf8_lossy(name).into_owned());
            }
            Some((&COM_QUERY, text)) => {
                let text = String::from_utf8_lossy(text);
                match statement::parse(&text) {
                    Some(tables) => {
                        self.stats.queries_parsed.inc();
                        self.note(&tables);
                    }
                    None => self.stats.queries_parse_error.inc(),
                }
            }
            _ => {}
        }
    }

    /// Leaves the tables with what is done to them, the latest statement's only.
    fn note(&self, tables: &statement::Tables) {
        let mut fields = Struct::default();
        for (table, operations) in tables {
            let name = match (&self.database, table.contains('.')) {
                (Some(database), false) => format!("{table}.{database}"),
                _ => table.clone(),
            };
            let values = operations.iter().map(|operation| Value {
                kind: Some(Kind::StringValue((*operation).to_owned())),
            });
            let list = ListValue {
                values: values.collect(),
            };
            fields.fields.insert(
                name,
                Value {
                    kind: Some(Kind::ListValue(list)),
                },
            );
        }
        self.seen.lock().merge(NAMESPACE, fields);
    }

    fn protocol_error(&mut self) {
        self.stats.protocol_errors.inc();
        self.state = State::Blind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(sequence: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        [&length[..3], &[sequence], body].concat()
    }

    fn session() -> Session {
        Session::new(Arc::default(), Arc::default())
    }

    #[test]
    fn a_session_is_followed_to_its_statements() {
        let mut session = session();
        session.on_write(&packet(0, b"\x0a8.0.0\0"));
        session.on_read(&packet(1, &[0x05, 0xa6, 0, 0, 1, 2, 3]));
        session.on_write(&packet(2, b"\xfemysql_native_password\0"));
        session.on_read(&packet(3, b"scrambled"));
        session.on_write(&packet(4, &[0, 0, 0, 2, 0, 0, 0]));
        assert_eq!(session.state, State::Commands);
        session.on_read(&packet(0, b"\x02shop"));
        let query = packet(0, b"\x03select * from orders join people on a = b");
        for byte in &query {
            session.on_read(std::slice::from_ref(byte));
        }
        session.on_read(&packet(0, b"\x03what is this"));
        let stats = &session.stats;
        assert_eq!(stats.login_attempts.value(), 1);
        assert_eq!(stats.auth_switch_request.value(), 1);
        assert_eq!(stats.queries_parsed.value(), 1);
        assert_eq!(stats.queries_parse_error.value(), 1);
        let seen = session.seen.lock();
        let tables: Vec<_> = seen.get(NAMESPACE).unwrap().fields.keys().collect();
        assert_eq!(tables, ["orders.shop", "people.shop"]);
    }

    #[test]
    fn failures_and_tls_are_counted_and_end_the_looking() {
        let mut failed = session();
        failed.on_write(&packet(0, b"\x0a8.0.0\0"));
        failed.on_read(&packet(1, &[0, 0, 0, 0, 0]));
        failed.on_write(&packet(2, b"\xff\x15\x04no"));
        assert_eq!(failed.stats.login_failures.value(), 1);
        let mut secret = session();
        secret.on_write(&packet(0, b"\x0a8.0.0\0"));
        let mut ask = [0; SSL_REQUEST];
        ask[1] = 0x08;
        secret.on_read(&packet(1, &ask));
        secret.on_read(b"\x16\x03\x01");
        assert_eq!(secret.stats.upgraded_to_ssl.value(), 1);
        assert_eq!(secret.stats.decoder_errors.value(), 0);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(pieces in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..80)), 0..20)) {
            let mut session = session();
            for (is_client, bytes) in pieces {
                if is_client { session.on_read(&bytes) } else { session.on_write(&bytes) }
            }
        }
    }

    #[test]
    fn fuzz_mysql() {
        crate::fuzz::fuzz("mysql", |bytes| {
            let mut session = session();
            // The two sides take turns at every "|".
            for (index, piece) in bytes.split(|byte| *byte == b'|').enumerate() {
                if index % 2 == 0 {
                    session.on_write(piece);
                } else {
                    session.on_read(piece);
                }
            }
            statement::parse(&String::from_utf8_lossy(bytes));
        });
    }
}
