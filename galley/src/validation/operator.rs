//! `IstioOperator`: what an installation should look like. It is read by the installer only and served to nobody; its
//! fields are checked like everything else that users write.

use super::object::{DEFAULT_NAMESPACE, Outcome, join};
use crate::schema::nearest;
use proto::{istio::mesh::v1alpha1::MeshConfig, json};
use serde_json::Value;

/// The shape of a field.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Flag,
    /// Text, number or nothing: tags are numbers to YAML.
    Scalar,
    /// Anything below a map.
    Map,
    /// Anything in a list.
    List,
    Number,
    Fields(&'static [(&'static str, Shape)]),
    Each(&'static [(&'static str, Shape)]),
}

use Shape::{Each, Fields, Flag, List, Map, Number, Scalar, Text};

const SPEC: &[(&str, Shape)] = &[
    ("profile", Text),
    ("installPackagePath", Text),
    ("hub", Text),
    ("tag", Scalar),
    ("namespace", Text),
    ("revision", Text),
    ("compatibilityVersion", Text),
    ("meshConfig", Map),
    ("components", Fields(COMPONENTS)),
    ("values", Map),
    ("unvalidatedValues", Map),
];

const COMPONENTS: &[(&str, Shape)] = &[
    ("base", Fields(COMPONENT)),
    ("pilot", Fields(COMPONENT)),
    ("cni", Fields(COMPONENT)),
    ("ztunnel", Fields(COMPONENT)),
    ("istiodRemote", Fields(COMPONENT)),
    ("ingressGateways", Each(GATEWAY)),
    ("egressGateways", Each(GATEWAY)),
];

const COMPONENT: &[(&str, Shape)] = &[
    ("enabled", Flag),
    ("namespace", Text),
    ("hub", Text),
    ("tag", Scalar),
    ("k8s", Fields(KUBERNETES)),
];

const GATEWAY: &[(&str, Shape)] = &[
    ("enabled", Flag),
    ("namespace", Text),
    ("hub", Text),
    ("tag", Scalar),
    ("k8s", Fields(KUBERNETES)),
    ("name", Text),
    ("label", Map),
];

const KUBERNETES: &[(&str, Shape)] = &[
    ("affinity", Map),
    ("env", List),
    ("hpaSpec", Map),
    ("imagePullPolicy", Text),
    ("nodeSelector", Map),
    ("podDisruptionBudget", Map),
    ("podAnnotations", Map),
    ("priorityClassName", Text),
    ("readinessProbe", Map),
    ("replicaCount", Number),
    ("resources", Map),
    ("securityContext", Map),
    ("service", Map),
    ("serviceAnnotations", Map),
    ("strategy", Map),
    ("tolerations", List),
    ("volumes", List),
    ("volumeMounts", List),
    (
        "overlays",
        Each(&[
            ("apiVersion", Text),
            ("kind", Text),
            ("name", Text),
            ("patches", Each(&[("path", Text), ("value", Scalar)])),
        ]),
    ),
];

/// Checks the `spec`.
pub(super) fn check(spec: &Value, outcome: &mut Outcome) {
    if outcome.namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(&mut outcome.namespace);
    }
    check_fields("spec", spec, SPEC, outcome);
    for field in ["ingressGateways", "egressGateways"] {
        let gateways = spec["components"][field].as_array();
        for (index, gateway) in gateways.into_iter().flatten().enumerate() {
            if gateway["name"].as_str().unwrap_or_default().is_empty() {
                let path = format!("spec.components.{field}[{index}].name");
                outcome.error(&path, "is missing: each gateway needs a name");
            }
        }
    }
    let mesh = &spec["meshConfig"];
    if mesh.is_object()
        && let Err(error) = json::from_value::<MeshConfig>(mesh)
    {
        let path = join("spec.meshConfig", error.path().unwrap_or_default());
        outcome.error(&path, error.problem());
    }
}

fn check_fields(path: &str, value: &Value, known: &[(&str, Shape)], outcome: &mut Outcome) {
    let fields = match value {
        Value::Null => return,
        Value::Object(fields) => fields,
        _ => return outcome.error(path, "an object belongs here"),
    };
    for (key, value) in fields {
        let path = join(path, key);
        match known.iter().find(|(name, _)| name == key) {
            Some((_, shape)) => check_shape(&path, value, *shape, outcome),
            None => {
                let hint = nearest(key, known.iter().map(|(name, _)| *name));
                let hint = hint.map(|name| format!("did you mean {name}?"));
                outcome.hinted(&path, "unknown field", hint);
            }
        }
    }
}

fn check_shape(path: &str, value: &Value, shape: Shape, outcome: &mut Outcome) {
    let wanted = match shape {
        _ if value.is_null() => return,
        Fields(known) => return check_fields(path, value, known, outcome),
        Each(known) => match value.as_array() {
            Some(items) => {
                for (index, item) in items.iter().enumerate() {
                    check_fields(&format!("{path}[{index}]"), item, known, outcome);
                }
                return;
            }
            None => "a list",
        },
        Text if !value.is_string() => "a text",
        Flag if !value.is_boolean() => "true or false",
        Map if !value.is_object() => "an object",
        List if !value.is_array() => "a list",
        Number if value.as_u64().is_none() => "a whole number",
        // The value of a patch may be anything.
        Scalar | Text | Flag | Map | List | Number => return,
    };
    outcome.error(path, format!("{wanted} belongs here"));
}

#[cfg(test)]
mod tests {
    use super::super::object::check;
    use serde_json::{Value, json};

    fn paths(spec: &Value) -> Vec<String> {
        let object = json!({
            "apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator",
            "metadata": {"name": "a"}, "spec": spec,
        });
        let outcome = check(&object);
        outcome.issues.into_iter().map(|issue| issue.path).collect()
    }

    #[test]
    fn an_installation_is_checked_field_by_field() {
        let good = json!({
            "profile": "demo", "tag": 1.27, "meshConfig": {"enableTracing": true},
            "components": {"pilot": {"k8s": {"replicaCount": 2}}, "egressGateways": [{"name": "a", "enabled": true}]},
            "values": {"global": {"anything": 1}},
        });
        assert_eq!(paths(&good), [""; 0]);
        let bad = json!({
            "profil": "demo", "meshConfig": {"enableTracin": true},
            "components": {"pilot": {"enabled": "yes"}, "ingressGateways": [{"enabled": true}]},
        });
        let want = [
            "spec.profil",
            "spec.components.pilot.enabled",
            "spec.components.ingressGateways[0].name",
            "spec.meshConfig.enableTracin",
        ];
        assert_eq!(paths(&bad), want);
    }
}
