//! The agent as the pod sees it: certificates from a pretended Citadel, and the real binary beside a pretended proxy.

mod binary;
mod citadel;
mod rotation;
