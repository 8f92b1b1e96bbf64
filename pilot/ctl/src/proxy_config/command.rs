//! The subcommands of `proxy-config`, and fetching the admin page that each reads.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use proto_component::process::Usage;
use serde_json::Value;

use super::{bootstrap, cluster, endpoint, listener, log, route, secret};
use crate::{
    local::{FormatArgs, MeshArgs, NAMESPACE, PodRequest, client::Client, commands},
    table::{Format, Table, print_text, print_value},
};

/// `proxy-config …`.
#[derive(Clone, Debug, Args)]
pub struct ProxyConfigArgs {
    /// What of it.
    #[command(subcommand)]
    pub section: Section,
}

/// Whose configuration, and how to print it.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Pod or `deploy/NAME`; NAME.NAMESPACE works too.
    #[arg(required_unless_present = "file")]
    pub pod: Option<String>,
    /// A saved `/config_dump` (for `endpoint` a saved `/clusters?format=json`) in the place of a running proxy.
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "pod")]
    pub file: Option<PathBuf>,
    /// Namespace.
    #[arg(short = 'n', long)]
    pub namespace: Option<String>,
    /// Port of the proxy's admin interface.
    #[arg(long, default_value_t = 15000)]
    pub proxy_admin_port: u16,
    /// Which mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// The parts of a proxy's configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum Section {
    /// Clusters: where traffic can go
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster {
        /// Whose.
        #[command(flatten)]
        target: Target,
        /// Which.
        #[command(flatten)]
        filter: cluster::Filter,
    },
    /// Listeners: where traffic comes in
    #[command(visible_aliases = ["listeners", "l"])]
    Listener {
        /// Whose.
        #[command(flatten)]
        target: Target,
        /// Which.
        #[command(flatten)]
        filter: listener::Filter,
    },
    /// Routes: how HTTP requests are matched to clusters
    #[command(visible_aliases = ["routes", "r"])]
    Route {
        /// Whose.
        #[command(flatten)]
        target: Target,
        /// Which.
        #[command(flatten)]
        filter: route::Filter,
    },
    /// Endpoints: the addresses behind clusters
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint {
        /// Whose.
        #[command(flatten)]
        target: Target,
        /// Which.
        #[command(flatten)]
        filter: endpoint::Filter,
    },
    /// Clusters, listeners, routes and endpoints, one after the other
    #[command(visible_alias = "a")]
    All {
        /// Whose.
        #[command(flatten)]
        target: Target,
    },
    /// Log levels: show them, or change them while the proxy runs
    #[command(visible_alias = "o")]
    Log {
        /// Whose.
        #[command(flatten)]
        target: Target,
        /// LEVEL for everything, or LOGGER:LEVEL; several with commas.
        #[arg(long, value_delimiter = ',')]
        level: Vec<String>,
        /// Back to what a proxy starts with.
        #[arg(short = 'r', long)]
        reset: bool,
    },
    /// Certificates
    #[command(visible_aliases = ["secrets", "s"])]
    Secret {
        /// Whose.
        #[command(flatten)]
        target: Target,
    },
    /// What the proxy was started with
    #[command(visible_alias = "b")]
    Bootstrap {
        /// Whose.
        #[command(flatten)]
        target: Target,
    },
}

/// The page of endpoints.
const ENDPOINTS: &str = "/clusters?format=json";

