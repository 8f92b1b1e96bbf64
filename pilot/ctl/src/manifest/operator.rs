//! An `IstioOperator` (or Helm values, or settings) as values of the charts. Later ones win: profile, files in their order,
//! settings. What no value expresses becomes an overlay; what cannot be done is refused.

use std::path::PathBuf;

use proto_component::process::Usage;
use serde_json::{Map, Value, json};

use super::charts::{Charts, read_yaml};
use super::overlay::Overlay;
use crate::local::values::{merge, parse_setting, split};

/// The fields of an IstioOperator's spec: a setting that begins with another key is a value of the charts.
const SPEC: &[&str] = &[
    "profile",
    "hub",
    "tag",
    "namespace",
    "revision",
    "compatibilityVersion",
    "installPackagePath",
    "meshConfig",
    "components",
    "values",
    "unvalidatedValues",
];

/// A component as IstioOperator calls it, where its values are, its Deployment, container and image.
struct Component {
    name: &'static str,
    values: &'static str,
    deployment: &'static str,
    container: &'static str,
    image: &'static str,
}

const COMPONENTS: &[Component] = &[
    component("pilot", "pilot", "istio-pilot", "discovery", "pilot"),
    component("citadel", "security", "istio-citadel", "citadel", "citadel"),
    component("galley", "galley", "istio-galley", "galley", "galley"),
    component("policy", "mixer.policy", "istio-policy", "mixer", "mixer"),
    component(
        "telemetry",
        "mixer.telemetry",
        "istio-telemetry",
        "mixer",
        "mixer",
    ),
    component(
        "sidecarInjector",
        "sidecarInjectorWebhook",
        "istio-sidecar-injector",
        "sidecar-injector-webhook",
        "sidecar_injector",
    ),
    component("cni", "istio_cni", "", "", ""),
];

const fn component(
    name: &'static str,
    values: &'static str,
    deployment: &'static str,
    container: &'static str,
    image: &'static str,
) -> Component {
    Component {
        name,
        values,
        deployment,
        container,
        image,
    }
}

/// Of `k8s` what is a value of the same or another name.
const AS_VALUES: &[(&str, &str)] = &[
    ("replicaCount", "replicaCount"),
    ("resources", "resources"),
    ("nodeSelector", "nodeSelector"),
    ("tolerations", "tolerations"),
    ("affinity", "affinity"),
    ("podAnnotations", "podAnnotations"),
    ("serviceAnnotations", "serviceAnnotations"),
];

/// Of `k8s` what goes into the pod's template, and where.
const AS_OVERLAYS: &[(&str, &str)] = &[
    ("priorityClassName", "spec.template.spec.priorityClassName"),
    ("securityContext", "spec.template.spec.securityContext"),
    ("imagePullPolicy", "CONTAINER.imagePullPolicy"),
    ("readinessProbe", "CONTAINER.readinessProbe"),
];

/// Of a gateway's `k8s.service` what is a value.
const SERVICE: &[&str] = &[
    "type",
    "ports",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "externalIPs",
    "externalTrafficPolicy",
];

/// What to render.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Values of the umbrella chart.
    pub values: Value,
    /// Changes to what it renders.
    pub overlays: Vec<Overlay>,
    /// Where it goes.
    pub namespace: String,
    /// Whether the kinds' definitions come along.
    pub has_definitions: bool,
}

/// Reads files and settings.
pub(crate) fn plan(
    files: &[PathBuf],
    settings: &[String],
    charts: &Charts,
) -> anyhow::Result<Plan> {
    let mut spec = json!({});
    for path in files {
        let name = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|error| Usage(format!("{name}: {error}")))?;
        let document = read_yaml(&name, &text)?;
        merge(&mut spec, spec_of(&name, &document)?);
    }
    for setting in settings {
        for part in split(setting, ',') {
            let over = parse_setting(&part)
                .map_err(|problem| Usage(format!("--set {part}: {problem}")))?;
            let is_spec = part
                .split(['.', '='])
                .next()
                .is_some_and(|key| SPEC.contains(&key));
            merge(
                &mut spec,
                if is_spec {
                    over
                } else {
                    json!({"values": over})
                },
            );
        }
    }
    let profile = spec["profile"].as_str().unwrap_or("default");
    let values = charts.profile(profile)?;
    Ok(translate(&spec, values)?)
}

