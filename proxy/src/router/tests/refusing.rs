//! What is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::stream_info::testing::request;

use super::*;

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let one = |route: Value| json!({"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]});
    let cases = [
        (
            one(json!({"match": {}, "route": {"cluster": "c"}})),
            "virtual_hosts[0].routes[0].match: a path specifier is needed",
        ),
        (
            one(json!({"match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c"}})),
            "virtual_hosts[0].routes[0].match.safe_regex: invalid regex",
        ),
        (
            one(json!({"match": {"prefix": "/"}})),
            "virtual_hosts[0].routes[0]: an action is needed",
        ),
        (
            one(
                json!({"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "a"}]}}}),
            ),
            "virtual_hosts[0].routes[0].route.weighted_clusters: the sum of the weights",
        ),
        (
            one(json!({"match": {"prefix": "/"}, "filter_action": {}})),
            "virtual_hosts[0].routes[0]: filter_action is not supported",
        ),
        (
            one(
                json!({"match": {"prefix": "/"}, "route": {"cluster": "c"}, "request_headers_to_add": [{"header": {"key": ":path", "value": "x"}}]}),
            ),
            "virtual_hosts[0].routes[0].request_headers.add[0].header.key: :-prefixed",
        ),
        (
            one(json!({"match": {"prefix": "/"}, "direct_response": {"status": 20}})),
            "virtual_hosts[0].routes[0].direct_response.status: status 20",
        ),
        (
            json!({"name": "r", "virtual_hosts": [
            {"name": "a", "domains": ["x"], "routes": []}, {"name": "b", "domains": ["X"], "routes": []}]}),
            "virtual_hosts[1].domains[0]: only unique values for domains are permitted; duplicate entry of domain x in route r",
        ),
        (
            json!({"name": "r", "virtual_hosts": [
            {"name": "a", "domains": ["*"], "routes": []}, {"name": "b", "domains": ["*"], "routes": []}]}),
            "virtual_hosts[1].domains[0]: only a single wildcard domain is permitted",
        ),
        (
            json!({"name": "r", "vhds": {}}),
            "vhds.config_source: it is needed",
        ),
        (
            json!({"name": "r", "vhds": {"config_source": {"path_config_source": {"path": "/a"}}}}),
            "vhds.config_source: only DELTA_GRPC and ADS",
        ),
    ];
    for (config, want) in cases {
        let error = try_table(config).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}\n  wanted {want}");
    }
}

proptest! {
    #[test]
    fn selecting_never_panics(host in "\\PC{0,20}", path in "/[!-~]{0,30}") {
        let table = table(json!({"name": "r", "ignore_port_in_host_matching": true, "virtual_hosts": [
            {"name": "a", "domains": ["*.x", "x.*", "x"], "routes": [
                {"match": {"path_separated_prefix": "/a", "query_parameters": [{"name": "q"}]}, "route": {"cluster": "c", "prefix_rewrite": "/b"}},
                {"match": {"prefix": "/", "case_sensitive": false}, "redirect": {"path_redirect": "/c"}}]},
            {"name": "b", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}]}));
        if let (Ok(authority), Ok(path)) = (http::HeaderValue::from_str(&host), path.parse()) {
            let mut headers = request("h", "/", &[]);
            headers.authority = authority;
            headers.path = path;
            let route = select(&table, &headers);
            if let Some(route) = route && let RouteKind::Redirect(redirect) = &route.route().kind {
                redirect.location(route.route_match(), &headers);
            }
        }
    }
}
