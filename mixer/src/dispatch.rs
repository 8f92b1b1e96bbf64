//! A request's way through the rules: attributes made by [`generate`] → routes → instances → handlers → one result.
//!
//! Reports and attributes are plain code without waiting. A check waits for those handlers that ask somebody else
//! ([`crate::adapter::Waiting`]); each of them keeps its own deadline.

pub(crate) mod check;
mod combine;
mod generate;
pub(crate) mod report;

use tokio::time::Instant;

use crate::adapter::AdapterError;
use crate::routing::Destination;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DispatchError(pub(crate) String);

/// Waits for a handler and counts the call.
async fn wait<T>(
    destination: &Destination,
    work: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, AdapterError> {
    let begun = Instant::now();
    let outcome = work.await;
    destination
        .metrics
        .count(outcome.is_err(), begun.elapsed().as_secs_f64());
    outcome
}

/// Calls a handler and counts the call.
fn call<T>(
    destination: &Destination,
    work: impl FnOnce() -> Result<T, AdapterError>,
) -> Result<T, AdapterError> {
    let begun = Instant::now();
    let outcome = work();
    destination
        .metrics
        .count(outcome.is_err(), begun.elapsed().as_secs_f64());
    outcome
}
