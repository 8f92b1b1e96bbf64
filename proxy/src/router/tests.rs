//! Tables of routes and requests: matching, choosing, rewriting, redirecting, retrying.

#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "json! literals and tables read best in place"
)]

mod policies;
mod refusing;
mod rewriting;
mod selecting;

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::http::headers::RequestHeaders;
use crate::stream_info::testing::info;

use super::*;

fn table(config: Value) -> WorkerTable {
    Rc::new(Arc::new(try_table(config).unwrap()))
}

fn try_table(config: Value) -> Result<RouteTable, Invalid> {
    RouteTable::try_from(proto::json::from_value::<wire::RouteConfiguration>(&config).unwrap())
}

/// A table of one virtual host for every domain.
fn routes(routes: Value) -> WorkerTable {
    table(
        json!({"name": "r", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}),
    )
}

fn select(table: &WorkerTable, headers: &RequestHeaders) -> Option<SelectedRoute> {
    match RouteTable::select(table, headers, &info()) {
        Selection::Route(route) => Some(route),
        Selection::NeedsTls | Selection::None => None,
    }
}

/// The cluster a request goes to, or `-`.
fn cluster(table: &WorkerTable, headers: &RequestHeaders) -> String {
    select(table, headers)
        .and_then(|route| route.cluster().map(ToString::to_string))
        .unwrap_or_else(|| "-".to_owned())
}

fn finalized(table: &WorkerTable, mut headers: RequestHeaders) -> RequestHeaders {
    let route = select(table, &headers).unwrap();
    let RouteKind::Forward(action) = &route.route().kind else {
        panic!("not a forwarding route");
    };
    let mut info = info();
    info.route = Some(route.clone());
    route.finalize_request(action, &mut headers, &info, true);
    headers
}
