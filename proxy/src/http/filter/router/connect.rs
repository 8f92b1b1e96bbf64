//! CONNECT that ends here: its payload goes on to the cluster as plain TCP.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::http::headers::ResponseHeaders;
use crate::http::stream::{ResponseBody, StreamCell, idle_timeout};
use crate::http::upgrade::{self, OnUpgrade};
use crate::stream_info::PlainMeter;
use crate::upstream::{Outcome, TcpOptions};

use super::Forwarded;
use super::attempt::choose;
use super::failure::Failure;
use super::plan::Plan;

/// Connects, answers 200 and joins both sides.
pub(super) async fn terminate(
    plan: &mut Plan,
    cell: &Rc<StreamCell>,
    downstream: OnUpgrade,
) -> Forwarded {
    let host = match cell.with(|state| choose(plan, state)) {
        Ok(host) => host,
        Err(failure) => return Forwarded::Reply(plan.failure_reply(cell, &failure)),
    };
    let (worker, info) = cell.with(|state| {
        let stream = &state.stream;
        (stream.worker().clone(), stream.info.connection.clone())
    });
    let options = TcpOptions {
        source: info.upstream_source,
        ..TcpOptions::default()
    };
    let opening = worker
        .pools
        .tcp_with(&plan.cluster, &host, plan.priority, options);
    match opening.await {
        Ok(connection) => {
            plan.cluster
                .report(&host, Outcome::Connected, worker.random());
            plan.charge(StatusCode::OK);
            let idle = cell.with(|state| {
                state.stream.info.set_details("via_upstream");
                let meter: Rc<PlainMeter> = Rc::default();
                state.stream.info.upstream.set_meter(meter);
                idle_timeout(&state.stream)
            });
            upgrade::tunnel(cell.clone(), downstream, connection.stream, idle, None);
            let head = ResponseHeaders {
                status: StatusCode::OK,
                map: HeaderMap::new(),
            };
            Forwarded::Response(head, ResponseBody::full(cell.clone(), Bytes::new()))
        }
        Err(error) => {
            plan.cluster
                .report(&host, Outcome::LocalFailure, worker.random());
            Forwarded::Reply(plan.failure_reply(cell, &Failure::from(error)))
        }
    }
}
