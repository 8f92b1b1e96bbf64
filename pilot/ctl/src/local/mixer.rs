//! Mixer's own configuration, as far as the values want it: attributes, who is at both ends of a request, the mesh's metrics,
//! access logs. The files are those of the Helm chart, and a switch means the same there.

use serde_json::Value;

use super::control_plane::{Manifest, NAMESPACE};
use super::values::is_on;

const ATTRIBUTES: &str = include_str!("../../../../mixer/default/attributes.yaml");
const KUBERNETES: &str = include_str!("../../../../mixer/default/kubernetesenv.yaml");
const METRICS: &str = include_str!("../../../../mixer/default/prometheus.yaml");
const ACCESS_LOGS: &str = include_str!("../../../../mixer/default/accesslog.yaml");

/// Configuration that the control plane itself wants in force, once Galley is there.
pub(crate) fn default_configuration(values: &Value) -> Option<Manifest> {
    let [has_policy, has_telemetry] =
        ["policy", "telemetry"].map(|role| is_on(values, &format!("mixer.{role}.enabled")));
    if !has_policy && !has_telemetry {
        return None;
    }
    let adapters = &values["mixer"]["adapters"];
    let uses = |adapter: &str| adapters[adapter]["enabled"] == true;
    let mut parts = vec![ATTRIBUTES.to_owned()];
    if uses("kubernetesenv") {
        parts.push(KUBERNETES.to_owned());
    }
    if has_telemetry && uses("prometheus") {
        let kept = &adapters["prometheus"]["metricsExpiryDuration"];
        let kept = format!("metricsExpiryDuration: {kept}");
        parts.push(METRICS.replace("metricsExpiryDuration: 10m", &kept));
    }
    if has_telemetry && uses("stdio") {
        let is_json = format!("outputAsJson: {}", adapters["stdio"]["outputAsJson"]);
        parts.push(ACCESS_LOGS.replace("outputAsJson: true", &is_json));
    }
    if is_on(values, "global.controlPlaneSecurityEnabled") {
        let roles = [("policy", has_policy), ("telemetry", has_telemetry)];
        let roles = roles.into_iter().filter(|(_, is_there)| *is_there);
        parts.extend(roles.map(|(role, _)| mutual_tls(role)));
    }
    Some(Manifest {
        name: "mixer/default",
        text: parts.join("\n---\n"),
    })
}

/// Mixer has no sidecar whose mutual TLS would be found out.
fn mutual_tls(role: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: istio-{role}, \
         namespace: {NAMESPACE}}}, spec: {{host: istio-{role}.{NAMESPACE}.svc.cluster.local, trafficPolicy: \
         {{portLevelSettings: [{{port: {{number: 15004}}, tls: {{mode: ISTIO_MUTUAL}}}}]}}}}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::values;

    /// The handlers' names and params, and everything as text.
    fn configuration(settings: &str) -> Option<(Vec<(String, Value)>, String)> {
        let values = values::load(&[], &[settings.to_owned()]).unwrap();
        let text = default_configuration(&values)?.text;
        let documents = proto::yaml::parse_documents(&text).into_iter();
        let handlers = documents
            .map(|document| document.unwrap().value)
            .filter(|document| document["kind"] == "handler")
            .map(|handler| {
                let name = handler["metadata"]["name"].as_str().unwrap();
                (name.to_owned(), handler["spec"]["params"].clone())
            });
        Some((handlers.collect(), text))
    }

    #[test]
    fn an_adapter_comes_with_its_switch() {
        for (settings, wanted) in [
            ("global.tag=x", vec!["kubernetesenv", "prometheus"]),
            (
                "mixer.adapters.stdio.enabled=true",
                vec!["kubernetesenv", "prometheus", "stdio"],
            ),
            (
                "mixer.adapters.kubernetesenv.enabled=false,mixer.adapters.prometheus.enabled=false",
                vec![],
            ),
            // Nobody reports.
            (
                "mixer.telemetry.enabled=false,mixer.adapters.stdio.enabled=true",
                vec!["kubernetesenv"],
            ),
        ] {
            let (handlers, text) = configuration(settings).unwrap();
            let names: Vec<&str> = handlers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, wanted, "{settings}");
            assert_eq!(text.matches("kind: attributemanifest").count(), 2);
        }
        assert!(configuration("mixer.enabled=false").is_none());
        let settings = "mixer.adapters.prometheus.metricsExpiryDuration=1h,\
            mixer.adapters.stdio.enabled=true,mixer.adapters.stdio.outputAsJson=false";
        let (handlers, _) = configuration(settings).unwrap();
        let kept = &handlers[1].1["metricsExpirationPolicy"]["metricsExpiryDuration"];
        assert_eq!(kept, "1h");
        assert_eq!(handlers[2].1["outputAsJson"], false);
    }

    #[test]
    fn a_secured_mixer_is_called_with_mutual_tls() {
        let secured = "global.controlPlaneSecurityEnabled=true";
        let (_, text) = configuration(secured).unwrap();
        assert_eq!(text.matches("ISTIO_MUTUAL").count(), 2);
        let (_, text) = configuration(&format!("{secured},mixer.policy.enabled=false")).unwrap();
        assert_eq!(text.matches("ISTIO_MUTUAL").count(), 1);
    }
}
