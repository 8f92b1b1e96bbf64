//! What the plugin tells the runtime: a result or an error, as JSON on standard output.

use serde_json::{Value, json};

/// The versions of the specification that the plugin speaks: those in which plugins are chained.
pub const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Why the plugin did not do what it was asked; the specification's codes.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The configuration's version is none of ours.
    #[error("cniVersion {0:?} is not one of {all}", all = VERSIONS.join(", "))]
    Version(String),
    /// Something that the runtime must say is missing or wrong.
    #[error("{0}")]
    Environment(String),
    /// A file or a namespace cannot be read.
    #[error("{0}")]
    Io(String),
    /// Standard input is no JSON, or not what is wanted.
    #[error("the configuration: {0}")]
    Decode(String),
    /// The configuration cannot be meant.
    #[error("the configuration: {0}")]
    Config(String),
    /// It may work later: the API server is away.
    #[error("{0}")]
    TryAgain(String),
    /// The plugin cannot serve ADD (the answer to STATUS).
    #[error("{0}")]
    NotAvailable(String),
    /// The pod's own wishes cannot be meant.
    #[error("{0}")]
    Pod(String),
    /// The rules are not in place.
    #[error("{0}")]
    Rules(String),
}

impl CniError {
    /// The code, as the specification numbers them; from 100 on they are our own.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            CniError::Version(_) => 1,
            CniError::Environment(_) => 4,
            CniError::Io(_) => 5,
            CniError::Decode(_) => 6,
            CniError::Config(_) => 7,
            CniError::TryAgain(_) => 11,
            CniError::NotAvailable(_) => 50,
            CniError::Pod(_) => 100,
            CniError::Rules(_) => 101,
        }
    }

    /// The error as the runtime wants it.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code(), "msg": self.to_string()})
    }
}

/// The answer to VERSION.
#[must_use]
pub fn versions(asked: &str) -> Value {
    let version = VERSIONS.iter().find(|version| **version == asked);
    json!({"cniVersion": version.unwrap_or(&"1.0.0"), "supportedVersions": VERSIONS})
}

/// The answer to ADD: what the plugin before said, unchanged; an empty result where there is none before (as a secondary
/// network of its own, for example).
#[must_use]
pub fn result(version: &str, previous: Option<Value>) -> Value {
    let mut result = previous.unwrap_or_else(|| json!({}));
    result["cniVersion"] = json!(version);
    result
}
