//! Random changes, refusals and lost connections: in the end every sink has what the source has.

use super::*;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u32),
    Remove(u8),
    Publish,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, 0..1000u32).prop_map(|(name, version)| Step::Put(name, version)),
        3 => (0..12u8).prop_map(Step::Remove),
        4 => Just(Step::Publish),
        1 => Just(Step::Restart),
    ]
}

fn snapshot(state: &BTreeMap<u8, u32>) -> Arc<Snapshot> {
    let resources = state
        .iter()
        .map(|(name, version)| resource(&format!("ns/{name}"), *version));
    Arc::new(Snapshot::new().with(GATEWAYS, Collection::new(resources)))
}

fn names(state: &BTreeMap<u8, u32>) -> BTreeMap<String, String> {
    let pair = |(name, version): (&u8, &u32)| (format!("ns/{name}"), version.to_string());
    state.iter().map(pair).collect()
}

/// Accepts most updates and refuses some, checking that the delta leads from the last accepted state to the new one.
async fn consume(sink: Sink, refuse_every: usize) {
    let mut accepted: BTreeMap<String, String> = BTreeMap::new();
    let mut count = 0;
    while let Some(update) = sink.next().await {
        let mut folded = accepted.clone();
        for name in &update.delta.removed {
            assert!(folded.remove(name).is_some(), "{name} was not there");
        }
        for changed in &update.delta.updated {
            let metadata = changed.metadata.as_ref().unwrap();
            folded.insert(metadata.name.clone(), metadata.version.clone());
        }
        assert_eq!(folded, update.state.versions());
        count += 1;
        if count % refuse_every == 0 {
            update.nack("every so often");
        } else {
            accepted = folded;
            update.ack();
        }
    }
}

async fn play(steps: Vec<Step>) {
    let mut served = Served::start("127.0.0.1:0").await;
    let (stop, drain) = drain::channel();
    let sinks: Vec<(Sink, usize)> = [(true, usize::MAX), (true, 3), (false, 2)]
        .into_iter()
        .map(|(incremental, refuse_every)| {
            let options = SinkOptions {
                collections: vec![Subscription {
                    incremental,
                    ..Subscription::required(GATEWAYS)
                }],
                ..SinkOptions::default()
            };
            let metrics = McpMetrics::unregistered("pilot");
            let sink = Sink::dial(served.channel(), options, metrics, drain.clone());
            (sink, refuse_every)
        })
        .collect();
    let views: Vec<_> = sinks.iter().map(|(sink, _)| sink.view()).collect();
    let consumers: Vec<_> = sinks
        .into_iter()
        .map(|(sink, refuse_every)| task::spawn("consumer", consume(sink, refuse_every)))
        .collect();
    let mut state = BTreeMap::new();
    for step in steps {
        match step {
            Step::Put(name, version) => {
                state.insert(name, version);
            }
            Step::Remove(name) => {
                state.remove(&name);
            }
            Step::Publish => served.source.publish(snapshot(&state)),
            Step::Restart => {
                let target = served.stop().await;
                served = Served::start(&target).await;
                served.source.publish(snapshot(&state));
            }
        }
        tokio::task::yield_now().await;
    }
    // A refused state is not repeated, so those who refuse are told something new until they accept.
    let mut extra = 1000;
    for (view, consumer) in views.iter().zip(&consumers) {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut pause = Duration::from_millis(20);
        loop {
            assert!(!consumer.is_finished(), "a consumer failed");
            assert!(tokio::time::Instant::now() < end, "a sink never caught up");
            let has = view.last_good(GATEWAYS).map(|state| state.versions());
            if has == Some(names(&state)) {
                break;
            }
            extra += 1;
            state.insert(200, extra);
            served.source.publish(snapshot(&state));
            tokio::time::sleep(pause).await;
            // A busy machine would never catch up with one state after the other.
            pause = (pause * 5 / 4).min(Duration::from_secs(2));
        }
    }
    stop.drain(Duration::from_secs(5));
    for consumer in consumers {
        consumer.await.unwrap();
    }
}

#[test]
fn sinks_converge_through_churn_refusals_and_reconnects() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = Config {
        cases: 12,
        max_shrink_iters: 20,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 1..60), |steps| {
            runtime.block_on(play(steps));
            Ok(())
        })
        .unwrap();
}
