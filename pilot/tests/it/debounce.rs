//! When a change takes effect: after some quiet, and after the longest time at the latest.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args as _, Command, FromArgMatches as _};
use pilot::config::{Update, file};
use pilot::features::Features;
use pilot::metrics::Metrics;
use pilot::model::Mesh;
use pilot::xds::Discovery;
use pilot::xds::discovery::{self, UPDATES};
use proto_component::drain::{self, Trigger};
use proto_component::task;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::ads::service;

const MILLISECOND: Duration = Duration::from_millis(1);

/// The discovery task by itself, on a clock that stands still while anything is to be done.
struct Debounced {
    discovery: Arc<Discovery>,
    updates: mpsc::Sender<Update>,
    _trigger: Trigger,
}

impl Debounced {
    /// Starts it with these flags; it has pushed something.
    async fn start(flags: &[&str]) -> Self {
        let flags = ["test"].iter().chain(flags);
        let matches = Features::augment_args(Command::new("test")).get_matches_from(flags);
        let features = Features::from_arg_matches(&matches).unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let discovery = Discovery::new(features, metrics);
        let (trigger, drain) = drain::channel();
        let (updates, received) = mpsc::channel(UPDATES);
        let run = discovery::run(
            Arc::clone(&discovery),
            "cluster.local".to_owned(),
            Arc::new(Mesh::default()),
            received,
            async {},
            drain,
        );
        task::spawn("discovery", run);
        let started = Debounced {
            discovery,
            updates,
            _trigger: trigger,
        };
        started.change(&world(1, 1)).await;
        sleep(Duration::from_secs(60)).await;
        started
    }

    async fn change(&self, yaml: &str) {
        for update in file::load([("test.yaml", yaml)].into_iter()).updates {
            self.updates.send(update).await.unwrap();
        }
    }

    fn version(&self) -> u64 {
        self.discovery.current().push.version
    }

    /// Makes a change every `pause`, or one only, until there is a push; how long after the first one that was.
    async fn until_push(
        &self,
        pause: Option<Duration>,
        change: impl Fn(u32) -> String,
    ) -> Duration {
        let (begun, before) = (Instant::now(), self.version());
        let mut changes = 0;
        while self.version() == before {
            let elapsed = begun.elapsed();
            assert!(elapsed < Duration::from_secs(100), "no push");
            if pause.is_none_or(|pause| elapsed >= pause * changes)
                && (changes == 0 || pause.is_some())
            {
                changes += 1;
                self.change(&change(changes)).await;
            }
            sleep(MILLISECOND).await;
        }
        begun.elapsed()
    }
}

/// All there is: a route with this timeout to a service at this address.
fn world(timeout: u32, address: u32) -> String {
    service("shop", "default", &[&format!("10.1.0.{address}")])
        + &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: shop, namespace: default}}\nspec:\n  \
             hosts: [shop.default.svc.cluster.local]\n  \
             http: [{{timeout: {timeout}s, route: [{{destination: {{host: shop.default.svc.cluster.local}}}}]}}]\n"
        )
}

fn other_route(change: u32) -> String {
    world(1 + change, 1)
}

fn other_endpoint(change: u32) -> String {
    world(1, 1 + change)
}

/// `found` is `wanted` to the clock's accuracy.
fn assert_near(found: Duration, wanted: u64) {
    let wanted = Duration::from_millis(wanted);
    let is_near = (wanted..=wanted + 5 * MILLISECOND).contains(&found);
    assert!(is_near, "{found:?}, not {wanted:?}");
}

#[tokio::test(start_paused = true)]
async fn changes_wait_for_quiet_and_not_longer_than_the_flags_say() {
    let flags = ["--debounce-after=250ms", "--debounce-max=2s"];
    let pilot = Debounced::start(&flags).await;
    assert_near(pilot.until_push(None, other_route).await, 250);
    sleep(Duration::from_secs(10)).await;
    let busy = Some(Duration::from_millis(200));
    let change = |change| other_route(change + 1);
    assert_near(pilot.until_push(busy, change).await, 2000);
}

#[tokio::test(start_paused = true)]
async fn endpoints_alone_wait_less() {
    let pilot = Debounced::start(&[]).await;
    assert_near(pilot.until_push(None, other_endpoint).await, 10);
    sleep(Duration::from_secs(10)).await;
    let busy = Some(Duration::from_millis(5));
    let change = |change| other_endpoint(change + 1);
    assert_near(pilot.until_push(busy, change).await, 100);
    sleep(Duration::from_secs(10)).await;
    let both = |change| world(2, 100 + change);
    assert_near(pilot.until_push(None, both).await, 100);
}
