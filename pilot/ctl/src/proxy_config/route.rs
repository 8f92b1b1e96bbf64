//! `proxy-config route`.

use clap::Args;
use serde_json::Value;

use super::{is_wanted, section, text};
use crate::table::Table;

/// Which routes to show.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Name of the route configuration.
    #[arg(long)]
    pub name: Option<String>,
}

/// The routes of a `/config_dump`: a row for each route of each virtual host.
pub fn rows(dump: &Value, filter: &Filter) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "VHOST NAME",
        "DOMAINS",
        "MATCH",
        "VIRTUAL SERVICE",
        "TARGET",
    ]);
    for configuration in configurations(dump, filter) {
        let name = text(&configuration["name"]);
        for host in configuration["virtual_hosts"]
            .as_array()
            .into_iter()
            .flatten()
        {
            for route in host["routes"].as_array().into_iter().flatten() {
                let virtual_service = virtual_service(route);
                table.row([
                    name.clone(),
                    text(&host["name"]),
                    domains(host),
                    matching(&route["match"]),
                    virtual_service,
                    target(route),
                ]);
            }
        }
    }
    table
}

/// The messages that match, whole.
pub fn messages(dump: &Value, filter: &Filter) -> Value {
    Value::Array(configurations(dump, filter).into_iter().cloned().collect())
}

fn configurations<'a>(dump: &'a Value, filter: &Filter) -> Vec<&'a Value> {
    let lists = ["static_route_configs", "dynamic_route_configs"];
    let mut found = section(dump, "RoutesConfigDump", &lists, "route_config");
    found.retain(|configuration| is_wanted(filter.name.as_deref(), &text(&configuration["name"])));
    found.sort_by_cached_key(|configuration| {
        let name = text(&configuration["name"]);
        (name.parse::<u32>().unwrap_or(u32::MAX), name)
    });
    found
}

fn domains(host: &Value) -> String {
    let domains: Vec<String> = host["domains"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    match domains.len() {
        0..=2 => domains.join(", "),
        more => format!("{}, {} + {} more", domains[0], domains[1], more - 2),
    }
}

fn matching(matches: &Value) -> String {
    let path = ["prefix", "path", "path_separated_prefix"]
        .into_iter()
        .find_map(|kind| {
            matches[kind].as_str().map(|path| {
                if kind == "path" {
                    path.to_owned()
                } else {
                    format!("{path}*")
                }
            })
        });
    let path = path.or_else(|| {
        matches["safe_regex"]["regex"]
            .as_str()
            .map(|regex| format!("regex {regex}"))
    });
    let headers = matches["headers"].as_array().map_or(0, Vec::len);
    let path = path.unwrap_or_else(|| "/*".to_owned());
    if headers == 0 {
        path
    } else {
        format!("{path} ({headers} headers)")
    }
}

fn target(route: &Value) -> String {
    let action = &route["route"];
    if let Some(cluster) = action["cluster"].as_str() {
        return cluster.to_owned();
    }
    if let Some(weighted) = action["weighted_clusters"]["clusters"].as_array() {
        let parts = weighted
            .iter()
            .map(|part| format!("{} {}", text(&part["weight"]), text(&part["name"])));
        return parts.collect::<Vec<_>>().join(", ");
    }
    if route["redirect"].is_object() {
        return "redirect".to_owned();
    }
    text(&route["direct_response"]["status"])
}

/// The virtual service that a route came from: Istio's control planes leave its path in the metadata.
fn virtual_service(route: &Value) -> String {
    let config = text(&route["metadata"]["filter_metadata"]["istio"]["config"]);
    match config
        .rsplit_once("/virtual-service/")
        .map(|(path, name)| (path.rsplit('/').next().unwrap_or(""), name))
    {
        Some((namespace, name)) => format!("{name}.{namespace}"),
        None => String::new(),
    }
}
