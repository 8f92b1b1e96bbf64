//! The charts, and Helm, which makes objects of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use proto_component::process::Usage;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(120);

/// Where charts and Helm are.
#[derive(Clone, Debug, Args)]
pub struct ChartArgs {
    /// Folder of the charts (default: helm, here or above this program).
    #[arg(short = 'd', long = "manifests", value_name = "DIR", global = true)]
    pub manifests: Option<PathBuf>,
    /// Helm's program.
    #[arg(
        long,
        env = "HELM",
        value_name = "FILE",
        default_value = "helm",
        global = true
    )]
    pub helm: PathBuf,
}

/// The charts in a folder.
pub(crate) struct Charts {
    folder: PathBuf,
    helm: PathBuf,
}

impl Charts {
    /// Looks for the charts.
    pub(crate) fn find(args: &ChartArgs) -> anyhow::Result<Self> {
        let program = std::env::current_exe().unwrap_or_default();
        let beside = program.ancestors().map(|folder| folder.join("helm"));
        let candidates: Vec<PathBuf> = match &args.manifests {
            Some(folder) => vec![folder.clone()],
            None => std::iter::once(PathBuf::from("helm"))
                .chain(beside)
                .collect(),
        };
        let folder = candidates
            .iter()
            .find(|folder| folder.join("bireme/Chart.yaml").exists())
            .ok_or_else(|| {
                Usage(format!(
                    "no charts in {}: name their folder with --manifests",
                    candidates[0].display()
                ))
            })?;
        Ok(Self {
            folder: folder.clone(),
            helm: args.helm.clone(),
        })
    }

    /// The names of the profiles.
    pub(crate) fn profiles(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join("profiles")).context("read the profiles")? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                names.extend(
                    path.file_stem()
                        .map(|name| name.to_string_lossy().into_owned()),
                );
            }
        }
        names.sort();
        Ok(names)
    }

    /// The values of a profile: one of ours, or a file.
    pub(crate) fn profile(&self, name: &str) -> anyhow::Result<Value> {
        let own = self.folder.join(format!("profiles/{name}.yaml"));
        let path = if own.exists() {
            own
        } else {
            PathBuf::from(name)
        };
        let text = fs::read_to_string(&path).map_err(|_| {
            let known = self.profiles().unwrap_or_default().join(", ");
            Usage(format!(
                "profile {name}: no such profile or file; there are {known}"
            ))
        })?;
        read_yaml(&path.display().to_string(), &text)
    }

    /// The version of the charts.
    pub(crate) fn version(&self) -> anyhow::Result<String> {
        let chart = self.chart("bireme")?;
        Ok(chart["version"].as_str().unwrap_or_default().to_owned())
    }

    fn chart(&self, name: &str) -> anyhow::Result<Value> {
        let path = self.folder.join(name).join("Chart.yaml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        read_yaml(&path.display().to_string(), &text)
    }

    /// What a chart makes of values.
    pub(crate) async fn render(
        &self,
        chart: &str,
        release: &str,
        namespace: &str,
        values: &Value,
    ) -> anyhow::Result<Vec<Value>> {
        let whole = tempfile::tempdir().context("make a folder for the chart")?;
        let folder = whole.path().join(chart);
        copy(&self.folder.join(chart), &folder)?;
        // What a chart depends on lies beside it.
        for dependency in self.chart(chart)?["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = dependency["name"].as_str().unwrap_or_default();
            copy(&self.folder.join(name), &folder.join("charts").join(name))?;
        }
        let arguments = [
            "template",
            release,
            &folder.display().to_string(),
            "-n",
            namespace,
            "-f",
            "-",
        ];
        let text = self
            .run(&arguments, &proto::yaml::to_string(values)?)
            .await?;
        let mut objects = Vec::new();
        for document in proto::yaml::parse_documents(&text) {
            objects.push(document.context("read what helm rendered")?.value);
        }
        Ok(objects)
    }

    /// Runs Helm with `input`, and gives back what it prints.
    pub(crate) async fn run(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut child = Command::new(&self.helm)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                Usage(format!(
                    "{}: {error}; install Helm, or name its program with --helm",
                    self.helm.display()
                ))
            })?;
        if let Some(mut stdin) = child.stdin.take() {
            // A Helm that ends without reading says why on its way out.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output())
            .await
            .context("helm does not end")?
            .context("run helm")?;
        if !output.status.success() {
            bail!("helm: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// One YAML document, or nothing.
pub(crate) fn read_yaml(name: &str, text: &str) -> anyhow::Result<Value> {
    match proto::yaml::parse_documents(text).into_iter().next() {
        None => Ok(Value::Null),
        Some(document) => Ok(document
            .map_err(|error| Usage(format!("{name}: {error}")))?
            .value),
    }
}

/// Copies a folder; links are followed, packed dependencies left out.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if path.is_dir() {
            if name != "charts" {
                copy(&path, &to.join(name))?;
            }
        } else {
            fs::copy(&path, to.join(name)).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}
