//! `biremectl profile`: the ready-made sets of values.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::manifest::charts::{ChartArgs, Charts};
use crate::manifest::print_difference;
use crate::table::print_text;

/// `profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ProfileCommand,
    /// The charts.
    #[command(flatten)]
    pub charts: ChartArgs,
}

/// The commands of `profile`.
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Print the names
    List,
    /// Print what a profile changes
    Dump {
        /// Its name, or a file.
        #[arg(default_value = "default")]
        name: String,
        /// As Helm values instead of an IstioOperator.
        #[arg(long)]
        helm_values: bool,
    },
    /// Compare two
    Diff {
        /// A name or file.
        old: String,
        /// Another.
        new: String,
    },
}

/// Does what the command says.
pub(crate) fn run(args: &ProfileArgs) -> anyhow::Result<ExitCode> {
    let charts = Charts::find(&args.charts)?;
    match &args.command {
        ProfileCommand::List => {
            let names = charts.profiles()?;
            let lines: String = names.iter().map(|name| format!("    {name}\n")).collect();
            print_text(&format!("Profiles:\n{lines}"))?;
        }
        ProfileCommand::Dump { name, helm_values } => {
            let values = charts.profile(name)?;
            let shown = if *helm_values {
                values
            } else {
                serde_json::json!({
                    "apiVersion": "install.istio.io/v1alpha1",
                    "kind": "IstioOperator",
                    "spec": {"profile": name, "values": values},
                })
            };
            print_text(&proto::yaml::to_string(&shown)?)?;
        }
        ProfileCommand::Diff { old, new } => {
            let text = |values: &Value| proto::yaml::to_string(values);
            let (old, new) = (charts.profile(old)?, charts.profile(new)?);
            return print_difference(&text(&old)?, &text(&new)?, "Profiles are identical");
        }
    }
    Ok(ExitCode::SUCCESS)
}
