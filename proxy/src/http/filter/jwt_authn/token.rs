//! A token's three parts, and what can be wrong with it in Envoy's words.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// What is wrong. Ordered: the later ones say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    Missing,
    UnknownIssuer,
    BadFormat,
    BadHeader,
    BadAlgorithm,
    BadPayload,
    NotYetValid,
    Expired,
    LivesTooLong,
    AudienceNotAllowed,
    SubjectNotAllowed,
    NoKeys,
    NoMatchingKey,
    BadSignature,
}

/// A token taken apart.
#[derive(Debug)]
pub(super) struct Token<'a> {
    /// What the signature is over.
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
    pub(super) header: Map<String, Value>,
    pub(super) algorithm: String,
    pub(super) key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
    /// The payload as it was sent, base64.
    pub(super) payload: &'a str,
}

impl Failure {
    /// Envoy's words.
    pub(super) fn text(self) -> &'static str {
        match self {
            Failure::Missing => "Jwt is missing",
            Failure::UnknownIssuer => "Jwt issuer is not configured",
            Failure::BadFormat => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Failure::BadHeader => "Jwt header is an invalid JSON",
            Failure::BadAlgorithm => "Jwt header [alg] is not supported",
            Failure::BadPayload => "Jwt payload is an invalid JSON",
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
    pub(super) fn parse(text: &'a str) -> Result<Self, Failure> {
        let (signed, signature) = text.rsplit_once('.').ok_or(Failure::BadFormat)?;
        let (header_text, payload) = signed.split_once('.').ok_or(Failure::BadFormat)?;
        if payload.contains('.') {
            return Err(Failure::BadFormat);
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
        let header = decode(header_text).map_err(|_| Failure::BadHeader)?;
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
        let claims = decode(payload).map_err(|_| Failure::BadPayload)?;
        let claims = serde_json::from_slice(&claims).map_err(|_| Failure::BadPayload)?;
        let signature = decode(signature).map_err(|_| Failure::BadSignature)?;
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
    pub(super) fn issuer(&self) -> &str {
        self.claims
            .get("iss")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// The audiences: one, or a list.
    pub(super) fn audiences(&self) -> Vec<&str> {
        match self.claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// Checks the times, with some tolerance.
    pub(super) fn check_times(&self, now: u64, skew: u64) -> Result<(), Failure> {
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
