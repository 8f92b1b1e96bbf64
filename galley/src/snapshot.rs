//! Snapshots: what is served is immutable; the last good one is kept on disk ([`store`]) for a start without a source.

pub mod store;
