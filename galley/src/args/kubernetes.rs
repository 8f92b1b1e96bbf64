//! Flags about a Kubernetes cluster: reading from it, writing status to it, and putting the webhook into its way.

use proto_component::kubernetes::KubeArgs;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// Flags of `galley server` about Kubernetes.
#[derive(Clone, Debug, Args)]
pub struct KubernetesArgs {
    /// How to reach the API server.
    #[command(flatten)]
    pub client: KubeArgs,
    /// Read configuration from the API server (as well as from --configPath, whose objects count first); on where a
    /// kubeconfig is named, or no --configPath.
    #[arg(long = "enable-kubernetes", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub is_enabled: Option<bool>,
    /// Analyze the cluster's configuration and write what is found to the objects' status.
    #[arg(long = "enableAnalysis", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub writes_status: bool,
    /// Keep the ValidatingWebhookConfiguration in step with the CA's file.
    #[arg(long = "enable-reconcileWebhookConfiguration", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    pub registers_webhook: bool,
    /// The ValidatingWebhookConfiguration to create; without it the one called --webhook-name gets the CA only.
    #[arg(long = "validation-webhook-config-file", value_name = "FILE")]
    pub webhook_config_file: Option<PathBuf>,
    /// Name of the ValidatingWebhookConfiguration.
    #[arg(
        long = "webhook-name",
        default_value = "istio-galley",
        value_name = "NAME"
    )]
    pub webhook_name: String,
    /// Whom the API server shall trust at the webhook.
    #[arg(
        long = "validation.tls.caCertificates",
        default_value = "/etc/certs/root-cert.pem",
        value_name = "FILE"
    )]
    pub webhook_ca_file: PathBuf,
    /// Namespace of Galley's own Deployment, with which the webhook's configuration goes.
    #[arg(
        long = "deployment-namespace",
        default_value = "istio-system",
        value_name = "NAMESPACE"
    )]
    pub deployment_namespace: String,
    /// Name of Galley's own Deployment.
    #[arg(
        long = "deployment-name",
        default_value = "istio-galley",
        value_name = "NAME"
    )]
    pub deployment_name: String,
}

impl KubernetesArgs {
    /// Whether configuration is read from the API server.
    pub fn is_source(&self, has_config_path: bool) -> bool {
        let is_named = self.client.kubeconfig.is_some() || self.client.context.is_some();
        self.is_enabled.unwrap_or(is_named || !has_config_path)
    }
}
