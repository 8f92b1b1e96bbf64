//! Key sets behind a URI: fetched when they are needed, kept, fetched anew.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::{Request, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use parking_lot::Mutex;
use proto::envoy::config::core::v3 as core;
use proto::envoy::config::core::v3::http_uri::HttpUpstreamType;
use proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;
use proto_mesh::jwt::KeySet;
use tokio::time::Instant;

use crate::http::body::Body;
use crate::invalid::{At as _, Invalid};
use crate::router::timeout::duration;
use crate::upstream::{LoadBalancerContext, PoolRequest, Priority};
use crate::worker::Worker;

/// A key set larger than this is not believed.
const JWKS_LIMIT: usize = 1 << 20;
/// After a failed fetch in the background the next one waits so long.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// A key set behind a URI, kept for a while.
pub(super) struct Remote {
    cluster: String,
    uri: Uri,
    timeout: Duration,
    lifetime: Duration,
    /// Old keys serve while new ones are fetched.
    pub(super) is_async: bool,
    retries: u32,
    back_off: (Duration, Duration),
    failed_pause: Duration,
    /// Somebody fetches in the background.
    pub(super) is_fetching: AtomicBool,
    /// The last keys, if any, and until when they are good.
    pub(super) fetched: Mutex<Option<(Option<Arc<KeySet>>, Instant)>>,
}

impl Remote {
    /// Checks where keys come from.
    pub(super) fn try_new(remote: &wire::RemoteJwks) -> Result<Self, Invalid> {
        let uri = remote
            .http_uri
            .as_ref()
            .ok_or_else(|| Invalid::new("http_uri is needed"))?;
        let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
            return Err(Invalid::new("a cluster is needed").at("remote_jwks.http_uri"));
        };
        Ok(Remote {
            cluster: cluster.clone(),
            uri: uri
                .uri
                .parse()
                .map_err(|_| Invalid::new("not a URI").at("remote_jwks.http_uri.uri"))?,
            timeout: duration(uri.timeout.as_ref())?.unwrap_or(Duration::from_secs(5)),
            lifetime: duration(remote.cache_duration.as_ref())?.unwrap_or(Duration::from_secs(600)),
            is_async: remote.async_fetch.is_some(),
            retries: remote
                .retry_policy
                .as_ref()
                .map_or(0, |retry| retry.num_retries.unwrap_or(1)),
            back_off: back_off(remote.retry_policy.as_ref())?,
            failed_pause: duration(
                remote
                    .async_fetch
                    .as_ref()
                    .and_then(|fetch| fetch.failed_refetch_duration.as_ref()),
            )
            .at("async_fetch.failed_refetch_duration")?
            .unwrap_or(FAILED_PAUSE),
            is_fetching: AtomicBool::new(false),
            fetched: Mutex::new(None),
        })
    }

    /// True when new keys are due.
    pub(super) fn is_stale(&self) -> bool {
        match &*self.fetched.lock() {
            None => true,
            Some((_, until)) => *until <= Instant::now(),
        }
    }

    /// Fetches keys, as often as it may take.
    pub(super) async fn fetch(&self, worker: &Rc<Worker>) -> Result<(), String> {
        let mut attempt = 0;
        let result = loop {
            let result = match tokio::time::timeout(self.timeout, self.get(worker)).await {
                Ok(result) => result,
                Err(_) => Err(format!("{}: no answer in {:?}", self.uri, self.timeout)),
            };
            if result.is_ok() || attempt >= self.retries {
                break result;
            }
            let (base, max) = self.back_off;
            let ceiling = base.saturating_mul(1 << attempt.min(16)).min(max);
            attempt += 1;
            tokio::time::sleep(ceiling.mul_f64(rand::random::<f64>())).await;
        };
        let mut fetched = self.fetched.lock();
        match result {
            Ok(keys) => {
                *fetched = Some((Some(Arc::new(keys)), Instant::now() + self.lifetime));
                Ok(())
            }
            Err(error) => {
                let (old, now) = (fetched.take(), Instant::now());
                *fetched = if self.is_async {
                    // Old keys are better than none.
                    let keys = old.and_then(|(keys, _)| keys);
                    Some((keys, now + self.failed_pause))
                } else {
                    // The next request asks again; what another one has brought meanwhile stays.
                    old.filter(|(_, until)| *until > now)
                };
                Err(error)
            }
        }
    }

    async fn get(&self, worker: &Rc<Worker>) -> Result<KeySet, String> {
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", self.uri);
        let cluster = worker
            .clusters
            .get(&self.cluster)
            .ok_or_else(|| fail(&"no such cluster"))?;
        let context = LoadBalancerContext {
            random: worker.random(),
            ..LoadBalancerContext::default()
        };
        let host = cluster
            .choose_host(&context)
            .map_err(|error| fail(&error))?;
        let authority = self
            .uri
            .authority()
            .map(http::uri::Authority::as_str)
            .unwrap_or_default();
        let request = PoolRequest {
            priority: Priority::Default,
            downstream_protocol: Version::HTTP_11,
            sni: cluster
                .config
                .http
                .auto_sni
                .then(|| self.uri.host().unwrap_or_default()),
            client: None,
            source: None,
            shared: None,
        };
        let connection = worker
            .pools
            .http(&cluster, &host, &request)
            .await
            .map_err(|error| fail(&error))?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = if connection.protocol == Version::HTTP_2 {
            self.uri.to_string()
        } else {
            path.to_owned()
        };
        let mut builder = Request::get(uri);
        if connection.protocol != Version::HTTP_2 {
            builder = builder.header(http::header::HOST, authority);
        }
        let request = builder.body(Body::empty()).map_err(|error| fail(&error))?;
        let response = connection
            .send(request)
            .await
            .map_err(|error| fail(&error))?;
        if !response.status().is_success() {
            return Err(fail(&response.status()));
        }
        let body = Limited::new(response.into_body(), JWKS_LIMIT)
            .collect()
            .await
            .map_err(|error| fail(&error))?;
        KeySet::parse(&body.to_bytes()).map_err(|error| fail(&error))
    }
}

fn back_off(policy: Option<&core::RetryPolicy>) -> Result<(Duration, Duration), Invalid> {
    let wire = policy.and_then(|policy| policy.retry_back_off.as_ref());
    let base = duration(wire.and_then(|wire| wire.base_interval.as_ref()))
        .at("retry_policy.retry_back_off.base_interval")?
        .unwrap_or(Duration::from_secs(1));
    let max = duration(wire.and_then(|wire| wire.max_interval.as_ref()))
        .at("retry_policy.retry_back_off.max_interval")?
        .unwrap_or(base * 10);
    Ok((base, max))
}
