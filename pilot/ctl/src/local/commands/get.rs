//! `local get`: objects as kubectl shows them.

use std::{io::Write as _, process::ExitCode};

use serde_json::Value;

use super::text;
use crate::{
    local::{GetArgs, api::Selector, client::Client},
    table::{Format, Table, print_value},
};

/// Shows objects.
pub(super) async fn run(client: &Client, args: GetArgs) -> anyhow::Result<ExitCode> {
    let (kind, name) = match args.kind.split_once('/') {
        Some((kind, name)) => (kind.to_owned(), Some(name.to_owned())),
        None => (args.kind.clone(), args.name.clone()),
    };
    let selector = Selector {
        kind: kind.clone(),
        namespace: if args.all_namespaces {
            String::new()
        } else {
            args.namespace.clone()
        },
        name: name.clone().unwrap_or_default(),
        ..Selector::default()
    };
    let objects: Vec<Value> = client.get("/v1/objects", &selector).await?;
    if args.format.output != Format::Table {
        let value = match (&name, objects.len()) {
            (Some(_), 1) => objects.into_iter().next().unwrap_or(Value::Null),
            _ => serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}),
        };
        print_value(&value, args.format.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    if objects.is_empty() {
        writeln!(
            std::io::stderr(),
            "no {kind} in namespace {}",
            args.namespace
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    object_table(&objects).print(Format::Table)?;
    Ok(ExitCode::SUCCESS)
}

fn object_table(objects: &[Value]) -> Table {
    let kind = objects.first().map_or("", |object| text(object, "kind"));
    let columns: &[&'static str] = match kind {
        "Pod" => &[
            "NAMESPACE",
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "IP",
            "AGE",
        ],
        "Deployment" => &[
            "NAMESPACE",
            "NAME",
            "READY",
            "UP-TO-DATE",
            "AVAILABLE",
            "AGE",
        ],
        "Service" => &["NAMESPACE", "NAME", "CLUSTER-IP", "PORTS", "AGE"],
        "VirtualService" => &["NAMESPACE", "NAME", "GATEWAYS", "HOSTS", "AGE"],
        "DestinationRule" => &["NAMESPACE", "NAME", "HOST", "AGE"],
        _ => &["NAMESPACE", "NAME", "AGE"],
    };
    let mut table = Table::new(columns);
    for object in objects {
        let meta = &object["metadata"];
        let mut cells = vec![
            text(meta, "namespace").to_owned(),
            text(meta, "name").to_owned(),
        ];
        let (spec, status) = (&object["spec"], &object["status"]);
        let number = |value: &Value| value.as_u64().unwrap_or_default().to_string();
        match kind {
            "Pod" => cells.extend(pod_cells(status)),
            "Deployment" => cells.extend([
                format!(
                    "{}/{}",
                    number(&status["readyReplicas"]),
                    spec["replicas"].as_u64().unwrap_or(1)
                ),
                number(&status["updatedReplicas"]),
                number(&status["availableReplicas"]),
            ]),
            "Service" => {
                let ports = spec["ports"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|port| number(&port["port"]));
                cells.extend([
                    text(spec, "clusterIP").to_owned(),
                    ports.collect::<Vec<_>>().join(","),
                ]);
            }
            "VirtualService" => cells.extend([list(&spec["gateways"]), list(&spec["hosts"])]),
            "DestinationRule" => cells.push(text(spec, "host").to_owned()),
            _ => {}
        }
        cells.push(age(text(meta, "creationTimestamp")));
        table.row(cells);
    }
    table
}

fn pod_cells(status: &Value) -> [String; 4] {
    let containers: Vec<&Value> = status["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let ready = containers
        .iter()
        .filter(|container| container["ready"] == true)
        .count();
    let restarts: u64 = containers
        .iter()
        .filter_map(|container| container["restartCount"].as_u64())
        .sum();
    let waiting = containers
        .iter()
        .find_map(|container| container["state"]["waiting"]["reason"].as_str());
    let phase = waiting.unwrap_or_else(|| text(status, "phase"));
    [
        format!("{ready}/{}", containers.len()),
        phase.to_owned(),
        restarts.to_string(),
        text(status, "podIP").to_owned(),
    ]
}

fn list(value: &Value) -> String {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(",")
}

/// `5m`, from a time as Kubernetes writes it.
fn age(created: &str) -> String {
    let parsed =
        time::OffsetDateTime::parse(created, &time::format_description::well_known::Rfc3339);
    let Ok(created) = parsed else {
        return String::new();
    };
    let seconds = (time::OffsetDateTime::now_utc() - created)
        .whole_seconds()
        .max(0);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_every_kind_have_a_table() {
        let pod = serde_json::json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "default"},
            "status": {"phase": "Running", "containerStatuses": [{"ready": true, "restartCount": 2}]}});
        let row = object_table(&[pod]).to_value()[0].clone();
        assert_eq!(
            (row["ready"].as_str(), row["restarts"].as_str()),
            (Some("1/1"), Some("2"))
        );
    }
}
