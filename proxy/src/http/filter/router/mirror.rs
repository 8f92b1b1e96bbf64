//! Mirrored requests: sent beside the real one, their answers read and thrown away.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use crate::http::body::{Body, RequestSource};
use crate::http::client::mark_as_own;
use crate::http::headers::RequestHeaders;
use crate::http::stream::StreamCell;
use crate::router::virtual_host::strip_port;
use crate::upstream::{Cluster, LoadBalancerContext, PoolRequest, Priority};
use crate::worker::Worker;

use super::plan::Plan;

/// A mirror without a timeout of its own ends after this.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// Starts the copies that the route asks for.
pub(super) fn start(plan: &Plan, cell: &Rc<StreamCell>, source: &Rc<RequestSource>) {
    let policies = plan.route.mirrors();
    if policies.is_empty() || plan.is_upgrade {
        return;
    }
    for policy in policies {
        let copy = cell.with(|state| {
            let name = policy.draw(&state.request)?;
            let worker = state.stream.worker().clone();
            let cluster = worker.clusters.get(&name)?;
            let mut headers = state.request.clone();
            policy.rewrite_host(&mut headers);
            mark_as_own(&mut headers.map, true);
            Some(Copy {
                worker,
                cluster,
                headers,
                version: state.stream.info.protocol.unwrap_or(Version::HTTP_11),
            })
        });
        if let Some(copy) = copy {
            let body = Body::mirror(source);
            let limit = plan.timeouts.global.unwrap_or(TIME_LIMIT);
            tokio::task::spawn_local(async move {
                // A mirror's fate is nobody's business but its cluster's counters'.
                let _ = tokio::time::timeout(limit, copy.send(body)).await;
            });
        }
    }
}

struct Copy {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    headers: RequestHeaders,
    version: Version,
}

impl Copy {
    async fn send(self, body: Body) -> Option<()> {
        let context = LoadBalancerContext {
            random: self.worker.random(),
            ..LoadBalancerContext::default()
        };
        let host = self.cluster.choose_host(&context).ok()?;
        let _guard = self.cluster.breakers.request(Priority::Default)?;
        let sni = self
            .cluster
            .config
            .http
            .auto_sni
            .then(|| strip_port(self.headers.host()));
        let request = PoolRequest {
            priority: Priority::Default,
            downstream_protocol: self.version,
            sni,
            client: None,
            source: None,
            shared: None,
        };
        let mut connection = self
            .worker
            .pools
            .http(&self.cluster, &host, &request)
            .await
            .ok()?;
        let request = connection
            .request(&self.headers, body.is_end_stream())
            .ok()?;
        let (head, mut body) = connection.exchange(request, body).await.ok()?;
        self.cluster
            .stats
            .response_codes
            .record(head.status.as_u16());
        self.cluster.stats.upstream_rq_completed.inc();
        while let Some(frame) = body.frame().await {
            frame.ok()?;
        }
        Some(())
    }
}
