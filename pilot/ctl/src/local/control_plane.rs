//! The control plane's manifests: templates (in `manifests/`) filled in from the values. A component that is switched off
//! has no manifests, and nothing in the mesh configuration speaks of it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use base64::Engine as _;
use proto_component::process::Usage;
use serde_json::{Value, json};

use super::{
    identity::{ISSUER, Identity},
    values::is_on,
};

/// The namespace of the control plane.
pub(crate) const NAMESPACE: &str = "istio-system";

/// Cluster addresses of the services that must be found before anything can tell names; empty where there is DNS.
pub(crate) type Addresses = BTreeMap<&'static str, String>;

/// The services that are found by address where there is no DNS.
pub(crate) const FOUND_BY_ADDRESS: &[&str] = &["istio-pilot", "istio-galley", "istio-citadel"];

/// By which a service of the control plane is found.
fn host(addresses: &Addresses, service: &str) -> String {
    addresses
        .get(service)
        .cloned()
        .unwrap_or_else(|| format!("{service}.{NAMESPACE}.svc"))
}

/// Where Citadel is: nowhere if it is switched off (unless the user names another one), and at its address where there is no
/// DNS; its usual name is then what its certificate must say.
pub(crate) fn settle_citadel(values: &mut Value, addresses: &Addresses) {
    let is_on = is_on(values, "security.enabled");
    let name = format!("istio-citadel.{NAMESPACE}.svc");
    let global = &mut values["global"];
    let is_usual = global["caAddress"] == format!("{name}:8060");
    if is_usual && !is_on {
        global["caAddress"] = json!("");
    } else if let (true, Some(address)) = (is_usual, addresses.get("istio-citadel")) {
        global["caAddress"] = json!(format!("{address}:8060"));
        global["caServerName"] = json!(name);
    }
}

/// Whether the control plane's own channels are under mutual TLS.
///
/// # Errors
/// When they are to be, and nobody gives certificates.
pub(crate) fn is_secured(values: &Value) -> anyhow::Result<bool> {
    let is_secured = is_on(values, "global.controlPlaneSecurityEnabled");
    if is_secured && !is_on(values, "security.enabled") {
        let problem =
            "global.controlPlaneSecurityEnabled=true needs certificates: set security.enabled=true";
        return Err(Usage(problem.to_owned()).into());
    }
    Ok(is_secured)
}

/// The identity of one of the control plane's accounts.
fn identity_of(values: &Value, account: &str) -> String {
    let trust_domain = values["global"]["trustDomain"].as_str().unwrap_or_default();
    format!("spiffe://{trust_domain}/ns/{NAMESPACE}/sa/{account}")
}

/// A manifest with its name for messages.
pub(crate) struct Manifest {
    /// `galley.yaml`.
    pub name: &'static str,
    /// YAML.
    pub text: String,
}

