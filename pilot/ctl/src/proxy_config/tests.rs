//! What a dump shows.

use serde_json::{Value, json};

use super::{bootstrap, cluster, endpoint, listener, route};

fn dump() -> Value {
    json!({"configs": [
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {"node": {"id": "sidecar~1"}}},
        {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
         "static_clusters": [{"cluster": {"name": "xds-grpc", "type": "STRICT_DNS"}}],
         "dynamic_active_clusters": [
            {"cluster": {"name": "outbound|9080|v1|reviews.default.svc.cluster.local", "type": "EDS",
                "metadata": {"filter_metadata": {"istio":
                    {"config": "/apis/networking.istio.io/v1alpha3/namespaces/default/destination-rule/reviews"}}}}},
            {"cluster": {"name": "inbound|9080||", "type": "ORIGINAL_DST"}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
         "dynamic_listeners": [{"name": "0.0.0.0_9080", "active_state": {"listener": {
            "name": "0.0.0.0_9080", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}},
            "filter_chains": [{"filters": [{"typed_config": {"@type": "x/a.b.TcpProxy"}}]},
                {"filters": [{"typed_config": {"@type": "x/a.b.HttpConnectionManager"}}]}]}}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
         "dynamic_route_configs": [{"route_config": {"name": "9080", "virtual_hosts": [
            {"name": "reviews:9080", "domains": ["a", "b", "c"], "routes": [
                {"match": {"prefix": "/x", "headers": [{}]}, "route": {"weighted_clusters": {"clusters": [
                    {"name": "one", "weight": 10}, {"name": "two", "weight": 90}]}}},
                {"match": {"path": "/y"}, "direct_response": {"status": 503}}]}]}}]},
    ]})
}

#[test]
fn clusters_show_the_parts_of_their_names() {
    let table = cluster::rows(&dump(), &cluster::Filter::default()).to_value();
    assert_eq!(table.as_array().unwrap().len(), 3);
    let only_v1 = cluster::Filter {
        subset: Some("v1".into()),
        ..cluster::Filter::default()
    };
    let row = &cluster::rows(&dump(), &only_v1).to_value()[0];
    assert_eq!(
        row,
        &json!({"serviceFqdn": "reviews.default.svc.cluster.local", "port": "9080", "subset": "v1", "direction": "outbound",
            "type": "EDS", "destinationRule": "reviews.default"})
    );
    assert_eq!(cluster::messages(&dump(), &only_v1)[0]["type"], "EDS");
}

#[test]
fn a_listener_with_one_http_chain_is_http() {
    let row = &listener::rows(&dump(), &listener::Filter::default()).to_value()[0];
    assert_eq!(
        row,
        &json!({"address": "0.0.0.0", "port": "9080", "type": "HTTP", "name": "0.0.0.0_9080"})
    );
}

#[test]
fn routes_show_what_they_match_and_where_they_go() {
    let rows = route::rows(&dump(), &route::Filter::default()).to_value();
    assert_eq!(rows[0]["match"], "/x* (1 headers)");
    assert_eq!(rows[0]["target"], "10 one, 90 two");
    assert_eq!(rows[0]["domains"], "a, b + 1 more");
    assert_eq!(
        (&rows[1]["match"], &rows[1]["target"]),
        (&json!("/y"), &json!("503"))
    );
}

#[test]
fn endpoints_show_health_and_ejection() {
    let clusters = json!({"cluster_statuses": [{"name": "one", "host_statuses": [
        {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}},
         "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": true}},
        {"address": {"pipe": {"path": "/x"}}, "health_status": {"eds_health_status": "UNHEALTHY"}}]}]});
    let rows = endpoint::rows(&clusters, &endpoint::Filter::default()).to_value();
    assert_eq!(
        rows[0],
        json!({"endpoint": "10.0.0.1:80", "status": "HEALTHY", "outlierCheck": "FAILED", "cluster": "one"})
    );
    assert_eq!(rows[1]["endpoint"], "unix:///x");
}

#[test]
fn the_bootstrap_is_shown_as_it_is() {
    assert_eq!(bootstrap::message(&dump())["node"]["id"], "sidecar~1");
}
