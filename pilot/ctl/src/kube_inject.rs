//! `biremectl kube-inject`: the injector's work on a file, with the settings of the mesh on this machine if one runs.

use std::{fs, io::Read as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use injector::config::{Files, Settings};
use proto_component::process::Usage;

use crate::table::print_text;

/// `kube-inject`.
#[derive(Clone, Debug, Args)]
pub struct KubeInjectArgs {
    /// The manifest, `-` for standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub file: PathBuf,
    /// Where to write; standard output if not given.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Policy and template; the built-in ones if not given.
    #[arg(long = "injectConfigFile", value_name = "FILE")]
    pub inject_config: Option<PathBuf>,
    /// Values for the template, over the built-in ones.
    #[arg(long = "valuesFile", value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Mesh configuration.
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    pub mesh_config: Option<PathBuf>,
    /// Folder of YAML files with ProxyConfig resources.
    #[arg(long = "proxyConfigDir", value_name = "DIR")]
    pub proxy_configs: Option<PathBuf>,
}

/// Injects, and prints.
pub(crate) async fn run(args: KubeInjectArgs) -> anyhow::Result<ExitCode> {
    let files = Files {
        inject_config: args.inject_config,
        inject_values: args.values,
        mesh_config: args.mesh_config,
        proxy_configs: args.proxy_configs,
    };
    let settings = Settings::load(&files)?;
    let name = args.file.display().to_string();
    let text = if name == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("read standard input")?;
        text
    } else {
        fs::read_to_string(&args.file).map_err(|error| Usage(format!("{name}: {error}")))?
    };
    let injected = injector::kube_inject::inject_text(&settings, &name, &text)?;
    match args.output {
        Some(path) => {
            fs::write(&path, injected).with_context(|| format!("write {}", path.display()))?;
        }
        None => print_text(&injected)?,
    }
    Ok(ExitCode::SUCCESS)
}
