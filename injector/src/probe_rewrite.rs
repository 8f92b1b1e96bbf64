//! Sends the application's health checks through the agent: the kubelet has no certificate, so under STRICT mutual TLS it
//! could not ask the application itself, and a TCP connection would be the proxy's to accept. The agent asks over loopback
//! and passes the status on.

use serde_json::{Map, Value, json};

use crate::pod::PROXY_CONTAINER;
use crate::template::Injection;

/// Environment variable of the proxy's container: path → the original `httpGet`, or `{tcpSocket | grpc, timeoutSeconds}`.
const PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";
const PROBES: &[(&str, &str)] = &[
    ("readinessProbe", "readyz"),
    ("livenessProbe", "livez"),
    ("startupProbe", "startupz"),
];

/// Rewrites the HTTP, TCP and gRPC probes of every application container in `pod`, and tells the proxy of `injection` about
/// them. Does nothing where the proxy has no status port.
pub fn rewrite(pod: &mut Value, injection: &mut Injection) {
    let Some(proxy) = injection
        .containers
        .iter_mut()
        .find(|container| container["name"] == PROXY_CONTAINER)
    else {
        return;
    };
    let Some(port) = status_port(proxy) else {
        return;
    };
    let mut probers = Map::new();
    for container in pod["spec"]["containers"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let ports = container["ports"].clone();
        for (probe, path) in PROBES {
            let Some(probe) = container.get_mut(*probe).and_then(Value::as_object_mut) else {
                continue;
            };
            let Some(mut original) = original_of(probe, port) else {
                continue;
            };
            for action in ["/port", "/tcpSocket/port"] {
                if let Some(named) = original.pointer_mut(action)
                    && let Some(number) = named_port(&ports, named)
                {
                    *named = number;
                }
            }
            let path = format!("/app-health/{name}/{path}");
            probe.remove("tcpSocket");
            probe.remove("grpc");
            probe.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
            probers.insert(path, original);
        }
    }
    if probers.is_empty() {
        return;
    }
    add_variable(proxy, PROBERS, &Value::Object(probers).to_string());
}

/// Adds a variable to a container's environment.
pub(crate) fn add_variable(container: &mut Value, name: &str, value: &str) {
    let variable = json!({"name": name, "value": value});
    match container["env"].as_array_mut() {
        Some(env) => env.push(variable),
        None => container["env"] = json!([variable]),
    }
}

/// What the proxies in a pod were told by the variable `name`.
pub(crate) fn variables(pod: &Value, name: &str) -> impl DoubleEndedIterator<Item = String> {
    let containers = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array());
    let proxies = containers.into_iter().flatten().flatten();
    let proxies = proxies.filter(|container| container["name"] == PROXY_CONTAINER);
    let all = proxies.flat_map(|proxy| proxy["env"].as_array().into_iter().flatten());
    let found: Vec<String> = all
        .filter(|variable| variable["name"] == name)
        .filter_map(|variable| variable["value"].as_str().map(str::to_owned))
        .collect();
    found.into_iter()
}

/// What the agent is told of a probe; nothing for those that it does not make (commands) and those that are its own.
fn original_of(probe: &Map<String, Value>, port: u16) -> Option<Value> {
    if let Some(action) = probe.get("httpGet") {
        return (action["port"] != port).then(|| action.clone());
    }
    let kind = ["tcpSocket", "grpc"]
        .into_iter()
        .find(|kind| probe.contains_key(*kind))?;
    let mut original = json!({kind: probe.get(kind)?});
    if let Some(timeout) = probe.get("timeoutSeconds") {
        original["timeoutSeconds"] = timeout.clone();
    }
    Some(original)
}

/// Gives the application its own probes back, from what the proxy of an earlier injection was told about them.
pub fn restore(pod: &mut Value) {
    let mut known = Map::new();
    for text in variables(pod, PROBERS) {
        if let Ok(Value::Object(probers)) = serde_json::from_str(&text) {
            known.extend(probers);
        }
    }
    let containers = pod["spec"]["containers"].as_array_mut();
    for container in containers.into_iter().flatten() {
        for (probe, _) in PROBES {
            let Some(probe) = container.get_mut(*probe).and_then(Value::as_object_mut) else {
                continue;
            };
            let path = probe
                .get("httpGet")
                .and_then(|action| action["path"].as_str());
            let Some(original) = path.and_then(|path| known.get(path)) else {
                continue;
            };
            let kinds = ["tcpSocket", "grpc"].into_iter();
            let mut action = kinds.filter_map(|kind| Some((kind, original.get(kind)?)));
            let (kind, action) = action.next_back().unwrap_or(("httpGet", original));
            let action = action.clone();
            probe.remove("httpGet");
            probe.insert(kind.to_owned(), action);
        }
    }
}

/// The agent's port, from the proxy's own arguments.
pub(crate) fn status_port(proxy: &Value) -> Option<u16> {
    let args: Vec<&str> = proxy["args"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let after = args
        .iter()
        .position(|arg| *arg == "--statusPort")
        .and_then(|index| args.get(index + 1))
        .copied();
    let joined = || {
        args.iter()
            .find_map(|arg| arg.strip_prefix("--statusPort="))
    };
    after
        .or_else(joined)?
        .parse()
        .ok()
        .filter(|port| *port != 0)
}

fn named_port(ports: &Value, port: &Value) -> Option<Value> {
    let name = port.as_str()?;
    let found = ports.as_array()?.iter().find(|port| port["name"] == name)?;
    Some(found["containerPort"].clone())
}
