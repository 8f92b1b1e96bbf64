//! What TLS counts, under Envoy's names: `ssl.…` of a listener or a cluster.

use crate::{
    stat_group,
    stats::{Counter, Scope},
};
use parking_lot::RwLock;
use rustls::{CertificateError, CommonState, Error, HandshakeKind};
use std::{collections::HashMap, io, sync::Arc};

stat_group! {
    /// `ssl.…`
    pub(crate) struct SslStats {
        connection_error: Counter, fail_verify_cert_hash: Counter, fail_verify_error: Counter, fail_verify_no_cert: Counter,
        fail_verify_san: Counter, handshake: Counter, no_certificate: Counter, ocsp_staple_failed: Counter,
        ocsp_staple_omitted: Counter, ocsp_staple_requests: Counter, ocsp_staple_responses: Counter, session_reused: Counter,
        was_key_usage_invalid: Counter,
    }
}

stat_group! {
    /// `server_ssl_socket_factory.…` and `client_ssl_socket_factory.…`
    pub(crate) struct SocketFactoryStats {
        downstream_context_secrets_not_ready: Counter, ssl_context_update_by_sds: Counter,
        upstream_context_secrets_not_ready: Counter,
    }
}

/// The TLS statistics of a listener or a cluster.
pub(crate) struct TlsStats {
    ssl: Arc<SslStats>,
    factory: Arc<SocketFactoryStats>,
    scope: Scope,
    /// Counters whose names come with the handshakes: `versions.TLSv1.3`, `ciphers.…`, `curves.…`.
    named: RwLock<HashMap<Box<str>, Arc<Counter>>>,
}

impl TlsStats {
    /// The statistics below `scope`, a listener's or a cluster's; `factory` is the name of its socket factory.
    pub(crate) fn new(scope: &Scope, factory: &str) -> Arc<Self> {
        let ssl = scope.scope("ssl");
        Arc::new(Self {
            ssl: ssl.group(),
            factory: scope.scope(factory).group(),
            scope: ssl,
            named: RwLock::default(),
        })
    }

    /// A new context took the place of one with older secrets.
    pub(crate) fn context_updated(&self) {
        self.factory.ssl_context_update_by_sds.inc();
    }

    /// A connection came before the secrets.
    pub(crate) fn secrets_not_ready(&self, is_downstream: bool) {
        if is_downstream {
            &self.factory.downstream_context_secrets_not_ready
        } else {
            &self.factory.upstream_context_secrets_not_ready
        }
        .inc();
    }

    /// A handshake went well.
    pub(crate) fn succeeded(&self, session: &CommonState) {
        self.ssl.handshake.inc();
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.ssl.session_reused.inc();
        }
        if session.peer_certificates().is_none_or(<[_]>::is_empty) {
            self.ssl.no_certificate.inc();
        }
        self.count("versions.", version_name(session));
        if let Some(suite) = session.negotiated_cipher_suite() {
            self.count("ciphers.", &super::tls_context::suite_name(suite.suite()));
        }
        if let Some(group) = session.negotiated_key_exchange_group() {
            self.count("curves.", &super::tls_context::group_name(group.name()));
        }
    }

    /// A client asks for an OCSP response, which it gets if there is one.
    pub(crate) fn staple_requested(&self, has_staple: bool) {
        self.ssl.ocsp_staple_requests.inc();
        if has_staple {
            &self.ssl.ocsp_staple_responses
        } else {
            &self.ssl.ocsp_staple_omitted
        }
        .inc();
    }

    /// A handshake failed.
    pub(crate) fn failed(&self, error: &io::Error) {
        let cause = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        let counter = match cause {
            Some(Error::NoCertificatesPresented) => &self.ssl.fail_verify_no_cert,
            Some(Error::InvalidCertificate(CertificateError::NotValidForName)) => {
                &self.ssl.fail_verify_san
            }
            Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
                &self.ssl.fail_verify_cert_hash
            }
            Some(Error::InvalidCertificate(_)) => &self.ssl.fail_verify_error,
            Some(_) => &self.ssl.connection_error,
            // The peer is gone: no error of TLS.
            None => return,
        };
        counter.inc();
    }

    fn count(&self, kind: &str, name: &str) {
        let full: Box<str> = [kind, name].concat().into();
        if let Some(counter) = self.named.read().get(&full) {
            counter.inc();
            return;
        }
        let counter = self.scope.counter(&full);
        counter.inc();
        self.named.write().insert(full, counter);
    }
}

/// `TLSv1.3`.
pub(super) fn version_name(session: &CommonState) -> &'static str {
    match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "",
    }
}
