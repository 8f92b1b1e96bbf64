//! `biremectl upgrade`: another version or other settings in the place of what is installed, after a look whether that goes.

use std::process::ExitCode;

use anyhow::bail;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};

use crate::manifest::{ApplyArgs, apply};
use crate::verify_install::pre_check;

/// Checks, then applies.
pub(crate) async fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let client = args.cluster.client().await?;
    let problems = pre_check(&client).await?;
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    let config_maps: Api<ConfigMap> = Api::all(client);
    let mesh = ListParams::default().fields("metadata.name=istio");
    if config_maps.list(&mesh).await?.items.is_empty() {
        bail!(
            "nothing is installed: there is no ConfigMap istio in any namespace; use manifest apply"
        );
    }
    apply(&args).await
}
