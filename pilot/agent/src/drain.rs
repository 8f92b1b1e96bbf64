//! The way out: listeners drain, connections get their time, then the proxy ends.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use crate::admin::AdminClient;

const ADMIN_DEADLINE: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Downstream connections of listeners; those of the admin port and of the statistics listener don't count.
const CONNECTIONS: &str = "/stats?usedonly&filter=%5Elistener%5C..*downstream_cx_active%24";
const OWN_LISTENERS: &[&str] = &[
    "listener.admin.",
    "listener.0.0.0.0_15090.",
    "listener.[__]_15090.",
];

/// How to drain.
#[derive(Debug, Clone, Copy)]
pub struct Termination {
    /// How long connections may go on.
    pub duration: Duration,
    /// End as soon as there are none.
    pub ends_at_zero: bool,
    /// But not earlier than this.
    pub minimum: Duration,
}

impl Termination {
    /// Tells the proxy to drain its listeners, then waits.
    pub async fn run(&self, admin: &AdminClient) {
        let begun = Instant::now();
        let drained = admin
            .request(
                Method::POST,
                "/drain_listeners?graceful",
                String::new(),
                ADMIN_DEADLINE,
            )
            .await;
        match drained {
            Ok((status, _)) if status.is_success() => {
                tracing::info!(target: "drain", duration = ?self.duration, "draining listeners");
            }
            Ok((status, _)) => {
                tracing::warn!(target: "drain", %status, "the proxy refuses to drain its listeners");
            }
            Err(error) => {
                tracing::warn!(target: "drain", %error, "cannot drain the proxy's listeners");
                return;
            }
        }
        while begun.elapsed() < self.duration {
            let left = self.duration.saturating_sub(begun.elapsed());
            if self.ends_at_zero
                && begun.elapsed() >= self.minimum
                && active_connections(admin).await == Some(0)
            {
                tracing::info!(target: "drain", "no connection is left");
                return;
            }
            tokio::time::sleep(left.min(LOOK_INTERVAL)).await;
        }
    }
}

async fn active_connections(admin: &AdminClient) -> Option<u64> {
    let stats = admin.get(CONNECTIONS, ADMIN_DEADLINE).await?;
    Some(count(&stats))
}

fn count(stats: &str) -> u64 {
    let counts = stats.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let is_total = name.ends_with(".downstream_cx_active") && !name.contains(".worker_");
        let is_own = OWN_LISTENERS.iter().any(|own| name.starts_with(own));
        (name.starts_with("listener.") && is_total && !is_own)
            .then(|| value.trim().parse().unwrap_or(0))
    });
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_the_workloads_listeners_are_counted_once() {
        let stats = "listener.0.0.0.0_15006.downstream_cx_active: 2\n\
                     listener.0.0.0.0_15006.worker_0.downstream_cx_active: 2\n\
                     listener.admin.downstream_cx_active: 1\n\
                     listener.0.0.0.0_15090.downstream_cx_active: 1\n\
                     listener.10.0.0.1_80.downstream_cx_active: 1\n\
                     listener.10.0.0.1_80.downstream_cx_total: 9\n";
        assert_eq!(count(stats), 3);
        assert_eq!(count(""), 0);
    }
}
