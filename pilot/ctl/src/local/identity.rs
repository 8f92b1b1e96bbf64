//! Who is who on the platform: service-account tokens that Citadel can check as those of any OIDC issuer, and the
//! platform's own CA for the serving certificates of webhooks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

/// The issuer in every token.
pub(crate) const ISSUER: &str = "https://bireme.local";
const KEY_ID: &str = "local";
/// A token is good for an hour whatever was asked for, and made anew when four fifths of it have passed.
pub(crate) const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// Whom a token is for.
#[derive(Clone, Debug)]
pub(crate) struct Subject<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Its service account.
    pub service_account: &'a str,
    /// Its name.
    pub pod: &'a str,
    /// Its uid.
    pub pod_uid: &'a str,
}

/// The platform's keys; new ones for each run.
pub(crate) struct Identity {
    signing: EcdsaKeyPair,
    random: SystemRandom,
    jwks: Value,
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, PEM.
#[derive(Clone, Debug)]
pub(crate) struct ServingCertificate {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

impl Identity {
    /// Makes the keys.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("make the token key")?;
        let random = SystemRandom::new();
        let signing = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &key.serialize_der(),
            &random,
        )
        .map_err(|_| anyhow::anyhow!("the token key cannot be read"))?;
        let point = key.public_key_raw();
        anyhow::ensure!(
            point.len() == 65,
            "the token key's public part is no point of P-256"
        );
        let base64 = &URL_SAFE_NO_PAD;
        let jwks = json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID,
            "x": base64.encode(&point[1..33]), "y": base64.encode(&point[33..]),
        }]});
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "Bireme local platform CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate().context("make the CA's key")?;
        let ca = CertifiedIssuer::self_signed(params, ca_key).context("make the platform's CA")?;
        Ok(Self {
            signing,
            random,
            jwks,
            ca,
        })
    }

    /// The keys by which tokens are checked.
    pub(crate) fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// The CA's certificate, PEM.
    pub(crate) fn ca_certificate(&self) -> String {
        self.ca.pem()
    }

    /// A serving certificate for these names.
    pub(crate) fn serving_certificate(
        &self,
        names: Vec<String>,
    ) -> anyhow::Result<ServingCertificate> {
        let mut params = CertificateParams::new(names).context("names of a serving certificate")?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("make a serving key")?;
        let certificate = params
            .signed_by(&key, &self.ca)
            .context("sign a serving certificate")?;
        Ok(ServingCertificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A token for `audience`.
    pub(crate) fn token(&self, subject: &Subject<'_>, audience: &str) -> anyhow::Result<String> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock")?
            .as_secs();
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account),
            "aud": [audience],
            "iat": now,
            "nbf": now.saturating_sub(5),
            "exp": now + TOKEN_LIFETIME.as_secs(),
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": {
                "namespace": subject.namespace,
                "serviceaccount": {"name": subject.service_account},
                "pod": {"name": subject.pod, "uid": subject.pod_uid},
            },
        });
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": KEY_ID});
        let encode = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.signing.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("a token cannot be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_mesh::jwt::{KeySet, Token};

    #[test]
    fn a_token_is_valid_by_the_published_keys() {
        let identity = Identity::generate().unwrap();
        let subject = Subject {
            namespace: "default",
            service_account: "reviews",
            pod: "p",
            pod_uid: "u",
        };
        let token = identity.token(&subject, "istio-ca").unwrap();
        let keys = KeySet::parse(identity.jwks().to_string().as_bytes()).unwrap();
        let token = Token::parse(&token).unwrap();
        keys.verify(&token).unwrap();
        assert_eq!(
            (token.issuer(), token.audiences()),
            (ISSUER, vec!["istio-ca"])
        );
        let claims = Value::Object(token.claims);
        assert_eq!(claims["sub"], "system:serviceaccount:default:reviews");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "p");
    }

    #[test]
    fn serving_certificates_are_signed_by_the_ca() {
        let identity = Identity::generate().unwrap();
        let certificate = identity
            .serving_certificate(vec!["istio-galley.istio-system.svc".into()])
            .unwrap();
        assert!(
            certificate
                .certificate
                .starts_with("-----BEGIN CERTIFICATE")
        );
        assert!(certificate.key.contains("PRIVATE KEY"));
    }
}
