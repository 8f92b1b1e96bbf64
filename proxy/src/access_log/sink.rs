//! Where lines go: one buffer and one writing thread a file, shared by every log that names the file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::invalid::Invalid;

/// The thread is woken when so much waits; otherwise it looks every flush interval.
const FLUSH_BYTES: usize = 64 << 10;
/// More than this is never kept: lines are dropped instead.
const LIMIT_BYTES: usize = 4 << 20;

/// All open files, by path.
pub(crate) struct Sinks {
    /// How long a line waits at most.
    flush_interval: Duration,
    files: Mutex<HashMap<String, Weak<Sink>>>,
}

/// One file.
#[derive(Debug)]
pub(crate) struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: String,
    state: Mutex<State>,
    wake: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_closed: bool,
    must_reopen: bool,
}

impl Default for Sinks {
    fn default() -> Self {
        Sinks::new(Duration::from_millis(250))
    }
}

impl Sinks {
    /// No files yet.
    pub(crate) fn new(flush_interval: Duration) -> Self {
        Sinks {
            flush_interval,
            files: Mutex::default(),
        }
    }

    /// The sink of a path; the file is opened for appending now, so that a bad path is refused at once.
    pub(crate) fn file(&self, path: &str) -> Result<Arc<Sink>, Invalid> {
        let mut files = self.files.lock();
        if let Some(sink) = files.get(path).and_then(Weak::upgrade) {
            return Ok(sink);
        }
        let sink = Arc::new(Sink::open(path, self.flush_interval)?);
        files.retain(|_, sink| sink.strong_count() > 0);
        files.insert(path.to_owned(), Arc::downgrade(&sink));
        Ok(sink)
    }

    /// Opens every file again (log rotation).
    pub(crate) fn reopen(&self) {
        for sink in self.files.lock().values().filter_map(Weak::upgrade) {
            sink.shared.state.lock().must_reopen = true;
            sink.shared.wake.notify_one();
        }
    }
}

impl Sink {
    fn open(path: &str, flush_interval: Duration) -> Result<Self, Invalid> {
        if path.is_empty() {
            return Err(Invalid::new("a path is needed"));
        }
        let file = open(path)
            .map_err(|error| Invalid::new(format!("unable to open file '{path}': {error}")))?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            state: Mutex::default(),
            wake: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let writer = shared.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(128 << 10)
            .spawn(move || writer.run(file, flush_interval))
            .map_err(|error| {
                Invalid::new(format!("cannot start the writer of '{path}': {error}"))
            })?;
        Ok(Sink { shared })
    }

    /// Hands over a line.
    pub(crate) fn write(&self, line: &[u8]) {
        let mut state = self.shared.state.lock();
        if state.waiting.len() + line.len() > LIMIT_BYTES {
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_below = state.waiting.len() < FLUSH_BYTES;
        state.waiting.extend_from_slice(line);
        if was_below && state.waiting.len() >= FLUSH_BYTES {
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.state.lock().is_closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// The writer's loop: ends when the last user of the sink is gone and everything is written.
    fn run(&self, mut file: File, flush_interval: Duration) {
        let mut writing = Vec::new();
        loop {
            let (is_closed, must_reopen) = {
                let mut state = self.state.lock();
                if !state.is_closed && !state.must_reopen && state.waiting.len() < FLUSH_BYTES {
                    self.wake.wait_for(&mut state, flush_interval);
                }
                std::mem::swap(&mut writing, &mut state.waiting);
                (state.is_closed, std::mem::take(&mut state.must_reopen))
            };
            if !writing.is_empty() {
                if let Err(error) = file.write_all(&writing) {
                    tracing::warn!(path = %self.path, %error, "cannot write access log");
                }
                writing.clear();
                let dropped = self.dropped.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    tracing::warn!(path = %self.path, dropped, "access log too slow, lines dropped");
                }
            }
            if must_reopen {
                match open(&self.path) {
                    Ok(opened) => file = opened,
                    Err(error) => {
                        tracing::warn!(path = %self.path, %error, "cannot reopen access log");
                    }
                }
            }
            if is_closed && self.state.lock().waiting.is_empty() {
                return;
            }
        }
    }
}

fn open(path: &str) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .or_else(|error| {
            // A pipe or socket behind /dev/stdout cannot always be opened again: use the descriptor that is there.
            use std::os::fd::AsFd as _;
            let owned = match path {
                "/dev/stdout" => std::io::stdout().as_fd().try_clone_to_owned(),
                "/dev/stderr" => std::io::stderr().as_fd().try_clone_to_owned(),
                _ => return Err(error),
            };
            owned.map(File::from)
        })
}
