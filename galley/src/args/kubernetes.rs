//! Flags about a Kubernetes cluster: reading from it, writing status to it, and putting the webhook into its way.
//!
//! What the service account needs (there is no other access):
//!
//! | when | apiGroups | resources | verbs |
//! |---|---|---|---|
//! | source | the mesh's (`networking.istio.io`, `security.istio.io`, `telemetry.istio.io`, `extensions.istio.io`, `authentication.istio.io`, `rbac.istio.io`, `config.istio.io`) | `*` | `list`, `watch` |
//! | source | `networking.k8s.io` | `ingresses` | `list`, `watch` |
//! | source | `networking.k8s.io` | `ingresses/status` | `patch` |
//! | source | `""` | `services` | `list`, `watch` |
//! | source, `--enableServiceDiscovery` | `""` | `namespaces`, `nodes` | `list`, `watch` |
//! | source, `--enableServiceDiscovery` or `--serve-pods` | `""` | `pods` | `list`, `watch` |
//! | source, `--enableServiceDiscovery` | `discovery.k8s.io` | `endpointslices` | `list`, `watch` |
//! | `--enable-reconcileWebhookConfiguration` | `admissionregistration.k8s.io` | `validatingwebhookconfigurations` | `get`, `list`, `watch`, `create`, `patch`, `delete` |
//! | the same | `rbac.authorization.k8s.io` | `clusterroles`, of them its own | `get` |
//! | the same | `discovery.k8s.io` (own namespace) | `endpointslices` | `list` |
//! | source or registration, more replicas | `coordination.k8s.io` (own namespace) | `leases` | `create`; of the one named `istio-galley` `get`, `update` |
//! | `--enableAnalysis` | the mesh's; `""`: `namespaces`, `nodes`, `pods`, `services`, `secrets`, `configmaps`; `apps`: `deployments`; `admissionregistration.k8s.io`: both kinds; `apiextensions.k8s.io`: `customresourcedefinitions`; `gateway.networking.k8s.io`: `gateways` | as named | `list`; what is refused is left out of the analysis |
//! | `--enableAnalysis` | the mesh's | `*/status`, `*` | `patch` |
//!
//! The version of the API server and the lists of what it serves are open to every authenticated account.

use clap::{ArgAction, Args};
use proto_component::kubernetes::{KubeArgs, lease::LeaseArgs};
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
    /// Analyze the configuration after each change: what is found in a cluster is written to the objects' status, what is
    /// found in the folder is on the page /debug/analysis, and in the log when it is new.
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
    /// Namespace of Galley's own Deployment.
    #[arg(
        long = "deployment-namespace",
        default_value = "istio-system",
        value_name = "NAMESPACE"
    )]
    pub deployment_namespace: String,
    /// Name of Galley's own Deployment; the webhook's configuration goes with the ClusterRole NAME-NAMESPACE.
    #[arg(
        long = "deployment-name",
        default_value = "istio-galley",
        value_name = "NAME"
    )]
    pub deployment_name: String,
    /// Of several replicas the leader keeps the webhook's registration and writes status (of Ingresses, too).
    #[command(flatten)]
    pub election: LeaseArgs,
}

impl KubernetesArgs {
    /// Whether configuration is read from the API server.
    pub fn is_source(&self, has_config_path: bool) -> bool {
        let is_named = self.client.kubeconfig.is_some() || self.client.context.is_some();
        self.is_enabled.unwrap_or(is_named || !has_config_path)
    }
}
