//! `/clusters`: every cluster with its hosts, as text or JSON.

use super::server::{Admin, Answer, Query};
use crate::upstream::HealthFlag;
use crate::upstream::{Cluster, Discovery, Host, HostAddress, Priority};
use http::StatusCode;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

pub(super) fn clusters(admin: &Admin, query: &Query) -> Answer {
    let filter = match query
        .get("filter")
        .filter(|filter| !filter.is_empty())
        .map(Regex::new)
        .transpose()
    {
        Ok(filter) => filter,
        Err(error) => {
            let text = format!("Invalid re2 regex: {error}\n");
            return Answer::Status(StatusCode::BAD_REQUEST, text);
        }
    };
    let is_shown = |name: &str| filter.as_ref().is_none_or(|filter| filter.is_match(name));
    let snapshot = admin.store.server.clusters.snapshot();
    let sorted: BTreeMap<&Arc<str>, &Arc<Cluster>> =
        snapshot.iter().filter(|(name, _)| is_shown(name)).collect();
    let is_dynamic = |name: &str| {
        admin.store.with_state(|state| {
            state
                .clusters
                .get(name)
                .is_some_and(|entry| !entry.is_static)
        })
    };
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = sorted
            .values()
            .map(|cluster| cluster_json(cluster, is_dynamic(cluster.name())))
            .collect();
        return Answer::Json(json!({ "cluster_statuses": statuses }));
    }
    let mut text = String::new();
    for cluster in sorted.values() {
        cluster_text(&mut text, cluster, is_dynamic(cluster.name()));
    }
    Answer::Text(text)
}

/// Every host with its priority.
fn hosts(cluster: &Cluster) -> Vec<(u32, Arc<Host>)> {
    let sets = cluster.hosts();
    let members = sets
        .localities
        .iter()
        .flat_map(|one| one.hosts.iter().map(|host| (one.priority, host.clone())));
    members
        .chain(cluster.made_hosts().into_iter().map(|host| (0, host)))
        .collect()
}

/// Writing to a String cannot fail.
fn cluster_text(text: &mut String, cluster: &Cluster, is_dynamic: bool) {
    let name = cluster.name();
    let _ = writeln!(
        text,
        "{name}::observability_name::{}",
        cluster.config.stat_name
    );
    for (label, priority) in [("default", Priority::Default), ("high", Priority::High)] {
        let [connections, pending, requests, retries] = cluster.breakers.limits(priority);
        let _ = writeln!(
            text,
            "{name}::{label}_priority::max_connections::{connections}"
        );
        let _ = writeln!(
            text,
            "{name}::{label}_priority::max_pending_requests::{pending}"
        );
        let _ = writeln!(text, "{name}::{label}_priority::max_requests::{requests}");
        let _ = writeln!(text, "{name}::{label}_priority::max_retries::{retries}");
    }
    let _ = writeln!(text, "{name}::added_via_api::{is_dynamic}");
    if let Discovery::Eds { service_name, .. } = &cluster.config.discovery {
        let _ = writeln!(text, "{name}::eds_service_name::{service_name}");
    }
    for (priority, host) in hosts(cluster) {
        let at = &host.address_text;
        let mut stats = host_stats(&host);
        stats.sort_unstable();
        for (stat, value) in stats {
            let _ = writeln!(text, "{name}::{at}::{stat}::{value}");
        }
        let _ = writeln!(text, "{name}::{at}::hostname::{}", host.hostname);
        let _ = writeln!(text, "{name}::{at}::health_flags::{}", host.health_text());
        let _ = writeln!(text, "{name}::{at}::weight::{}", host.weight());
        let _ = writeln!(text, "{name}::{at}::region::{}", host.locality.region);
        let _ = writeln!(text, "{name}::{at}::zone::{}", host.locality.zone);
        let _ = writeln!(text, "{name}::{at}::sub_zone::{}", host.locality.sub_zone);
        let _ = writeln!(text, "{name}::{at}::canary::{}", host.is_canary());
        let _ = writeln!(text, "{name}::{at}::priority::{priority}");
        for (label, window) in [
            ("success_rate", &host.outlier.external),
            ("local_origin_success_rate", &host.outlier.local),
        ] {
            let rate = window.rate().unwrap_or(-1.0);
            let _ = writeln!(text, "{name}::{at}::{label}::{rate}");
        }
    }
}

