//! Admission webhooks, as the API server calls them: found through webhook configurations, reached through their service,
//! verified by their CA bundle.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use base64::Engine as _;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    http_client,
    kinds::ObjectKind,
    platform::Platform,
    store::{Key, selects},
};

/// A webhook that cannot be asked now; it may be worth trying again.
#[derive(Debug, thiserror::Error)]
#[error("webhook {webhook} cannot be reached: {reason} (`biremectl local status` shows what runs)")]
pub(crate) struct Unreachable {
    webhook: String,
    reason: String,
}

/// A webhook's no.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Denied {
    /// What it said.
    pub message: String,
}

/// What is asked about.
struct Question<'a> {
    kind: ObjectKind,
    namespace: &'a str,
    operation: &'a str,
    object: &'a Value,
    old: Option<&'a Value>,
}

/// Sends a new pod through the mutating webhooks; what comes back is what runs.
pub(crate) async fn mutate_pod(
    platform: &Platform,
    namespace: &str,
    pod: &Value,
) -> anyhow::Result<Value> {
    let mut pod = pod.clone();
    let kind = super::kinds::by_user_name("Pod").context("the kind Pod")?;
    for webhook in webhooks(platform, "MutatingWebhookConfiguration") {
        let question = Question {
            kind,
            namespace,
            operation: "CREATE",
            object: &pod,
            old: None,
        };
        if !is_asked(platform, &webhook, &question) {
            continue;
        }
        let Some(response) = ask(platform, &webhook, &question).await? else {
            continue;
        };
        if let Some(patch) = response["patch"].as_str() {
            let patch = base64::engine::general_purpose::STANDARD
                .decode(patch)
                .context("decode the webhook's patch")?;
            let patch: json_patch::Patch =
                serde_json::from_slice(&patch).context("read the webhook's patch")?;
            json_patch::patch(&mut pod, &patch).context("apply the webhook's patch")?;
        }
    }
    Ok(pod)
}

/// Asks the validating webhooks about an object; their warnings.
pub(crate) async fn validate(
    platform: &Platform,
    kind: ObjectKind,
    namespace: &str,
    object: &Value,
    old: Option<&Value>,
) -> anyhow::Result<Vec<String>> {
    let mut warnings = Vec::new();
    let operation = if old.is_some() { "UPDATE" } else { "CREATE" };
    for webhook in webhooks(platform, "ValidatingWebhookConfiguration") {
        let question = Question {
            kind,
            namespace,
            operation,
            object,
            old,
        };
        if !is_asked(platform, &webhook, &question) {
            continue;
        }
        if let Some(response) = ask(platform, &webhook, &question).await? {
            let texts = response["warnings"].as_array().into_iter().flatten();
            warnings.extend(texts.filter_map(|text| text.as_str().map(str::to_owned)));
        }
    }
    Ok(warnings)
}

fn webhooks(platform: &Platform, kind: &str) -> Vec<Value> {
    let configurations = platform.store.list("admissionregistration.k8s.io", kind);
    configurations
        .into_iter()
        .flat_map(|(_, object)| object["webhooks"].as_array().cloned().unwrap_or_default())
        .collect()
}

fn is_asked(platform: &Platform, webhook: &Value, question: &Question<'_>) -> bool {
    let lists = |list: &Value, wanted: &str| {
        list.as_array()
            .into_iter()
            .flatten()
            .any(|item| item == wanted || item == "*")
    };
    let mut rules = webhook["rules"].as_array().into_iter().flatten();
    let matches = rules.any(|rule| {
        lists(&rule["operations"], question.operation)
            && lists(&rule["apiGroups"], question.kind.group)
            && lists(&rule["resources"], question.kind.plural)
    });
    matches
        && selects(
            &webhook["namespaceSelector"],
            &platform.store.namespace_labels(question.namespace),
        )
        && selects(
            &webhook["objectSelector"],
            &question.object["metadata"]["labels"],
        )
}

