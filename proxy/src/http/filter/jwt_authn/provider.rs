//! Providers: an issuer, its keys, and what becomes of a good token.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProstValue};
use proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;
use proto_mesh::jwt::{Failure, KeySet, Token};
use serde_json::Value;
use wire::jwt_provider::JwksSourceSpecifier;

use crate::http::headers::RequestHeaders;
use crate::http::local_reply::data_source;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::StringMatcher;
use crate::router::header_name;
use crate::router::timeout::duration;
use crate::stream_info::StreamInfo;
use crate::worker::Worker;

use super::NAME;
use super::extract::{Locations, Place};
use super::remote::Remote;

/// Envoy's tolerance for clocks.
const CLOCK_SKEW: u32 = 60;

/// A checked provider.
pub(super) struct Provider {
    issuer: String,
    audiences: Vec<String>,
    subjects: Option<StringMatcher>,
    requires_expiration: bool,
    max_lifetime: Option<Duration>,
    skew: u64,
    locations: Locations,
    keys: Keys,
    forwards: bool,
    payload_header: Option<(HeaderName, bool)>,
    claim_headers: Vec<(HeaderName, Vec<String>)>,
    payload_key: Option<String>,
    header_key: Option<String>,
    space_delimited: Vec<String>,
    /// Good tokens change which route matches.
    pub(super) clears_route: bool,
}

enum Keys {
    Local(Arc<KeySet>),
    Remote(Box<Remote>),
}

/// A token that was verified.
pub(super) struct VerifiedToken {
    header: serde_json::Map<String, Value>,
    claims: serde_json::Map<String, Value>,
    payload: String,
    place: Place,
}

impl Provider {
    pub(super) fn try_new(provider: &wire::JwtProvider) -> Result<Self, Invalid> {
        let source = provider
            .jwks_source_specifier
            .as_ref()
            .ok_or_else(|| Invalid::new("remote_jwks or local_jwks is needed"))?;
        let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let payload_header = match provider.forward_payload_header.as_str() {
            "" => None,
            name => Some((
                header_name(name).at("forward_payload_header")?,
                provider.pad_forward_payload_header,
            )),
        };
        Ok(Provider {
            issuer: provider.issuer.clone(),
            audiences: provider
                .audiences
                .iter()
                .map(|audience| audience_key(audience).to_owned())
                .collect(),
            subjects: provider
                .subjects
                .as_ref()
                .map(StringMatcher::try_from)
                .transpose()
                .at("subjects")?,
            requires_expiration: provider.require_expiration,
            max_lifetime: duration(provider.max_lifetime.as_ref()).at("max_lifetime")?,
            skew: u64::from(if provider.clock_skew_seconds == 0 {
                CLOCK_SKEW
            } else {
                provider.clock_skew_seconds
            }),
            locations: Locations::try_new(provider)?,
            keys: Keys::try_new(source)?,
            forwards: provider.forward,
            payload_header,
            claim_headers: try_all("claim_to_headers", &provider.claim_to_headers, |claim| {
                let path = if claim.claim_path.is_empty() {
                    claim.claim_name.split('.').map(ToOwned::to_owned).collect()
                } else {
                    claim
                        .claim_path
                        .iter()
                        .map(|segment| segment.key.clone())
                        .collect()
                };
                Ok((header_name(&claim.header_name).at("header_name")?, path))
            })?,
            payload_key: optional(&provider.payload_in_metadata),
            header_key: optional(&provider.header_in_metadata),
            space_delimited: provider
                .normalize_payload_in_metadata
                .as_ref()
                .map(|normalize| normalize.space_delimited_claims.clone())
                .unwrap_or_default(),
            clears_route: provider.clear_route_cache,
        })
    }

    /// The tokens at this provider's places, the last first. As in Envoy all of them must be good: nobody is to choose which one is
    /// believed. The first place's has the last word.
    pub(super) fn verify(
        &self,
        request: &RequestHeaders,
        audiences: Option<&[String]>,
    ) -> Result<Vec<VerifiedToken>, Failure> {
        let tokens = self.locations.tokens(request);
        if tokens.is_empty() {
            return Err(Failure::Missing);
        }
        let tokens = tokens.into_iter().rev();
        tokens
            .map(|(text, place)| self.verify_one(&text, place, audiences))
            .collect()
    }

