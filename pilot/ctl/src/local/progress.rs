//! The table of `local up`: on a terminal redrawn in place, elsewhere a line for each change.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
};

use serde_json::Value;
use tokio::time::Instant;

use crate::table::Table;

/// What has been shown.
pub(crate) struct Progress {
    started: Instant,
    is_terminal: bool,
    drawn_lines: usize,
    shown: BTreeMap<String, (String, String)>,
    ready_after: BTreeMap<String, f64>,
}

impl Progress {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            is_terminal: std::io::stdout().is_terminal(),
            drawn_lines: 0,
            shown: BTreeMap::new(),
            ready_after: BTreeMap::new(),
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Shows the components as they are now. True once everything is ready.
    pub(crate) fn show(&mut self, rows: &[Value]) -> bool {
        let mut all_ready = !rows.is_empty();
        for row in rows {
            let is_ready = is_ready(row);
            all_ready &= is_ready;
            let after = self.seconds();
            if is_ready {
                self.ready_after.entry(name(row)).or_insert(after);
            }
        }
        if self.is_terminal {
            self.redraw(rows);
        } else {
            self.log(rows);
        }
        all_ready
    }

    /// Draws the next table below what was printed meanwhile.
    pub(crate) fn start_anew(&mut self) {
        self.drawn_lines = 0;
    }

    fn redraw(&mut self, rows: &[Value]) {
        let mut table = Table::new(&["NAMESPACE", "NAME", "READY", "STATUS", "AFTER", "MEMORY"]);
        for row in rows {
            let after = self
                .ready_after
                .get(&name(row))
                .map(|after| format!("{after:.1} s"))
                .unwrap_or_default();
            table.row([
                text(row, "namespace"),
                text(row, "name"),
                text(row, "ready"),
                &status(row),
                &after,
                &memory(row),
            ]);
        }
        let rendered = table.render();
        let width = 160;
        let lines: Vec<String> = rendered
            .lines()
            .map(|line| line.chars().take(width).collect())
            .collect();
        let mut out = String::new();
        if self.drawn_lines > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn_lines));
        }
        for line in &lines {
            out.push_str(line);
            out.push_str("\x1b[K\n");
        }
        for _ in lines.len()..self.drawn_lines {
            out.push_str("\x1b[K\n");
        }
        self.drawn_lines = lines.len().max(self.drawn_lines);
        print(&out);
    }

    fn log(&mut self, rows: &[Value]) {
        for row in rows {
            let now = (text(row, "ready").to_owned(), status(row));
            if self.shown.get(&name(row)) != Some(&now) {
                print(&format!(
                    "{:6.2} s  {}  {}  {}\n",
                    self.seconds(),
                    name(row),
                    now.0,
                    now.1
                ));
                self.shown.insert(name(row), now);
            }
        }
    }
}

/// Whether all pods that a row stands for are ready.
pub(crate) fn is_ready(row: &Value) -> bool {
    let ready = text(row, "ready").split_once('/');
    ready.is_some_and(|(ready, wanted)| ready == wanted)
}

/// Prints at once; a closed standard output is no reason to end the mesh.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

fn name(row: &Value) -> String {
    format!("{}/{}", text(row, "namespace"), text(row, "name"))
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn status(row: &Value) -> String {
    match text(row, "message") {
        "" => text(row, "status").to_owned(),
        message => format!(
            "{} ({})",
            text(row, "status"),
            message.lines().next().unwrap_or_default()
        ),
    }
}

/// A row's memory in MiB.
pub(crate) fn memory(row: &Value) -> String {
    match row["memory"].as_u64() {
        Some(0) | None => String::new(),
        Some(bytes) => format!("{} MiB", bytes.div_ceil(1024 * 1024)),
    }
}
