//! Citadel as its peers see it: the CSR service in process, and the real binary killed and started again.

mod binary;
mod csr_service;
