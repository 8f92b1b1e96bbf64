//! Filters that security and policy put before the traffic of a workload, in the order in which they stand: token checks,
//! authorization, Mixer, statistics.

pub mod authn;
pub mod authz;
pub mod mixer;
pub mod stats;
