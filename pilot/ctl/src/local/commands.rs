//! The `local` subcommands other than `up`: each asks the running mesh over its control socket.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use proto_component::process::Usage;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Command, DeleteArgs, LocalArgs, ManifestArgs, MeshArgs, NAMESPACE, TargetArgs,
    api::{ManifestText, Selector},
    apply::Outcome,
    client::{Client, Refused},
    kinds,
    progress::memory,
    state::StateDir,
};
use crate::table::{Format, Table, print_text, print_value};

mod container;
mod get;

/// The state directory that the flags name.
pub(crate) fn state_dir(mesh: &MeshArgs) -> anyhow::Result<StateDir> {
    StateDir::new(&mesh.name, &mesh.places)
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
        Command::Get(args) => get::run(&client, args).await,
        Command::Logs(args) => container::logs(&client, args).await,
        Command::Exec(args) => container::exec(&client, args).await,
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

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The names of the pods of `namespace` with a label.
pub(crate) async fn pods_labelled(
    client: &Client,
    namespace: &str,
    (key, value): (&str, &str),
) -> anyhow::Result<Vec<String>> {
    let pods = Selector {
        namespace: namespace.to_owned(),
        ..all_of_kind("pods")
    };
    let pods: Vec<Value> = client.get("/v1/objects", &pods).await?;
    let meant = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"][key] == value);
    Ok(meant
        .map(|pod| text(&pod["metadata"], "name").to_owned())
        .collect())
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
}