/// The spec of an IstioOperator, or values as one.
fn spec_of(name: &str, document: &Value) -> Result<Value, Usage> {
    match document["kind"].as_str() {
        None if document.is_null() => Ok(json!({})),
        None => Ok(json!({"values": document})),
        Some("IstioOperator") => {
            let spec = document["spec"].clone();
            let unknown = spec.as_object().into_iter().flatten().map(|(key, _)| key);
            match unknown
                .into_iter()
                .find(|key| !SPEC.contains(&key.as_str()))
            {
                None if spec.is_null() => Ok(json!({})),
                None => Ok(spec),
                Some(key) => Err(Usage(format!(
                    "{name}: spec.{key} is no field of an IstioOperator; there are {}",
                    SPEC.join(", ")
                ))),
            }
        }
        Some(kind) => Err(Usage(format!(
            "{name}: {kind} where an IstioOperator or values are wanted"
        ))),
    }
}

/// Lays what a spec says over a profile's values.
fn translate(spec: &Value, profile: Value) -> Result<Plan, Usage> {
    for field in ["revision", "compatibilityVersion"] {
        if spec[field].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(Usage(format!(
                "spec.{field} is not supported: one version is installed at a time"
            )));
        }
    }
    let mut plan = Plan {
        values: if profile.is_null() {
            json!({})
        } else {
            profile
        },
        overlays: Vec::new(),
        namespace: spec["namespace"]
            .as_str()
            .unwrap_or("istio-system")
            .to_owned(),
        has_definitions: spec["components"]["base"]["enabled"] != false,
    };
    for field in ["values", "unvalidatedValues"] {
        if spec[field].is_object() {
            merge(&mut plan.values, spec[field].clone());
        }
    }
    for field in ["hub", "tag"] {
        match &spec[field] {
            Value::Null => {}
            Value::String(text) => plan.put(&format!("global.{field}"), json!(text)),
            other => plan.put(&format!("global.{field}"), json!(other.to_string())),
        }
    }
    if spec["meshConfig"].is_object() {
        merge(&mut plan.values, json!({"meshConfig": spec["meshConfig"]}));
    }
    for (name, wish) in spec["components"].as_object().into_iter().flatten() {
        match name.as_str() {
            "base" => {}
            "ingressGateways" | "egressGateways" => {
                for gateway in wish.as_array().into_iter().flatten() {
                    plan.gateway(name, gateway)?;
                }
            }
            name => match COMPONENTS.iter().find(|component| component.name == name) {
                Some(component) => plan.component(component, wish)?,
                None if wish["enabled"] == true => {
                    let known: Vec<_> = COMPONENTS.iter().map(|component| component.name).collect();
                    return Err(Usage(format!(
                        "components.{name} is not supported; there are base, {}, ingressGateways, egressGateways",
                        known.join(", ")
                    )));
                }
                None => {}
            },
        }
    }
    Ok(plan)
}

impl Plan {
    fn put(&mut self, path: &str, value: Value) {
        let over = path.rsplit('.').fold(value, |value, key| {
            Value::Object(Map::from_iter([(key.to_owned(), value)]))
        });
        merge(&mut self.values, over);
    }

    fn component(&mut self, component: &Component, wish: &Value) -> Result<(), Usage> {
        let place = component.values;
        let field = format!("components.{}", component.name);
        if wish["enabled"].is_boolean() {
            self.put(&format!("{place}.enabled"), wish["enabled"].clone());
        }
        if wish["namespace"]
            .as_str()
            .is_some_and(|namespace| namespace != self.namespace)
        {
            return Err(Usage(format!(
                "{field}.namespace is not supported: only gateways may live elsewhere"
            )));
        }
        let (hub, tag) = (wish["hub"].as_str(), &wish["tag"]);
        match (hub, tag) {
            (None, Value::Null) => {}
            (Some(hub), tag) if !tag.is_null() => {
                let tag = tag.as_str().map_or_else(|| tag.to_string(), str::to_owned);
                // Mixer's halves have one image.
                let place = place.split('.').next().unwrap_or(place);
                self.put(
                    &format!("{place}.image"),
                    json!(format!("{hub}/{}:{tag}", component.image)),
                );
            }
            _ => return Err(Usage(format!("{field}: say hub and tag both"))),
        }
        let target = Target {
            field,
            values: place.split('.').map(str::to_owned).collect(),
            deployment: component.deployment.to_owned(),
            container: component.container,
        };
        self.kubernetes(&target, &wish["k8s"], false)
    }

