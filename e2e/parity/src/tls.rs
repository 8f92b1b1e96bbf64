//! TLS of both ends: a client that takes any server certificate and says which it saw, a server that may ask for one.

use crate::{
    case::{TlsClient, TlsUpstream},
    connection::{Connection, DEADLINE},
};
use anyhow::{Context as _, anyhow};
use proto_component::tls::provider;
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Certificates are looked at, not judged: what the proxy shows is what is compared.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(certs: &str, name: &str) -> anyhow::Result<Identity> {
    let file = Path::new(certs).join(format!("{name}.pem"));
    let chain = CertificateDer::pem_file_iter(&file)
        .with_context(|| format!("read {}", file.display()))?
        .collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(Path::new(certs).join(format!("{name}.key")))?;
    Ok((chain, key))
}

/// The names in a certificate.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = names.value.general_names.iter();
    names
        .map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => (*name).to_owned(),
            other => format!("{other:?}"),
        })
        .collect()
}

fn bytes(names: &[String]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// What a session says of its peer: the protocol that ALPN chose, the names in the certificate.
fn learned(session: &rustls::CommonState) -> (Option<String>, Option<Vec<String>>) {
    let alpn = session
        .alpn_protocol()
        .map(|name| String::from_utf8_lossy(name).into_owned());
    let chain = session.peer_certificates();
    (alpn, chain.and_then(|chain| chain.first()).map(names))
}

/// A client's handshake; what came of it goes to `log`, and `None` is a handshake that failed.
///
/// # Errors
/// When the test's own files are not there.
pub async fn connect(
    stream: TcpStream,
    tls: &TlsClient,
    certs: &str,
    log: &mut Vec<Value>,
) -> anyhow::Result<Option<Connection>> {
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.version.as_deref() {
        Some("1.2") => &[&rustls::version::TLS12],
        Some("1.3") => &[&rustls::version::TLS13],
        _ => rustls::ALL_VERSIONS,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match &tls.certificate {
        Some(name) => {
            let (chain, key) = identity(certs, name)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = bytes(&tls.alpn);
    config.enable_sni = tls.sni.is_some();
    let name = ServerName::try_from(tls.sni.clone().unwrap_or_else(|| "none.invalid".to_owned()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match timeout(DEADLINE, handshake)
        .await
        .map_err(|_| anyhow!("the handshake does not end"))?
    {
        Ok(stream) => {
            let (_, session) = stream.get_ref();
            let (alpn, shown) = learned(session);
            log.push(json!({"tls": session.protocol_version().map(|version| format!("{version:?}")), "alpn": alpn, "server certificate": shown}));
            Ok(Some(Connection::new(Box::new(stream))))
        }
        Err(error) => {
            log.push(json!({"tls": failure(&error)}));
            Ok(None)
        }
    }
}

/// How a handshake failed: the alert that came, or that the connection ended.
fn failure(error: &std::io::Error) -> String {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("failed: alert {}", alert_name(*alert))
        }
        Some(other) => format!("failed: {other}"),
        None => "failed: connection closed".to_owned(),
    }
}

fn alert_name(alert: AlertDescription) -> String {
    format!("{alert:?}")
}

/// A server's handshake; what it learned of its client, or why it failed.
///
/// # Errors
/// When the test's own files are not there.
pub async fn accept(
    stream: TcpStream,
    tls: &TlsUpstream,
    certs: &str,
) -> anyhow::Result<(Option<Connection>, Value)> {
    let (chain, key) = identity(certs, &tls.certificate)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)?;
    let builder = if tls.wants_certificate {
        let mut roots = rustls::RootCertStore::empty();
        let file = Path::new(certs).join("ca.pem");
        roots.add_parsable_certificates(
            CertificateDer::pem_file_iter(&file)?.collect::<Result<Vec<_>, _>>()?,
        );
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = bytes(&tls.alpn);
    let handshake = TlsAcceptor::from(Arc::new(config)).accept(stream);
    match timeout(DEADLINE, handshake)
        .await
        .map_err(|_| anyhow!("the handshake does not end"))?
    {
        Ok(stream) => {
            let (_, session) = stream.get_ref();
            let (alpn, client) = learned(session);
            let seen =
                json!({"sni": session.server_name(), "alpn": alpn, "client certificate": client});
            Ok((Some(Connection::new(Box::new(stream))), seen))
        }
        Err(_) => Ok((None, json!("the handshake failed"))),
    }
}
