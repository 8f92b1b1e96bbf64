//! The bookinfo sample: four small services that show what a mesh does to traffic.
//!
//! `productpage` (what a browser sees) calls [`details`] and [`reviews`]; `reviews` in version v2 and v3 calls [`ratings`].
//! All of them are this one program; a subcommand says which. Each hands on the headers that tie a request's calls together
//! ([`client::PROPAGATED_HEADERS`]), and none knows of the mesh.

pub mod client;
pub mod details;
pub mod page;
pub mod productpage;
pub mod ratings;
pub mod reviews;

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves `routes` and `/health` on `address` until SIGTERM or SIGINT.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, routes: Router) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("bind {address}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let routes = routes.route("/health", get(|| async { "ok" }));
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
        .context("serve")
}
