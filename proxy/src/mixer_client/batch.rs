//! Reports that wait to be sent together: encoded at once, sent when there are enough of them or the first has waited long
//! enough. While Mixer is away batches wait and are tried again; beyond a bound in number and size they are dropped and
//! counted. Requests never wait for it.

use std::rc::Rc;
use std::time::Duration;

use prost::Message as _;
use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;
use proto::istio::mixer::v1::{CompressedAttributes, ReportRequest};
use proto_component::drain::Drain;
use proto_mesh::attribute::codec::Encoder;
use proto_mesh::attribute::{Attributes, dictionary};

use super::Client;

/// Batches that may be on their way, those that wait for Mixer to come back included; more are dropped.
const MAX_IN_FLIGHT: usize = 64;
/// And their size in bytes, for each worker.
const MAX_BYTES: usize = 4 << 20;
/// What is left at the end is sent this soon.
const LAST_TIME: Duration = Duration::from_millis(50);

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    encoder: Encoder,
    words: usize,
    entries: Vec<CompressedAttributes>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self::for_words(dictionary::WORDS.len())
    }

    fn for_words(words: usize) -> Self {
        Self {
            encoder: Encoder::new(words),
            words,
            entries: Vec::new(),
        }
    }

    /// Adds an entry for a server that knows `words`; how many there are now.
    pub(super) fn add(&mut self, attributes: &Attributes, words: usize) -> usize {
        if self.entries.is_empty() && self.words != words {
            *self = Self::for_words(words);
        }
        let entry = self.encoder.encode(
            attributes
                .iter()
                .map(|(name, value)| (name, value.as_ref())),
        );
        self.entries.push(entry);
        self.entries.len()
    }

    /// Everything so far as a request.
    fn take(&mut self) -> Option<ReportRequest> {
        if self.entries.is_empty() {
            return None;
        }
        let batch = std::mem::replace(self, Self::for_words(self.words));
        Some(ReportRequest {
            attributes: batch.entries,
            default_words: batch.encoder.into_words(),
            global_word_count: u32::try_from(batch.words).unwrap_or(u32::MAX),
            repeated_attributes_semantics: RepeatedAttributesSemantics::IndependentEncoding.into(),
        })
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
        let Some(request) = self.batch.borrow_mut().take() else {
            return;
        };
        let entries = request.attributes.len();
        let message = request.encode_to_vec();
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
