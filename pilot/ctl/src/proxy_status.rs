//! `biremectl proxy-status`: how far each proxy's configuration is in step with Pilot, from `/debug/syncz` of every replica.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    args::ProxyStatusArgs,
    local::{NAMESPACE, PodRequest, client::Client, commands},
    proxy_config::command::ask_admin,
    table::{Table, print_text},
};

mod diff;

/// Port of a proxy's admin interface.
const ADMIN_PORT: u16 = 15000;

/// What one replica of Pilot says.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its pod.
    pub pod: String,
    /// Its `/debug/syncz`.
    pub syncz: Value,
}

impl Replica {
    /// The ids (`pod.namespace`) of its proxies.
    fn ids(&self) -> impl Iterator<Item = &str> {
        let proxies = self.syncz.as_array().into_iter().flatten();
        proxies.filter_map(|proxy| proxy["proxy"].as_str())
    }
}

/// Asks Pilot, and prints.
pub(crate) async fn run(args: ProxyStatusArgs) -> anyhow::Result<ExitCode> {
    let client = commands::client(&args.mesh)?;
    let replicas = ask_replicas(&client).await?;
    if let Some(pod) = &args.pod {
        return show_difference(&client, &replicas, pod, args.namespace.as_deref()).await;
    }
    rows(&replicas).print(args.format.output)?;
    Ok(ExitCode::SUCCESS)
}

/// Those that answer: one that ends has handed its proxies over.
async fn ask_replicas(client: &Client) -> anyhow::Result<Vec<Replica>> {
    let mut replicas = Vec::new();
    let mut failure = anyhow::anyhow!("no pod of istio-pilot runs in namespace {NAMESPACE}");
    for pod in commands::pods_labelled(client, NAMESPACE, ("istio", "pilot")).await? {
        match ask_pilot(client, &pod, "/debug/syncz".into()).await {
            Ok(syncz) => replicas.push(Replica { pod, syncz }),
            Err(error) => failure = error,
        }
    }
    if replicas.is_empty() {
        return Err(failure);
    }
    Ok(replicas)
}

async fn ask_pilot(client: &Client, pod: &str, path: String) -> anyhow::Result<Value> {
    let request = PodRequest {
        namespace: NAMESPACE.into(),
        pod: pod.to_owned(),
        port: 8080,
        path: path.clone(),
        method: "GET".into(),
    };
    let body = client.ask_pod(&request).await.context("ask Pilot")?;
    serde_json::from_slice(&body).with_context(|| format!("read Pilot's {path}"))
}

/// One proxy: exit code 1 if it has something else than Pilot would send it.
async fn show_difference(
    client: &Client,
    replicas: &[Replica],
    pod: &str,
    namespace: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let (replica, id) = find_proxy(replicas, pod, namespace)?;
    let path = format!("/debug/config_dump?proxyID={id}");
    let pilot = ask_pilot(client, &replica.pod, path).await?;
    let path = "/config_dump?include_eds";
    let proxy = ask_admin(client, id, None, ADMIN_PORT, "GET", path).await?;
    let proxy = serde_json::from_slice(&proxy).context("read the proxy's /config_dump")?;
    let (text, is_same) = diff::compare(&pilot, &proxy);
    print_text(&text)?;
    Ok(ExitCode::from(u8::from(!is_same)))
}

/// The proxy that a user means (a pod, or one of a deployment's), and the replica that serves it.
fn find_proxy<'a>(
    replicas: &'a [Replica],
    pod: &str,
    namespace: Option<&str>,
) -> anyhow::Result<(&'a Replica, &'a str)> {
    let (name, wanted) = commands::target_name(pod, namespace);
    let deployment = name
        .split_once('/')
        .filter(|(kind, _)| kind.starts_with("deploy"))
        .map(|(_, name)| name.to_owned());
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let is_named = namespace.is_some() || pod.contains('.');
    let is_meant = |id: &str| {
        let Some((pod, namespace)) = id.rsplit_once('.') else {
            return false;
        };
        let is_there = if is_named {
            namespace == wanted
        } else {
            namespace == wanted || namespace == NAMESPACE
        };
        // A pod of a deployment has two more parts in its name.
        let of_deployment = || pod.rsplitn(3, '-').nth(2) == Some(name.as_str());
        is_there && ((deployment.is_none() && pod == name) || of_deployment())
    };
    let all = || {
        let replicas = replicas.iter();
        replicas.flat_map(|replica| replica.ids().map(move |id| (replica, id)))
    };
    all().find(|(_, id)| is_meant(id)).with_context(|| {
        let known: Vec<&str> = all().map(|(_, id)| id).collect();
        format!(
            "no proxy of {pod:?} is connected to Pilot; these are: {}",
            known.join(", ")
        )
    })
}

