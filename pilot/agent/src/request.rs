//! `pilot-agent request METHOD PATH`: the answer's body, and nothing else, on standard output (programs parse it).

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use http::Method;
use proto_component::process::Usage;

use crate::admin::AdminClient;
use crate::args::RequestArgs;
use crate::settings::loopback_of;

const DEADLINE: Duration = Duration::from_secs(60);

/// Makes the request and prints the body; anything but success is an error.
pub async fn run(args: &RequestArgs) -> anyhow::Result<()> {
    let method = args.method.to_ascii_uppercase();
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| Usage(format!("`{}` is not an HTTP method", args.method)))?;
    let path = format!("/{}", args.path.trim_start_matches('/'));
    let body = args.body.clone().unwrap_or_default();
    let own = args.ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = SocketAddr::new(loopback_of(own), args.admin_port);
    let (status, body) = AdminClient::new(address)
        .request(method, &path, body, DEADLINE)
        .await?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body);
        anyhow::bail!("{path}: {status}: {}", text.trim());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&body)
        .and_then(|()| out.flush())
        .context("write to standard output")
}