/// What a template sees beside the values.
#[derive(Clone, Copy)]
enum Extra {
    Nothing,
    /// A serving certificate for this service.
    Certificate(&'static str),
    /// Mixer's role.
    Role(&'static str),
    /// A gateway's name and its `istio` label.
    Gateway(&'static str, &'static str),
}

/// The switch that turns a manifest on, its name, its template, and what that sees; in the order of application.
const TEMPLATES: &[(&str, &str, &str, Extra)] = &[
    (
        "security.enabled",
        "citadel.yaml",
        include_str!("manifests/citadel.yaml"),
        Extra::Nothing,
    ),
    (
        "galley.enabled",
        "galley.yaml",
        include_str!("manifests/galley.yaml"),
        Extra::Certificate("istio-galley"),
    ),
    (
        "sidecarInjectorWebhook.enabled",
        "injector.yaml",
        include_str!("manifests/injector.yaml"),
        Extra::Certificate("istio-sidecar-injector"),
    ),
    (
        "pilot.enabled",
        "pilot.yaml",
        include_str!("manifests/pilot.yaml"),
        Extra::Nothing,
    ),
    (
        "mixer.policy.enabled",
        "mixer.yaml",
        include_str!("manifests/mixer.yaml"),
        Extra::Role("policy"),
    ),
    (
        "mixer.telemetry.enabled",
        "mixer.yaml",
        include_str!("manifests/mixer.yaml"),
        Extra::Role("telemetry"),
    ),
    (
        "gateways.istio-ingressgateway.enabled",
        "gateway.yaml",
        include_str!("manifests/gateway.yaml"),
        Extra::Gateway("istio-ingressgateway", "ingressgateway"),
    ),
    (
        "gateways.istio-egressgateway.enabled",
        "gateway.yaml",
        include_str!("manifests/gateway.yaml"),
        Extra::Gateway("istio-egressgateway", "egressgateway"),
    ),
];

/// All manifests of the control plane, in the order in which they are applied.
pub(crate) fn manifests(
    values: &Value,
    identity: &Identity,
    state: &str,
    addresses: &Addresses,
) -> anyhow::Result<Vec<Manifest>> {
    let mesh = mesh_config(values, addresses);
    let mesh = proto::yaml::to_string(&mesh).context("write the mesh configuration")?;
    // Without Galley its readers read what the platform writes themselves.
    let reads_files = !(is_on(values, "galley.enabled") && is_on(values, "global.useMCP"));
    let is_secured = is_secured(values)?;
    let (pilot, mixer) = ("istio-pilot-service-account", "istio-mixer-service-account");
    let readers = [pilot, mixer].map(|account| identity_of(values, account));
    let base = json!({
        "is_secured": is_secured,
        "discovery_port": discovery_port(values),
        // Where nobody but the component itself speaks plain text.
        "plain_host": if is_secured && addresses.is_empty() { "127.0.0.1" } else { "" },
        "mcp_readers": readers,
        "cluster_ips": addresses,
        "is_shared": !addresses.is_empty(),
        "reads_files": reads_files,
        "values": values,
        "namespace": NAMESPACE,
        "state": state,
        "mesh": mesh,
        "issuer": ISSUER,
        "jwks": identity.jwks().to_string(),
        "ca_bundle": base64::engine::general_purpose::STANDARD.encode(identity.ca_certificate()),
    });
    let mut manifests = vec![Manifest {
        name: "base.yaml",
        text: render("base.yaml", include_str!("manifests/base.yaml"), &base)?,
    }];
    for (switch, name, template, extra) in TEMPLATES {
        let is_gateway = matches!(extra, Extra::Gateway(..));
        if !is_on(values, switch) || (is_gateway && !is_on(values, "gateways.enabled")) {
            continue;
        }
        let mut context = base.clone();
        if let (Some(context), Value::Object(extra)) =
            (context.as_object_mut(), extra.context(values, identity)?)
        {
            context.extend(extra);
        }
        let text = render(name, template, &context)?;
        manifests.push(Manifest { name, text });
    }
    Ok(manifests)
}

impl Extra {
    fn context(self, values: &Value, identity: &Identity) -> anyhow::Result<Value> {
        Ok(match self {
            Extra::Nothing => json!({}),
            Extra::Role(role) => json!({"role": role}),
            Extra::Gateway(name, label) => {
                let is_ingress = label == "ingressgateway";
                let ports = if is_ingress {
                    values["local"]["hostPorts"].clone()
                } else {
                    json!({})
                };
                json!({"name": name, "label": label, "host_ports": ports})
            }
            Extra::Certificate(service) => {
                let names = vec![
                    format!("{service}.{NAMESPACE}.svc"),
                    format!("{service}.{NAMESPACE}.svc.cluster.local"),
                ];
                let serving = identity.serving_certificate(names)?;
                json!({"certificate": serving.certificate, "key": serving.key})
            }
        })
    }
}

fn render(name: &'static str, template: &str, context: &Value) -> anyhow::Result<String> {
    let mut environment = minijinja::Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Chainable);
    // Plain text: nothing is escaped, manifests quote for themselves.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment
        .render_str(template, context)
        .with_context(|| format!("fill in {name}"))
}

/// Pilot's port for proxies.
fn discovery_port(values: &Value) -> u16 {
    if is_on(values, "global.controlPlaneSecurityEnabled") {
        15011
    } else {
        15010
    }
}

/// The mesh configuration (ConfigMap `istio`, key `mesh`).
pub(crate) fn mesh_config(values: &Value, addresses: &Addresses) -> Value {
    let global = &values["global"];
    let proxy = &global["proxy"];
    let has_policy = is_on(values, "mixer.policy.enabled");
    let mut mesh = json!({
        "disablePolicyChecks": !has_policy || global["disablePolicyChecks"] == true,
        "policyCheckFailOpen": global["policyCheckFailOpen"],
        "enableTracing": global["enableTracing"],
        "accessLogFile": proxy["accessLogFile"],
        "accessLogFormat": proxy["accessLogFormat"],
        "accessLogEncoding": proxy["accessLogEncoding"],
        "connectTimeout": "10s",
        "protocolDetectionTimeout": proxy["protocolDetectionTimeout"],
        "dnsRefreshRate": proxy["dnsRefreshRate"],
        "trustDomain": global["trustDomain"],
        // Nobody has a certificate without Citadel.
        "enableAutoMtls": global["mtls"]["auto"] == true && is_on(values, "security.enabled"),
        "outboundTrafficPolicy": global["outboundTrafficPolicy"],
        "rootNamespace": NAMESPACE,
        "defaultConfig": {
            "configPath": "/etc/istio/proxy",
            "serviceCluster": "istio-proxy",
            "drainDuration": "45s",
            "parentShutdownDuration": "60s",
            "proxyAdminPort": 15000,
            "concurrency": proxy["concurrency"],
            "discoveryAddress": format!("{}:{}", host(addresses, "istio-pilot"), discovery_port(values)),
        },
    });
    let is_secured = is_on(values, "global.controlPlaneSecurityEnabled");
    if is_secured {
        mesh["defaultConfig"]["controlPlaneAuthPolicy"] = json!("MUTUAL_TLS");
    }
    let mixer = |service: &str| {
        let port = if is_secured { 15004 } else { 9091 };
        json!(format!("{service}.{NAMESPACE}.svc.cluster.local:{port}"))
    };
    if has_policy {
        mesh["mixerCheckServer"] = mixer("istio-policy");
    }
    if is_on(values, "mixer.telemetry.enabled") {
        let telemetry = &values["mixer"]["telemetry"];
        mesh["mixerReportServer"] = mixer("istio-telemetry");
        mesh["reportBatchMaxEntries"] = telemetry["reportBatchMaxEntries"].clone();
        mesh["reportBatchMaxTime"] = telemetry["reportBatchMaxTime"].clone();
    }
    if is_on(values, "galley.enabled") && is_on(values, "global.useMCP") {
        mesh["configSources"] =
            json!([{"address": format!("{}:9901", host(addresses, "istio-galley"))}]);
        if is_secured {
            let galley = identity_of(values, "istio-galley-service-account");
            mesh["configSources"][0]["tlsSettings"] =
                json!({"mode": "ISTIO_MUTUAL", "subjectAltNames": [galley]});
        }
    }
    if is_on(values, "gateways.enabled") && is_on(values, "gateways.istio-ingressgateway.enabled") {
        mesh["ingressService"] = json!("istio-ingressgateway");
    }
    if !addresses.is_empty() {
        mesh["defaultConfig"]["interceptionMode"] = json!("NONE");
    }
    if global["localityLbSetting"]
        .as_object()
        .is_some_and(|setting| !setting.is_empty())
    {
        mesh["localityLbSetting"] = global["localityLbSetting"].clone();
    }
    for (field, value) in values["meshConfig"].as_object().into_iter().flatten() {
        mesh[field] = value.clone();
    }
    mesh
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{kinds, values};

    #[test]
    fn every_manifest_is_of_known_kinds() {
        let values = values::load(&[], &["global.mtls.enabled=true".into()]).unwrap();
        let identity = Identity::generate().unwrap();
        let manifests = manifests(&values, &identity, "/state", &Addresses::new()).unwrap();
        assert_eq!(manifests.len(), 9);
        for manifest in manifests {
            for document in proto::yaml::parse_documents(&manifest.text) {
                let value = document
                    .unwrap_or_else(|error| panic!("{}: {error}\n{}", manifest.name, manifest.text))
                    .value;
                let (api_version, kind) = (
                    value["apiVersion"].as_str().unwrap(),
                    value["kind"].as_str().unwrap(),
                );
                assert!(
                    kinds::by_api_version_kind(api_version, kind).is_some(),
                    "{}: {api_version} {kind}",
                    manifest.name
                );
            }
        }
    }

    #[test]
    fn the_mesh_configuration_is_one() {
        type MeshConfig = proto::istio::mesh::v1alpha1::MeshConfig;
        let values = values::load(&[], &[]).unwrap();
        let mesh = mesh_config(&values, &Addresses::new());
        let read: MeshConfig = proto::json::from_value(&mesh).unwrap();
        assert_eq!(read.config_sources.len(), 1);
        let without = values::load(
            &[],
            &[
                "mixer.policy.enabled=false,mixer.telemetry.enabled=false,galley.enabled=false"
                    .into(),
            ],
        )
        .unwrap();
        let mesh = mesh_config(&without, &Addresses::new());
        assert!(mesh.get("mixerCheckServer").is_none() && mesh.get("mixerReportServer").is_none());
        assert!(mesh.get("configSources").is_none());
        assert_eq!(mesh["disablePolicyChecks"], true);
    }

    #[test]
    fn a_secured_control_plane_is_reached_by_its_other_ports() {
        let secured = "global.controlPlaneSecurityEnabled=true";
        let values = values::load(&[], &[secured.into()]).unwrap();
        let mesh = mesh_config(&values, &Addresses::new());
        let proxy = &mesh["defaultConfig"];
        assert_eq!(
            proxy["discoveryAddress"],
            "istio-pilot.istio-system.svc:15011"
        );
        assert_eq!(proxy["controlPlaneAuthPolicy"], "MUTUAL_TLS");
        assert_eq!(
            mesh["mixerCheckServer"],
            "istio-policy.istio-system.svc.cluster.local:15004"
        );
        assert_eq!(
            mesh["configSources"][0]["tlsSettings"]["mode"],
            "ISTIO_MUTUAL"
        );
        let _: proto::istio::mesh::v1alpha1::MeshConfig = proto::json::from_value(&mesh).unwrap();
        let without = [format!("{secured},security.enabled=false")];
        let values = values::load(&[], &without).unwrap();
        assert!(is_secured(&values).is_err());
    }
}