/// A row for each proxy that is connected to one of these replicas. Of what a proxy refuses the reason is shown.
pub fn rows(replicas: &[Replica]) -> Table {
    let mut table = Table::new(&[
        "NAME", "CDS", "LDS", "EDS", "RDS", "ECDS", "PILOT", "VERSION",
    ]);
    for replica in replicas {
        for proxy in replica.syncz.as_array().into_iter().flatten() {
            let text = |key: &str| proxy[key].as_str().unwrap_or_default();
            let cell = |kind: &str| state(proxy, kind);
            let version = match (text("istio_version"), text("proxy_version")) {
                ("", version) if !version.is_empty() => format!("{version}*"),
                (version, _) => version.to_owned(),
            };
            table.row([
                text("proxy").to_owned(),
                cell("cluster"),
                cell("listener"),
                cell("endpoint"),
                cell("route"),
                cell("extension_config"),
                replica.pod.clone(),
                version,
            ]);
        }
    }
    table.sort();
    table
}

fn state(proxy: &Value, kind: &str) -> String {
    let text = |what: &str| proxy[format!("{kind}_{what}")].as_str().unwrap_or_default();
    if !text("rejected").is_empty() {
        let reason: Vec<&str> = text("error").split_whitespace().collect();
        return format!("ERROR ({})", reason.join(" "));
    }
    let state = match (text("sent"), text("acked")) {
        ("", _) => "NOT SENT",
        (sent, acked) if sent == acked => "SYNCED",
        (_, "") => "STALE (Never Acknowledged)",
        _ => "STALE",
    };
    state.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replica(pod: &str, syncz: Value) -> Replica {
        let pod = pod.to_owned();
        Replica { pod, syncz }
    }

    #[test]
    fn a_proxy_is_meant_by_pod_or_by_deployment() {
        let replicas = [
            replica("pilot-1", json!([{"proxy": "web-v1-5d8f-x.default"}])),
            replica("pilot-2", json!([{"proxy": "gate-1-2.istio-system"}])),
        ];
        let find = |pod, namespace| {
            let found = find_proxy(&replicas, pod, namespace).ok();
            found.map(|(replica, id)| (replica.pod.as_str(), id))
        };
        let web = Some(("pilot-1", "web-v1-5d8f-x.default"));
        assert_eq!(find("web-v1-5d8f-x", None), web);
        assert_eq!(find("deploy/web-v1", None), web);
        assert_eq!(find("web-v1", Some("default")), web);
        assert_eq!(find("deploy/web", None), None);
        let gate = Some(("pilot-2", "gate-1-2.istio-system"));
        assert_eq!(find("gate", None), gate);
        assert_eq!(find("gate", Some("default")), None);
    }

    #[test]
    fn a_proxy_is_in_step_when_it_acknowledged_what_was_sent() {
        let syncz = json!([{"proxy": "b.default", "proxy_version": "1.4.0", "cluster_sent": "1", "cluster_acked": "1",
            "listener_sent": "2", "listener_acked": "", "endpoint_sent": "3", "endpoint_acked": "2",
            "route_sent": "4", "route_acked": "3", "route_rejected": "4", "route_error": "no such\ncluster"}]);
        let rows = rows(&[replica("pilot-1", syncz), replica("pilot-2", json!([]))]);
        assert_eq!(
            rows.to_value(),
            json!([{"name": "b.default", "cds": "SYNCED", "lds": "STALE (Never Acknowledged)", "eds": "STALE",
                "rds": "ERROR (no such cluster)", "ecds": "NOT SENT", "pilot": "pilot-1", "version": "1.4.0*"}])
        );
    }
}
