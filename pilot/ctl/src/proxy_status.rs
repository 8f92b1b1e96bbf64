//! `biremectl proxy-status`: how far each proxy's configuration is in step with Pilot, from Pilot's `/debug/syncz`.

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

/// Asks Pilot, and prints.
pub(crate) async fn run(args: ProxyStatusArgs) -> anyhow::Result<ExitCode> {
    let client = commands::client(&args.mesh)?;
    let syncz = ask_pilot(&client, "/debug/syncz".into()).await?;
    if let Some(pod) = &args.pod {
        return show_difference(&client, &syncz, pod, args.namespace.as_deref()).await;
    }
    rows(&syncz, "istio-pilot").print(args.format.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask_pilot(client: &Client, path: String) -> anyhow::Result<Value> {
    let request = PodRequest {
        namespace: NAMESPACE.into(),
        pod: "deploy/istio-pilot".into(),
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
    syncz: &Value,
    pod: &str,
    namespace: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let id = find_proxy(syncz, pod, namespace)?;
    let pilot = ask_pilot(client, format!("/debug/config_dump?proxyID={id}")).await?;
    let path = "/config_dump?include_eds";
    let proxy = ask_admin(client, &id, None, ADMIN_PORT, "GET", path).await?;
    let proxy = serde_json::from_slice(&proxy).context("read the proxy's /config_dump")?;
    let (text, is_same) = diff::compare(&pilot, &proxy);
    print_text(&text)?;
    Ok(ExitCode::from(u8::from(!is_same)))
}

/// The id (`pod.namespace`) of the proxy that a user means: a pod, or one of a deployment's.
fn find_proxy(syncz: &Value, pod: &str, namespace: Option<&str>) -> anyhow::Result<String> {
    let (name, wanted) = commands::target_name(pod, namespace);
    let deployment = name
        .split_once('/')
        .filter(|(kind, _)| kind.starts_with("deploy"))
        .map(|(_, name)| name.to_owned());
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let is_named = namespace.is_some() || pod.contains('.');
    let ids = || {
        let proxies = syncz.as_array().into_iter().flatten();
        proxies.filter_map(|proxy| proxy["proxy"].as_str())
    };
    let is_meant = |id: &&str| {
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
    ids().find(is_meant).map(str::to_owned).with_context(|| {
        let known: Vec<&str> = ids().collect();
        format!(
            "no proxy of {pod:?} is connected to Pilot; these are: {}",
            known.join(", ")
        )
    })
}

/// A row for each proxy that is connected to Pilot; `pilot` is the name of the instance that was asked.
pub fn rows(syncz: &Value, pilot: &str) -> Table {
    let mut table = Table::new(&["NAME", "CDS", "LDS", "EDS", "RDS", "PILOT", "VERSION"]);
    for proxy in syncz.as_array().into_iter().flatten() {
        let text = |key: &str| proxy[key].as_str().unwrap_or_default();
        let cell = |kind: &str| {
            state(
                text(&format!("{kind}_sent")),
                text(&format!("{kind}_acked")),
            )
        };
        let version = match (text("istio_version"), text("proxy_version")) {
            ("", version) if !version.is_empty() => format!("{version}*"),
            (version, _) => version.to_owned(),
        };
        table.row([
            text("proxy"),
            cell("cluster"),
            cell("listener"),
            cell("endpoint"),
            cell("route"),
            pilot,
            &version,
        ]);
    }
    table.sort();
    table
}

fn state(sent: &str, acked: &str) -> &'static str {
    match (sent, acked) {
        ("", _) => "NOT SENT",
        (sent, acked) if sent == acked => "SYNCED",
        (_, "") => "STALE (Never Acknowledged)",
        _ => "STALE",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_proxy_is_meant_by_pod_or_by_deployment() {
        let syncz = json!([{"proxy": "web-v1-5d8f-x.default"}, {"proxy": "gate-1-2.istio-system"}]);
        let find = |pod, namespace| find_proxy(&syncz, pod, namespace).ok();
        let web = Some("web-v1-5d8f-x.default".to_owned());
        assert_eq!(find("web-v1-5d8f-x", None), web);
        assert_eq!(find("deploy/web-v1", None), web);
        assert_eq!(find("web-v1", Some("default")), web);
        assert_eq!(find("deploy/web", None), None);
        assert_eq!(find("gate", None).unwrap(), "gate-1-2.istio-system");
        assert_eq!(find("gate", Some("default")), None);
    }

    #[test]
    fn a_proxy_is_in_step_when_it_acknowledged_what_was_sent() {
        let syncz = json!([{"proxy": "b.default", "proxy_version": "1.4.0", "cluster_sent": "1", "cluster_acked": "1",
            "listener_sent": "2", "listener_acked": "", "endpoint_sent": "3", "endpoint_acked": "2"}]);
        let row = rows(&syncz, "pilot-1").to_value()[0].clone();
        assert_eq!(
            row,
            json!({"name": "b.default", "cds": "SYNCED", "lds": "STALE (Never Acknowledged)", "eds": "STALE",
                "rds": "NOT SENT", "pilot": "pilot-1", "version": "1.4.0*"})
        );
    }
}
