//! Reports that wait to be sent together: encoded at once, sent when there are enough of them or the first has waited long
//! enough. While Mixer is away batches wait and are tried again; beyond a bound in number and size they are dropped and
//! counted. Requests never wait for it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proto_component::drain::Drain;
use proto_mesh::attribute::dictionary;
use proto_mesh::attribute::record::Record;
use proto_mesh::attribute::report::ReportWriter;

use super::{Client, call};

/// Batches that may be on their way, those that wait for Mixer to come back included; more are dropped.
const MAX_IN_FLIGHT: usize = 64;
/// And their size in bytes, for each worker.
const MAX_BYTES: usize = 4 << 20;
/// A batch of as many bytes is sent, however few entries it has: Mixer takes messages of up to 1 MiB.
const FULL_BYTES: usize = 512 << 10;
/// What is left at the end is sent this soon.
const LAST_TIME: Duration = Duration::from_millis(50);

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    entries: ReportWriter,
}

impl Batch {
    pub(super) fn new() -> Self {
        let entries = ReportWriter::new(dictionary::WORDS.len());
        Self { entries }
    }

    /// Adds an entry for a server that knows `words`; how many there are now.
    pub(super) fn add(&mut self, record: &Record, words: usize) -> usize {
        if self.entries.sets() == 0 && self.entries.global_words() != words {
            self.entries = ReportWriter::new(words);
        }
        self.entries.add(record);
        self.entries.sets()
    }

    /// Whether no more should go into it.
    pub(super) fn is_large(&self) -> bool {
        self.entries.size() >= FULL_BYTES
    }

    /// Everything so far: how many entries, and the request.
    fn take(&mut self) -> Option<(usize, Bytes)> {
        let entries = self.entries.sets();
        (entries > 0).then(|| (entries, call::frame(|buffer| self.entries.take(buffer))))
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
