//! `/stats`: text, JSON, Prometheus.

use super::{
    control::{resident_bytes, state_name},
    server::{Admin, Answer, Query},
};
use crate::{
    server::ServerState,
    stats::{BOUNDS, QUANTILES, Reading, Stat, Summary, Value, write_prometheus},
};
use http::StatusCode;
use regex::Regex;
use serde_json::json;
use std::fmt::Write as _;

pub(super) fn stats(admin: &Admin, query: &Query) -> Answer {
    let format = query.get("format").unwrap_or("text");
    if format == "prometheus" {
        return prometheus(admin, query);
    }
    if !matches!(format, "text" | "json" | "html" | "active-html") {
        return Answer::Status(
            StatusCode::BAD_REQUEST,
            "usage: /stats?format=(html|active-html|json|prometheus|text)\n\n".into(),
        );
    }
    let buckets = match query.get("histogram_buckets").map(Buckets::of) {
        None => Buckets::None,
        Some(Some(buckets)) => buckets,
        Some(None) => {
            return Answer::Status(
                StatusCode::BAD_REQUEST,
                "usage: /stats?histogram_buckets=(cumulative|disjoint|none|summary)\n".into(),
            );
        }
    };
    let readings = match select(admin, query) {
        Ok(readings) => readings,
        Err(answer) => return answer,
    };
    match format {
        "json" => json_form(&readings),
        "html" | "active-html" => html_form(query, &text_form(&readings, buckets)),
        _ => Answer::Text(text_form(&readings, buckets)),
    }
}

/// How histograms are shown in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buckets {
    None,
    Cumulative,
    Disjoint,
}

impl Buckets {
    fn of(text: &str) -> Option<Self> {
        match text {
            "none" | "summary" => Some(Self::None),
            "cumulative" => Some(Self::Cumulative),
            "disjoint" => Some(Self::Disjoint),
            _ => None,
        }
    }
}

/// Names are looked up when the configuration comes, never afterwards: there is nothing to record.
pub(super) fn recent_lookups(_: &Admin, _: &Query) -> Answer {
    Answer::Text(
        "Lookup tracking is not enabled. Use /stats/recentlookups/enable to enable.\n".into(),
    )
}

pub(super) fn recent_lookups_done(_: &Admin, _: &Query) -> Answer {
    Answer::Text("OK\n".into())
}

pub(super) fn prometheus(admin: &Admin, query: &Query) -> Answer {
    match select(admin, query) {
        Ok(readings) => Answer::Text(write_prometheus(&readings)),
        Err(answer) => answer,
    }
}

fn select(admin: &Admin, query: &Query) -> Result<Vec<Reading>, Answer> {
    refresh_server_stats(admin);
    let filter = query
        .get("filter")
        .filter(|filter| !filter.is_empty())
        .map(Regex::new)
        .transpose()
        .map_err(|error| {
            Answer::Status(
                StatusCode::BAD_REQUEST,
                format!("Invalid re2 regex: {error}\n"),
            )
        })?;
    let is_used_only = query.has("usedonly");
    let kind = query.get("type").unwrap_or("All");
    if !matches!(
        kind,
        "All" | "Counters" | "Gauges" | "Histograms" | "TextReadouts"
    ) {
        return Err(Answer::Status(
            StatusCode::BAD_REQUEST,
            "invalid &type= param".into(),
        ));
    }
    Ok(admin.store.server.store.read(|name, stat| {
        let is_kind = match stat {
            Stat::Counter(_) => matches!(kind, "All" | "Counters"),
            Stat::Gauge(_) => matches!(kind, "All" | "Gauges"),
            Stat::Histogram(_) => matches!(kind, "All" | "Histograms"),
        };
        is_kind
            && (!is_used_only || is_used(stat))
            && filter.as_ref().is_none_or(|filter| filter.is_match(name))
    }))
}

fn is_used(stat: Stat<'_>) -> bool {
    match stat {
        Stat::Counter(counter) => counter.value() != 0,
        Stat::Gauge(gauge) => gauge.value() != 0,
        Stat::Histogram(histogram) => histogram.summary().is_some(),
    }
}

