//! The Mixer filter for TCP: asks whether a connection may be served, and reports its opening, its going on and its end.
//!
//! The check is made when the connection's transport is up; the 1.4 line waited for the client's first bytes, which only a
//! filter that reads can.

use super::{Connection, FactoryContext, Filter, NetworkFilter, Verdict};
use crate::{
    http::filter::mixer::{self, count},
    invalid::{At as _, Invalid},
    listener::ConnectionInfo,
    mixer_client::{
        Check, Client, FilterKind, Outcome,
        config::{self, Transport},
        quota_spec::QuotaSpec,
    },
};
use futures::future::LocalBoxFuture;
use prost_types::{Any, Timestamp};
use proto::istio::mixer::v1::config::client as wire;
use proto_mesh::attribute::{Attributes, Known, ValueRef, record::Record};
use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::oneshot, time::Instant};

const DURATION: Known = Known::new("connection.duration");
const EVENT: Known = Known::new("connection.event");
const ID: Known = Known::new("connection.id");
const PROTOCOL: Known = Known::new("context.protocol");
const RECEIVED: Known = Known::new("connection.received.bytes");
const RECEIVED_TOTAL: Known = Known::new("connection.received.bytes_total");
const SENT: Known = Known::new("connection.sent.bytes");
const SENT_TOTAL: Known = Known::new("connection.sent.bytes_total");
const TIME: Known = Known::new("context.time");

const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const MIN_REPORT_INTERVAL: Duration = Duration::from_secs(1);

struct MixerConfig {
    transport: Arc<Transport>,
    attributes: Attributes,
    is_checked: bool,
    is_reported: bool,
    quotas: Option<QuotaSpec>,
    interval: Duration,
    /// Makes connection ids unique over processes.
    id: uuid::Uuid,
}

/// One connection's reports.
struct Reports {
    client: Rc<Client>,
    record: Rc<Record>,
    info: Rc<ConnectionInfo>,
    begun: Instant,
    /// Bytes in and out at the last `continue`. QUIRK: no other report moves it.
    base: (u64, u64),
    outcome: Option<Outcome>,
}

/// Checks the filter's configuration.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let config: wire::TcpClientConfig = crate::http::filter::unpack(any)?;
    let configured = config::attributes(config.mixer_attributes.as_ref());
    let is_outbound = configured.get_string("context.reporter.kind") == Some("outbound");
    let mut attributes = mixer::own_attributes(&context.server.node, is_outbound);
    attributes.merge(&configured);
    let quotas = config
        .connection_quota_spec
        .as_ref()
        .map(QuotaSpec::try_from);
    let interval =
        config::duration(config.report_interval.as_ref(), REPORT_INTERVAL).at("report_interval")?;
    Ok(Filter::Passing(Arc::new(MixerConfig {
        transport: config::transport(config.transport.as_ref())?,
        attributes,
        is_checked: !config.disable_check_calls,
        is_reported: !config.disable_report_calls,
        quotas: quotas.transpose().at("connection_quota_spec")?,
        interval: interval.max(MIN_REPORT_INTERVAL),
        id: uuid::Uuid::new_v4(),
    })))
}

impl NetworkFilter for MixerConfig {
    fn on_new_connection<'a>(
        &'a self,
        connection: &'a mut Connection,
    ) -> LocalBoxFuture<'a, Verdict> {
        Box::pin(async move {
            let client = Client::of(&connection.worker, &self.transport, FilterKind::Tcp);
            let mut reports = Reports {
                record: Rc::new(self.describe(&connection.info, &client)),
                client,
                info: connection.info.clone(),
                begun: Instant::now(),
                base: (0, 0),
                outcome: None,
            };
            if self.is_checked {
                let outcome = self.check(&reports).await;
                let is_ok = outcome.is_ok();
                reports.outcome = Some(outcome);
                if !is_ok {
                    if self.is_reported {
                        reports.close();
                    }
                    return Verdict::Close;
                }
            }
            if self.is_reported {
                let (guard, over) = oneshot::channel::<()>();
                connection.watchers.push(Box::new(guard));
                tokio::task::spawn_local(reports.run(self.interval, over));
            }
            Verdict::Continue
        })
    }
}

impl MixerConfig {
    async fn check(&self, reports: &Reports) -> Outcome {
        let record = &reports.record;
        let quotas = self.quotas.iter();
        let quotas = quotas.flat_map(|spec| spec.requirements(record)).collect();
        let policy = &self.transport.fail_policy;
        match reports.client.check(record, quotas, policy) {
            Check::Done(outcome) => outcome,
            Check::Wait(answer) => answer.await,
        }
    }

    fn describe(&self, info: &ConnectionInfo, client: &Client) -> Record {
        let mut record = Record::new(client.base(&self.attributes));
        for name in ["source.ip", "origin.ip"] {
            mixer::set_ip(&mut record, name, info.remote_address.ip());
        }
        mixer::add_connection(&mut record, info);
        record.set_text(PROTOCOL, "tcp");
        record.set(TIME, now());
        record.set_text(ID, &format!("{}-{}", self.id, info.id));
        record
    }
}

impl Reports {
    /// Until the connection is over.
    async fn run(mut self, interval: Duration, mut over: oneshot::Receiver<()>) {
        self.report("open", |_, _| {});
        loop {
            tokio::select! {
                _ = &mut over => break,
                () = tokio::time::sleep(interval) => {
                    self.report("continue", |_, _| {});
                    self.base = (self.info.meter.received(), self.info.meter.sent());
                }
            }
        }
        self.close();
    }

    fn close(&self) {
        self.report("close", |reports, record| {
            record.set(DURATION, mixer::duration(reports.begun.elapsed()));
            mixer::add_outcome(record, reports.outcome.as_ref());
        });
    }

    fn report(&self, event: &'static str, add: impl FnOnce(&Self, &mut Record)) {
        let mut record = Record::clone(&self.record);
        let (received, sent) = (self.info.meter.received(), self.info.meter.sent());
        record.set(TIME, now());
        record.set_text(EVENT, event);
        record.set(RECEIVED, count(received.saturating_sub(self.base.0)));
        record.set(RECEIVED_TOTAL, count(received));
        record.set(SENT, count(sent.saturating_sub(self.base.1)));
        record.set(SENT_TOTAL, count(sent));
        if self.info.is_local_restored {
            mixer::add_destination(&mut record, self.info.local_address);
        }
        add(self, &mut record);
        self.client.report(&record);
    }
}

fn now() -> ValueRef<'static> {
    ValueRef::Timestamp(Timestamp::from(SystemTime::now()))
}
