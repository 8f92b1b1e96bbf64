//! citadel.