/// What is only looked at when somebody asks.
fn refresh_server_stats(admin: &Admin) {
    let server = &admin.store.server;
    let stats = &server.server_stats;
    stats.uptime.set(server.started.elapsed().as_secs());
    stats.concurrency.set(server.concurrency as u64);
    let state = server.state();
    stats.live.set(u64::from(state == ServerState::Live));
    stats.state.set(match state_name(state) {
        "LIVE" => 0,
        "DRAINING" => 1,
        "PRE_INITIALIZING" => 2,
        _ => 3,
    });
    let resident = resident_bytes().unwrap_or(0);
    stats.memory_allocated.set(resident);
    stats.memory_heap_size.set(resident);
    stats.memory_physical_size.set(resident);
    let connections = admin
        .store
        .listeners
        .map()
        .by_name
        .values()
        .map(|listener| listener.stats.downstream_cx_active.value())
        .sum();
    stats.total_connections.set(connections);
    let days = admin
        .store
        .secrets
        .all()
        .iter()
        .filter_map(|slot| super::certs::days_left(slot))
        .min();
    stats
        .days_until_first_cert_expiring
        .set(days.unwrap_or(u64::from(u32::MAX)));
}

fn text_form(readings: &[Reading], buckets: Buckets) -> String {
    let mut text = String::new();
    // Envoy lists counters and gauges first, then histograms; writing to a String cannot fail.
    for reading in readings {
        if let Value::Counter(value) | Value::Gauge(value) = &reading.value {
            let _ = writeln!(text, "{}: {value}", reading.name);
        }
    }
    for reading in readings {
        if let Value::Histogram(summary) = &reading.value {
            let shown = match buckets {
                Buckets::None => histogram_text(summary.as_deref()),
                _ => buckets_text(summary.as_deref(), buckets == Buckets::Cumulative),
            };
            let _ = writeln!(text, "{}: {shown}", reading.name);
        }
    }
    text
}

fn buckets_text(summary: Option<&Summary>, is_cumulative: bool) -> String {
    let Some(summary) = summary else {
        return "No recorded values".to_owned();
    };
    let mut sum = 0;
    let counts = BOUNDS.iter().zip(&summary.counts).map(|(bound, count)| {
        sum += count;
        let shown = if is_cumulative { sum } else { *count };
        format!("B{}(0,{shown})", number(*bound))
    });
    counts.collect::<Vec<_>>().join(" ")
}

/// The text form on a page, with the parameters as a form.
fn html_form(query: &Query, text: &str) -> Answer {
    let escape = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&quot;")
    };
    let filter = escape(query.get("filter").unwrap_or_default());
    let checked = if query.has("usedonly") {
        " checked"
    } else {
        ""
    };
    let kind = query.get("type").unwrap_or("All");
    let kinds: String = ["All", "Counters", "Gauges", "Histograms", "TextReadouts"]
        .iter()
        .map(|one| {
            let selected = if *one == kind { " selected" } else { "" };
            format!("<option{selected}>{one}</option>")
        })
        .collect();
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>stats</title>\
         <style>body{{font:15px/1.5 system-ui;margin:2rem}}</style></head><body><h1>stats</h1>\
         <form><input type=\"hidden\" name=\"format\" value=\"html\"><label><input type=\"checkbox\" name=\"usedonly\"{checked}> used only</label> \
         <label>filter <input name=\"filter\" value=\"{filter}\"></label> <select name=\"type\">{kinds}</select> <button>show</button></form>\
         <pre>{}</pre></body></html>\n",
        escape(text)
    );
    Answer::Typed("text/html; charset=UTF-8", page)
}

fn histogram_text(summary: Option<&Summary>) -> String {
    let Some(summary) = summary else {
        return "No recorded values".to_owned();
    };
    let quantiles = QUANTILES.map(|quantile| {
        let value = number(summary.quantile(quantile));
        format!("P{}(nan,{value})", number(quantile))
    });
    quantiles.join(" ")
}

fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// As short as it can be written: a whole number is one.
fn json_number(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

fn json_form(readings: &[Reading]) -> Answer {
    let mut stats: Vec<serde_json::Value> = readings
        .iter()
        .filter_map(|reading| match &reading.value {
            Value::Counter(value) | Value::Gauge(value) => {
                Some(json!({ "name": reading.name, "value": value }))
            }
            Value::Histogram(_) => None,
        })
        .collect();
    let computed: Vec<serde_json::Value> = readings
        .iter()
        .filter_map(|reading| {
            let Value::Histogram(summary) = &reading.value else {
                return None;
            };
            let values: Vec<serde_json::Value> = QUANTILES
                .iter()
                .map(|quantile| {
                    let cumulative = summary
                        .as_ref()
                        .map(|summary| json_number(&number(summary.quantile(*quantile))));
                    json!({ "interval": null, "cumulative": cumulative })
                })
                .collect();
            Some(json!({ "name": reading.name, "values": values }))
        })
        .collect();
    if !computed.is_empty() {
        let quantiles = QUANTILES.map(|quantile| json_number(&number(quantile)));
        stats.push(json!({ "histograms": { "supported_quantiles": quantiles, "computed_quantiles": computed } }));
    }
    Answer::Json(json!({ "stats": stats }))
}
