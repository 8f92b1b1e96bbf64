//! Settings of the mesh that nothing here follows: they are named in the log, so that nobody believes that they are in force.

use proto::istio::mesh::v1alpha1::MeshConfig;
use proto_mesh::mesh_config;
use serde_json::Value;

/// Where they are in the settings.
const IGNORED: &[&str] = &[
    "/caCertificates",
    "/certificates",
    "/defaultTrafficPolicy/loadBalancer",
    "/defaultTrafficPolicy/portLevelSettings",
    "/defaultTrafficPolicy/proxyProtocol",
    "/defaultTrafficPolicy/retryBudget",
    "/defaultTrafficPolicy/tls",
    "/defaultTrafficPolicy/tunnel",
    "/enableSdsTokenMount",
    "/hboneIdleTimeout",
    "/sdsUdsPath",
    "/sdsUseK8sSaJwt",
    "/serviceScopeConfigs",
    "/sidecarToTelemetrySessionAffinity",
    "/verifyCertificateAtClient",
    "/defaultConfig/availabilityZone",
    "/defaultConfig/caCertificatesPem",
    "/defaultConfig/discoveryRefreshDelay",
    "/defaultConfig/envoyMetricsService",
    "/defaultConfig/extraStatTags",
    "/defaultConfig/fileFlushInterval",
    "/defaultConfig/fileFlushMinSizeKb",
    "/defaultConfig/privateKeyProvider",
    "/defaultConfig/proxyBootstrapTemplatePath",
    "/defaultConfig/proxyHeaders/metadataExchangeHeaders",
    "/defaultConfig/proxyHeaders/preserveHttp1HeaderCase",
    "/defaultConfig/proxyHeaders/xForwardedHost",
    "/defaultConfig/statNameLength",
    "/defaultConfig/statsCompression",
    "/defaultConfig/tracingServiceName",
];

/// Those that `mesh` changes.
pub(super) fn settings(mesh: &MeshConfig) -> Vec<&'static str> {
    let (given, default) = (json(mesh), json(&mesh_config::defaults()));
    let is_changed = |path: &&&str| given.pointer(path) != default.pointer(path);
    IGNORED.iter().filter(is_changed).copied().collect()
}

fn json(mesh: &MeshConfig) -> Value {
    // What was read from YAML can be written as JSON.
    proto::json::to_value(mesh).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_and_not_followed_is_named() {
        assert!(settings(&mesh_config::defaults()).is_empty());
        let text = "verifyCertificateAtClient: true\ndefaultTrafficPolicy: {tls: {mode: SIMPLE}}\n\
                    accessLogFile: /dev/stdout\ndefaultConfig: {statNameLength: 100, proxyHeaders: {server: {value: x}}}\n";
        let mesh = mesh_config::from_yaml(text).unwrap();
        assert_eq!(
            settings(&mesh),
            [
                "/defaultTrafficPolicy/tls",
                "/verifyCertificateAtClient",
                "/defaultConfig/statNameLength"
            ]
        );
    }

    #[test]
    fn every_one_of_them_is_a_setting() {
        let schema = proto::descriptor::message("istio.mesh.v1alpha1.MeshConfig").unwrap();
        for path in IGNORED {
            let mut message = Some(schema.clone());
            for name in path.split('/').skip(1) {
                let field = message.and_then(|message| message.get_field_by_json_name(name));
                let field = field.unwrap_or_else(|| panic!("{path}"));
                message = field.kind().as_message().cloned();
            }
        }
    }
}
