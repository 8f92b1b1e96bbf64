//! `local logs` and `local exec`: into one container of a pod.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;

use super::{selector_of, text};
use crate::{
    local::{
        ExecArgs, LogsArgs, NAMESPACE, TargetArgs,
        api::Selector,
        client::{Client, Refused},
    },
    table::print_text,
};

/// A pod and one of its containers.
async fn find_container(
    client: &Client,
    args: &TargetArgs,
    may_be_init: bool,
) -> anyhow::Result<(Value, Value)> {
    let selector = selector_of(args);
    let pod: anyhow::Result<Value> = client.get("/v1/pod", &selector).await;
    let pod = match pod {
        Err(error)
            if args.namespace.is_none()
                && error.is::<Refused>()
                && selector.namespace == "default" =>
        {
            let there = Selector {
                namespace: NAMESPACE.to_owned(),
                ..selector
            };
            client.get("/v1/pod", &there).await.map_err(|_| error)?
        }
        outcome => outcome?,
    };
    let own = pod["containers"].as_array().cloned().unwrap_or_default();
    let inits = pod["initContainers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let all: Vec<Value> = if may_be_init {
        own.iter().chain(&inits).cloned().collect()
    } else {
        own.clone()
    };
    let found = match &args.container {
        Some(name) => all
            .iter()
            .find(|container| container["name"] == name.as_str()),
        None => own
            .iter()
            .find(|container| container["name"] != "istio-proxy")
            .or(own.first()),
    };
    let names: Vec<&str> = all
        .iter()
        .map(|container| text(container, "name"))
        .collect();
    let container = found.with_context(|| {
        format!(
            "pod {} has no such container; it has {}",
            text(&pod, "name"),
            names.join(", ")
        )
    })?;
    Ok((pod.clone(), container.clone()))
}

/// Shows a container's output.
pub(super) async fn logs(client: &Client, args: LogsArgs) -> anyhow::Result<ExitCode> {
    let (pod, container) = find_container(client, &args.target, true).await?;
    let path = PathBuf::from(text(&container, "log"));
    let mut file = fs::File::open(&path).with_context(|| {
        format!(
            "container {} of pod {} has not written anything yet",
            text(&container, "name"),
            text(&pod, "name")
        )
    })?;
    let mut content = String::new();
    read_lossy(&mut file, &mut content)?;
    let start = args.tail.map_or(0, |lines| {
        let ends = content.trim_end_matches('\n').rmatch_indices('\n');
        ends.map(|(index, _)| index + 1)
            .nth(lines.saturating_sub(1))
            .unwrap_or(0)
    });
    print_text(&content[start..])?;
    if !args.follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        let Ok(meta) = fs::metadata(&path) else { break };
        if meta.len() < file.stream_position()? {
            // It was moved to the older file.
            file.seek(SeekFrom::Start(0))?;
        }
        content.clear();
        read_lossy(&mut file, &mut content)?;
        print_text(&content)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_lossy(file: &mut fs::File, into: &mut String) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).context("read the log")?;
    into.push_str(&String::from_utf8_lossy(&bytes));
    Ok(())
}

/// Becomes a command in a container.
pub(super) async fn exec(client: &Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let (_, container) = find_container(client, &args.target, false).await?;
    let pid = container["pid"]
        .as_i64()
        .with_context(|| format!("container {} does not run now", text(&container, "name")))?;
    let mut command =
        std::process::Command::new(std::env::current_exe().context("find this program's file")?);
    command.arg("pod-enter").arg(pid.to_string());
    for (flag, key) in [("--uid", "uid"), ("--gid", "gid")] {
        if let Some(number) = container["user"][key].as_u64() {
            command.arg(flag).arg(number.to_string());
        }
    }
    command.arg("--").args(&args.command);
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    Err(error).context("enter the container")
}
