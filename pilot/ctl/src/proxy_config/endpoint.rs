//! `proxy-config endpoint`, from `/clusters?format=json`.

use clap::Args;
use serde_json::Value;

use super::{address, is_wanted, text};
use crate::table::Table;

/// Which endpoints to show.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Address.
    #[arg(long)]
    pub address: Option<String>,
    /// Port.
    #[arg(long)]
    pub port: Option<String>,
    /// Cluster.
    #[arg(long)]
    pub cluster: Option<String>,
    /// HEALTHY, UNHEALTHY, …
    #[arg(long)]
    pub status: Option<String>,
}

/// The endpoints of a `/clusters?format=json`.
pub fn rows(clusters: &Value, filter: &Filter) -> Table {
    let mut table = Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for cluster in clusters["cluster_statuses"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let name = text(&cluster["name"]);
        for host in cluster["host_statuses"].as_array().into_iter().flatten() {
            let (ip, port) = address(&host["address"]);
            let endpoint = if port.is_empty() {
                ip.clone()
            } else {
                format!("{ip}:{port}")
            };
            let health = &host["health_status"];
            let status = health["eds_health_status"].as_str().unwrap_or("HEALTHY");
            let outlier = if health["failed_outlier_check"] == true {
                "FAILED"
            } else {
                "OK"
            };
            let is_shown = is_wanted(filter.address.as_deref(), &ip)
                && is_wanted(filter.port.as_deref(), &port)
                && is_wanted(filter.cluster.as_deref(), &name)
                && is_wanted(filter.status.as_deref(), status);
            if is_shown {
                table.row([endpoint.as_str(), status, outlier, name.as_str()]);
            }
        }
    }
    table.sort();
    table
}
