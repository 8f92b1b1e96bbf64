//! `galley validate`: files, folders or standard input; a line for each problem, or JSON.

use super::{Verdict, validate_documents};
use anyhow::Context as _;
use proto_component::process::Usage;
use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Flags of `galley validate`.
#[derive(Clone, Debug, clap::Args)]
pub struct ValidateArgs {
    /// A file, a folder (with everything below it), or `-` for standard input; may be repeated.
    #[arg(
        long = "filename",
        short = 'f',
        required = true,
        value_name = "FILE|DIR|-"
    )]
    pub files: Vec<String>,
    /// Output format: text or json.
    #[arg(long, short, default_value = "text", value_name = "FORMAT")]
    pub output: String,
}

impl ValidateArgs {
    /// Validates; the exit code is 1 if anything is refused.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let is_json = match self.output.as_str() {
            "json" => true,
            "text" => false,
            other => return Err(Usage(format!("--output {other}: use text or json")).into()),
        };
        let mut verdicts = Vec::new();
        for file in &self.files {
            if file == "-" {
                let mut text = String::new();
                io::stdin()
                    .read_to_string(&mut text)
                    .context("read standard input")?;
                verdicts.extend(validate_documents(&text, "-"));
                continue;
            }
            let path = Path::new(file);
            if !path.exists() {
                return Err(Usage(format!("-f {file}: no such file or folder")).into());
            }
            for path in yaml_files(path)? {
                let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                let text = String::from_utf8_lossy(&text);
                verdicts.extend(validate_documents(&text, &path.display().to_string()));
            }
        }
        let mut out = io::stdout().lock();
        if is_json {
            serde_json::to_writer_pretty(&mut out, &verdicts)?;
            writeln!(out)?;
        } else {
            print(&mut out, &verdicts)?;
        }
        let is_valid = verdicts.iter().all(|verdict| verdict.valid);
        Ok(ExitCode::from(u8::from(!is_valid)))
    }
}

/// The YAML and JSON files of a folder and all below it, sorted; a file is itself.
pub fn yaml_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    collect(path, 0, &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, depth: usize, into: &mut Vec<PathBuf>) -> io::Result<()> {
    // A link that leads in circles ends somewhere.
    const DEEPEST: usize = 16;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            if depth < DEEPEST {
                collect(&path, depth + 1, into)?;
            }
        } else if path.extension().is_some_and(|extension| {
            extension == "yaml" || extension == "yml" || extension == "json"
        }) {
            into.push(path);
        }
    }
    Ok(())
}

fn print(out: &mut impl io::Write, verdicts: &[Verdict]) -> io::Result<()> {
    let mut refused = 0;
    for verdict in verdicts {
        refused += usize::from(!verdict.valid);
        let problems = verdict.errors.iter().map(|problem| ("error", problem));
        let warnings = verdict.warnings.iter().map(|problem| ("warning", problem));
        for (level, problem) in problems.chain(warnings) {
            let (file, line, subject) = (&verdict.file, problem.line, verdict.subject());
            writeln!(out, "{file}:{line}: {level}: {subject}: {problem}")?;
        }
    }
    let count = verdicts.len();
    match refused {
        0 => writeln!(out, "{count} objects are valid"),
        refused => writeln!(out, "{refused} of {count} objects are not valid"),
    }
}
