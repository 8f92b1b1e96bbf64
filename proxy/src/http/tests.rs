//! The engine end to end, over real sockets: what the client gets, what the upstream sees, what is counted and logged.

mod filters;
mod forwarding;
mod hardness;
mod http2;
mod local_replies;
mod rate_limits;
mod redirects;
mod retries;
mod services;
