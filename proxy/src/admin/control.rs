//! What changes the process or tells its state: readiness, server info, logging, drain, quit.

use super::server::{Admin, Answer, Query};
use crate::server::ServerState;
use http::StatusCode;
use proto::json::{FieldNames, to_value_with};
use serde_json::json;
use std::{fmt::Write as _, time::Duration};

/// How long `/quitquitquit` lets connections end.
const QUIT_GRACE: Duration = Duration::from_secs(1);

pub(super) fn state_name(state: ServerState) -> &'static str {
    match state {
        ServerState::PreInitializing => "PRE_INITIALIZING",
        ServerState::Initializing => "INITIALIZING",
        ServerState::Live => "LIVE",
        ServerState::Draining => "DRAINING",
    }
}

pub(super) fn ready(admin: &Admin, _: &Query) -> Answer {
    let state = admin.store.server.state();
    let text = format!("{}\n", state_name(state));
    if state == ServerState::Live {
        Answer::Text(text)
    } else {
        Answer::Status(StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

pub(super) fn server_info(admin: &Admin, _: &Query) -> Answer {
    let server = &admin.store.server;
    let uptime = format!("{}s", server.started.elapsed().as_secs());
    let node = to_value_with(&server.node, FieldNames::Proto).unwrap_or_default();
    Answer::Json(json!({
        "version": version(),
        "state": state_name(server.state()),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "config_path": admin.config_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            "concurrency": server.concurrency,
            "service_cluster": server.node.cluster,
            "service_node": server.node.id,
            "drain_time": format!("{}s", server.drain_time.as_secs()),
            "mode": "Serve",
        },
        "node": node,
    }))
}

/// `<revision>/<version>/<state of the tree>/<kind of build>/<TLS library>`, as Envoy's.
pub(super) fn version() -> String {
    let build = if cfg!(debug_assertions) {
        "DEBUG"
    } else {
        "RELEASE"
    };
    format!("bireme/{}/Clean/{build}/rustls", env!("CARGO_PKG_VERSION"))
}

pub(super) fn logging(admin: &Admin, query: &Query) -> Answer {
    let Some(logging) = &admin.logging else {
        return Answer::Status(
            StatusCode::NOT_IMPLEMENTED,
            "logging is the host process's matter\n".into(),
        );
    };
    let level = |level: &str| match level {
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        "off" => "none".to_owned(),
        other => other.to_owned(),
    };
    let wanted = match query.first() {
        None => None,
        Some(("level", value)) => Some(format!("all:{}", level(value))),
        Some(("paths", value)) => Some(
            value
                .split(',')
                .filter_map(|part| {
                    part.split_once(':')
                        .map(|(scope, of)| format!("{scope}:{}", level(of)))
                })
                .collect::<Vec<_>>()
                .join(","),
        ),
        Some((scope, value)) => Some(format!("{scope}:{}", level(value))),
    };
    if let Some(Err(error)) = wanted.map(|wanted| logging.set(&wanted)) {
        return Answer::Status(StatusCode::BAD_REQUEST, format!("{error}\n"));
    }
    let mut text = "active loggers:\n".to_owned();
    for (scope, level) in logging.scopes() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {scope}: {level}");
    }
    Answer::Text(text)
}

pub(super) fn drain_listeners(admin: &Admin, query: &Query) -> Answer {
    let patience = admin.store.server.drain_time;
    let is_inbound_only = query.has("inboundonly");
    if query.has("skip_exit") && !query.has("graceful") {
        return Answer::Status(
            StatusCode::BAD_REQUEST,
            "skip_exit requires graceful\n".into(),
        );
    }
    if query.has("graceful") {
        // Connections learn of it now and listeners stop once the drain time is over; new ones are still served meanwhile.
        let skips_exit = query.has("skip_exit");
        admin
            .store
            .listeners
            .start_graceful_drain(is_inbound_only, patience);
        if !skips_exit {
            let store = admin.store.clone();
            proto_component::task::spawn("graceful-drain", async move {
                tokio::time::sleep(patience).await;
                store.listeners.stop(is_inbound_only, Duration::ZERO);
            });
        }
    } else {
        admin.store.listeners.stop(is_inbound_only, patience);
    }
    Answer::Text("OK\n".into())
}

pub(super) fn contention(_: &Admin, _: &Query) -> Answer {
    // Hot paths hold no locks; there is nothing to trace.
    Answer::Text(
        "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing."
            .into(),
    )
}

/// What the first configuration still waits for.
pub(super) fn init_dump(admin: &Admin, _: &Query) -> Answer {
    let (clusters, listeners) = admin.store.with_state(|state| {
        let clusters: Vec<String> = state
            .clusters
            .iter()
            .filter(|(_, entry)| {
                entry
                    .newest()
                    .is_some_and(|cluster| !cluster.is_initialized())
            })
            .map(|(name, _)| name.to_string())
            .collect();
        let listeners: Vec<String> = state
            .listeners
            .iter()
            .filter(|(_, entry)| entry.warming.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        (clusters, listeners)
    });
    let dumps: Vec<serde_json::Value> = [("clusters", clusters), ("listeners", listeners)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(name, names)| json!({ "name": format!("init manager {name}"), "target_names": names }))
        .collect();
    if dumps.is_empty() {
        return Answer::Json(json!({}));
    }
    Answer::Json(json!({ "unready_targets_dumps": dumps }))
}

pub(super) fn quit(admin: &Admin, _: &Query) -> Answer {
    admin.store.server.quit.drain(QUIT_GRACE);
    Answer::Text("OK\n".into())
}

pub(super) fn reopen_logs(admin: &Admin, _: &Query) -> Answer {
    admin.store.server.sinks.reopen();
    Answer::Text("OK\n".into())
}

pub(super) fn reset_counters(admin: &Admin, _: &Query) -> Answer {
    admin.store.server.store.reset_counters();
    Answer::Text("OK\n".into())
}

pub(super) fn health_check_fail(admin: &Admin, _: &Query) -> Answer {
    admin.store.server.fail_health_checks(true);
    Answer::Text("OK\n".into())
}

pub(super) fn health_check_ok(admin: &Admin, _: &Query) -> Answer {
    admin.store.server.fail_health_checks(false);
    Answer::Text("OK\n".into())
}

pub(super) fn runtime(admin: &Admin, _: &Query) -> Answer {
    let (layers, entries) = admin.store.server.runtime.entries();
    let entries: serde_json::Map<String, serde_json::Value> = entries
        .into_iter()
        .map(|(key, values)| {
            // The last layer that has the key decides.
            let last = values.iter().rev().find(|value| !value.is_empty()).cloned();
            let row = json!({ "layer_values": values, "final_value": last.unwrap_or_default() });
            (key, row)
        })
        .collect();
    Answer::Json(json!({ "layers": layers, "entries": entries }))
}

pub(super) fn runtime_modify(admin: &Admin, query: &Query) -> Answer {
    if query.is_empty() {
        return Answer::Status(
            StatusCode::BAD_REQUEST,
            "usage: /runtime_modify?key1=value1&key2=value2&keyN=valueN\n\
             or send the parameters as form values\n\
             use an empty value to remove a previously added override"
                .into(),
        );
    }
    match admin.store.server.runtime.modify(query.pairs()) {
        Ok(()) => Answer::Text("OK\n".into()),
        Err(error) => Answer::Status(StatusCode::SERVICE_UNAVAILABLE, format!("{error}")),
    }
}

pub(super) fn memory(_: &Admin, _: &Query) -> Answer {
    let resident = resident_bytes().unwrap_or(0);
    Answer::Json(json!({
        "allocated": resident.to_string(), "heap_size": resident.to_string(), "pageheap_unmapped": "0",
        "pageheap_free": "0", "total_thread_cache": "0", "total_physical_bytes": resident.to_string(),
    }))
}

/// Resident memory, as the system sees it.
pub(crate) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
