//! `galley server`, from files to its clients.

use super::*;
use proto::istio::{
    mesh::v1alpha1::MeshConfig,
    networking::v1alpha3::{ServiceEntry, VirtualService},
};
use proto_mcp::snapshot::name_of;
use serde_json::json;

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
";

fn slice(addresses: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: reviews-1, namespace: shop, labels: {{kubernetes.io/service-name: reviews}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [{addresses}]}}]\nports: [{{name: http, port: 8080}}]\n"
    )
}

fn body<T: prost::Message + prost::Name + Default>(state: &Collection, name: &str) -> T {
    proto::any::unpack(state.resources[name].body.as_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn what_analysis_finds_in_the_folder_is_shown() {
    let place = Place::new();
    place.write("a.yaml", &route("reviews", "nobody-serves-this"));
    let _galley = place.start_with(&["--enableAnalysis=true"]);
    place
        .until("/debug/analysis", |page| {
            page.contains("IST0101") && page.contains("a.yaml")
        })
        .await;
}

#[tokio::test]
async fn files_are_served_and_changes_follow_soon() {
    let place = Place::new();
    place.write("routes.yaml", &route("reviews", "reviews"));
    place.write("shop/service.yaml", SERVICE);
    place.write("shop/slice.yaml", &slice("10.1.0.1"));
    let galley = place.start();
    let sink = place.sink(&[VIRTUAL_SERVICES, SERVICES, MESH]);
    let routes = state(&sink, VIRTUAL_SERVICES, |_| true).await;
    assert_eq!(
        body::<VirtualService>(&routes, "shop/reviews").hosts,
        ["reviews"]
    );
    let services = state(&sink, SERVICES, |_| true).await;
    let entry: ServiceEntry = body(&services, "shop/reviews");
    assert_eq!(entry.hosts, ["reviews.shop.svc.cluster.local"]);
    assert_eq!(entry.endpoints[0].address, "10.1.0.1");

    let begun = Instant::now();
    place.write("shop/slice.yaml", &slice("10.1.0.2"));
    let services = state(&sink, SERVICES, |state| state.version != services.version).await;
    println!("an endpoint took {:?}", begun.elapsed());
    let entry: ServiceEntry = body(&services, "shop/reviews");
    assert_eq!(entry.endpoints[0].address, "10.1.0.2");

    place.remove("routes.yaml");
    state(&sink, VIRTUAL_SERVICES, |state| state.resources.is_empty()).await;

    fs::write(place.path("mesh.yaml"), "trustDomain: other.local\n").unwrap();
    state(&sink, MESH, |state| {
        body::<MeshConfig>(state, "istio-system/meshconfig").trust_domain == "other.local"
    })
    .await;

    let sinks = place.json("/debug/sinks").await;
    assert_eq!(sinks[0]["id"], "test");
    assert!(galley.terminate().await.success());
}

#[tokio::test]
async fn a_bad_object_is_left_out_its_last_good_version_stays() {
    let place = Place::new();
    place.write("a.yaml", &route("a", "one"));
    place.write(
        "b.yaml",
        &format!("{}---\n{}", route("a", "two"), route("b", "b")),
    );
    let first = place.start();
    place
        .until("/debug/rejected", |page| page.contains("is defined at"))
        .await;
    let routes = format!("/debug/snapshot?collection={VIRTUAL_SERVICES}");
    place
        .until(&routes, |page| {
            page.contains("\"one\"") && page.contains("shop/b")
        })
        .await;

    // In this order: were the second file still there, the object in it would come into force.
    place.remove("b.yaml");
    place.write("a.yaml", &route("a", "three").replace("route:", "rout:"));
    place
        .until("/debug/rejected", |page| {
            page.contains("did you mean route?")
        })
        .await;
    let rejected = place.json("/debug/rejected").await;
    assert_eq!(rejected[0]["errors"][0]["path"], "spec.http[0].rout");
    assert_eq!(rejected[0]["name"], "a");
    place
        .until(&routes, |page| {
            page.contains("\"one\"") && !page.contains("shop/b")
        })
        .await;
    assert!(
        place
            .page("/metrics")
            .await
            .contains("galley_runtime_rejected_objects 1")
    );

    // Not even a kill makes the good version forgotten.
    place
        .until("/ready", |page| page.starts_with("ready"))
        .await;
    let saved = |page: &str| {
        let line = page
            .lines()
            .find(|line| line.starts_with("galley_runtime_store_saves_total"));
        line.is_some_and(|line| !line.ends_with(" 0"))
    };
    place.until("/metrics", saved).await;
    first.kill();
    let _second = place.start();
    place.until(&routes, |page| page.contains("\"one\"")).await;
    let rejected = place.json("/debug/rejected").await;
    assert!(rejected[0]["in_force"].as_str().unwrap().contains("a.yaml"));

    // Nor does text that is no YAML.
    place.write("a.yaml", "kind: [VirtualService\n");
    place
        .until("/debug/rejected", |page| {
            !page.contains("did you mean") && page.contains("a.yaml")
        })
        .await;
    assert!(place.page(&routes).await.contains("\"one\""));
    place.write("a.yaml", &route("a", "four"));
    place.until(&routes, |page| page.contains("\"four\"")).await;
    assert_eq!(place.json("/debug/rejected").await, json!([]));
}

#[tokio::test]
async fn without_its_source_a_restarted_galley_serves_what_it_had() {
    let place = Place::new();
    place.write("a.yaml", &route("a", "one"));
    place.write("service.yaml", SERVICE);
    let first = place.start();
    let sink = place.sink(&[VIRTUAL_SERVICES, SERVICES]);
    state(&sink, VIRTUAL_SERVICES, |state| !state.resources.is_empty()).await;
    let services = state(&sink, SERVICES, |state| !state.resources.is_empty()).await;
    assert!(first.terminate().await.success());

    fs::rename(place.path("config"), place.path("away")).unwrap();
    let _second = place.start();
    let late = place.sink(&[VIRTUAL_SERVICES, SERVICES]);
    let routes = state(&late, VIRTUAL_SERVICES, |_| true).await;
    assert!(routes.resources.contains_key("shop/a"));
    state(&late, SERVICES, |state| state.version == services.version).await;
    let collections = place.json("/debug/collections").await;
    assert!(
        collections["unreadable"]
            .as_str()
            .unwrap()
            .contains("configPath")
    );

    // Once the source is back, it alone counts.
    fs::remove_file(place.path("away/a.yaml")).unwrap();
    fs::rename(place.path("away"), place.path("config")).unwrap();
    state(&late, VIRTUAL_SERVICES, |state| state.resources.is_empty()).await;
    place
        .until("/debug/collections", |page| {
            page.contains("\"unreadable\":null")
        })
        .await;
}

#[tokio::test]
async fn only_namespaces_that_are_chosen_count() {
    let place = Place::new();
    let select = "discoverySelectors: [{matchLabels: {mesh: ours}}]\n";
    fs::write(place.path("mesh.yaml"), select).unwrap();
    let namespace = |name: &str, mesh: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{mesh: {mesh}}}}}\n"
        )
    };
    let of_other = |text: &str| text.replace("namespace: shop", "namespace: other");
    place.write("shop.yaml", &namespace("shop", "ours"));
    place.write("other.yaml", &namespace("other", "theirs"));
    for (folder, text) in [("a", SERVICE.to_owned()), ("b", of_other(SERVICE))] {
        place.write(&format!("{folder}/service.yaml"), &text);
    }
    let reviews = route("reviews", "reviews");
    place.write("a/route.yaml", &reviews);
    place.write("b/route.yaml", &of_other(&reviews));
    let galley = place.start();
    let sink = place.sink(&[VIRTUAL_SERVICES, SERVICES, MESH]);
    // In both collections the same.
    let names = async |wanted: &[&str]| {
        for collection in [VIRTUAL_SERVICES, SERVICES] {
            let holds = |state: &Collection| {
                let found: Vec<&str> = state.resources.values().map(|it| name_of(it)).collect();
                found == wanted
            };
            state(&sink, collection, holds).await;
        }
    };
    let (one, both) = (
        &["shop/reviews"][..],
        &["other/reviews", "shop/reviews"][..],
    );
    names(one).await;
    // A change where nobody looks, then one of the labels, there and back.
    place.write("b/route.yaml", &of_other(&route("changed", "reviews")));
    place.write("b/route.yaml", &of_other(&reviews));
    place.write("other.yaml", &namespace("other", "ours"));
    names(both).await;
    place.remove("a/route.yaml");
    place.remove("a/service.yaml");
    names(&["other/reviews"]).await;
    place.write("a/service.yaml", SERVICE);
    place.write("a/route.yaml", &reviews);
    place.write("other.yaml", &namespace("other", "theirs"));
    names(one).await;
    // Without selectors every namespace counts, and with them again.
    fs::write(place.path("mesh.yaml"), "{}\n").unwrap();
    names(both).await;
    fs::write(place.path("mesh.yaml"), select).unwrap();
    names(one).await;
    assert!(galley.terminate().await.success());
}

