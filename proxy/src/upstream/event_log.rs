//! Event logs of health checks and outlier detection: a JSON object a line, appended to a file.

use parking_lot::Mutex;
use serde_json::Value;
use std::{fs::File, io::Write as _, sync::Arc, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::invalid::Invalid;

/// A file that events go to; cheap to clone. Events are rare: they are written at once.
#[derive(Clone, Debug)]
pub(crate) struct EventLog(Arc<Mutex<File>>);

impl EventLog {
    /// Opens the file.
    pub(crate) fn open(path: &str) -> Result<Self, Invalid> {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .map(|file| Self(Arc::new(Mutex::new(file))))
            .map_err(|error| Invalid::new(format!("{path}: {error}")))
    }

    /// Appends one event.
    pub(crate) fn write(&self, event: &Value) {
        let line = format!("{event}\n");
        if let Err(error) = self.0.lock().write_all(line.as_bytes()) {
            tracing::warn!(target: "upstream", %error, "event not written");
        }
    }
}

/// The time as events tell it.
pub(super) fn now() -> String {
    let now = OffsetDateTime::from(SystemTime::now());
    let millis = now.replace_millisecond(now.millisecond()).unwrap_or(now);
    millis.format(&Rfc3339).unwrap_or_default()
}
