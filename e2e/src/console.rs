//! Runs the commands of a document and compares what they show with what the document says they show.
//!
//! A document's ```` ```console ```` blocks hold lines that start with `$ ` (commands, for bash) and, below each, what it
//! prints. Space counts as one blank. `…` stands for anything within a line, a line of only `…` for any number of lines, and `[exit N]` as the last
//! line for an exit code other than 0.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::process::Command;

const DEADLINE: Duration = Duration::from_secs(60);
const READING: Duration = Duration::from_secs(60);
/// Commands that change nothing.
const LOOKS: &[&str] = &["curl", "biremectl proxy-", "biremectl local status"];

/// One command of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line of the document.
    pub line: usize,
    /// What to run.
    pub command: String,
    /// What it shows.
    pub shows: Vec<String>,
    /// Its exit code.
    pub exit: i32,
}

/// The commands of all console blocks of a Markdown document, in order.
#[must_use]
pub fn steps(markdown: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_inside = false;
    for (index, line) in markdown.lines().enumerate() {
        if line.starts_with("```") {
            is_inside = !is_inside && line.trim_end() == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| is_inside) {
            steps.push(Step {
                line: index + 1,
                command: command.to_owned(),
                shows: Vec::new(),
                exit: 0,
            });
        } else if let Some(step) = steps.last_mut().filter(|_| is_inside) {
            match line
                .strip_prefix("[exit ")
                .and_then(|rest| rest.strip_suffix(']'))
                .and_then(|code| code.parse().ok())
            {
                Some(code) => step.exit = code,
                None => step.shows.push(line.to_owned()),
            }
        }
    }
    steps
}

impl Step {
    /// Runs the command as [`Step::run`] does. One that only looks is repeated for a while until it shows what it should:
    /// a person reads before typing on, and meanwhile a change has reached every proxy, if the machine is not too busy.
    ///
    /// # Errors
    /// As [`Step::run`].
    pub async fn run_as_a_person(&self, folder: &Path, path: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let outcome = self.run(folder, path).await;
            let only_looks = LOOKS
                .iter()
                .any(|command| self.command.starts_with(command));
            if outcome.is_ok() || !only_looks || start.elapsed() > READING {
                return outcome;
            }
        }
    }

    /// Runs the command in `folder` with `path` in front of `PATH`; standard error counts as shown.
    ///
    /// # Errors
    /// When it does not end in time, or shows something else, or ends with another code.
    pub async fn run(&self, folder: &Path, path: &str) -> anyhow::Result<()> {
        let output = Command::new("bash")
            .args(["-c", &format!("exec 2>&1; {}", self.command)])
            .current_dir(folder)
            .env("PATH", path)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(DEADLINE, output)
            .await
            .with_context(|| format!("line {}: {} did not end in time", self.line, self.command))?
            .with_context(|| format!("line {}: run bash", self.line))?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output.status.code().unwrap_or(-1);
        let lines: Vec<&str> = shown.lines().collect();
        anyhow::ensure!(
            code == self.exit && matches_lines(&self.shows, &lines),
            "line {}: $ {}\nwanted (exit {}):\n{}\nshown (exit {code}):\n{shown}",
            self.line,
            self.command,
            self.exit,
            self.shows.join("\n"),
        );
        Ok(())
    }
}

/// Whether `shown` is what `wanted` says.
fn matches_lines(wanted: &[String], shown: &[&str]) -> bool {
    match wanted.split_first() {
        None => shown.is_empty(),
        Some((first, rest)) if first.trim() == "…" => {
            (0..=shown.len()).any(|skipped| matches_lines(rest, &shown[skipped..]))
        }
        Some((first, rest)) => {
            shown.first().is_some_and(|line| matches_line(first, line))
                && matches_lines(rest, &shown[1..])
        }
    }
}

fn matches_line(wanted: &str, shown: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (wanted, shown) = (squeeze(wanted), squeeze(shown));
    let shown = shown.as_str();
    let mut parts = wanted.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = shown.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(start) => rest = &rest[start + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_with_what_they_show() {
        let markdown =
            "text\n```sh\n$ not this\n```\n```console\n$ false\nno\n[exit 1]\n$ true\n```\n";
        let steps = steps(markdown);
        assert_eq!(steps.len(), 2);
        assert_eq!(
            (steps[0].line, steps[0].exit, steps[0].shows.clone()),
            (6, 1, vec!["no".to_owned()])
        );
    }

    #[test]
    fn dots_stand_for_anything() {
        for (wanted, shown, want) in [
            ("a…c", "abc", true),
            ("a…c", "abd", false),
            ("…b…", "abc", true),
            ("abc", "abc  ", true),
            ("ab", "abc", false),
            ("…", "", true),
        ] {
            assert_eq!(matches_line(wanted, shown), want, "{wanted} {shown}");
        }
        let wanted: Vec<String> = ["one", "…", "last"].map(str::to_owned).to_vec();
        assert!(matches_lines(&wanted, &["one", "two", "three", "last"]));
        assert!(!matches_lines(&wanted, &["one", "two"]));
    }

    #[tokio::test]
    async fn a_step_fails_with_what_was_shown() {
        let step = Step {
            line: 7,
            command: "echo hello; exit 3".into(),
            shows: vec!["bye".into()],
            exit: 3,
        };
        let path = std::env::var_os("PATH")
            .unwrap_or_default()
            .into_string()
            .unwrap_or_default();
        let error = step
            .run(Path::new("/"), &path)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 7") && error.contains("hello"),
            "{error}"
        );
        let step = Step {
            shows: vec!["hel…".into()],
            ..step
        };
        step.run(Path::new("/"), &path).await.unwrap();
    }
}
