//! A client of the Kubernetes API: from a kubeconfig file, or from what a pod is given.

use anyhow::Context as _;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{path::PathBuf, time::Duration};

/// No single answer may take longer, watches apart.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch is sent something at least this often (bookmarks come each minute).
const READ_TIMEOUT: Duration = Duration::from_secs(295);

/// How to reach the API server.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KubeArgs {
    /// Kubeconfig file; without it $KUBECONFIG or ~/.kube/config, then what a pod is given.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long = "context", value_name = "NAME")]
    pub context: Option<String>,
}

impl KubeArgs {
    /// A client; nothing is sent yet.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file)
                    .with_context(|| format!("read --kubeconfig {}", file.display()))?;
                Config::from_custom_kubeconfig(read, &options).await?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer()
                .await
                .context("find a cluster (--kubeconfig, $KUBECONFIG, or inside a pod)")?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        Client::try_from(config).context("make a client of the Kubernetes API")
    }
}
