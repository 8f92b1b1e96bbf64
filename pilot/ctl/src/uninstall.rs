//! `biremectl uninstall`: takes the mesh out of a cluster, whether Helm or `manifest apply` put it there.

use std::process::ExitCode;

use clap::Args;
use proto_component::kubernetes::KubeArgs;

use crate::manifest::charts::{ChartArgs, Charts};
use crate::manifest::cluster::Cluster;
use crate::table::print_text;

/// `uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Leave nothing: the kinds with all configuration, the root certificate and its key go too.
    #[arg(long)]
    pub purge: bool,
    /// Namespace of the control plane.
    #[arg(short = 'n', long, default_value = "istio-system")]
    pub namespace: String,
    /// The charts.
    #[command(flatten)]
    pub charts: ChartArgs,
    /// Where.
    #[command(flatten)]
    pub cluster: KubeArgs,
}

/// Removes.
pub(crate) async fn run(args: UninstallArgs) -> anyhow::Result<ExitCode> {
    // Without a Helm there can be no release of Helm's that we could end.
    if let Ok(charts) = Charts::find(&args.charts) {
        let releases = charts
            .run(&["list", "-n", &args.namespace], "")
            .await
            .unwrap_or_default();
        for release in releases
            .lines()
            .filter_map(|line| line.split_whitespace().next())
        {
            if ["istio", "istio-init"].contains(&release) {
                charts
                    .run(&["uninstall", release, "-n", &args.namespace], "")
                    .await?;
            }
        }
    }
    Cluster::new(args.cluster.client().await?, false)
        .remove(args.purge)
        .await?;
    print_text(if args.purge {
        "the mesh is gone\n"
    } else {
        "the mesh is gone; its configuration is still there (--purge)\n"
    })?;
    Ok(ExitCode::SUCCESS)
}
