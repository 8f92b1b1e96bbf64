//! `pilot-agent wait`: returns once the proxy is ready. As the `postStart` of the proxy's container it holds back the
//! application's containers, which the kubelet starts afterwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::admin::AdminClient;
use crate::args::WaitArgs;
use crate::settings::loopback_of;

/// One question may take this long.
const DEADLINE: Duration = Duration::from_millis(500);

/// Asks until the proxy is ready, or time is up.
pub async fn run(args: &WaitArgs) -> anyhow::Result<()> {
    let own = args.ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let client = AdminClient::new(SocketAddr::new(loopback_of(own), args.status_port));
    let end = Instant::now() + Duration::from_secs(args.timeout_seconds);
    loop {
        let answer = client.request(Method::GET, "/healthz/ready", String::new(), DEADLINE);
        if matches!(answer.await, Ok((StatusCode::OK, _))) {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("the proxy is not ready after {} s", args.timeout_seconds);
        }
        tokio::time::sleep(Duration::from_millis(args.period_millis)).await;
    }
}
