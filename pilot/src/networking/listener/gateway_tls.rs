//! How a gateway's server proves itself, and what it wants to see of its clients.

use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, TlsCertificate,
    TlsParameters, certificate_validation_context::TrustChainVerification,
    common_tls_context::ValidationContextType, tls_parameters::TlsProtocol as WireProtocol,
};
use proto::istio::networking::v1alpha3::{
    ServerTlsSettings,
    server_tls_settings::{TlSmode, TlsProtocol},
};

use crate::networking::{View, secret, tls};

/// The context of a server with these settings, or why there is none.
pub(super) fn context(
    view: &View<'_>,
    settings: &ServerTlsSettings,
    alpn: &[&str],
) -> Result<DownstreamTlsContext, String> {
    let mut common = CommonTlsContext {
        alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
        tls_params: Some(parameters(view, settings)),
        ..CommonTlsContext::default()
    };
    let mode = settings.mode();
    if mode == TlSmode::IstioMutual {
        common.tls_certificate_sds_secret_configs = vec![tls::secret(tls::WORKLOAD_SECRET)];
        let domains = tls::trust_domain_matchers(view.push.mesh.trust_domains());
        common.validation_context_type =
            Some(tls::validation(tls::secret(tls::ROOT_SECRET), domains));
    } else {
        add_certificates(view, settings, &mut common)?;
    }
    if matches!(mode, TlSmode::Mutual | TlSmode::OptionalMutual) {
        common.validation_context_type = Some(validation(view, settings)?);
    }
    let is_required = matches!(mode, TlSmode::Mutual | TlSmode::IstioMutual);
    Ok(DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(is_required),
        ..DownstreamTlsContext::default()
    })
}

fn credentials(settings: &ServerTlsSettings) -> impl Iterator<Item = &String> {
    std::iter::once(&settings.credential_name)
        .chain(&settings.credential_names)
        .filter(|name| !name.is_empty())
}

fn add_certificates(
    view: &View<'_>,
    settings: &ServerTlsSettings,
    common: &mut CommonTlsContext,
) -> Result<(), String> {
    common.tls_certificate_sds_secret_configs = credentials(settings)
        .map(|name| secret::reference(view, name))
        .collect();
    if !common.tls_certificate_sds_secret_configs.is_empty() {
        return Ok(());
    }
    if !settings.server_certificate.is_empty() && !settings.private_key.is_empty() {
        common.tls_certificates = vec![certificate(
            &settings.server_certificate,
            &settings.private_key,
        )];
    } else if settings.tls_certificates.is_empty() {
        return Err(format!(
            "mode {} needs a certificate: files or credentialName",
            settings.mode().as_str_name()
        ));
    } else {
        let pairs = settings.tls_certificates.iter();
        common.tls_certificates = pairs
            .map(|pair| certificate(&pair.server_certificate, &pair.private_key))
            .collect();
    }
    Ok(())
}

/// What a client's certificate is checked for, wherever the roots come from.
fn validation(
    view: &View<'_>,
    settings: &ServerTlsSettings,
) -> Result<ValidationContextType, String> {
    let mut checks = CertificateValidationContext {
        verify_certificate_spki: settings.verify_certificate_spki.clone(),
        verify_certificate_hash: settings.verify_certificate_hash.clone(),
        ..CertificateValidationContext::default()
    };
    if settings.insecure_skip_verify.unwrap_or(false) {
        // Neither roots nor names. Who is pinned stays pinned: to accept the untrusted would let everybody in.
        let is_pinned = !(checks.verify_certificate_spki.is_empty()
            && checks.verify_certificate_hash.is_empty());
        if !is_pinned {
            checks.trust_chain_verification = TrustChainVerification::AcceptUntrusted as i32;
        }
        return Ok(ValidationContextType::ValidationContext(checks));
    }
    checks.match_typed_subject_alt_names =
        tls::san_matchers(settings.subject_alt_names.iter().map(String::as_str));
    if !settings.ca_certificates.is_empty() {
        checks.trusted_ca = Some(tls::file(&settings.ca_certificates));
        checks.crl = (!settings.ca_crl.is_empty()).then(|| tls::file(&settings.ca_crl));
        return Ok(ValidationContextType::ValidationContext(checks));
    }
    let own = Some(&settings.ca_cert_credential_name).filter(|name| !name.is_empty());
    let Some(name) = own.or_else(|| credentials(settings).next()) else {
        return Err(format!(
            "mode {} needs caCertificates or credentialName",
            settings.mode().as_str_name()
        ));
    };
    Ok(tls::checked(secret::roots_reference(view, name), checks))
}

fn certificate(chain: &str, key: &str) -> TlsCertificate {
    TlsCertificate {
        certificate_chain: Some(tls::file(chain)),
        private_key: Some(tls::file(key)),
        ..TlsCertificate::default()
    }
}

/// What the server says; for what it does not say the mesh's limits.
fn parameters(view: &View<'_>, settings: &ServerTlsSettings) -> TlsParameters {
    let mesh = &view.push.mesh;
    let is_mesh = settings.mode() == TlSmode::IstioMutual;
    let mut parameters = tls::limited(if is_mesh {
        &mesh.mesh_tls
    } else {
        &mesh.tls_defaults
    });
    let version = |version: TlsProtocol| match version {
        TlsProtocol::TlsAuto => WireProtocol::TlsAuto,
        TlsProtocol::Tlsv10 => WireProtocol::TlSv10,
        TlsProtocol::Tlsv11 => WireProtocol::TlSv11,
        TlsProtocol::Tlsv12 => WireProtocol::TlSv12,
        TlsProtocol::Tlsv13 => WireProtocol::TlSv13,
    };
    let minimum = version(settings.min_protocol_version()) as i32;
    // Below what the mesh demands of itself no server of its own goes.
    let is_allowed = !is_mesh || minimum > parameters.tls_minimum_protocol_version;
    if minimum != WireProtocol::TlsAuto as i32 && is_allowed {
        parameters.tls_minimum_protocol_version = minimum;
    }
    parameters.tls_maximum_protocol_version = version(settings.max_protocol_version()) as i32;
    if !settings.cipher_suites.is_empty() {
        parameters.cipher_suites.clone_from(&settings.cipher_suites);
    }
    parameters
}