    fn gateway(&mut self, list: &str, wish: &Value) -> Result<(), Usage> {
        let default = if list == "ingressGateways" {
            "istio-ingressgateway"
        } else {
            "istio-egressgateway"
        };
        let name = wish["name"].as_str().unwrap_or(default);
        let mut own = json!({});
        for (field, value) in [
            ("enabled", "enabled"),
            ("namespace", "namespace"),
            ("label", "labels"),
        ] {
            if !wish[field].is_null() {
                own[value] = wish[field].clone();
            }
        }
        if own["enabled"] == true {
            merge(&mut self.values, json!({"gateways": {"enabled": true}}));
        }
        merge(&mut self.values, json!({"gateways": {name: own}}));
        let target = Target {
            field: format!("components.{list}[{name}]"),
            values: vec!["gateways".to_owned(), name.to_owned()],
            deployment: name.to_owned(),
            container: "istio-proxy",
        };
        self.kubernetes(&target, &wish["k8s"], true)
    }

    /// What `k8s` says of a component.
    fn kubernetes(&mut self, target: &Target, wish: &Value, is_gateway: bool) -> Result<(), Usage> {
        let mut own = json!({});
        for (field, value) in wish.as_object().into_iter().flatten() {
            let container = format!("spec.template.spec.containers.[name:{}]", target.container);
            if let Some((_, name)) = AS_VALUES.iter().find(|(known, _)| known == field) {
                own[*name] = value.clone();
            } else if let Some((_, path)) = AS_OVERLAYS.iter().find(|(known, _)| known == field) {
                self.overlays.push(Overlay {
                    kind: "Deployment".to_owned(),
                    name: target.deployment.clone(),
                    patches: vec![(path.replace("CONTAINER", &container), value.clone())],
                });
            } else {
                match field.as_str() {
                    "env" => own["env"] = environment(&target.field, value)?,
                    "hpaSpec" => merge(&mut own, scaling(value)),
                    "strategy" => {
                        for (field, key) in [
                            ("maxSurge", "rollingMaxSurge"),
                            ("maxUnavailable", "rollingMaxUnavailable"),
                        ] {
                            if !value["rollingUpdate"][field].is_null() {
                                own[key] = value["rollingUpdate"][field].clone();
                            }
                        }
                    }
                    "service" if is_gateway => merge(&mut own, service(&target.field, value)?),
                    "overlays" => self.overlays.extend(overlays(&target.field, value)?),
                    _ => {
                        return Err(Usage(format!(
                            "{}.k8s.{field} is not supported; use k8s.overlays",
                            target.field
                        )));
                    }
                }
            }
        }
        let over = target.values.iter().rev().fold(own, |value, key| {
            Value::Object(Map::from_iter([(key.clone(), value)]))
        });
        merge(&mut self.values, over);
        Ok(())
    }
}

/// What `k8s` is about.
struct Target {
    field: String,
    values: Vec<String>,
    deployment: String,
    container: &'static str,
}

fn environment(field: &str, list: &Value) -> Result<Value, Usage> {
    let mut map = Map::new();
    for variable in list.as_array().into_iter().flatten() {
        match (variable["name"].as_str(), &variable["value"]) {
            (Some(name), value) if !value.is_null() => {
                map.insert(name.to_owned(), value.clone());
            }
            _ => {
                return Err(Usage(format!(
                    "{field}.k8s.env: wanted name and value; use k8s.overlays for anything else"
                )));
            }
        }
    }
    Ok(Value::Object(map))
}