/// The webhook's response if it allows; none if it cannot be reached and its policy says to go on.
async fn ask(
    platform: &Platform,
    webhook: &Value,
    question: &Question<'_>,
) -> anyhow::Result<Option<Value>> {
    let name = webhook["name"].as_str().unwrap_or_default();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uuid::Uuid::new_v4().to_string(),
            "kind": {"group": question.kind.group, "version": version(question), "kind": question.kind.kind},
            "resource": {"group": question.kind.group, "version": version(question), "resource": question.kind.plural},
            "name": question.object["metadata"]["name"],
            "namespace": question.namespace,
            "operation": question.operation,
            "userInfo": {"username": "biremectl"},
            "object": question.object,
            "oldObject": question.old,
            "dryRun": false,
        },
    });
    let response = match call(platform, webhook, &review).await {
        Ok(response) => response,
        Err(error) => {
            if webhook["failurePolicy"] == "Ignore" {
                tracing::warn!(
                    webhook = name,
                    error = format!("{error:#}"),
                    "a webhook is passed over"
                );
                return Ok(None);
            }
            return Err(Unreachable {
                webhook: name.to_owned(),
                reason: format!("{error:#}"),
            }
            .into());
        }
    };
    let response = &response["response"];
    if response["allowed"] == true {
        return Ok(Some(response.clone()));
    }
    let message = response["status"]["message"]
        .as_str()
        .unwrap_or("no reason was given");
    Err(Denied {
        message: message.to_owned(),
    }
    .into())
}

fn version<'a>(question: &'a Question<'_>) -> &'a str {
    let api_version = question.object["apiVersion"]
        .as_str()
        .unwrap_or(question.kind.version);
    api_version.rsplit('/').next().unwrap_or(api_version)
}

async fn call(platform: &Platform, webhook: &Value, review: &Value) -> anyhow::Result<Value> {
    let config = &webhook["clientConfig"];
    let text = |field: &str| {
        config["service"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (service, namespace, path) = (text("name"), text("namespace"), text("path"));
    let port = config["service"]["port"].as_u64().unwrap_or(443);
    let address = endpoint(platform, &namespace, &service, port)?;
    let tls = tls_config(config["caBundle"].as_str().unwrap_or_default())?;
    let host = format!("{service}.{namespace}.svc");
    let patience = Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(10));
    let body = serde_json::to_vec(review)?;
    platform
        .node
        .run("webhook", async move {
            let stream = tokio::time::timeout(patience, TcpStream::connect(address))
                .await
                .with_context(|| format!("connect to {address} within {patience:?}"))?
                .with_context(|| format!("connect to {address}"))?;
            let name = ServerName::try_from(host.clone()).context("the webhook's name")?;
            let stream = tokio_rustls::TlsConnector::from(tls)
                .connect(name, stream)
                .await
                .context("TLS handshake")?;
            let request = http_client::request(http::Method::POST, &host, &path, Some(body))?;
            let response = http_client::send(stream, request, patience).await?;
            anyhow::ensure!(
                response.status().is_success(),
                "it answered {}: {}",
                response.status(),
                String::from_utf8_lossy(response.body()).trim()
            );
            serde_json::from_slice(response.body()).context("read its answer")
        })
        .await
}

/// A ready endpoint behind a port of a service.
pub(crate) fn endpoint(
    platform: &Platform,
    namespace: &str,
    service: &str,
    port: u64,
) -> anyhow::Result<SocketAddr> {
    let object = platform
        .store
        .get(&Key::platform("Service", namespace, service))
        .with_context(|| format!("there is no service {service}.{namespace}"))?;
    let mut ports = object["spec"]["ports"].as_array().into_iter().flatten();
    let port = ports
        .find(|candidate| candidate["port"] == port)
        .with_context(|| format!("service {service}.{namespace} has no port {port}"))?;
    let name = port["name"].as_str().unwrap_or_default();
    let slices = platform.store.list("discovery.k8s.io", "EndpointSlice");
    let own = slices.iter().filter(|(key, slice)| {
        key.namespace == namespace
            && slice["metadata"]["labels"]["kubernetes.io/service-name"] == service
    });
    for (_, slice) in own {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports
            .find(|port| port["name"] == name)
            .and_then(|port| port["port"].as_u64());
        let mut endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let ready = endpoints.find(|endpoint| endpoint["conditions"]["ready"] == true);
        if let (Some(number), Some(ip)) = (
            number,
            ready.and_then(|endpoint| endpoint["addresses"][0].as_str()),
        ) {
            return Ok(SocketAddr::new(ip.parse()?, u16::try_from(number)?));
        }
    }
    anyhow::bail!("service {service}.{namespace} has no ready pod")
}

fn tls_config(ca_bundle: &str) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let pem = base64::engine::general_purpose::STANDARD
        .decode(ca_bundle)
        .context("decode the webhook's caBundle")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots
            .add(certificate.context("read the webhook's caBundle")?)
            .context("use the webhook's caBundle")?;
    }
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
