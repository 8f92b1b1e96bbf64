//! Whether a request that fails nearby is tried again far away.

use super::row::{Row, is_by};
use super::rows::{MANY, of};

pub(super) const CONFIGURATION: &str = include_str!("../../routing/remote.yaml");

pub(super) fn rows() -> Vec<Row> {
    let calls = |host: &str| vec![of("app").host(host); MANY];
    vec![
        Row::about("retryRemoteLocalities", calls("remote.test"), |seen| {
            seen.iter().all(|outcome| is_by("v1", outcome))
        }),
        Row::about("no retryRemoteLocalities", calls("stays.test"), |seen| {
            seen.iter().all(|outcome| outcome.status == Some(503))
        }),
    ]
}
