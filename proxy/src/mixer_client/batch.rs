//! Reports that wait to be sent together: encoded at once, sent when there are enough of them or the first has waited long
//! enough. While Mixer is away batches wait and are tried again; beyond a bound in number and size they are dropped and
//! counted. Requests never wait for it.

use std::rc::Rc;
use std::time::Duration;

use proto_component::drain::Drain;
use proto_mesh::attribute::report::ReportWriter;
use proto_mesh::attribute::{Attributes, Value, dictionary};

use super::Client;

/// Batches that may be on their way, those that wait for Mixer to come back included; more are dropped.
const MAX_IN_FLIGHT: usize = 64;
/// And their size in bytes, for each worker.
const MAX_BYTES: usize = 4 << 20;
/// A batch with as many bytes of text is sent, however few entries it has: Mixer takes messages of up to 1 MiB.
const FULL_BYTES: usize = 512 << 10;
/// What is left at the end is sent this soon.
const LAST_TIME: Duration = Duration::from_millis(50);

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    entries: ReportWriter,
    /// Bytes of text in the entries, those counted twice that are sent once.
    size: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self::for_words(dictionary::WORDS.len())
    }

    fn for_words(words: usize) -> Self {
        Self {
            entries: ReportWriter::new(words),
            size: 0,
        }
    }

    /// Adds an entry for a server that knows `words`; how many there are now.
    pub(super) fn add(&mut self, attributes: &Attributes, words: usize) -> usize {
        if self.entries.sets() == 0 && self.entries.global_words() != words {
            *self = Self::for_words(words);
        }
        let entries = attributes.iter();
        self.entries
            .add(entries.map(|(name, value)| (name, value.as_ref())));
        self.size += attributes
            .iter()
            .map(|(_, value)| text_size(value))
            .sum::<usize>();
        self.entries.sets()
    }

    /// Whether no more text should go into it.
    pub(super) fn is_large(&self) -> bool {
        self.size >= FULL_BYTES
    }

    /// Everything so far: how many entries, and the request.
    fn take(&mut self) -> Option<(usize, Vec<u8>)> {
        let entries = self.entries.sets();
        self.size = 0;
        (entries > 0).then(|| (entries, self.entries.take()))
    }
}

fn text_size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::StringMap(map) => map.iter().map(|(key, value)| key.len() + value.len()).sum(),
        Value::Int64(_)
        | Value::Double(_)
        | Value::Bool(_)
        | Value::Timestamp(_)
        | Value::Duration(_) => 0,
    }
}

/// Starts the sending of a client's batches. The task ends with the worker, or when the client is
/// closed.
pub(super) fn start(client: &Rc<Client>, drain: &Drain) {
    let (client, drain) = (client.clone(), drain.clone());
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                () = client.full.notified() => {}
                () = client.begun.notified() => wait(&client, &drain).await,
            }
            client.flush();
            if client.is_closed.get() {
                return;
            }
        }
    });
}

/// Until the batch is full or old enough.
async fn wait(client: &Client, drain: &Drain) {
    let patience = if drain.is_draining() {
        LAST_TIME
    } else {
        client.transport.batch_time
    };
    tokio::select! {
        () = tokio::time::sleep(patience) => {}
        () = client.full.notified() => {}
        () = drain.signaled(), if !drain.is_draining() => {}
    }
}

impl Client {
    /// Sends what there is, beside everything else.
    pub(super) fn flush(self: &Rc<Self>) {
        let Some((entries, message)) = self.batch.borrow_mut().take() else {
            return;
        };
        let (batches, bytes) = self.reports_in_flight.get();
        let size = message.len();
        if batches >= MAX_IN_FLIGHT || bytes + size > MAX_BYTES {
            self.stats.total_report_dropped.add(entries as u64);
            return;
        }
        self.reports_in_flight.set((batches + 1, bytes + size));
        let client = self.clone();
        tokio::task::spawn_local(async move {
            client.send_report(entries, message).await;
            let (batches, bytes) = client.reports_in_flight.get();
            client.reports_in_flight.set((batches - 1, bytes - size));
        });
    }
}
