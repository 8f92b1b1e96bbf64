//! Where lines go: a stream or a file, written by a thread of its own, as a pipe that nobody reads would stop everybody else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc as blocking;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::now;
use crate::adapter::BuildContext;
use crate::seldom::Seldom;

/// Lines that may wait.
const CAPACITY: usize = 16_384;
/// Bytes that are written at once, about.
const CHUNK: usize = 64 << 10;
/// For what is in the queue at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the thread that writes. When this goes the thread ends, with what is in the queue written; that is waited for,
/// as the process may be about to end, but not for long.
#[derive(Debug)]
pub(super) struct Writer {
    /// None at the end.
    sender: Option<mpsc::Sender<String>>,
    /// Disconnected when all is written.
    done: Mutex<blocking::Receiver<()>>,
    full: prometheus::IntCounter,
}

#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    Stderr,
    File(RotatingFile),
}

/// A file that is set aside when it has grown too large.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// No limit for a plain file.
    limit: Option<u64>,
    keep: usize,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(output: Output, context: &BuildContext) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let (writing, done) = blocking::channel();
        let counter = |reason: &str| {
            let labels = [context.handler.as_str(), reason];
            context.dropped.with_label_values(&labels)
        };
        let (handler, failed) = (context.handler.clone(), counter("write failed"));
        std::thread::Builder::new()
            .name("stdio".to_owned())
            .spawn(move || {
                let _writing: blocking::Sender<()> = writing;
                write_all(output, receiver, &handler, &failed);
            })?;
        Ok(Self {
            sender: Some(sender),
            done: Mutex::new(done),
            full: counter("queue full"),
        })
    }

    /// Puts a line in, or counts it as dropped.
    pub(super) fn push(&self, line: String) {
        let sender = self.sender.as_ref();
        if sender.is_none_or(|sender| sender.try_send(line).is_err()) {
            self.full.inc();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.sender = None;
        // What is still not written then is lost with the process, if that ends.
        let _ = self.done.get_mut().recv_timeout(PATIENCE);
    }
}

fn write_all(
    mut output: Output,
    mut lines: mpsc::Receiver<String>,
    handler: &str,
    failed: &prometheus::IntCounter,
) {
    let said = Seldom::default();
    while let Some(mut chunk) = lines.blocking_recv() {
        let mut count = 1;
        while chunk.len() < CHUNK
            && let Ok(line) = lines.try_recv()
        {
            chunk.push_str(&line);
            count += 1;
        }
        if let Err(error) = output.write(chunk.as_bytes()) {
            failed.inc_by(count);
            if let Some(times) = said.times() {
                tracing::warn!(target: "adapters", %error, handler, times, "log entries are dropped");
            }
        }
    }
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Output::Stderr => io::stderr().lock().write_all(lines),
            Output::File(file) => file.write(lines),
        }
    }
}

impl RotatingFile {
    /// Opens or makes the file; without a limit it is never set aside.
    pub(super) fn open(path: &Path, limit: Option<u64>, keep: usize) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: file.metadata()?.len(),
            file,
            limit,
            keep,
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        if let Some(limit) = self.limit
            && self.size > 0
            && self.size + length > limit
        {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += length;
        Ok(())
    }

    /// `access.log` becomes `access-2020-01-02T03-04-05.000.log`; the oldest go when there are too many.
    fn rotate(&mut self) -> io::Result<()> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let suffix = self
            .path
            .extension()
            .map(|suffix| format!(".{}", suffix.to_string_lossy()))
            .unwrap_or_default();
        let stamp = now().replace(':', "-");
        let stamp = stamp.trim_end_matches('Z');
        let aside = self.path.with_file_name(format!("{stem}-{stamp}{suffix}"));
        match std::fs::rename(&self.path, aside) {
            // Somebody else has taken it away: a new one is needed all the same.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = open(&self.path)?;
        self.size = 0;
        if let Err(error) = self.remove_oldest(&format!("{stem}-"), &suffix) {
            tracing::warn!(target: "adapters", %error, path = %self.path.display(), "old log files stay");
        }
        Ok(())
    }

    fn remove_oldest(&self, prefix: &str, suffix: &str) -> io::Result<()> {
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut aside: Vec<PathBuf> = std::fs::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(prefix) && name.ends_with(suffix)
            })
            .collect();
        // The stamp in the name sorts by time.
        aside.sort();
        let surplus = aside.len().saturating_sub(self.keep.max(1));
        for path in &aside[..surplus] {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.log");
        let mut file = RotatingFile::open(&path, Some(10), 1).unwrap();
        for _ in 0..4 {
            file.write(b"12345678\n").unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "12345678\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_was_taken_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.log");
        let mut file = RotatingFile::open(&path, Some(10), 1).unwrap();
        file.write(b"1234567\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write(b"again\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "again\n");
    }

    #[test]
    fn old_files_that_stay_hold_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        // It looks like the oldest file, but cannot be removed like one.
        std::fs::create_dir(dir.path().join("out-2000.log")).unwrap();
        let path = dir.path().join("out.log");
        let mut file = RotatingFile::open(&path, Some(10), 1).unwrap();
        file.write(b"1234567\n").unwrap();
        file.write(b"again\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "again\n");
    }

    #[test]
    fn what_is_in_the_queue_at_the_end_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.log");
        let file = RotatingFile::open(&path, None, 1).unwrap();
        let writer = Writer::start(Output::File(file), &BuildContext::default()).unwrap();
        let line = "x".repeat(999) + "\n";
        for _ in 0..1000 {
            writer.push(line.clone());
        }
        drop(writer);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1_000_000);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_nobody_waits() {
        let context = BuildContext {
            handler: "h".into(),
            ..BuildContext::default()
        };
        let (sender, mut receiver) = mpsc::channel(2);
        let writer = Writer {
            sender: Some(sender),
            done: Mutex::new(blocking::channel().1),
            full: context.dropped.with_label_values(&["h", "queue full"]),
        };
        for line in ["a", "b", "c"] {
            writer.push(line.to_owned());
        }
        assert_eq!(writer.full.get(), 1);
        drop(writer);
        let rest: Vec<_> = std::iter::from_fn(|| receiver.blocking_recv()).collect();
        assert_eq!(rest, ["a", "b"]);
    }
}
