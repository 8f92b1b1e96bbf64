//! JSON Web Tokens as they are checked everywhere: by the proxy for its users, by Citadel for workloads.
//!
//! text → [`Token::parse`] → [`KeySet::verify`] (its signature) → what the checker wants of its claims.
//!
//! What can be wrong has Envoy's words.

mod key_set;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

pub use key_set::KeySet;

/// What is wrong. Ordered: the later ones say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// There is none.
    Missing,
    /// Of an issuer that is not accepted.
    UnknownIssuer,
    /// Not three parts with dots between.
    BadFormat,
    /// Its header is not base64.
    HeaderEncoding,
    /// Its header cannot be read.
    BadHeader,
    /// Of an algorithm that is not accepted: symmetric ones and `none` are not.
    BadAlgorithm,
    /// Its claims are not base64.
    PayloadEncoding,
    /// Its claims cannot be read.
    BadPayload,
    /// Its signature is not base64.
    SignatureEncoding,
    /// Before its time.
    NotYetValid,
    /// After its time.
    Expired,
    /// Good for longer than is accepted.
    LivesTooLong,
    /// For another audience.
    AudienceNotAllowed,
    /// Of a subject that is not accepted.
    SubjectNotAllowed,
    /// The keys are not at hand.
    NoKeys,
    /// None of the keys has its id and algorithm.
    NoMatchingKey,
    /// Not signed by that key.
    BadSignature,
}

/// A token taken apart.
#[derive(Debug)]
pub struct Token<'a> {
    /// What the signature is over.
    pub signed: &'a str,
    /// The signature.
    pub signature: Vec<u8>,
    /// What it says of itself.
    pub header: Map<String, Value>,
    /// `alg` of the header.
    pub algorithm: String,
    /// `kid` of the header.
    pub key_id: Option<String>,
    /// What it says of its bearer.
    pub claims: Map<String, Value>,
    /// The payload as it was sent, base64.
    pub payload: &'a str,
}

impl Failure {
    /// Envoy's words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Failure::Missing => "Jwt is missing",
            Failure::UnknownIssuer => "Jwt issuer is not configured",
            Failure::BadFormat => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Failure::HeaderEncoding => "Jwt header is an invalid Base64url encoded",
            Failure::BadHeader => "Jwt header is an invalid JSON",
            Failure::BadAlgorithm => "Jwt header [alg] is not supported",
            Failure::PayloadEncoding => "Jwt payload is an invalid Base64url encoded",
            Failure::BadPayload => "Jwt payload is an invalid JSON",
            Failure::SignatureEncoding => "Jwt signature is an invalid Base64url encoded",
            Failure::NotYetValid => "Jwt not yet valid",
            Failure::Expired => "Jwt is expired",
            Failure::LivesTooLong => "JWT exceeds maximum lifetime",
            Failure::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Failure::SubjectNotAllowed => "Jwt subject is not allowed",
            Failure::NoKeys => "Jwks remote fetch is failed",
            Failure::NoMatchingKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Failure::BadSignature => "Jwt verification fails",
        }
    }
}

impl<'a> Token<'a> {
    /// Takes `text` apart. Nothing is checked yet.
    ///
    /// # Errors
    /// When it is no token.
    pub fn parse(text: &'a str) -> Result<Self, Failure> {
        let (signed, signature) = text.rsplit_once('.').ok_or(Failure::BadFormat)?;
        let (header_text, payload) = signed.split_once('.').ok_or(Failure::BadFormat)?;
        if payload.contains('.') || text.split('.').any(str::is_empty) {
            return Err(Failure::BadFormat);
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
        let header = decode(header_text).map_err(|_| Failure::HeaderEncoding)?;
        let header: Map<String, Value> =
            serde_json::from_slice(&header).map_err(|_| Failure::BadHeader)?;
        let text_of = |name: &str| {
            header
                .get(name)
                .and_then(Value::as_str)
                .map(ToOwned::to_owned)
        };
        let algorithm = text_of("alg").ok_or(Failure::BadHeader)?;
        let key_id = text_of("kid");
        let claims = decode(payload).map_err(|_| Failure::PayloadEncoding)?;
        let claims = serde_json::from_slice(&claims).map_err(|_| Failure::BadPayload)?;
        let signature = decode(signature).map_err(|_| Failure::SignatureEncoding)?;
        Ok(Token {
            signed,
            signature,
            header,
            algorithm,
            key_id,
            claims,
            payload,
        })
    }

    /// The issuer.
    #[must_use]
    pub fn issuer(&self) -> &str {
        self.claims
            .get("iss")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The audiences: one, or a list.
    #[must_use]
    pub fn audiences(&self) -> Vec<&str> {
        match self.claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// Checks the times, as far as there are any, against `now` (seconds since 1970) with a tolerance of `skew` seconds.
    ///
    /// # Errors
    /// [`Failure::NotYetValid`] or [`Failure::Expired`].
    pub fn check_times(&self, now: u64, skew: u64) -> Result<(), Failure> {
        let time = |name: &str| self.claims.get(name).and_then(Value::as_f64);
        #[allow(
            clippy::cast_precision_loss,
            reason = "seconds since 1970 are exact in a double"
        )]
        let (now, skew) = (now as f64, skew as f64);
        if time("nbf").is_some_and(|nbf| nbf > now + skew) {
            return Err(Failure::NotYetValid);
        }
        if time("exp").is_some_and(|exp| exp + skew < now) {
            return Err(Failure::Expired);
        }
        Ok(())
    }
}
