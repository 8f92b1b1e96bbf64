//! SDS over the aggregated stream: a gateway's credentials out of the Secrets of its own namespace, for a gateway that has proved
//! that it may read them. All others have them from their agent, which reads files.

use proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, SdsSecretConfig, Secret, TlsCertificate, secret::Type,
};

use super::{View, tls};
use crate::model::Credential;

/// What the names of these secrets begin with.
const SCHEME: &str = "kubernetes://";
/// Their names with the namespace.
const GATEWAY_SCHEME: &str = "kubernetes-gateway://";
/// Behind a name: only who may vouch for clients.
const ROOTS: &str = "-cacert";

/// The reference to the credential `name`.
#[must_use]
pub fn reference(view: &View<'_>, name: &str) -> SdsSecretConfig {
    let full = format!("{SCHEME}{name}");
    if is_served(view) {
        tls::served_secret(&full)
    } else {
        tls::secret(&full)
    }
}

/// The reference to who may vouch for the other side of the credential `name`.
#[must_use]
pub fn roots_reference(view: &View<'_>, name: &str) -> SdsSecretConfig {
    reference(view, &format!("{name}{ROOTS}"))
}

/// True when the proxy is served the credentials of its namespace from here.
#[must_use]
pub fn is_served(view: &View<'_>) -> bool {
    let proxy = view.proxy;
    proxy.may_read_secrets && view.push.credentials.contains_key(&proxy.namespace)
}

/// The secret called `name`, if the proxy may have it and it is there.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> Option<Secret> {
    if !is_served(view) {
        return None;
    }
    let own = name.strip_prefix(SCHEME).or_else(|| {
        let (namespace, name) = name.strip_prefix(GATEWAY_SCHEME)?.split_once('/')?;
        (namespace == view.proxy.namespace).then_some(name)
    })?;
    let known = view.push.credentials.get(&view.proxy.namespace)?;
    let found = match own.strip_suffix(ROOTS) {
        // A Secret of its own for the roots goes before the roots beside the certificate.
        Some(base) => [own, base]
            .into_iter()
            .filter_map(|name| known.get(name))
            .find(|credential| !credential.roots.is_empty())
            .map(|credential| Type::ValidationContext(roots(credential))),
        None => known
            .get(own)
            .filter(|credential| credential.has_certificate())
            .map(|credential| Type::TlsCertificate(certificate(credential))),
    };
    Some(Secret {
        name: name.to_owned(),
        r#type: Some(found?),
    })
}

fn certificate(credential: &Credential) -> TlsCertificate {
    TlsCertificate {
        certificate_chain: Some(inline(&credential.chain)),
        private_key: Some(inline(&credential.key)),
        ..TlsCertificate::default()
    }
}

fn roots(credential: &Credential) -> CertificateValidationContext {
    CertificateValidationContext {
        trusted_ca: Some(inline(&credential.roots)),
        crl: (!credential.revoked.is_empty()).then(|| inline(&credential.revoked)),
        ..CertificateValidationContext::default()
    }
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(bytes.to_vec())),
        ..DataSource::default()
    }
}
