//! A pod: its network, volumes and containers, from start to end.
//!
//! Flow: [`lifecycle`] (network → [`volume`]s → init containers → containers) → [`container`] (start, watch, start again)
//! → [`sandbox`] (inside the started process), with [`environment`] and [`probe`] beside it; [`status`] is what is known.

pub(crate) mod container;
pub(crate) mod environment;
pub(crate) mod lifecycle;
pub(crate) mod probe;
pub(crate) mod sandbox;
pub(crate) mod status;
pub(crate) mod volume;
