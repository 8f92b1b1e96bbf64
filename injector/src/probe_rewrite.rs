//! Sends the application's HTTP health checks through the agent: the kubelet has no certificate, so under STRICT mutual TLS
//! it could not ask the application itself. The agent asks over loopback and passes the status on.

use serde_json::{Map, Value, json};

use crate::pod::PROXY_CONTAINER;
use crate::template::Injection;

/// Environment variable of the proxy's container: path → the original `httpGet`.
const PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";
const PROBES: &[(&str, &str)] = &[
    ("readinessProbe", "readyz"),
    ("livenessProbe", "livez"),
    ("startupProbe", "startupz"),
];

/// Rewrites the HTTP probes of every application container in `pod`, and tells the proxy of `injection` about them. Does
/// nothing where the proxy has no status port.
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
            let Some(action) = container
                .get_mut(*probe)
                .and_then(|probe| probe.get_mut("httpGet"))
            else {
                continue;
            };
            let mut original = action.clone();
            if let Some(number) = named_port(&ports, &original["port"]) {
                original["port"] = number;
            }
            let path = format!("/app-health/{name}/{path}");
            *action = json!({"path": path, "port": port});
            probers.insert(path, original);
        }
    }
    if probers.is_empty() {
        return;
    }
    let variable = json!({"name": PROBERS, "value": Value::Object(probers).to_string()});
    match proxy["env"].as_array_mut() {
        Some(env) => env.push(variable),
        None => proxy["env"] = json!([variable]),
    }
}

/// The agent's port, from the proxy's own arguments.
fn status_port(proxy: &Value) -> Option<u16> {
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
