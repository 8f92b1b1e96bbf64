//! How biremectl shows rows: an aligned table for people, JSON or YAML for programs, both from the same rows.

use std::io::Write as _;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Map, Value};

/// The space between columns, as istioctl pads.
const GAP: usize = 5;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An aligned table.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Rows under named columns.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(columns: &[&'static str]) -> Self {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; it must have a cell for every column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// Sorts the rows by their cells, numbers by value.
    pub fn sort(&mut self) {
        self.rows
            .sort_by_cached_key(|row| row.iter().map(|cell| natural_key(cell)).collect::<Vec<_>>());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The aligned table; an empty cell shows as `-`.
    pub fn render(&self) -> String {
        let shown = |cell: &str| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.to_owned()
            }
        };
        let mut lines: Vec<Vec<String>> =
            vec![self.columns.iter().map(|name| (*name).to_owned()).collect()];
        lines.extend(
            self.rows
                .iter()
                .map(|row| row.iter().map(|cell| shown(cell)).collect()),
        );
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                lines
                    .iter()
                    .map(|line| line[column].chars().count())
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let mut text = String::new();
        for line in &lines {
            let mut rendered = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                rendered.push_str(cell);
                rendered.push_str(&" ".repeat(width + GAP - cell.chars().count()));
            }
            text.push_str(rendered.trim_end());
            text.push('\n');
        }
        text
    }

    /// The rows as a list of objects; a column `SERVICE FQDN` becomes the key `serviceFqdn`.
    pub fn to_value(&self) -> Value {
        let keys: Vec<String> = self.columns.iter().map(|column| key(column)).collect();
        let object = |row: &Vec<String>| {
            let fields = keys
                .iter()
                .cloned()
                .zip(row.iter().cloned().map(Value::String));
            Value::Object(fields.collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(object).collect())
    }

    /// Prints the table to standard output.
    pub fn print(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Table => print_text(&self.render()),
            Format::Json | Format::Yaml => print_value(&self.to_value(), format),
        }
    }
}

/// Prints a value as JSON or YAML (JSON where a table was asked for and there is none).
pub fn print_value(value: &Value, format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Yaml => proto::yaml::to_string(value).context("write YAML")?,
        Format::Json | Format::Table => {
            serde_json::to_string_pretty(value).context("write JSON")? + "\n"
        }
    };
    print_text(&text)
}

/// Prints text to standard output.
pub fn print_text(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("write to standard output")
}

fn key(column: &str) -> String {
    let mut key = String::new();
    for (index, word) in column.split_whitespace().enumerate() {
        let word = word.to_ascii_lowercase();
        match (index, word.chars().next()) {
            (1.., Some(first)) => {
                key.push(first.to_ascii_uppercase());
                key.push_str(&word[first.len_utf8()..]);
            }
            _ => key.push_str(&word),
        }
    }
    key
}

/// Numbers before text, and by value.
fn natural_key(cell: &str) -> (bool, u64, String) {
    match cell.parse() {
        Ok(number) => (false, number, String::new()),
        Err(_) => (true, 0, cell.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_blanks_shown_as_dashes() {
        let mut table = Table::new(&["SERVICE FQDN", "PORT"]);
        table.row(["a.b", "9080"]);
        table.row(["longer.name.here", ""]);
        table.row(["a.b", "80"]);
        table.sort();
        assert_eq!(
            table.render(),
            "SERVICE FQDN         PORT\na.b                  80\na.b                  9080\nlonger.name.here     -\n"
        );
        assert_eq!(
            table.to_value()[0],
            serde_json::json!({"serviceFqdn": "a.b", "port": "80"})
        );
    }
}
