//! The rules of the protocol, one by one.

use super::*;
use proto_mcp::wire::{RequestResources, Resources, resource_source_client::ResourceSourceClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// A sink that does as the test says.
struct Raw {
    requests: mpsc::Sender<RequestResources>,
    responses: Streaming<Resources>,
}

impl Raw {
    async fn open(served: &Served) -> Self {
        let (requests, receiver) = mpsc::channel(256);
        let responses = ResourceSourceClient::new(served.channel())
            .establish_resource_stream(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    async fn say(&self, collection: &str, nonce: &str, refuse: bool) {
        let request = RequestResources {
            collection: collection.into(),
            response_nonce: nonce.into(),
            error_detail: refuse.then(|| proto::google::rpc::Status {
                code: 3,
                message: "no".into(),
                ..Default::default()
            }),
            ..RequestResources::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Resources, tonic::Status> {
        tokio::time::timeout(Duration::from_secs(60), self.responses.message())
            .await
            .unwrap()
            .map(|response| response.expect("the stream goes on"))
    }
}

fn versions(response: &Resources) -> Vec<String> {
    let version = |r: &Resource| r.metadata.as_ref().unwrap().version.clone();
    response.resources.iter().map(version).collect()
}

#[tokio::test]
async fn one_response_is_in_flight_and_newer_ones_coalesce() {
    let served = Served::start("127.0.0.1:0").await;
    let mut raw = Raw::open(&served).await;
    raw.say(GATEWAYS, "", false).await;
    served.source.publish(gateways(&[("a/x", 1)]));
    let first = raw.hear().await.unwrap();
    assert_eq!(
        (versions(&first), first.incremental),
        (vec!["1".to_owned()], false)
    );
    for version in 2..=9 {
        served.source.publish(gateways(&[("a/x", version)]));
    }
    // An answer to a nonce that was never sent changes nothing.
    raw.say(GATEWAYS, "777", false).await;
    raw.say(GATEWAYS, &first.nonce, false).await;
    let second = raw.hear().await.unwrap();
    assert_eq!(versions(&second), ["9"]);
    assert_ne!(first.nonce, second.nonce);
}

#[tokio::test]
async fn a_refused_version_is_not_repeated_but_the_next_one_comes() {
    let served = Served::start("127.0.0.1:0").await;
    served.source.publish(gateways(&[("a/x", 1)]));
    let mut raw = Raw::open(&served).await;
    raw.say(GATEWAYS, "", false).await;
    let first = raw.hear().await.unwrap();
    raw.say(GATEWAYS, &first.nonce, true).await;
    eventually("the refusal is seen", || {
        served.source.sinks()[0].collections[GATEWAYS]
            .nacked
            .is_some()
    })
    .await;
    // The same content in a new snapshot is the refused version still.
    served.source.publish(gateways(&[("a/x", 1)]));
    served.source.publish(gateways(&[("a/x", 2)]));
    assert_eq!(versions(&raw.hear().await.unwrap()), ["2"]);
}

#[tokio::test]
async fn an_unknown_collection_ends_the_stream() {
    let served = Served::start("127.0.0.1:0").await;
    let mut raw = Raw::open(&served).await;
    raw.say("istio/no/such", "", false).await;
    let status = raw.hear().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().ends_with("istio/no/such"));
    eventually("the sink is forgotten", || served.source.sinks().is_empty()).await;
}

#[tokio::test]
async fn a_sink_that_never_reads_delays_nobody() {
    let served = Served::start("127.0.0.1:0").await;
    let lazy = Raw::open(&served).await;
    lazy.say(GATEWAYS, "", false).await;
    let sink = served.sink(vec![Subscription::required(GATEWAYS)]);
    for version in 1..50 {
        served.source.publish(gateways(&[("a/x", version)]));
        let update = next(&sink).await;
        assert_eq!(update.state.versions()["a/x"], version.to_string());
        update.ack();
    }
}

#[tokio::test]
async fn increments_carry_only_what_changed_and_the_sink_folds_them() {
    let served = Served::start("127.0.0.1:0").await;
    let sink = served.sink(vec![Subscription::required(GATEWAYS)]);
    served.source.publish(gateways(&[("a/x", 1), ("a/y", 1)]));
    next(&sink).await.ack();
    assert!(sink.view().is_synced());
    served.source.publish(gateways(&[("a/x", 2), ("a/z", 1)]));
    let update = next(&sink).await;
    assert_eq!(update.state.resources.size(), 2);
    assert_eq!(update.delta.updated.len(), 2);
    assert_eq!(update.delta.removed, ["a/y"]);
    update.nack("not this one");
    assert_eq!(
        sink.view().last_good(GATEWAYS).unwrap().versions()["a/x"],
        "1"
    );
    // Counted from what was accepted, not from what was refused.
    served.source.publish(gateways(&[("a/x", 3), ("a/z", 1)]));
    let update = next(&sink).await;
    assert_eq!(update.state.versions()["a/x"], "3");
    assert_eq!(update.delta.removed, ["a/y"]);
    update.ack();
    eventually("nothing is refused any more", || {
        sink.view().status().collections[GATEWAYS].refused.is_none()
    })
    .await;
}

#[tokio::test]
async fn an_optional_collection_that_the_source_lacks_is_given_up() {
    let served = Served::start("127.0.0.1:0").await;
    served.source.publish(gateways(&[("a/x", 1)]));
    let sink = served.sink(vec![
        Subscription::optional("istio/no/such"),
        Subscription::required(GATEWAYS),
    ]);
    next(&sink).await.ack();
    assert!(sink.view().is_synced());
    assert!(sink.view().status().collections["istio/no/such"].is_unknown);
}

#[tokio::test]
async fn a_body_of_another_type_is_refused() {
    let served = Served::start("127.0.0.1:0").await;
    let wrong = typed("a/x", 1, "istio.networking.v1alpha3.Sidecar");
    let snapshot = Snapshot::new().with(GATEWAYS, Collection::new([wrong]));
    served.source.publish(Arc::new(snapshot));
    let sink = served.sink(vec![Subscription::required(GATEWAYS)]);
    eventually("the source hears of it", || {
        served.source.sinks().first().is_some_and(|sink| {
            let nacked = sink
                .collections
                .get(GATEWAYS)
                .and_then(|c| c.nacked.as_ref());
            nacked.is_some_and(|(_, why)| why.contains("Sidecar"))
        })
    })
    .await;
    served.source.publish(gateways(&[("a/x", 2)]));
    next(&sink).await.ack();
}

#[tokio::test]
async fn a_refused_peer_gets_permission_denied() {
    let (_stop, drain) = drain::channel();
    let source = Source::new(
        [GATEWAYS.to_owned()],
        McpMetrics::unregistered("galley"),
        Arc::new(|_| Err("not on the list".into())),
        drain.clone(),
    );
    let listener = Listener::bind_text("127.0.0.1:0", "--server-address")
        .await
        .unwrap();
    let target = listener.address().to_string();
    let routes = Routes::new(source.service(1 << 20));
    let incoming = listener.plaintext(&drain);
    task::spawn("source", async move {
        serve(incoming, routes, &ServerOptions::default(), None, drain).await
    });
    let channel = channel(&target, None, &ClientOptions::default()).unwrap();
    let status = ResourceSourceClient::new(channel)
        .establish_resource_stream(tokio_stream::empty())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "not on the list")
    );
}

#[tokio::test]
async fn a_source_may_dial_the_sink() {
    let (_stop, drain) = drain::channel();
    let options = SinkOptions {
        collections: vec![Subscription::required(GATEWAYS)],
        ..SinkOptions::default()
    };
    let sink = Sink::listen(options, McpMetrics::unregistered("pilot"), drain.clone());
    let listener = Listener::bind_text("127.0.0.1:0", "--sink").await.unwrap();
    let target = listener.address().to_string();
    let routes = Routes::new(sink.service());
    let incoming = listener.plaintext(&drain);
    let serving = drain.clone();
    task::spawn("sink", async move {
        serve(incoming, routes, &ServerOptions::default(), None, serving).await
    });
    let served = Served::start("127.0.0.1:0").await;
    let source = served.source.clone();
    task::spawn("push", async move {
        let channel = channel(&target, None, &ClientOptions::default()).unwrap();
        source
            .push_to(channel, &[("config.source.version".into(), "test".into())])
            .await;
    });
    served.source.publish(gateways(&[("a/x", 1)]));
    next(&sink).await.ack();
    served.source.publish(gateways(&[("a/x", 2)]));
    let update = next(&sink).await;
    assert_eq!(update.state.versions()["a/x"], "2");
    update.ack();
}

#[tokio::test]
async fn a_sink_that_asks_without_end_waits_and_delays_nobody() {
    const BURST: u32 = 100;
    let served = Served::start("127.0.0.1:0").await;
    served.source.publish(gateways(&[("a/x", 1)]));
    let begun = tokio::time::Instant::now();
    let mut noisy = Raw::open(&served).await;
    // What comes after them has to wait for them.
    for _ in 0..BURST + 30 {
        noisy.say(GATEWAYS, "777", false).await;
    }
    noisy.say(GATEWAYS, "", false).await;
    let quiet = served.sink(vec![Subscription::required(GATEWAYS)]);
    let update = next(&quiet).await;
    assert_eq!(update.state.versions()["a/x"], "1");
    update.ack();
    assert_eq!(versions(&noisy.hear().await.unwrap()), ["1"]);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
}
