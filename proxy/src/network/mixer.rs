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
use proto_mesh::attribute::{Attributes, Value};
use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::oneshot, time::Instant};

const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const MIN_REPORT_INTERVAL: Duration = Duration::from_secs(1);

struct MixerConfig {
    transport: Arc<Transport>,
    attributes: Attributes,
    own: Attributes,
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
    attributes: Arc<Attributes>,
    info: Rc<ConnectionInfo>,
    begun: Instant,
    /// Bytes in and out at the last `continue`. QUIRK: no other report moves it.
    base: (u64, u64),
    outcome: Option<Outcome>,
}

/// Checks the filter's configuration.
pub(super) fn build(any: &Any, context: &FactoryContext<'_>) -> Result<Filter, Invalid> {
    let config: wire::TcpClientConfig = crate::http::filter::unpack(any)?;
    let attributes = config::attributes(config.mixer_attributes.as_ref());
    let is_outbound = attributes.get_string("context.reporter.kind") == Some("outbound");
    let quotas = config
        .connection_quota_spec
        .as_ref()
        .map(QuotaSpec::try_from);
    let interval =
        config::duration(config.report_interval.as_ref(), REPORT_INTERVAL).at("report_interval")?;
    Ok(Filter::Passing(Arc::new(MixerConfig {
        transport: config::transport(config.transport.as_ref())?,
        own: mixer::own_attributes(&context.server.node, is_outbound),
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
                attributes: Arc::new(self.describe(&connection.info)),
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
        let attributes = reports.attributes.clone();
        let quotas = self
            .quotas
            .iter()
            .flat_map(|spec| spec.requirements(&attributes))
            .collect();
        match reports
            .client
            .check(attributes.clone(), quotas, &self.transport.fail_policy)
        {
            Check::Done(outcome) => outcome,
            Check::Wait(answer) => answer.await,
        }
    }

    fn describe(&self, info: &ConnectionInfo) -> Attributes {
        let mut attributes = self.own.clone();
        attributes.merge(&self.attributes);
        let remote = mixer::ip_bytes(info.remote_address.ip());
        attributes.set("source.ip", Value::Bytes(remote.clone()));
        attributes.set("origin.ip", Value::Bytes(remote));
        mixer::add_connection(&mut attributes, info);
        attributes.set("context.protocol", "tcp");
        attributes.set("context.time", now());
        attributes.set("connection.id", format!("{}-{}", self.id, info.id));
        attributes
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
        self.report("close", |reports, attributes| {
            attributes.set(
                "connection.duration",
                mixer::duration(reports.begun.elapsed()),
            );
            mixer::add_outcome(attributes, reports.outcome.as_ref());
        });
    }

    fn report(&self, event: &'static str, add: impl FnOnce(&Self, &mut Attributes)) {
        let mut attributes = Attributes::clone(&self.attributes);
        let (received, sent) = (self.info.meter.received(), self.info.meter.sent());
        attributes.set("context.time", now());
        attributes.set("connection.event", event);
        attributes.set(
            "connection.received.bytes",
            count(received.saturating_sub(self.base.0)),
        );
        attributes.set("connection.received.bytes_total", count(received));
        attributes.set(
            "connection.sent.bytes",
            count(sent.saturating_sub(self.base.1)),
        );
        attributes.set("connection.sent.bytes_total", count(sent));
        if self.info.is_local_restored {
            mixer::add_destination(&mut attributes, self.info.local_address);
        }
        add(self, &mut attributes);
        self.client.report(&attributes);
    }
}

fn now() -> Value {
    Value::Timestamp(Timestamp::from(SystemTime::now()))
}
