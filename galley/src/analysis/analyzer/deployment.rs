//! Deployments: do the services that lead to one agree on its ports, and does it keep off the proxy's user.

use super::super::{
    Code, Context, Object,
    context::{PROXY_CONTAINER, is_control_plane, selects},
    message::Messages,
    object::{DEPLOYMENT, POD, SERVICE, items, text, texts},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Whose traffic the interception leaves alone.
const PROXY_USER: i64 = 1337;

pub(super) fn check_services(context: &Context, messages: &mut Messages) {
    for deployment in context.of(DEPLOYMENT) {
        let template = &deployment.spec()["template"];
        let labels = texts(&template["metadata"]["labels"]);
        let annotations = texts(&template["metadata"]["annotations"]);
        let is_waypoint = deployment
            .labels
            .get("gateway.istio.io/managed")
            .is_some_and(|value| value == "istio.io-mesh-controller");
        let namespace = &deployment.namespace;
        if is_waypoint || !context.is_in_mesh(&labels, &annotations, namespace, &template["spec"]) {
            continue;
        }
        let services: Vec<&Object> = context
            .of(SERVICE)
            .filter(|service| service.namespace == *namespace)
            .filter(|service| {
                let selector = texts(&service.spec()["selector"]);
                !selector.is_empty() && selects(&selector, &labels)
            })
            .collect();
        check_protocols(deployment, &services, messages);
        check_numbers(deployment, &services, messages);
    }
}

fn check_protocols(deployment: &Object, services: &[&Object], messages: &mut Messages) {
    let mut ports: BTreeMap<u64, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
    for (service, port) in ports_of(services) {
        let protocol = match text(&port["protocol"]) {
            "" => "TCP",
            protocol => protocol,
        };
        let number = port["port"].as_u64().unwrap_or_default();
        let names = ports
            .entry(number)
            .or_default()
            .entry(protocol)
            .or_default();
        names.push(service.full_name());
    }
    for (port, protocols) in ports.iter().filter(|(_, protocols)| protocols.len() > 1) {
        let mut names: Vec<&str> = protocols.values().flatten().map(String::as_str).collect();
        names.sort_unstable();
        let text = format!(
            "Services {} give port {port} of {} different protocols",
            names.join(", "),
            deployment.name
        );
        let code = Code::DeploymentAssociatedToMultipleServices;
        messages.add(code, deployment, "metadata.name", text);
    }
}

fn check_numbers(deployment: &Object, services: &[&Object], messages: &mut Messages) {
    let mut targets: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    for (service, port) in ports_of(services) {
        let number = port["port"].as_u64().unwrap_or_default();
        let target = match &port["targetPort"] {
            Value::String(name) if !name.is_empty() => name.clone(),
            Value::Number(target) if target.as_u64() != Some(0) => target.to_string(),
            _ => number.to_string(),
        };
        let ports = targets.entry(target).or_default();
        ports.insert(number, service.full_name());
    }
    for (target, ports) in targets.iter().filter(|(_, ports)| ports.len() > 1) {
        let mut names: Vec<&str> = ports.values().map(String::as_str).collect();
        names.sort_unstable();
        let numbers: Vec<String> = ports.keys().map(u64::to_string).collect();
        let text = format!(
            "Services {} lead to port {target} of {} from different ports: {}",
            names.join(", "),
            deployment.name,
            numbers.join(", ")
        );
        messages.add(
            Code::DeploymentConflictingPorts,
            deployment,
            "metadata.name",
            text,
        );
    }
}

fn ports_of<'a>(services: &[&'a Object]) -> Vec<(&'a Object, &'a Value)> {
    services
        .iter()
        .flat_map(|service| items(&service.spec()["ports"]).map(|port| (*service, port)))
        .collect()
}

pub(super) fn check_user(context: &Context, messages: &mut Messages) {
    let pods = context.of(POD).map(|pod| (pod, pod.spec(), "spec"));
    let deployments = context.of(DEPLOYMENT).map(|deployment| {
        (
            deployment,
            &deployment.spec()["template"]["spec"],
            "spec.template.spec",
        )
    });
    for (object, pod, path) in pods.chain(deployments) {
        if is_control_plane(object) {
            continue;
        }
        let is_proxy_user = |context: &Value| context["runAsUser"].as_i64() == Some(PROXY_USER);
        let container = items(&pod["containers"])
            .enumerate()
            .filter(|(_, container)| {
                container["name"] != PROXY_CONTAINER && container["name"] != "istio-operator"
            })
            .find(|(_, container)| is_proxy_user(&container["securityContext"]));
        let place = match container {
            Some((index, _)) => format!("{path}.containers[{index}].securityContext.runAsUser"),
            None if is_proxy_user(&pod["securityContext"]) => {
                format!("{path}.securityContext.runAsUser")
            }
            None => continue,
        };
        let text = format!("User {PROXY_USER} is the proxy's: choose another for the application");
        messages.add(Code::InvalidApplicationUid, object, &place, text);
    }
}
