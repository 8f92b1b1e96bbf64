//! A caller with a service account token: a JWT of the configured issuer, for our audience, signed by one of its published
//! keys, whose subject is `system:serviceaccount:NAMESPACE:ACCOUNT`.
//!
//! Only asymmetric algorithms are accepted, and only one that fits the key ([`proto_mesh::jwt`]): `none` and HMAC with a public
//! key as secret are impossible. A small leeway allows for clocks.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use proto_mesh::jwt::{Failure, Token};
use proto_mesh::spiffe::SpiffeId;
use serde_json::Value;

use super::jwks::KeyRing;
use super::{Authenticator, Credentials, Unauthenticated, refused_token};
use crate::authorize;

/// Seconds by which clocks may differ.
const LEEWAY: u64 = 10;
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

impl Oidc {
    /// An authenticator of `settings`' tokens with the keys of `keys`.
    pub fn new(settings: OidcSettings, keys: Arc<KeyRing>) -> Self {
        Self { settings, keys }
    }

    fn verify(&self, text: &str) -> Result<SpiffeId, String> {
        let token = Token::parse(text).map_err(|failure| failure.text().to_owned())?;
        self.keys
            .verify(&token)
            .map_err(|error| error.to_string())?;
        let subject = self.subject(&token)?;
        authorize::from_subject(&self.settings.trust_domain, subject)
            .map_err(|error| error.to_string())
    }

    /// Whom the token is about, if it says all that it must.
    fn subject<'t>(&self, token: &'t Token<'_>) -> Result<&'t str, String> {
        for name in ["exp", "iss", "aud", "sub"] {
            if !token.claims.contains_key(name) {
                return Err(format!("claim {name} is missing"));
            }
        }
        for name in ["exp", "nbf"] {
            // As any other it would not be looked at.
            if !token.claims.get(name).is_none_or(Value::is_number) {
                return Err(format!("claim {name} is no number"));
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        match token.check_times(now, LEEWAY) {
            Ok(()) => {}
            Err(Failure::Expired) => return Err("expired".to_owned()),
            Err(_) => return Err("not valid yet".to_owned()),
        }
        if token.issuer() != self.settings.issuer {
            return Err("of another issuer".to_owned());
        }
        let wanted = &self.settings.audiences;
        if !token
            .audiences()
            .iter()
            .any(|audience| wanted.iter().any(|want| want == audience))
        {
            return Err("for another audience".to_owned());
        }
        let subject = token.claims.get("sub").and_then(Value::as_str);
        subject.ok_or_else(|| "claim sub is no text".to_owned())
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
