//! Citadel's metrics, with Istio's names.

use prometheus::{Gauge, IntCounter, IntCounterVec, Opts, Registry};

/// Counters of the CSR service.
#[derive(Clone)]
pub struct Metrics {
    /// Signing requests received.
    pub csr: IntCounter,
    /// Callers not recognised.
    pub authentication_failure: IntCounter,
    /// Requests that could not be read.
    pub csr_parsing_error: IntCounter,
    /// Callers whose identity could not be taken.
    pub id_extraction_error: IntCounter,
    /// Requests that could not be signed, by reason.
    pub csr_sign_error: IntCounterVec,
    /// Certificates issued.
    pub success: IntCounter,
    /// When the root ends, Unix seconds.
    pub root_expiry: Gauge,
}

/// Counters of the Secrets.
#[derive(Clone)]
pub struct SecretMetrics {
    /// Secrets made.
    pub created: IntCounter,
    /// Secrets deleted.
    pub deleted: IntCounter,
    /// Certificates that could not be signed, by reason.
    pub sign_error: IntCounterVec,
}

impl SecretMetrics {
    /// Registers all of them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(format!("citadel_secret_controller_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let sign_error = IntCounterVec::new(
            Opts::new(
                "citadel_secret_controller_csr_sign_err_count",
                "The number of errors occurred when signing the CSR.",
            ),
            &["error"],
        )?;
        registry.register(Box::new(sign_error.clone()))?;
        Ok(Self {
            created: counter(
                "svc_acc_created_cert_count",
                "The number of certificates created due to service account creation.",
            )?,
            deleted: counter(
                "svc_acc_deleted_cert_count",
                "The number of certificates deleted due to service account deletion.",
            )?,
            sign_error,
        })
    }
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(format!("citadel_server_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let csr_sign_error = IntCounterVec::new(
            Opts::new(
                "citadel_server_csr_sign_err_count",
                "The number of errors occurred when signing the CSR.",
            ),
            &["error"],
        )?;
        registry.register(Box::new(csr_sign_error.clone()))?;
        let root_expiry = Gauge::new(
            "citadel_server_root_cert_expiry_timestamp",
            "The unix timestamp, in seconds, when Citadel root cert will expire.",
        )?;
        registry.register(Box::new(root_expiry.clone()))?;
        Ok(Self {
            // QUIRK: Istio 1.4 counts requests and successes only of its legacy RPC; here CreateCertificate counts.
            csr: counter(
                "csr_count",
                "The number of CSRs received by Citadel server.",
            )?,
            authentication_failure: counter(
                "authentication_failure_count",
                "The number of authentication failures.",
            )?,
            csr_parsing_error: counter(
                "csr_parsing_err_count",
                "The number of errors occurred when parsing the CSR.",
            )?,
            id_extraction_error: counter(
                "id_extraction_err_count",
                "The number of errors occurred when extracting the ID from CSR.",
            )?,
            csr_sign_error,
            success: counter(
                "success_cert_issuance_count",
                "The number of certificates issuances that have succeeded.",
            )?,
            root_expiry,
        })
    }
}
