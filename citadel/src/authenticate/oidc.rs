//! A caller with a service account token: a JWT of the configured issuer, for our audience, signed by one of its published
//! keys, whose subject is `system:serviceaccount:NAMESPACE:ACCOUNT`.
//!
//! Only asymmetric algorithms of an allow-list are accepted, and only the one that fits the key: `none` and HMAC with a
//! public key as secret are impossible. A small leeway allows for clocks.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use proto_mesh::spiffe::SpiffeId;
use serde::Deserialize;

use super::jwks::KeyRing;
use super::{Authenticator, Credentials, Unauthenticated, refused_token};
use crate::authorize;

/// Seconds by which clocks may differ.
const LEEWAY: u64 = 10;
const ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// What a token must say.
#[derive(Debug, Clone)]
pub struct OidcSettings {
    /// `iss`, to the letter.
    pub issuer: String,
    /// One of these in `aud`.
    pub audiences: Vec<String>,
    /// Trust domain of the identities made from its subjects.
    pub trust_domain: String,
}

/// The authenticator of tokens.
pub struct Oidc {
    settings: OidcSettings,
    keys: Arc<KeyRing>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Oidc {
    /// An authenticator of `settings`' tokens with the keys of `keys`.
    pub fn new(settings: OidcSettings, keys: Arc<KeyRing>) -> Self {
        Self { settings, keys }
    }

    fn verify(&self, token: &str) -> Result<SpiffeId, String> {
        let header = decode_header(token)
            .map_err(|_| "not a JWT, or of an algorithm that is not accepted".to_owned())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(format!("algorithm {:?} is not accepted", header.alg));
        }
        let keys = self
            .keys
            .candidates(header.kid.as_deref(), header.alg)
            .map_err(|error| error.to_string())?;
        let validation = self.validation(header.alg);
        let mut reason = String::from("no key of the issuer fits");
        for key in &keys {
            match decode::<Claims>(token, key, &validation) {
                Ok(token) => {
                    return authorize::from_subject(&self.settings.trust_domain, &token.claims.sub)
                        .map_err(|error| error.to_string());
                }
                Err(error) => reason = describe(&error),
            }
        }
        Err(reason)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&self.settings.audiences);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation
    }
}

#[tonic::async_trait]
impl Authenticator for Oidc {
    fn name(&self) -> &'static str {
        "KubeJWTAuthenticator"
    }

    async fn authenticate(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<SpiffeId, Unauthenticated> {
        self.verify(credentials.token()?).map_err(refused_token)
    }
}

/// The library's word, made plain.
fn describe(error: &jsonwebtoken::errors::Error) -> String {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::ExpiredSignature => "expired".to_owned(),
        ErrorKind::ImmatureSignature => "not valid yet".to_owned(),
        ErrorKind::InvalidAudience => "for another audience".to_owned(),
        ErrorKind::InvalidIssuer => "of another issuer".to_owned(),
        ErrorKind::InvalidSignature => "its signature does not verify".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("claim {claim} is missing"),
        _ => error.to_string(),
    }
}
