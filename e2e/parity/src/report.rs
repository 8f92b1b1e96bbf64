//! What a run came to: an aligned table and the differences, or JSON.

use crate::{
    compare::Diff,
    suite::{GroupReport, Report},
};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The longest value that is shown whole.
const SHOWN: usize = 300;

/// The table: a row by case if `is_wide`, else a row by group; then what differs, then the totals.
#[must_use]
pub fn table(groups: &[GroupReport], is_wide: bool) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    if is_wide {
        rows.push(["CASE", "RESULT", "NOTE"].map(ToOwned::to_owned).to_vec());
        for report in groups.iter().flat_map(|group| &group.cases) {
            let note = if report.is_repeated { "repeated" } else { "" };
            let name = format!("{}/{}", report.group, report.case);
            rows.push(vec![name, report.result().to_owned(), note.to_owned()]);
        }
    } else {
        rows.push(
            [
                "GROUP",
                "CASES",
                "SAME",
                "EXPLAINED",
                "DIFFERENT",
                "REPEATED",
                "TIME",
            ]
            .map(ToOwned::to_owned)
            .to_vec(),
        );
        for group in groups {
            let count = |test: &dyn Fn(&Report) -> bool| {
                group
                    .cases
                    .iter()
                    .filter(|report| test(report))
                    .count()
                    .to_string()
            };
            rows.push(vec![
                group.name.clone(),
                group.cases.len().to_string(),
                count(&|report| report.result() == "same"),
                count(&|report| report.result() == "explained"),
                count(&|report| !report.is_good()),
                count(&|report| report.is_repeated),
                format!("{:.1} s", group.time.as_secs_f32()),
            ]);
        }
    }
    let mut text = aligned(&rows);
    for report in groups
        .iter()
        .flat_map(|group| &group.cases)
        .filter(|report| !report.is_good())
    {
        text.push_str(&differences(report));
    }
    text.push('\n');
    let _ = writeln!(text, "{}", totals(groups));
    text
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(text, "{}", cells.join("   ").trim_end());
    }
    text
}

/// What a case's outcomes differ in.
fn differences(report: &Report) -> String {
    let mut text = format!("\n{}/{}\n", report.group, report.case);
    if let Some(error) = &report.error {
        let _ = writeln!(text, "    {error}");
    }
    for diff in &report.verdict.unexplained {
        let _ = writeln!(
            text,
            "    {}\n        envoy  {}\n        ours   {}",
            diff.at,
            short(&diff.envoy),
            short(&diff.ours)
        );
    }
    for at in &report.verdict.stale {
        let _ = writeln!(text, "    {at} is explained, but does not differ");
    }
    text
}

fn short(text: &str) -> String {
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    format!("{} …", text.chars().take(SHOWN).collect::<String>())
}

/// One line.
#[must_use]
pub fn totals(groups: &[GroupReport]) -> String {
    let all = || groups.iter().flat_map(|group| &group.cases);
    let count = |word: &str| all().filter(|report| report.result() == word).count();
    format!(
        "{} cases: {} same, {} differ with a reason, {} differ, {} could not be played",
        all().count(),
        count("same"),
        count("explained"),
        count("DIFFERS"),
        count("error"),
    )
}

fn explained((diff, why): &(Diff, String)) -> Value {
    json!({"at": diff.at, "envoy": diff.envoy, "ours": diff.ours, "why": why})
}

/// The same for programs.
#[must_use]
pub fn json(groups: &[GroupReport], oracle: &str) -> Value {
    let case = |report: &Report| {
        json!({
            "group": report.group,
            "case": report.case,
            "result": report.result(),
            "repeated": report.is_repeated,
            "error": report.error,
            "differences": report.verdict.unexplained,
            "explained": report.verdict.explained.iter().map(explained).collect::<Vec<_>>(),
            "stale": report.verdict.stale,
        })
    };
    let cases: Vec<Value> = groups
        .iter()
        .flat_map(|group| &group.cases)
        .map(case)
        .collect();
    json!({"envoy": oracle, "cases": cases, "totals": totals(groups)})
}
