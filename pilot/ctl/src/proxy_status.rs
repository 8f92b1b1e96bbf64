//! `biremectl proxy-status`: how far each proxy's configuration is in step with Pilot, from Pilot's `/debug/syncz`.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    args::ProxyStatusArgs,
    local::{NAMESPACE, PodRequest, commands},
    table::Table,
};

/// Asks Pilot, and prints.
pub(crate) async fn run(args: ProxyStatusArgs) -> anyhow::Result<ExitCode> {
    let client = commands::client(&args.mesh)?;
    let request = PodRequest {
        namespace: NAMESPACE.into(),
        pod: "deploy/istio-pilot".into(),
        port: 8080,
        path: "/debug/syncz".into(),
        method: "GET".into(),
    };
    let body = client.ask_pod(&request).await.context("ask Pilot")?;
    let syncz: Value = serde_json::from_slice(&body).context("read Pilot's /debug/syncz")?;
    rows(&syncz, "istio-pilot").print(args.format.output)?;
    Ok(ExitCode::SUCCESS)
}

/// A row for each proxy that is connected to Pilot; `pilot` is the name of the instance that was asked.
pub fn rows(syncz: &Value, pilot: &str) -> Table {
    let mut table = Table::new(&["NAME", "CDS", "LDS", "EDS", "RDS", "PILOT", "VERSION"]);
    for proxy in syncz.as_array().into_iter().flatten() {
        let text = |key: &str| proxy[key].as_str().unwrap_or_default();
        let cell = |kind: &str| {
            state(
                text(&format!("{kind}_sent")),
                text(&format!("{kind}_acked")),
            )
        };
        let version = match (text("istio_version"), text("proxy_version")) {
            ("", version) if !version.is_empty() => format!("{version}*"),
            (version, _) => version.to_owned(),
        };
        table.row([
            text("proxy"),
            cell("cluster"),
            cell("listener"),
            cell("endpoint"),
            cell("route"),
            pilot,
            &version,
        ]);
    }
    table.sort();
    table
}

fn state(sent: &str, acked: &str) -> &'static str {
    match (sent, acked) {
        ("", _) => "NOT SENT",
        (sent, acked) if sent == acked => "SYNCED",
        (_, "") => "STALE (Never Acknowledged)",
        _ => "STALE",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_proxy_is_in_step_when_it_acknowledged_what_was_sent() {
        let syncz = json!([{"proxy": "b.default", "proxy_version": "1.4.0", "cluster_sent": "1", "cluster_acked": "1",
            "listener_sent": "2", "listener_acked": "", "endpoint_sent": "3", "endpoint_acked": "2"}]);
        let row = rows(&syncz, "pilot-1").to_value()[0].clone();
        assert_eq!(
            row,
            json!({"name": "b.default", "cds": "SYNCED", "lds": "STALE (Never Acknowledged)", "eds": "STALE",
                "rds": "NOT SENT", "pilot": "pilot-1", "version": "1.4.0*"})
        );
    }
}
