//! `proxy-config listener`.

use clap::Args;
use serde_json::Value;

use super::{address, is_wanted, section, text};
use crate::table::Table;

/// Which listeners to show.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Address.
    #[arg(long)]
    pub address: Option<String>,
    /// Port.
    #[arg(long)]
    pub port: Option<String>,
    /// HTTP, TCP or UNKNOWN.
    #[arg(long = "type")]
    pub kind: Option<String>,
}

/// The listeners of a `/config_dump`.
pub fn rows(dump: &Value, filter: &Filter) -> Table {
    let mut table = Table::new(&["ADDRESS", "PORT", "TYPE", "NAME"]);
    for listener in listeners(dump, filter) {
        let (host, port) = address(&listener["address"]);
        table.row([
            host,
            port,
            kind(listener).to_owned(),
            text(&listener["name"]),
        ]);
    }
    table.sort();
    table
}

/// The messages that match, whole.
pub fn messages(dump: &Value, filter: &Filter) -> Value {
    Value::Array(listeners(dump, filter).into_iter().cloned().collect())
}

fn listeners<'a>(dump: &'a Value, filter: &Filter) -> Vec<&'a Value> {
    let all = section(
        dump,
        "ListenersConfigDump",
        &["static_listeners", "dynamic_listeners"],
        "listener",
    );
    let is_shown = |listener: &&Value| {
        let (host, port) = address(&listener["address"]);
        is_wanted(filter.address.as_deref(), &host)
            && is_wanted(filter.port.as_deref(), &port)
            && is_wanted(filter.kind.as_deref(), kind(listener))
    };
    all.into_iter().filter(is_shown).collect()
}

/// What the first filter that says so makes of the listener.
fn kind(listener: &Value) -> &'static str {
    let chains = listener["filter_chains"].as_array().into_iter().flatten();
    let chains = chains.chain(std::iter::once(&listener["default_filter_chain"]));
    let filters = chains.flat_map(|chain| chain["filters"].as_array().into_iter().flatten());
    let mut is_tcp = false;
    for filter in filters {
        let name = filter["typed_config"]["@type"].as_str().unwrap_or_default();
        if name.ends_with(".HttpConnectionManager") {
            return "HTTP";
        }
        is_tcp |= name.ends_with(".TcpProxy");
    }
    if is_tcp { "TCP" } else { "UNKNOWN" }
}
