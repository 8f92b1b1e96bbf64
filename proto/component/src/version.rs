//! What this program is: the `version` subcommand and `/version`.

use crate::process::Usage;
use serde::Serialize;
use std::io::Write as _;

/// Version facts, fixed at build time.
#[derive(Clone, Debug, Serialize)]
pub struct Version {
    /// Release, as in Cargo.toml.
    pub version: &'static str,
    /// Source revision (`BIREME_REVISION` at build time).
    pub revision: &'static str,
    /// `debug` or `release`.
    pub build: &'static str,
    /// Operating system and architecture.
    pub platform: String,
}

/// Flags of `version`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct VersionArgs {
    /// Print the version number only.
    #[arg(long, short)]
    pub short: bool,
    /// Output format: yaml or json.
    #[arg(long, short, value_name = "FORMAT")]
    pub output: Option<String>,
}

/// This build's facts.
pub fn version() -> Version {
    Version {
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("BIREME_REVISION").unwrap_or("unknown"),
        build: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

impl VersionArgs {
    /// Prints the facts to standard output in the format asked for.
    pub fn run(&self) -> anyhow::Result<()> {
        let facts = version();
        let text = match self.output.as_deref() {
            Some("json") => serde_json::to_string_pretty(&facts)? + "\n",
            Some("yaml") => serde_saphyr::to_string(&facts)?,
            Some(other) => {
                return Err(Usage(format!("--output {other}: use yaml or json")).into());
            }
            None if self.short => format!("{}-{}\n", facts.version, facts.revision),
            None => facts.to_string(),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            version,
            revision,
            build,
            platform,
        } = self;
        writeln!(
            f,
            "version {version}\nrevision {revision}\nbuild {build}\nplatform {platform}"
        )
    }
}