/// Fetches the page and prints what of it is wanted.
pub(crate) async fn run(args: ProxyConfigArgs) -> anyhow::Result<ExitCode> {
    const DUMP: &str = "/config_dump";
    match args.section {
        Section::Cluster { target, filter } => {
            let dump = fetch(&target, DUMP).await?;
            print(&target, &cluster::rows(&dump, &filter), || {
                cluster::messages(&dump, &filter)
            })
        }
        Section::Listener { target, filter } => {
            let dump = fetch(&target, DUMP).await?;
            print(&target, &listener::rows(&dump, &filter), || {
                listener::messages(&dump, &filter)
            })
        }
        Section::Route { target, filter } => {
            let dump = fetch(&target, DUMP).await?;
            print(&target, &route::rows(&dump, &filter), || {
                route::messages(&dump, &filter)
            })
        }
        Section::Endpoint { target, filter } => {
            let clusters = fetch(&target, ENDPOINTS).await?;
            let table = endpoint::rows(&clusters, &filter);
            print(&target, &table, || table.to_value())
        }
        Section::All { target } => show_all(&target).await,
        Section::Log {
            target,
            level,
            reset,
        } => set_log(&target, &level, reset).await,
        Section::Secret { target } => {
            let table = secret::rows(&fetch(&target, DUMP).await?);
            print(&target, &table, || table.to_value())
        }
        Section::Bootstrap { target } => {
            print_value(
                &bootstrap::message(&fetch(&target, DUMP).await?),
                target.format.output,
            )?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Everything; as JSON or YAML the whole dump.
async fn show_all(target: &Target) -> anyhow::Result<ExitCode> {
    let dump = fetch(target, "/config_dump?include_eds").await?;
    if target.format.output != Format::Table {
        print_value(&dump, target.format.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut tables = vec![
        cluster::rows(&dump, &cluster::Filter::default()),
        listener::rows(&dump, &listener::Filter::default()),
        route::rows(&dump, &route::Filter::default()),
    ];
    // A saved dump has no page of endpoints beside it.
    if target.file.is_none() {
        let clusters = fetch(target, ENDPOINTS).await?;
        tables.push(endpoint::rows(&clusters, &endpoint::Filter::default()));
    }
    for (position, table) in tables.iter().enumerate() {
        if position > 0 {
            print_text("\n")?;
        }
        table.print(Format::Table)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn set_log(target: &Target, levels: &[String], resets: bool) -> anyhow::Result<ExitCode> {
    if target.file.is_some() {
        return Err(Usage("log levels are a running proxy's: name a pod".into()).into());
    }
    let mut shown = Vec::new();
    for path in log::paths(levels, resets)? {
        shown = ask_proxy(target, "POST", &path).await?;
    }
    print_text(&String::from_utf8_lossy(&shown))?;
    Ok(ExitCode::SUCCESS)
}

fn print(
    target: &Target,
    table: &Table,
    messages: impl FnOnce() -> Value,
) -> anyhow::Result<ExitCode> {
    match target.format.output {
        Format::Table => table.print(Format::Table)?,
        format => print_value(&messages(), format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A page of the proxy's admin interface, or the file that stands for it.
async fn fetch(target: &Target, path: &str) -> anyhow::Result<Value> {
    if let Some(file) = &target.file {
        let text = fs::read_to_string(file)
            .map_err(|error| Usage(format!("{}: {error}", file.display())))?;
        let dump = serde_json::from_str(&text);
        return dump.map_err(|error| {
            let what = format!("{}: not the JSON of {path}: {error}", file.display());
            Usage(what).into()
        });
    }
    let body = ask_proxy(target, "GET", path).await?;
    serde_json::from_slice(&body).with_context(|| {
        format!(
            "read {path} of {}: is there a proxy in the pod, with its admin interface on port {}?",
            target.pod.as_deref().unwrap_or_default(),
            target.proxy_admin_port
        )
    })
}

async fn ask_proxy(target: &Target, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let client = commands::client(&target.mesh)?;
    let name = target.pod.as_deref().unwrap_or_default();
    ask_admin(
        &client,
        name,
        target.namespace.as_deref(),
        target.proxy_admin_port,
        method,
        path,
    )
    .await
}

/// Asks the admin interface of the proxy in a pod.
pub(crate) async fn ask_admin(
    client: &Client,
    pod: &str,
    namespace: Option<&str>,
    port: u16,
    method: &str,
    path: &str,
) -> anyhow::Result<Vec<u8>> {
    let (pod, first) = commands::target_name(pod, namespace);
    let request = |namespace: String| PodRequest {
        namespace,
        pod: pod.clone(),
        port,
        path: path.to_owned(),
        method: method.to_owned(),
    };
    let outcome = match client.ask_pod(&request(first.clone())).await {
        // The gateways are in the control plane's namespace.
        Err(error) if namespace.is_none() && first == "default" => {
            let there = client.ask_pod(&request(NAMESPACE.to_owned())).await;
            there.map_err(|_| error)
        }
        outcome => outcome,
    };
    outcome.map(|body| body.to_vec())
}