/// Counters by name, then gauges by name.
fn host_stats(host: &Host) -> [(&'static str, u64); 9] {
    let stats = &host.stats;
    [
        ("cx_connect_fail", stats.cx_connect_fail.value()),
        ("cx_total", stats.cx_total.value()),
        ("rq_error", stats.rq_error.value()),
        ("rq_success", stats.rq_success.value()),
        ("rq_timeout", stats.rq_timeout.value()),
        ("rq_total", stats.rq_total.value()),
        ("cx_active", stats.cx_active.value()),
        ("rq_active", stats.rq_active.value()),
        ("rq_pending_active", stats.rq_pending_active.value()),
    ]
}

fn cluster_json(cluster: &Cluster, is_dynamic: bool) -> Value {
    let statuses: Vec<Value> = hosts(cluster)
        .iter()
        .map(|(priority, host)| host_json(*priority, host))
        .collect();
    let thresholds = [Priority::Default, Priority::High].map(|priority| {
        let [connections, pending, requests, retries] = cluster.breakers.limits(priority);
        let mut limits = json!({ "max_connections": connections, "max_pending_requests": pending, "max_requests": requests, "max_retries": retries });
        // The first value of an enumeration is not written.
        if priority == Priority::High {
            limits["priority"] = json!("HIGH");
        }
        limits
    });
    let mut status = Map::new();
    status.insert("name".into(), json!(&**cluster.name()));
    if is_dynamic {
        status.insert("added_via_api".into(), json!(true));
    }
    if !statuses.is_empty() {
        status.insert("host_statuses".into(), json!(statuses));
    }
    status.insert(
        "circuit_breakers".into(),
        json!({ "thresholds": thresholds }),
    );
    status.insert(
        "observability_name".into(),
        json!(&*cluster.config.stat_name),
    );
    if let Discovery::Eds { service_name, .. } = &cluster.config.discovery {
        status.insert("eds_service_name".into(), json!(&**service_name));
    }
    Value::Object(status)
}

fn host_json(priority: u32, host: &Host) -> Value {
    let stats: Vec<Value> = host_stats(host)
        .iter()
        .map(|(name, value)| {
            let mut stat = Map::new();
            if name.ends_with("active") {
                stat.insert("type".into(), json!("GAUGE"));
            }
            if *value != 0 {
                stat.insert("value".into(), json!(value.to_string()));
            }
            stat.insert("name".into(), json!(name));
            Value::Object(stat)
        })
        .collect();
    let eds = if host.has(HealthFlag::FAILED_EDS) {
        "UNHEALTHY"
    } else if host.has(HealthFlag::DRAINING_EDS) {
        "DRAINING"
    } else if host.has(HealthFlag::DEGRADED_EDS) {
        "DEGRADED"
    } else {
        "HEALTHY"
    };
    let mut health = Map::new();
    for (flag, field) in [
        (HealthFlag::FAILED_ACTIVE, "failed_active_health_check"),
        (HealthFlag::FAILED_OUTLIER, "failed_outlier_check"),
        (HealthFlag::DEGRADED_ACTIVE, "failed_active_degraded_check"),
        (HealthFlag::PENDING_REMOVAL, "pending_dynamic_removal"),
        (HealthFlag::PENDING_ACTIVE, "pending_active_hc"),
        (HealthFlag::TIMEOUT_ACTIVE, "active_hc_timeout"),
    ] {
        if host.has(flag) {
            health.insert(field.into(), json!(true));
        }
    }
    health.insert("eds_health_status".into(), json!(eds));
    let address = match &host.address {
        HostAddress::Socket(address) => {
            json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
        }
        HostAddress::Pipe(path) => json!({ "pipe": { "path": path.display().to_string() } }),
    };
    let mut status = Map::new();
    status.insert("address".into(), address);
    status.insert("stats".into(), json!(stats));
    status.insert("health_status".into(), Value::Object(health));
    status.insert("weight".into(), json!(host.weight()));
    if !host.hostname.is_empty() {
        status.insert("hostname".into(), json!(&*host.hostname));
    }
    if priority > 0 {
        status.insert("priority".into(), json!(priority));
    }
    let mut locality = Map::new();
    for (name, part) in [
        ("region", &host.locality.region),
        ("zone", &host.locality.zone),
        ("sub_zone", &host.locality.sub_zone),
    ] {
        if !part.is_empty() {
            locality.insert(name.into(), json!(part));
        }
    }
    status.insert("locality".into(), Value::Object(locality));
    Value::Object(status)
}
