//! `galley analyze`, and what `biremectl analyze` shares with it: flags, exit code.

use super::{
    Input, Level, analyze,
    analyzer::{self, Analyzer},
    input::cluster,
    report::{Format, render},
    suppression::Suppressions,
};
use anyhow::Context as _;
use proto_component::kubernetes::KubeArgs;
use proto_component::{args::parse_duration, process::Usage};
use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// Flags of `analyze`.
#[derive(Clone, Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct AnalyzeArgs {
    /// Files and folders to look at, `-` for standard input.
    #[arg(value_name = "FILE|DIR|-")]
    pub files: Vec<String>,
    /// The same, as a flag.
    #[arg(long = "filename", short = 'f', value_name = "FILE|DIR|-")]
    pub named_files: Vec<String>,
    /// Look into the folders of folders too.
    #[arg(long, short = 'R')]
    pub recursive: bool,
    /// Look at the cluster too, with the files over it; it is looked at alone where no file is given.
    #[arg(long = "use-kube", short = 'k', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub use_kube: Option<bool>,
    /// How to reach it.
    #[command(flatten)]
    pub kube: KubeArgs,
    /// How long to look at the cluster at most.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Messages about this namespace only; objects of files that name none are of it.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Messages about all namespaces, as without --namespace.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// The mesh's settings.
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    pub mesh_config_file: Option<PathBuf>,
    /// The networks of a mesh of several clusters.
    #[arg(long = "networksFile", value_name = "FILE")]
    pub networks_file: Option<PathBuf>,
    /// What not to tell: CODE=Kind name.namespace, with * for anything; may be repeated.
    #[arg(long, short = 'S', value_name = "CODE=RESOURCE")]
    pub suppress: Vec<String>,
    /// Run these analyzers only, by name or group; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub analyzer: Vec<String>,
    /// Print the analyzers.
    #[arg(long, short = 'L')]
    pub list_analyzers: bool,
    /// The lowest level that is printed: Info, Warning or Error.
    #[arg(long, default_value = "Info", value_name = "LEVEL")]
    pub output_threshold: Level,
    /// The lowest level that makes the exit code 1.
    #[arg(long, default_value = "Error", value_name = "LEVEL")]
    pub failure_threshold: Level,
    /// log, json, yaml or sarif.
    #[arg(long, short, default_value = "log", value_name = "FORMAT")]
    pub output: Format,
}

impl AnalyzeArgs {
    /// Looks at what the flags name, and prints.
    pub async fn run(&self) -> anyhow::Result<ExitCode> {
        if self.list_analyzers {
            return list();
        }
        let has_files = self.paths().next().is_some();
        let uses_kube = self.use_kube.unwrap_or(!has_files);
        if !uses_kube && !has_files {
            return Err(Usage("name files, or a cluster (--use-kube)".to_owned()).into());
        }
        let mut input = self.input();
        if uses_kube {
            self.read_cluster(&mut input).await?;
        } else {
            input.add_usual_gateway();
        }
        self.finish(input)
    }

    /// An empty input for these flags.
    pub fn input(&self) -> Input {
        Input::new(self.namespace.as_deref().unwrap_or_default())
    }

    /// The files that are named, in either way.
    pub fn paths(&self) -> impl Iterator<Item = &String> {
        self.files.iter().chain(&self.named_files)
    }

    /// Reads the cluster.
    pub async fn read_cluster(&self, input: &mut Input) -> anyhow::Result<()> {
        let client = self.kube.client().await?;
        tokio::time::timeout(self.timeout, cluster::read(&client, input))
            .await
            .with_context(|| format!("the cluster took longer than --timeout {:?}", self.timeout))?
    }

    /// Reads the files over what is there already, looks at all of it, and prints.
    pub fn finish(&self, mut input: Input) -> anyhow::Result<ExitCode> {
        for path in self.paths() {
            input.add_path(path, self.recursive)?;
        }
        if let Some(file) = &self.mesh_config_file {
            input.read_mesh_config(file)?;
        }
        if let Some(file) = &self.networks_file {
            input.read_networks(file)?;
        }
        let suppressions = Suppressions::parse(&self.suppress).map_err(Usage)?;
        let analyzers = self.analyzers()?;
        let (context, mut messages) = input.into_context()?;
        messages.extend(analyze(&context, &analyzers, &suppressions));
        if let Some(namespace) = self.namespace.as_ref().filter(|_| !self.all_namespaces) {
            messages
                .retain(|message| message.namespace.is_empty() || message.namespace == *namespace);
        }
        messages.retain(|message| message.level >= self.output_threshold);
        let text = render(&messages, self.output)?;
        io::stdout().write_all(text.as_bytes())?;
        let fails = messages
            .iter()
            .any(|message| message.level >= self.failure_threshold);
        Ok(ExitCode::from(u8::from(fails)))
    }

    fn analyzers(&self) -> anyhow::Result<Vec<&'static dyn Analyzer>> {
        if self.analyzer.is_empty() {
            return Ok(analyzer::all());
        }
        let mut chosen = Vec::new();
        for name in &self.analyzer {
            let named = analyzer::named(name);
            if named.is_empty() {
                let hint = format!("--analyzer {name}: there is none; see --list-analyzers");
                return Err(Usage(hint).into());
            }
            chosen.extend(named);
        }
        Ok(chosen)
    }
}

fn list() -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    for analyzer in analyzer::all() {
        writeln!(out, "{}: {}", analyzer.name(), analyzer.description())?;
    }
    Ok(ExitCode::SUCCESS)
}
