//! The subcommands of `proxy-config`, and fetching the admin page that each reads.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{bootstrap, cluster, endpoint, listener, route, secret};
use crate::{
    local::{FormatArgs, MeshArgs, NAMESPACE, PodRequest, client::Client, commands},
    table::{Format, Table, print_value},
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
    pub pod: String,
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
            let clusters = fetch(&target, "/clusters?format=json").await?;
            let table = endpoint::rows(&clusters, &filter);
            print(&target, &table, || table.to_value())
        }
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

async fn fetch(target: &Target, path: &str) -> anyhow::Result<Value> {
    let client = commands::client(&target.mesh)?;
    let (pod, namespace) = commands::target_name(&target.pod, target.namespace.as_deref());
    let ask = |namespace: String| {
        ask(
            &client,
            pod.clone(),
            namespace,
            target.proxy_admin_port,
            path,
        )
    };
    match ask(namespace.clone()).await {
        // The gateways are in the control plane's namespace.
        Err(error) if target.namespace.is_none() && namespace == "default" => {
            ask(NAMESPACE.to_owned()).await.map_err(|_| error)
        }
        outcome => outcome,
    }
}

async fn ask(
    client: &Client,
    pod: String,
    namespace: String,
    port: u16,
    path: &str,
) -> anyhow::Result<Value> {
    let request = PodRequest {
        namespace,
        pod: pod.clone(),
        port,
        path: path.to_owned(),
        method: "GET".into(),
    };
    let body = client.ask_pod(&request).await?;
    serde_json::from_slice(&body)
        .with_context(|| format!("read {path} of {pod}: is there a proxy in the pod, with its admin interface on port {port}?"))
}