    fn verify_one(
        &self,
        text: &str,
        place: Place,
        audiences: Option<&[String]>,
    ) -> Result<VerifiedToken, Failure> {
        let token = Token::parse(text)?;
        if !self.issuer.is_empty() && token.issuer() != self.issuer {
            return Err(Failure::UnknownIssuer);
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        token.check_times(now, self.skew)?;
        self.check_lifetime(&token)?;
        if let Some(subjects) = &self.subjects {
            let subject = token
                .claims
                .get("sub")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if !subjects.matches(subject) {
                return Err(Failure::SubjectNotAllowed);
            }
        }
        let wanted = audiences.unwrap_or(&self.audiences);
        let is_wanted = |audience: &&str| {
            wanted
                .iter()
                .any(|want| audience_key(want) == audience_key(audience))
        };
        if !wanted.is_empty() && !token.audiences().iter().any(is_wanted) {
            return Err(Failure::AudienceNotAllowed);
        }
        self.keys.current().ok_or(Failure::NoKeys)?.verify(&token)?;
        Ok(VerifiedToken {
            payload: token.payload.to_owned(),
            header: token.header,
            claims: token.claims,
            place,
        })
    }

    fn check_lifetime(&self, token: &Token<'_>) -> Result<(), Failure> {
        let time = |name: &str| token.claims.get(name).and_then(Value::as_f64);
        let Some(expires) = time("exp") else {
            return if self.requires_expiration {
                Err(Failure::LivesTooLong)
            } else {
                Ok(())
            };
        };
        let issued = time("iat").or_else(|| time("nbf"));
        match (self.max_lifetime, issued) {
            (Some(limit), Some(issued)) if expires - issued > limit.as_secs_f64() => {
                Err(Failure::LivesTooLong)
            }
            _ => Ok(()),
        }
    }

    /// Headers that only a verified token may fill.
    pub(super) fn remove_headers(&self, request: &mut RequestHeaders) {
        if let Some((name, _)) = &self.payload_header {
            request.map.remove(name);
        }
        for (name, _) in &self.claim_headers {
            request.map.remove(name);
        }
    }

    /// Tells the rest of the chain and the upstream what a good token says.
    pub(super) fn apply(
        &self,
        token: &VerifiedToken,
        request: &mut RequestHeaders,
        info: &mut StreamInfo,
    ) {
        if let Some((name, is_padded)) = &self.payload_header {
            let payload = if *is_padded {
                URL_SAFE_NO_PAD
                    .decode(&token.payload)
                    .map(|bytes| URL_SAFE.encode(bytes))
                    .unwrap_or_default()
            } else {
                token.payload.clone()
            };
            if let Ok(value) = HeaderValue::try_from(payload) {
                request.map.insert(name.clone(), value);
            }
        }
        for (name, path) in &self.claim_headers {
            if let Some(value) = claim_at(&token.claims, path).and_then(claim_header) {
                request.map.insert(name.clone(), value);
            }
        }
        if !self.forwards {
            token.place.take_from(request);
        }
        let mut fields = Struct::default();
        if let Some(key) = &self.payload_key {
            let mut claims = to_struct(&token.claims);
            for name in &self.space_delimited {
                if let Some(value) = claims.fields.get_mut(name) {
                    split_at_spaces(value);
                }
            }
            fields.fields.insert(
                key.clone(),
                ProstValue {
                    kind: Some(Kind::StructValue(claims)),
                },
            );
        }
        if let Some(key) = &self.header_key {
            let header = to_struct(&token.header);
            fields.fields.insert(
                key.clone(),
                ProstValue {
                    kind: Some(Kind::StructValue(header)),
                },
            );
        }
        if !fields.fields.is_empty() {
            info.metadata.merge(NAME, fields);
        }
    }

    /// True when keys must be fetched before a token can be verified.
    pub(super) fn needs_keys(&self) -> bool {
        match &self.keys {
            Keys::Remote(remote) => {
                remote.is_stale() && !(remote.is_async && self.keys.current().is_some())
            }
            Keys::Local(_) => false,
        }
    }

    /// True when keys are to be fetched while the old ones serve; the caller is the one to do it.
    pub(super) fn wants_refresh(&self) -> bool {
        match &self.keys {
            Keys::Remote(remote) => {
                remote.is_async
                    && self.keys.current().is_some()
                    && remote.is_stale()
                    && !remote.is_fetching.swap(true, Relaxed)
            }
            Keys::Local(_) => false,
        }
    }

    /// The refresh is over.
    pub(super) fn refreshed(&self) {
        if let Keys::Remote(remote) = &self.keys {
            remote.is_fetching.store(false, Relaxed);
        }
    }

    /// Fetches keys if they are needed.
    pub(super) async fn fetch_keys(&self, worker: &Rc<Worker>) -> Option<Result<(), String>> {
        match &self.keys {
            Keys::Remote(remote) if remote.is_stale() => Some(remote.fetch(worker).await),
            _ => None,
        }
    }
}

impl Keys {
    fn try_new(source: &JwksSourceSpecifier) -> Result<Self, Invalid> {
        match source {
            JwksSourceSpecifier::LocalJwks(source) => {
                let text = data_source(source).at("local_jwks")?;
                let keys = KeySet::parse(&text).map_err(|error| {
                    Invalid::new(format!("invalid key set: {error}")).at("local_jwks")
                })?;
                Ok(Keys::Local(Arc::new(keys)))
            }
            JwksSourceSpecifier::RemoteJwks(remote) => {
                Remote::try_new(remote).map(|remote| Keys::Remote(Box::new(remote)))
            }
        }
    }

    fn current(&self) -> Option<Arc<KeySet>> {
        match self {
            Keys::Local(keys) => Some(keys.clone()),
            Keys::Remote(remote) => remote
                .fetched
                .lock()
                .as_ref()
                .and_then(|(keys, _)| keys.clone()),
        }
    }
}

/// Envoy compares audiences without their scheme and trailing slash.
fn audience_key(audience: &str) -> &str {
    let rest = audience
        .strip_prefix("https://")
        .or_else(|| audience.strip_prefix("http://"))
        .unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

fn claim_at<'a>(claims: &'a serde_json::Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(claims.get(first)?, |value, key| value.get(key))
}

fn claim_header(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::Null => return None,
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => URL_SAFE.encode(claim.to_string()),
    };
    HeaderValue::try_from(text).ok()
}

fn to_struct(map: &serde_json::Map<String, Value>) -> Struct {
    Struct {
        fields: map
            .iter()
            .map(|(key, value)| (key.clone(), to_value(value)))
            .collect(),
    }
}

fn to_value(value: &Value) -> ProstValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue {
            values: items.iter().map(to_value).collect(),
        }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    ProstValue { kind: Some(kind) }
}

fn split_at_spaces(value: &mut ProstValue) {
    if let Some(Kind::StringValue(text)) = &value.kind {
        let values = text
            .split_whitespace()
            .map(|word| ProstValue {
                kind: Some(Kind::StringValue(word.to_owned())),
            })
            .collect();
        value.kind = Some(Kind::ListValue(ListValue { values }));
    }
}