#[tokio::test]
async fn the_webhook_admits_and_refuses_and_follows_its_certificate() {
    let place = Place::new();
    let galley = place.start();
    place
        .until("/ready", |page| page.starts_with("ready"))
        .await;
    let object = |key: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "x"},
            "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {key: "a"}}]}]},
        })
    };
    let good = place.admit("CREATE", &object("host")).await;
    assert_eq!(
        (&good["allowed"], &good["uid"]),
        (&json!(true), &json!("42"))
    );
    let bad = place.admit("CREATE", &object("hst")).await;
    assert_eq!(bad["allowed"], false);
    let message = bad["status"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        "spec.http[0].route[0].destination.hst: unknown field; did you mean host?"
    );
    let mut doubtful = object("host");
    let route = doubtful["spec"]["http"][0].clone();
    doubtful["spec"]["http"].as_array_mut().unwrap().push(route);
    let doubtful = place.admit("UPDATE", &doubtful).await;
    assert_eq!(doubtful["allowed"], true);
    let warnings = doubtful["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let warning = warnings[0].as_str().unwrap();
    assert!(
        warning.starts_with("spec.http[1]: the route is never used"),
        "{warning}"
    );
    assert!(good.get("warnings").is_none(), "{good}");
    assert_eq!(place.admit("DELETE", &Value::Null).await["allowed"], true);
    let metrics = place.page("/metrics").await;
    assert!(metrics.contains("galley_validation_failed{"), "{metrics}");
    assert!(galley.terminate().await.success());
}