fn scaling(wish: &Value) -> Value {
    let mut own = json!({"autoscaleEnabled": true});
    for (field, value) in [
        ("minReplicas", "autoscaleMin"),
        ("maxReplicas", "autoscaleMax"),
    ] {
        if !wish[field].is_null() {
            own[value] = wish[field].clone();
        }
    }
    let resource = &wish["metrics"][0]["resource"];
    let share = [
        &resource["target"]["averageUtilization"],
        &resource["targetAverageUtilization"],
    ];
    if let Some(share) = share.into_iter().find(|share| share.is_number()) {
        own["cpu"] = json!({"targetAverageUtilization": share});
    }
    own
}

fn service(field: &str, wish: &Value) -> Result<Value, Usage> {
    let mut own = json!({});
    for (name, value) in wish.as_object().into_iter().flatten() {
        if !SERVICE.contains(&name.as_str()) {
            return Err(Usage(format!(
                "{field}.k8s.service.{name} is not supported; use k8s.overlays"
            )));
        }
        own[name] = value.clone();
    }
    Ok(own)
}

fn overlays(field: &str, list: &Value) -> Result<Vec<Overlay>, Usage> {
    let text = |value: &Value, name: &str| {
        let wrong = || Usage(format!("{field}.k8s.overlays: an overlay has no {name}"));
        value[name].as_str().map(str::to_owned).ok_or_else(wrong)
    };
    let overlays = list.as_array().into_iter().flatten().map(|item| {
        let patches = item["patches"].as_array().into_iter().flatten();
        Ok(Overlay {
            kind: text(item, "kind")?,
            name: text(item, "name")?,
            patches: patches
                .map(|patch| Ok((text(patch, "path")?, patch["value"].clone())))
                .collect::<Result<_, Usage>>()?,
        })
    });
    overlays.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(spec: &str) -> Result<Plan, Usage> {
        let spec = proto::yaml::parse_documents(spec).remove(0).unwrap().value;
        translate(
            &spec,
            json!({"pilot": {"enabled": true, "autoscaleEnabled": false}}),
        )
    }

    #[test]
    fn an_operators_spec_becomes_values_and_overlays() {
        let plan = plan_of(
            "hub: example.com/mesh\ntag: 1.2\nnamespace: mesh\nmeshConfig: {accessLogFile: /dev/stdout}\n\
             values: {global: {mtls: {enabled: true}}}\ncomponents:\n\
             \x20 pilot: {k8s: {replicaCount: 2, env: [{name: A, value: b}], hpaSpec: {minReplicas: 2}, priorityClassName: high}}\n\
             \x20 policy: {enabled: false}\n\
             \x20 base: {enabled: false}\n\
             \x20 egressGateways: [{name: istio-egressgateway, enabled: true, k8s: {service: {type: NodePort}}}]\n",
        )
        .unwrap();
        assert_eq!(
            plan.values,
            json!({
                "pilot": {"enabled": true, "autoscaleEnabled": true, "replicaCount": 2, "env": {"A": "b"}, "autoscaleMin": 2},
                "global": {"mtls": {"enabled": true}, "hub": "example.com/mesh", "tag": "1.2"},
                "meshConfig": {"accessLogFile": "/dev/stdout"},
                "mixer": {"policy": {"enabled": false}},
                "gateways": {"enabled": true, "istio-egressgateway": {"enabled": true, "type": "NodePort"}},
            })
        );
        assert_eq!(
            (plan.namespace.as_str(), plan.has_definitions),
            ("mesh", false)
        );
        assert_eq!(
            plan.overlays[0].patches[0].0,
            "spec.template.spec.priorityClassName"
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (spec, hint) in [
            ("revision: canary", "spec.revision"),
            (
                "components: {ztunnel: {enabled: true}}",
                "components.ztunnel",
            ),
            ("components: {galley: {namespace: other}}", "only gateways"),
            ("components: {galley: {k8s: {volumes: []}}}", "k8s.overlays"),
            ("components: {galley: {hub: x}}", "hub and tag"),
        ] {
            let error = plan_of(spec).unwrap_err().to_string();
            assert!(error.contains(hint), "{spec}: {error}");
        }
    }
}
