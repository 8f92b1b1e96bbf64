//! The proxy as a whole, in this process: real sockets on ports of the system's choice, a control plane of our own.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test's own tasks end with it"
)]

mod certificates;
mod churn;
mod control_plane;
mod delta_server;
mod demand;
mod drains;
mod dying;
mod ends;
mod endurance;
mod extensions;
mod floods;
mod frames;
mod http;
mod listeners;
mod network_filters;
mod overload;
mod pressure;
mod process;
mod running;
mod scale;
mod statics;
mod tls;
mod upstream;
mod warming;
mod xds;
