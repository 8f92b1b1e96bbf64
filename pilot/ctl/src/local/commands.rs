//! The `local` subcommands other than `up`: each asks the running mesh over its control socket.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use proto_component::process::Usage;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Command, DeleteArgs, ExecArgs, GetArgs, LocalArgs, LogsArgs, ManifestArgs, MeshArgs, NAMESPACE,
    TargetArgs,
    api::{ManifestText, Selector},
    apply::Outcome,
    client::{Client, Refused},
    kinds,
    progress::memory,
    state::StateDir,
};
use crate::table::{Format, Table, print_text, print_value};

/// The state directory that the flags name.
pub(crate) fn state_dir(mesh: &MeshArgs) -> anyhow::Result<StateDir> {
    StateDir::new(&mesh.name, mesh.runtime_dir.as_deref())
}

/// A client for the mesh that the flags name.
pub(crate) fn client(mesh: &MeshArgs) -> anyhow::Result<Client> {
    Ok(Client::new(state_dir(mesh)?))
}

/// Runs a subcommand (not `up`).
pub(crate) async fn run(args: LocalArgs) -> anyhow::Result<ExitCode> {
    let state = state_dir(&args.mesh())?;
    let client = Client::new(state.clone());
    match args.command {
        Command::Up(_) => anyhow::bail!("`local up` runs as a process of its own"),
        Command::Down => down(&state, &client).await,
        Command::Apply(args) => apply(&client, "/v1/apply", args).await,
        Command::Delete(args) => delete(&client, args).await,
        Command::Get(args) => get(&client, args).await,
        Command::Logs(args) => logs(&client, args).await,
        Command::Exec(args) => exec(&client, args).await,
        Command::Scale(args) => {
            let (name, namespace) = target_name(&args.deployment, args.namespace.as_deref());
            let selector = Selector {
                name,
                namespace,
                replicas: Some(args.replicas),
                ..Selector::default()
            };
            let answer: Value =
                with_namespaces(&client, "/v1/scale", selector, args.namespace.is_some()).await?;
            print_text(&format!(
                "{} scaled to {}\n",
                text(&answer, "object"),
                answer["replicas"]
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Restart(args) => {
            let answer: Value = with_namespaces(
                &client,
                "/v1/restart",
                selector_of(&args),
                args.namespace.is_some(),
            )
            .await?;
            print_text(&format!("{} restarted\n", text(&answer, "object")))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kill(args) => kill(&client, &args).await,
        Command::Status(args) => status(&client, args.output).await,
    }
}

async fn down(state: &StateDir, client: &Client) -> anyhow::Result<ExitCode> {
    if !state.exists() {
        print_text("no mesh of this name is here\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(daemon) = state.daemon().filter(super::state::Daemon::is_alive) {
        // One that does not answer any more is told by signal.
        if client
            .post::<_, Value>("/v1/shutdown", &Value::Null)
            .await
            .is_err()
        {
            let pid = nix::unistd::Pid::from_raw(daemon.pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)
                .context("signal the mesh's process")?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while daemon.is_alive() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if daemon.is_alive() {
            let pid = nix::unistd::Pid::from_raw(daemon.pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
                .context("kill the mesh's process")?;
        }
    }
    let swept = state.sweep().await?;
    let note = if swept > 0 {
        format!(" ({swept} left-over processes ended)")
    } else {
        String::new()
    };
    print_text(&format!("the mesh is gone{note}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The text of each file; folders are read one level deep, `.yaml`, `.yml` and `.json`.
fn read_manifests(files: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let mut manifests = Vec::new();
    for file in files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("read standard input")?;
            manifests.push(("standard input".to_owned(), text));
            continue;
        }
        let missing = |error: std::io::Error| Usage(format!("{}: {error}", file.display()));
        let mut paths = vec![file.clone()];
        if file.is_dir() {
            let entries = fs::read_dir(file)
                .map_err(missing)?
                .flatten()
                .map(|entry| entry.path());
            let is_manifest = |path: &PathBuf| {
                path.extension()
                    .is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json")
            };
            paths = entries.filter(is_manifest).collect();
            paths.sort();
        }
        for path in paths {
            let text = fs::read_to_string(&path)
                .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
            manifests.push((path.display().to_string(), text));
        }
    }
    Ok(manifests)
}

async fn apply(client: &Client, path: &str, args: ManifestArgs) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    for (file, text) in read_manifests(&args.files)? {
        let manifest = ManifestText {
            file,
            text,
            namespace: args.namespace.clone(),
        };
        let outcomes: Vec<Outcome> = client.post(path, &manifest).await?;
        failed |= print_outcomes(&outcomes)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Prints what became of objects, failures on standard error; true if there was one.
fn print_outcomes(outcomes: &[Outcome]) -> anyhow::Result<bool> {
    let mut failed = false;
    for outcome in outcomes {
        if let Some(action) = &outcome.action {
            print_text(&format!("{} {action}\n", outcome.object))?;
            for message in &outcome.messages {
                writeln!(std::io::stderr(), "warning: {}: {message}", outcome.object)?;
            }
        } else {
            failed = true;
            writeln!(
                std::io::stderr(),
                "error: {}: {}",
                outcome.object,
                outcome.messages.join("; ")
            )?;
        }
    }
    Ok(failed)
}

async fn delete(client: &Client, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    if !args.files.is_empty() {
        let manifest = ManifestArgs {
            files: args.files,
            namespace: args.namespace,
        };
        return apply(client, "/v1/delete", manifest).await;
    }
    let mut failed = false;
    let mut kind = None;
    for word in &args.object {
        let name = match (word.split_once('/'), &kind) {
            (Some((kind_of_word, name)), _) => {
                kind = Some(kind_of_word.to_owned());
                name
            }
            (None, None) => {
                kind = Some(word.clone());
                if args.object.len() == 1 {
                    return Err(
                        Usage(format!("which {word}? write `local delete {word} NAME`")).into(),
                    );
                }
                continue;
            }
            (None, Some(_)) => word,
        };
        let selector = Selector {
            kind: kind.clone().unwrap_or_default(),
            namespace: args.namespace.clone(),
            name: name.to_owned(),
            ..Selector::default()
        };
        let outcome: Outcome = client.post("/v1/delete-object", &selector).await?;
        failed |= print_outcomes(&[outcome])?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn get(client: &Client, args: GetArgs) -> anyhow::Result<ExitCode> {
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

async fn status(client: &Client, format: Format) -> anyhow::Result<ExitCode> {
    let rows: Vec<Value> = client.get("/v1/status", &Selector::default()).await?;
    if format != Format::Table {
        print_value(&Value::Array(rows), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        "NAMESPACE",
        "NAME",
        "READY",
        "STATUS",
        "RESTARTS",
        "PIDS",
        "MEMORY",
        "PORTS",
    ]);
    for row in &rows {
        let join = |value: &Value| {
            let items = value.as_array().into_iter().flatten();
            items
                .map(|item| {
                    item.as_str()
                        .map_or_else(|| item.to_string(), str::to_owned)
                })
                .collect::<Vec<_>>()
                .join(",")
        };
        table.row([
            text(row, "namespace").to_owned(),
            text(row, "name").to_owned(),
            text(row, "ready").to_owned(),
            text(row, "status").to_owned(),
            row["restarts"].to_string(),
            join(&row["pids"]),
            memory(row),
            join(&row["ports"]),
        ]);
    }
    table.print(Format::Table)?;
    Ok(ExitCode::SUCCESS)
}

/// `NAME.NAMESPACE` or `deploy/NAME`, with the namespace that a flag may name.
pub(crate) fn target_name(target: &str, namespace: Option<&str>) -> (String, String) {
    match (namespace, target.split_once('.')) {
        (Some(namespace), _) => (target.to_owned(), namespace.to_owned()),
        (None, Some((name, namespace))) => (name.to_owned(), namespace.to_owned()),
        (None, None) => (target.to_owned(), "default".to_owned()),
    }
}

fn selector_of(args: &TargetArgs) -> Selector {
    let (name, namespace) = target_name(&args.target, args.namespace.as_deref());
    Selector {
        name,
        namespace,
        container: args.container.clone().unwrap_or_default(),
        ..Selector::default()
    }
}

/// Tries the namespace of the control plane too when none was named, so that `local kill istio-pilot` works.
async fn with_namespaces(
    client: &Client,
    path: &str,
    selector: Selector,
    is_named: bool,
) -> anyhow::Result<Value> {
    match client.post(path, &selector).await {
        Err(error) if !is_named && error.is::<Refused>() && selector.namespace == "default" => {
            let there = Selector {
                namespace: NAMESPACE.to_owned(),
                ..selector
            };
            // The first answer is the better one if neither namespace has it.
            client.post(path, &there).await.map_err(|_| error)
        }
        outcome => outcome,
    }
}

async fn kill(client: &Client, args: &TargetArgs) -> anyhow::Result<ExitCode> {
    let answer = with_namespaces(
        client,
        "/v1/kill",
        selector_of(args),
        args.namespace.is_some(),
    )
    .await?;
    for killed in answer["killed"].as_array().into_iter().flatten() {
        print_text(&format!(
            "{} ({}, process {}) killed\n",
            text(killed, "pod"),
            text(killed, "container"),
            killed["pid"]
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

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

async fn logs(client: &Client, args: LogsArgs) -> anyhow::Result<ExitCode> {
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
    while args.follow {
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

async fn exec(client: &Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
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

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Selects every object of a kind.
pub(crate) fn all_of_kind(kind: &str) -> Selector {
    Selector {
        kind: kind.to_owned(),
        ..Selector::default()
    }
}

/// What `analyze` goes through.
pub(crate) fn kind_names() -> Vec<&'static str> {
    kinds::all().map(|kind| kind.plural).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_names_its_namespace_or_takes_the_default() {
        assert_eq!(target_name("a.b", None), ("a".into(), "b".into()));
        assert_eq!(
            target_name("deploy/a", None),
            ("deploy/a".into(), "default".into())
        );
        assert_eq!(target_name("a.b", Some("c")), ("a.b".into(), "c".into()));
    }

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
