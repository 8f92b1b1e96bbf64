//! TLS settings: the client's of a traffic policy, the server's of a gateway or sidecar.

use std::collections::HashSet;

use proto::istio::networking::v1alpha3::client_tls_settings::TlSmode as ClientMode;
use proto::istio::networking::v1alpha3::server_tls_settings::{TlSmode as ServerMode, TlsProtocol};
use proto::istio::networking::v1alpha3::{ClientTlsSettings, ServerTlsSettings};

use crate::finding::Report;

/// Cipher suites that a gateway may offer, by OpenSSL's names.
const CIPHER_SUITES: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// How many certificates a server may have.
const MAX_CERTIFICATES: usize = 2;

/// Checks TLS towards an upstream.
pub(super) fn check_client(settings: &ClientTlsSettings, report: &mut Report) {
    let mode = settings.mode();
    if settings.insecure_skip_verify == Some(true) {
        let verifies = !settings.ca_certificates.is_empty()
            || !settings.subject_alt_names.is_empty()
            || (mode == ClientMode::Simple && !settings.credential_name.is_empty());
        if verifies && matches!(mode, ClientMode::Simple | ClientMode::Mutual) {
            report.error_at(
                "insecureSkipVerify",
                "with insecureSkipVerify nothing is verified: leave out what verifies (caCertificates, subjectAltNames, credentialName)",
            );
        }
    }
    let files = [
        ("clientCertificate", &settings.client_certificate),
        ("privateKey", &settings.private_key),
        ("caCertificates", &settings.ca_certificates),
        ("caCrl", &settings.ca_crl),
    ];
    if matches!(mode, ClientMode::Simple | ClientMode::Mutual)
        && !settings.credential_name.is_empty()
    {
        for (field, file) in files {
            if !file.is_empty() {
                report.error_at(
                    field,
                    format!("give either credentialName or {field}: the credential holds it"),
                );
            }
        }
        return;
    }
    if mode == ClientMode::Mutual {
        for (field, file) in &files[..2] {
            if file.is_empty() {
                report.error_at(field, format!("MUTUAL needs {field} (or credentialName)"));
            }
        }
    }
    if mode == ClientMode::IstioMutual {
        for (field, file) in &files[..3] {
            if !file.is_empty() {
                report.warning_at(
                    field,
                    format!("ISTIO_MUTUAL uses the workload's own certificate; {field} is ignored"),
                );
            }
        }
    }
}

/// Checks TLS towards a downstream.
pub(super) fn check_server(settings: &ServerTlsSettings, report: &mut Report) {
    check_versions_and_ciphers(settings, report);
    if settings.credential_names.len() > MAX_CERTIFICATES {
        report.error_at(
            "credentialNames",
            format!("at most {MAX_CERTIFICATES} credentials can be named"),
        );
    }
    if settings.tls_certificates.len() > MAX_CERTIFICATES {
        report.error_at(
            "tlsCertificates",
            format!("at most {MAX_CERTIFICATES} certificates can be given"),
        );
    }
    match settings.mode() {
        ServerMode::IstioMutual => refuse_certificates(settings, report),
        ServerMode::Passthrough | ServerMode::AutoPassthrough => {
            if sources(settings).into_iter().any(|(_, given)| given)
                || !settings.ca_certificates.is_empty()
                || !settings.ca_crl.is_empty()
            {
                report.warning("TLS is passed through: the certificates are ignored");
            }
        }
        ServerMode::Simple => check_certificates("SIMPLE", settings, report),
        ServerMode::Mutual | ServerMode::OptionalMutual => {
            check_certificates("MUTUAL", settings, report);
            check_client_ca(settings, report);
        }
    }
    check_revocations(settings, report);
}

/// A credential brings its own list of revoked certificates.
fn check_revocations(settings: &ServerTlsSettings, report: &mut Report) {
    if settings.ca_crl.is_empty() {
        return;
    }
    if !settings.credential_name.is_empty() || !settings.credential_names.is_empty() {
        report.warning_at(
            "caCrl",
            "caCrl is ignored: the credential holds the list of revoked certificates",
        );
    } else if settings.mode() == ServerMode::Simple {
        report.error_at(
            "caCrl",
            "SIMPLE does not ask for client certificates: leave caCrl out, or use MUTUAL",
        );
    }
}

