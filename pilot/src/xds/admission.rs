//! How fast streams may begin: after a restart all proxies come at once, and each of them wants everything.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a stream may wait for its turn; its proxy comes back later, perhaps to another replica.
const PATIENCE: Duration = Duration::from_secs(20);
/// Streams in a second for each core, if nobody says how many.
const FOR_EACH_CORE: u32 = 50;

/// Lets streams begin one after the other, in the order in which they came.
#[derive(Debug)]
pub struct Admission {
    spacing: Duration,
    next: Mutex<Instant>,
}

/// A stream's turn has not come in time.
#[derive(Debug)]
pub struct TooMany;

impl Admission {
    /// At most as many streams in a second; 0 leaves it to the number of cores.
    #[must_use]
    pub fn new(streams_per_second: u32) -> Self {
        let rate = match streams_per_second {
            0 => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                FOR_EACH_CORE.saturating_mul(u32::try_from(cores).unwrap_or(u32::MAX))
            }
            rate => rate,
        };
        Admission {
            spacing: Duration::from_secs(1) / rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Resolves when one more stream may begin.
    pub async fn admit(&self) -> Result<(), TooMany> {
        let turn = async {
            let mut next = self.next.lock().await;
            tokio::time::sleep_until(*next).await;
            *next = Instant::now() + self.spacing;
        };
        tokio::time::timeout(PATIENCE, turn)
            .await
            .map_err(|_| TooMany)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_begin_at_the_rate_and_late_ones_are_turned_away() {
        let admission = Arc::new(Admission::new(100));
        let begun = Instant::now();
        let streams: Vec<_> = (0..3000)
            .map(|_| {
                let admission = Arc::clone(&admission);
                proto_component::task::spawn("stream", async move {
                    (admission.admit().await.is_ok(), begun.elapsed())
                })
            })
            .collect();
        let mut admitted = Vec::new();
        for stream in streams {
            let (is_admitted, after) = stream.await.unwrap();
            assert!(after <= PATIENCE + Duration::from_millis(1));
            if is_admitted {
                admitted.push(after);
            }
        }
        // A timer is a millisecond late at most.
        assert!(
            (1900..=2001).contains(&admitted.len()),
            "{}",
            admitted.len()
        );
        assert!(admitted[100] >= Duration::from_secs(1));
    }
}
