//! `proxy-config cluster`.

use clap::Args;
use serde_json::Value;

use super::{is_wanted, section, text};
use crate::table::Table;

/// Which clusters to show.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Service, a part of its name is enough.
    #[arg(long)]
    pub fqdn: Option<String>,
    /// Port.
    #[arg(long)]
    pub port: Option<String>,
    /// Subset.
    #[arg(long)]
    pub subset: Option<String>,
    /// inbound or outbound.
    #[arg(long)]
    pub direction: Option<String>,
}

/// The clusters of a `/config_dump`.
pub fn rows(dump: &Value, filter: &Filter) -> Table {
    let mut table = Table::new(&[
        "SERVICE FQDN",
        "PORT",
        "SUBSET",
        "DIRECTION",
        "TYPE",
        "DESTINATION RULE",
    ]);
    for cluster in clusters(dump) {
        let name = text(&cluster["name"]);
        let (direction, port, subset, fqdn) = parts(&name);
        let is_shown = filter
            .fqdn
            .as_deref()
            .is_none_or(|wanted| fqdn.contains(wanted))
            && is_wanted(filter.port.as_deref(), port)
            && is_wanted(filter.subset.as_deref(), subset)
            && is_wanted(filter.direction.as_deref(), direction);
        if is_shown {
            let discovery = cluster["type"].as_str().unwrap_or("STATIC");
            table.row([
                fqdn,
                port,
                subset,
                direction,
                discovery,
                &destination_rule(cluster),
            ]);
        }
    }
    table.sort();
    table
}

/// The messages that match, whole.
pub fn messages(dump: &Value, filter: &Filter) -> Value {
    let is_shown = |cluster: &&&Value| {
        let name = text(&cluster["name"]);
        let (direction, port, subset, fqdn) = parts(&name);
        filter
            .fqdn
            .as_deref()
            .is_none_or(|wanted| fqdn.contains(wanted))
            && is_wanted(filter.port.as_deref(), port)
            && is_wanted(filter.subset.as_deref(), subset)
            && is_wanted(filter.direction.as_deref(), direction)
    };
    Value::Array(
        clusters(dump)
            .iter()
            .filter(is_shown)
            .map(|cluster| (*cluster).clone())
            .collect(),
    )
}

fn clusters(dump: &Value) -> Vec<&Value> {
    section(
        dump,
        "ClustersConfigDump",
        &["static_clusters", "dynamic_active_clusters"],
        "cluster",
    )
}

/// Direction, port, subset and host of `outbound|9080|v1|reviews…`; any other name is a host alone.
fn parts(name: &str) -> (&str, &str, &str, &str) {
    match name.splitn(4, '|').collect::<Vec<_>>()[..] {
        [direction, port, subset, host] => (direction, port, subset, host),
        _ => ("", "", "", name),
    }
}

/// The rule that shaped a cluster: Istio's control planes leave its path in the metadata.
fn destination_rule(cluster: &Value) -> String {
    let config = text(&cluster["metadata"]["filter_metadata"]["istio"]["config"]);
    match config
        .rsplit_once("/destination-rule/")
        .map(|(path, name)| (path.rsplit('/').next().unwrap_or(""), name))
    {
        Some((namespace, name)) => format!("{name}.{namespace}"),
        None => String::new(),
    }
}
