//! A span of a trace as collectors want it, from an instance of `tracespan`.
//!
//! QUIRK: with `rewriteClientSpanId` client and server share a span id; the client's is then changed by a fixed pad, and the
//! server's span has the changed one as its parent.

use std::net::IpAddr;

use prost_types::Timestamp;

use super::AdapterError;
use crate::lang::Val;
use crate::template::{Payload, Values};

const PAD: u64 = 0x3f6a_2ec3_c810_c2ab;

/// A span.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) trace_id: u128,
    /// As it was written: 64 bits have 16 digits, 128 have 32.
    pub(super) is_long: bool,
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) name: String,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) is_client: bool,
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
    pub(super) tags: Vec<(String, String)>,
}

/// One end of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Endpoint {
    pub(super) name: String,
    pub(super) ip: Option<IpAddr>,
}

impl Span {
    /// From an instance; none where its ids are none.
    pub(super) fn read(instance: &Values<'_>) -> Result<Option<Self>, AdapterError> {
        let Payload::Record(record) = &instance.payload else {
            return Err(AdapterError::unsupported());
        };
        let trace = record.text("trace_id");
        let Some(trace_id) = hex(&trace, 32) else {
            return Ok(None);
        };
        let Some(id) = hex(&record.text("span_id"), 16).and_then(|id| u64::try_from(id).ok())
        else {
            return Ok(None);
        };
        let parent = hex(&record.text("parent_span_id"), 16).and_then(|id| u64::try_from(id).ok());
        let is_client = record.flag("client_span");
        let (id, parent) = match (record.flag("rewrite_client_span_id"), is_client) {
            (false, _) => (id, parent),
            (true, true) => (id ^ PAD, parent),
            (true, false) => (id, Some(id ^ PAD)),
        };
        let time = |name: &str| match record.get(name) {
            Some(Val::Timestamp(time)) => nanos(*time),
            _ => 0,
        };
        let endpoint = |name: &str, ip: &str| Endpoint {
            name: record.text(name).into_owned(),
            ip: match record.get(ip) {
                Some(Val::Ip(ip)) if !ip.is_unspecified() => Some(*ip),
                _ => None,
            },
        };
        let tags = record.map("span_tags").iter();
        let mut tags: Vec<_> = tags
            .map(|(name, value)| ((*name).to_owned(), value.to_text().into_owned()))
            .collect();
        for (field, tag) in [
            ("http_status_code", "http.status_code"),
            ("request_size", "request.size"),
            ("request_total_size", "request.total_size"),
            ("response_size", "response.size"),
            ("response_total_size", "response.total_size"),
            ("api_protocol", "api.protocol"),
        ] {
            let text = record.text(field);
            if !text.is_empty() && text != "0" && !tags.iter().any(|(name, _)| name == tag) {
                tags.push((tag.to_owned(), text.into_owned()));
            }
        }
        Ok(Some(Self {
            trace_id,
            is_long: trace.len() > 16,
            id,
            parent,
            name: record.text("span_name").into_owned(),
            start: time("start_time"),
            end: time("end_time"),
            is_client,
            source: endpoint("source_name", "source_ip"),
            destination: endpoint("destination_name", "destination_ip"),
            tags,
        }))
    }

    /// The end that reports the span, and the other one.
    pub(super) fn ends(&self) -> (&Endpoint, &Endpoint) {
        if self.is_client {
            (&self.source, &self.destination)
        } else {
            (&self.destination, &self.source)
        }
    }

    /// Whether it belongs to this share of all traces. The trace's id decides, so that all its spans agree.
    pub(super) fn is_sampled(&self, probability: f64) -> bool {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of all ids; its last bits do not matter"
        )]
        let limit = (probability.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        #[allow(clippy::cast_possible_truncation, reason = "the low half of the id")]
        let low = self.trace_id as u64;
        // Ids may be counted up; a multiplication spreads them.
        probability > 0.0 && low.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= limit
    }
}

/// Hexadecimal digits, at least one, at most `most`; zero is no id.
fn hex(text: &str, most: usize) -> Option<u128> {
    if text.is_empty() || text.len() > most {
        return None;
    }
    u128::from_str_radix(text, 16).ok().filter(|id| *id != 0)
}

fn nanos(time: Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let nanos = u64::try_from(time.nanos).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::template::RecordValues;

    pub(in crate::adapter) fn instance(is_client: bool, rewrites: bool) -> Values<'static> {
        let text = |text: &'static str| Val::String(text.into());
        let time = |seconds| Val::Timestamp(Timestamp { seconds, nanos: 5 });
        let fields = vec![
            ("trace_id", text("463ac35c9f6413ad48485a3953bb6124")),
            ("span_id", text("a2fb4a1d1a96d312")),
            ("parent_span_id", text("0020000000000001")),
            ("span_name", text("reviews")),
            ("client_span", Val::Bool(is_client)),
            ("rewrite_client_span_id", Val::Bool(rewrites)),
            ("start_time", time(1)),
            ("end_time", time(2)),
            ("source_name", text("productpage")),
            ("destination_name", text("reviews")),
            ("destination_ip", Val::Ip([10, 0, 0, 2].into())),
            ("http_status_code", Val::Int64(200)),
        ];
        Values {
            name: "span.instance.ns",
            payload: Payload::Record(RecordValues::for_test(
                fields,
                vec![("span_tags", vec![("n", Val::Int64(1))])],
            )),
        }
    }

    #[test]
    fn client_and_server_are_told_apart() {
        let plain = Span::read(&instance(true, false)).unwrap().unwrap();
        assert_eq!(plain.id, 0xa2fb_4a1d_1a96_d312);
        assert_eq!(plain.ends().0.name, "productpage");
        assert_eq!(plain.end - plain.start, 1_000_000_000);
        let client = Span::read(&instance(true, true)).unwrap().unwrap();
        let server = Span::read(&instance(false, true)).unwrap().unwrap();
        assert_ne!(client.id, plain.id);
        assert_eq!(server.id, plain.id);
        assert_eq!(server.parent, Some(client.id));
        assert_eq!(server.ends().0.name, "reviews");
        assert!(
            plain
                .tags
                .contains(&("http.status_code".into(), "200".into()))
        );
        assert!(plain.is_sampled(1.0) && !plain.is_sampled(0.0));
    }

    #[test]
    fn what_has_no_ids_is_no_span() {
        for (trace, span) in [("", "1"), ("1", ""), ("x", "1"), ("0", "1")] {
            let fields = vec![
                ("trace_id", Val::String(trace.into())),
                ("span_id", Val::String(span.into())),
            ];
            let values = Values {
                name: "n",
                payload: Payload::Record(RecordValues::for_test(fields, Vec::new())),
            };
            assert_eq!(Span::read(&values).unwrap(), None, "{trace:?} {span:?}");
        }
    }
}
