//! The objects of a cluster: every kind that an analyzer looks at, page by page, but for those that the input leaves out. What
//! may not be read is told and left out, too.

use super::{super::Code, Input};
use crate::schema;
use anyhow::Context as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
};
use serde_json::Value;

/// Objects that are asked for at a time.
const PAGE: u32 = 500;
/// The oldest Kubernetes that the mesh is tried with.
const OLDEST: (u32, u32) = (1, 29);

/// Kubernetes' own kinds: group, version, kind, plural.
const PLATFORM: &[(&str, &str, &str, &str)] = &[
    ("", "v1", "Namespace", "namespaces"),
    ("", "v1", "Node", "nodes"),
    ("", "v1", "Pod", "pods"),
    ("", "v1", "Service", "services"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("apps", "v1", "Deployment", "deployments"),
    (
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    ),
    ("gateway.networking.k8s.io", "v1", "Gateway", "gateways"),
];

/// Reads everything that analysis looks at, of one namespace or of all.
pub async fn read(client: &Client, input: &mut Input) -> anyhow::Result<()> {
    let version = client
        .apiserver_version()
        .await
        .context("ask the API server for its version")?;
    check_version(&version.major, &version.minor, input);
    let platform = PLATFORM.iter().map(|(group, version, kind, plural)| {
        let kind = GroupVersionKind::gvk(group, version, kind);
        ApiResource::from_gvk_with_plural(&kind, plural)
    });
    let mesh = schema::served().iter().map(|served| {
        let kind = GroupVersionKind::gvk(served.group, served.versions[0], served.kind);
        ApiResource::from_gvk_with_plural(&kind, served.plural)
    });
    for resource in platform.chain(mesh) {
        if !input.reads(&resource.group, &resource.kind) {
            continue;
        }
        match list(client, &resource).await {
            Ok(values) => input.add_values(&values),
            // The definition of the kind is not installed, or not in this version.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                tracing::debug!(target: "analysis", kind = resource.kind, "the cluster has no such kind");
            }
            Err(kube::Error::Api(status)) if status.code == 403 || status.code == 401 => {
                let text = format!(
                    "The user may not list {}: {}",
                    resource.plural, status.message
                );
                input.add_problem(Code::InsufficientPermissions, &resource.kind, text);
                input.leave_out(&resource.group, &resource.kind);
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("list the cluster's {}", resource.plural));
            }
        }
    }
    Ok(())
}

fn check_version(major: &str, minor: &str, input: &mut Input) {
    let number = |text: &str| -> Option<u32> {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let (Some(major), Some(minor)) = (number(major), number(minor)) else {
        return;
    };
    if (major, minor) < OLDEST {
        let text = format!(
            "The cluster is Kubernetes {major}.{minor}; at least {}.{} is needed",
            OLDEST.0, OLDEST.1
        );
        input.add_problem(Code::UnsupportedKubernetesVersion, "Cluster", text);
    }
}

async fn list(client: &Client, resource: &ApiResource) -> Result<Vec<Value>, kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut params = ListParams::default().limit(PAGE);
    let mut values = Vec::new();
    loop {
        let page = api.list(&params).await?;
        for object in page.items {
            let mut value = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
            // A list does not repeat the kind on its items.
            value["apiVersion"] = resource.api_version.clone().into();
            value["kind"] = resource.kind.clone().into();
            values.push(value);
        }
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(values),
        }
    }
}
