//! Virtual services: their gateways, their destinations, and each other.

pub(super) mod conflicts;
pub(super) mod destinations;
pub(super) mod gateways;
