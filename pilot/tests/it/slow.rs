//! A proxy that does not read what it is sent: others do not wait for it, what it has missed comes at once, and in the end its
//! stream is closed.

use std::sync::Arc;
use std::time::Duration;

use pilot::config::{Synthetic, Update, file};
use pilot::features::Features;
use proto::istio::networking::v1alpha3::WorkloadEntry;
use proto::type_url::ENDPOINT;
use tonic::transport::Endpoint;

use super::ads::{Client, addresses, assignments, node, service};
use super::mesh::{Pilot, features};

const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: &str = "outbound|9080||shop.default.svc.cluster.local";
/// More than fits into the buffers on the way.
const ENDPOINTS: u32 = 2_000;
const CHANGES: u32 = 12;

/// The service as it is after some changes: its first endpoint tells how many.
fn shop(changes: u32) -> Update {
    let first = first(changes);
    let text = service("shop", "default", &[&first]);
    let updates = file::load([("test.yaml", text.as_str())].into_iter()).updates;
    let mut updates = updates.into_iter();
    let found = updates.find(|update| matches!(update, Update::SyntheticServiceEntries(_)));
    let Some(Update::SyntheticServiceEntries(mut change)) = found else {
        panic!("no service");
    };
    let Synthetic { meta, mut spec } = Arc::unwrap_or_clone(change.set.remove(0));
    let more = (0..ENDPOINTS).map(|index| WorkloadEntry {
        address: format!("10.0.{}.{}", index / 250, index % 250),
        ..spec.endpoints[0].clone()
    });
    let more: Vec<_> = more.collect();
    spec.endpoints.extend(more);
    change.set.push(Arc::new(Synthetic { meta, spec }));
    Update::SyntheticServiceEntries(change)
}

fn first(changes: u32) -> String {
    format!("11.0.0.{}", changes + 1)
}

async fn change(pilot: &Pilot, changes: u32) {
    pilot.updates.send(shop(changes)).await.unwrap();
}

fn has(push: &proto::envoy::service::discovery::v3::DiscoveryResponse, changes: u32) -> bool {
    addresses(&assignments(push)[0]).contains(&first(changes))
}

/// A proxy behind a narrow way.
async fn narrow(pilot: &Pilot) -> Client {
    let target = format!("http://127.0.0.1:{}", pilot.port);
    let endpoint = Endpoint::from_shared(target).unwrap();
    let channel = endpoint
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .connect_lazy();
    Client::connect_to(channel, node("slow", "10.1.9.8")).await
}

async fn started(send_timeout: Duration) -> Pilot {
    let pilot = Pilot::start_with(Features {
        send_timeout,
        // Whoever has his turn for long would hold all others back.
        push_throttle: 1,
        ..features()
    })
    .await;
    change(&pilot, 0).await;
    pilot
}

#[tokio::test]
async fn nobody_waits_for_a_slow_proxy_and_it_gets_the_newest() {
    let pilot = started(PATIENCE).await;
    let mut slow = narrow(&pilot).await;
    slow.subscribe(ENDPOINT, &[CLUSTER]).await;
    let mut quick = Client::connect(&pilot).await;
    quick.subscribe(ENDPOINT, &[CLUSTER]).await;
    for changes in 1..=CHANGES {
        change(&pilot, changes).await;
        let push = quick.next().await;
        assert!(has(&push, changes));
        quick.ask(ENDPOINT, &[CLUSTER], &push.nonce, None).await;
    }
    let mut pushes = 0;
    loop {
        let push = slow.next().await;
        pushes += 1;
        slow.ask(ENDPOINT, &[CLUSTER], &push.nonce, None).await;
        if has(&push, CHANGES) {
            break;
        }
    }
    assert!(pushes < CHANGES, "{pushes} pushes for {CHANGES} changes");
}

#[tokio::test]
async fn the_stream_of_a_proxy_that_never_reads_is_closed() {
    let pilot = started(Duration::from_millis(200)).await;
    let slow = narrow(&pilot).await;
    slow.ask(ENDPOINT, &[CLUSTER], "", None).await;
    let closed = async {
        let mut changes = 0;
        // Buffers take a few pushes.
        while pilot.discovery.metrics.write_timeout.get() == 0 {
            changes += 1;
            change(&pilot, changes % 200).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while !pilot.discovery.connections().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, closed).await;
    outcome.expect("its stream is closed in time");
}