fn check_versions_and_ciphers(settings: &ServerTlsSettings, report: &mut Report) {
    let old = matches!(
        settings.min_protocol_version(),
        TlsProtocol::Tlsv10 | TlsProtocol::Tlsv11
    );
    if old && settings.cipher_suites.is_empty() {
        report.warning_at(
            "minProtocolVersion",
            "no default cipher suite works below TLS 1.2: name some in cipherSuites",
        );
    }
    let mut seen = HashSet::new();
    report.each(
        "cipherSuites",
        &settings.cipher_suites,
        |report, suite: &String| {
            if !is_cipher_suite(suite) {
                report.warning(format!("{suite:?} is no known cipher suite and is ignored"));
            } else if !seen.insert(suite.clone()) {
                report.warning(format!("{suite:?} is named twice"));
            }
        },
    );
}

/// Names that do not begin with a letter or digit are OpenSSL's operators.
fn is_cipher_suite(suite: &str) -> bool {
    let is_operator = !suite.starts_with(|first: char| first.is_alphanumeric());
    suite == "ALL" || is_operator || CIPHER_SUITES.contains(&suite)
}

/// Where certificates can come from, and whether they do.
fn sources(settings: &ServerTlsSettings) -> [(&'static str, bool); 4] {
    [
        ("credentialName", !settings.credential_name.is_empty()),
        ("credentialNames", !settings.credential_names.is_empty()),
        ("serverCertificate", !settings.server_certificate.is_empty()),
        ("tlsCertificates", !settings.tls_certificates.is_empty()),
    ]
}

fn refuse_certificates(settings: &ServerTlsSettings, report: &mut Report) {
    for (field, is_given) in [
        ("serverCertificate", !settings.server_certificate.is_empty()),
        ("privateKey", !settings.private_key.is_empty()),
        ("caCertificates", !settings.ca_certificates.is_empty()),
        ("credentialName", !settings.credential_name.is_empty()),
        ("credentialNames", !settings.credential_names.is_empty()),
        ("tlsCertificates", !settings.tls_certificates.is_empty()),
        (
            "caCertCredentialName",
            !settings.ca_cert_credential_name.is_empty(),
        ),
    ] {
        if is_given {
            report.error_at(
                field,
                format!("ISTIO_MUTUAL uses the workload's own certificate: leave {field} out"),
            );
        }
    }
}

fn check_certificates(mode: &str, settings: &ServerTlsSettings, report: &mut Report) {
    let given: Vec<_> = sources(settings)
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| name)
        .collect();
    if given.len() > 1 {
        report.error(format!(
            "give certificates in one way only, not by {}",
            given.join(" and ")
        ));
        return;
    }
    if !settings.tls_certificates.is_empty() {
        report.each(
            "tlsCertificates",
            &settings.tls_certificates,
            |report, certificate| {
                check_files(
                    mode,
                    &certificate.server_certificate,
                    &certificate.private_key,
                    report,
                );
            },
        );
    } else if settings.credential_name.is_empty() && settings.credential_names.is_empty() {
        check_files(
            mode,
            &settings.server_certificate,
            &settings.private_key,
            report,
        );
    }
}

fn check_files(mode: &str, certificate: &str, key: &str, report: &mut Report) {
    for (field, file) in [("serverCertificate", certificate), ("privateKey", key)] {
        if file.is_empty() {
            report.error_at(field, format!("{mode} needs {field} (or credentialName)"));
        }
    }
}

/// MUTUAL needs something to check client certificates against; a credential brings its own.
fn check_client_ca(settings: &ServerTlsSettings, report: &mut Report) {
    let has_credential = !settings.credential_name.is_empty()
        || !settings.credential_names.is_empty()
        || !settings.ca_cert_credential_name.is_empty();
    let by_certificate = settings
        .tls_certificates
        .iter()
        .any(|certificate| !certificate.ca_certificates.is_empty());
    if settings.ca_certificates.is_empty() && !has_credential && !by_certificate {
        report.error_at(
            "caCertificates",
            "MUTUAL needs caCertificates (or a credential) to check client certificates",
        );
    }
}
