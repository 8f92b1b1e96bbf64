//! Reads a key set from a file or over HTTP(S).

use std::io;
use std::time::Duration;

use proto_component::fetch::{self, Roots};

use super::jwks::{InvalidJwks, JwksSource};

const DEADLINE: Duration = Duration::from_secs(10);
/// The cluster's authority, as a pod is given it.
const CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Why keys could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The server's answer was no good, or there is none.
    #[error("{url}: {error}")]
    Http {
        /// The address.
        url: String,
        /// What is wrong.
        error: fetch::FetchError,
    },
    /// What was read is no key set.
    #[error(transparent)]
    Invalid(#[from] InvalidJwks),
}

/// The text of the key set.
pub(super) async fn fetch(source: &JwksSource) -> Result<Vec<u8>, FetchError> {
    match source {
        JwksSource::File(path) => tokio::fs::read(path)
            .await
            .map_err(|error| FetchError::File {
                path: path.display().to_string(),
                error,
            }),
        JwksSource::Url { url, ca_file } => {
            let system = Roots::SystemAnd(&[CLUSTER]);
            let roots = ca_file.as_deref().map_or(system, Roots::File);
            let answer = fetch::get(url, roots, DEADLINE).await;
            answer.map_err(|error| FetchError::Http {
                url: url.to_string(),
                error,
            })
        }
    }
}