#[tokio::test]
async fn without_insecure_only_listed_certificates_may_subscribe() {
    let place = Place::secure();
    place.write("a.yaml", &route("a", "one"));
    let _galley = place.start();
    let sink = place.sink(&[VIRTUAL_SERVICES]);
    state(&sink, VIRTUAL_SERVICES, |_| true).await;
    let sinks = place.json("/debug/sinks").await;
    let id = sinks[0]["spiffe_id"].as_str().unwrap();
    assert!(id.ends_with("sa/istio-galley-service-account"));

    fs::write(
        place.path("access.yaml"),
        "allowed: [spiffe://cluster.local/ns/x/sa/other]\n",
    )
    .unwrap();
    let log = place.path("log");
    let end = Instant::now() + SOON;
    while !fs::read_to_string(&log)
        .unwrap()
        .contains("access list read")
    {
        assert!(Instant::now() < end, "the list is not followed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = place.sink(&[VIRTUAL_SERVICES]);
    let end = Instant::now() + SOON;
    while refused
        .status()
        .last_error
        .is_none_or(|error| !error.contains("PermissionDenied"))
    {
        assert!(Instant::now() < end, "{:?}", refused.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_cannot_start_says_so_in_one_line() {
    let place = Place::new();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let line = [
        "server",
        "--configPath",
        "config",
        "--insecure",
        "--enable-validation=false",
        "--monitoringPort",
        &port,
    ];
    let output = galley(&line, place.dir.path());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.starts_with(&format!("galley: address 0.0.0.0:{port} is taken")),
        "{text}"
    );
    assert!(
        text.ends_with("choose another with --monitoringPort\n"),
        "{text}"
    );
    let output = galley(&["server", "--configPath", "config"], place.dir.path());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), text.lines().count()),
        (Some(2), 1),
        "{text}"
    );
}

#[tokio::test]
async fn a_sink_that_stops_reading_does_not_hold_up_the_end() {
    use proto::istio::mcp::v1alpha1::{
        RequestResources, resource_source_client::ResourceSourceClient,
    };
    use tokio_stream::wrappers::ReceiverStream;

    let place = Place::new();
    // More than a connection takes that nobody reads.
    let routes: Vec<String> = (0..3000)
        .map(|n| route(&format!("r{n}"), "reviews"))
        .collect();
    place.write("routes.yaml", &routes.join("---\n"));
    let galley = place.start();
    let sink = place.sink(&[VIRTUAL_SERVICES]);
    state(&sink, VIRTUAL_SERVICES, |state| {
        state.resources.size() == 3000
    })
    .await;

    let target = format!("127.0.0.1:{}", place.mcp);
    let channel = channel(&target, None, &ClientOptions::default()).unwrap();
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    let request = RequestResources {
        collection: VIRTUAL_SERVICES.into(),
        ..RequestResources::default()
    };
    requests.send(request).await.unwrap();
    let stream = ResourceSourceClient::new(channel)
        .establish_resource_stream(ReceiverStream::new(receiver))
        .await
        .unwrap();
    place
        .until("/debug/sinks", |text| {
            text.matches("\"sent\":\"").count() >= 2
        })
        .await;
    assert!(galley.terminate().await.success());
    drop((stream, requests));
}
