//! gRPC servers and clients with the settings every component shares: drain, keepalive, limits, metrics, TLS.

mod client;
mod metrics;
mod server;
#[cfg(test)]
mod tests;

pub use client::{ClientOptions, InvalidTarget, channel};
pub use metrics::{Call, GrpcMetrics};
pub use server::{ServerOptions, serve};

/// Istio's default for the largest message a control-plane server takes (set it on the service:
/// `.max_decoding_message_size(..)`).
pub const DEFAULT_MAX_MESSAGE: usize = 16 << 20;

/// The status for a failure inside a service, with its causes.
pub fn internal(error: &(dyn std::error::Error + 'static)) -> tonic::Status {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    tonic::Status::internal(text)
}
