//! Tokens that go with every call to an adapter: from a file, which is read anew each time as it may be exchanged, or by
//! OAuth 2.0 (client credentials), fetched when the one before is about to expire.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use proto::istio::policy::v1beta1::{self as policy, tls::TokenSource, tls::TokenType};
use proto_component::fetch::{self, FetchError, Roots};
use proto_component::task;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

/// For an answer of the token's issuer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A token is not used in the last seconds of its life: calls take time.
const MARGIN: Duration = Duration::from_secs(10);
/// After a failure, or for a token that the adapter refuses, nobody asks again at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Where tokens come from, and how they are shown.
#[derive(Debug)]
pub(super) struct Token {
    source: Source,
    header: AsciiMetadataKey,
    prefix: &'static str,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    OAuth(Arc<OAuth>),
}

/// An issuer, and what it has said last.
struct OAuth {
    uri: Uri,
    client_id: String,
    /// A file with the secret.
    secret: PathBuf,
    scopes: String,
    params: BTreeMap<String, String>,
    last: Arc<Mutex<Option<Answer>>>,
}

struct Answer {
    token: Result<String, String>,
    came: Instant,
    /// Never, if the issuer does not say.
    until: Option<Instant>,
}

#[derive(Deserialize)]
struct Issued {
    access_token: String,
    #[serde(default)]
    token_type: String,
    /// Some issuers write the number as a text.
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl std::fmt::Debug for OAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OAuth({} as {})", self.uri, self.client_id)
    }
}

impl Token {
    /// What a connection's configuration asks for; the error begins with the field.
    pub(super) fn new(config: &policy::Tls) -> Result<Option<Self>, String> {
        let source = match &config.token_source {
            None => return Ok(None),
            Some(TokenSource::Oauth(oauth)) => {
                let oauth =
                    OAuth::new(oauth).map_err(|e| format!("authentication.tls.oauth.{e}"))?;
                return Ok(Some(Self {
                    source: Source::OAuth(Arc::new(oauth)),
                    header: AsciiMetadataKey::from_static("authorization"),
                    // The issuer says what kind of token it is.
                    prefix: "",
                }));
            }
            Some(TokenSource::TokenPath(path)) => Source::File(PathBuf::from(path)),
        };
        let bearer = i32::from(policy::tls::AuthHeader::Bearer);
        let (header, prefix) = match &config.token_type {
            Some(TokenType::CustomHeader(header)) => (header.to_ascii_lowercase(), ""),
            Some(TokenType::AuthHeader(kind)) if *kind == bearer => {
                ("authorization".into(), "Bearer ")
            }
            _ => ("authorization".into(), ""),
        };
        let header = AsciiMetadataKey::from_bytes(header.as_bytes())
            .map_err(|_| format!("authentication.tls.customHeader: {header:?} is no header"))?;
        Ok(Some(Self {
            source,
            header,
            prefix,
        }))
    }

    /// The header for a call.
    pub(super) async fn header(&self) -> Result<(AsciiMetadataKey, AsciiMetadataValue), Status> {
        let text = match &self.source {
            Source::File(path) => tokio::fs::read_to_string(path)
                .await
                .map_err(|error| format!("the token's file: {error}")),
            Source::OAuth(oauth) => oauth.token().await,
        };
        let text = text.map_err(Status::unauthenticated)?;
        let value = AsciiMetadataValue::try_from(format!("{}{}", self.prefix, text.trim()))
            .map_err(|_| Status::unauthenticated("the token is not printable"))?;
        Ok((self.header.clone(), value))
    }

    /// The adapter has refused the token: the next call needs another one.
    pub(super) fn refused(&self) {
        if let Source::OAuth(oauth) = &self.source {
            oauth.forget();
        }
    }
}

impl OAuth {
    fn new(config: &policy::OAuth) -> Result<Self, String> {
        for (field, value) in [
            ("clientId", &config.client_id),
            ("clientSecret", &config.client_secret),
            ("tokenUrl", &config.token_url),
        ] {
            if value.is_empty() {
                return Err(format!("{field}: a value is needed"));
            }
        }
        let uri: Option<Uri> = config.token_url.parse().ok();
        let uri = uri.filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        Ok(Self {
            uri: uri.ok_or("tokenUrl: scheme (http, https) and host are needed")?,
            client_id: config.client_id.clone(),
            secret: PathBuf::from(&config.client_secret),
            scopes: config.scopes.join(" "),
            params: config.endpoint_params.clone(),
            last: Arc::default(),
        })
    }

    /// The token in force, with its kind in front.
    async fn token(self: &Arc<Self>) -> Result<String, String> {
        // Who comes while somebody asks waits for that answer.
        let mut last = self.last.clone().lock_owned().await;
        if let Some(answer) = last.as_ref()
            && answer.until.is_none_or(|until| Instant::now() < until)
        {
            return answer.token.clone();
        }
        // In a task of its own: a caller whose time is up must not take the answer away from those after it.
        let oauth = self.clone();
        let asking = task::spawn("adapter-token", async move {
            let answer = oauth.ask().await;
            last.insert(answer).token.clone()
        });
        asking
            .await
            .unwrap_or_else(|error| Err(format!("no token from {}: {error}", self.uri)))
    }

    async fn ask(&self) -> Answer {
        match self.issue().await {
            Ok(issued) => issued.into_answer(),
            Err(problem) => {
                tracing::warn!(target: "adapters", issuer = ?self, problem, "no token for calls to an adapter");
                let now = Instant::now();
                Answer {
                    token: Err(format!("no token from {}: {problem}", self.uri)),
                    came: now,
                    until: Some(now + PAUSE),
                }
            }
        }
    }

    /// Forgets a token, but not one that has just come: an adapter that refuses all must not keep the issuer busy.
    fn forget(&self) {
        // Who holds the lock is about to look at the answer, or to replace it.
        if let Ok(mut last) = self.last.try_lock() {
            last.take_if(|answer| answer.came.elapsed() >= PAUSE);
        }
    }

    async fn issue(&self) -> Result<Issued, String> {
        let secret = tokio::fs::read_to_string(&self.secret)
            .await
            .map_err(|error| format!("the secret's file: {error}"))?;
        let secret = secret.trim();
        // As a user and a password first; issuers that do not take that find both among the fields.
        let user = format!("{}:{}", escaped(&self.client_id), escaped(secret));
        let basic = format!("Basic {}", STANDARD.encode(user));
        let body = match self.post(self.form(None), Some(&basic)).await {
            Err(FetchError::Answer(_)) => self.post(self.form(Some(secret)), None).await,
            other => other,
        };
        let body = body.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body).map_err(|error| format!("the answer cannot be read: {error}"))
    }

    async fn post(&self, form: String, basic: Option<&str>) -> Result<Vec<u8>, FetchError> {
        fetch::post_form(&self.uri, form, basic, Roots::SystemAnd(&[]), PATIENCE).await
    }

    fn form(&self, secret: Option<&str>) -> String {
        let mut fields = vec![("grant_type", "client_credentials")];
        if !self.scopes.is_empty() {
            fields.push(("scope", &self.scopes));
        }
        if let Some(secret) = secret {
            fields.extend([
                ("client_id", self.client_id.as_str()),
                ("client_secret", secret),
            ]);
        }
        let more = self.params.iter();
        fields.extend(more.map(|(name, value)| (name.as_str(), value.as_str())));
        let fields = fields.iter();
        let fields: Vec<_> = fields
            .map(|(name, value)| format!("{}={}", escaped(name), escaped(value)))
            .collect();
        fields.join("&")
    }
}

impl Issued {
    fn into_answer(self) -> Answer {
        let seconds = match &self.expires_in {
            serde_json::Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        };
        let life = seconds
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        // The field's case is the issuer's choice, the header's is not.
        let kind = match self.token_type.as_str() {
            kind if kind.is_empty() || kind.eq_ignore_ascii_case("bearer") => "Bearer",
            kind => kind,
        };
        let now = Instant::now();
        Answer {
            token: Ok(format!("{kind} {}", self.access_token)),
            came: now,
            // A life that no clock can tell the end of has none.
            until: life.and_then(|life| now.checked_add(life.saturating_sub(MARGIN).max(PAUSE))),
        }
    }
}

/// As a form's field wants it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    use axum::Form;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use parking_lot::Mutex;

    type Asked = Arc<Mutex<Vec<(Option<String>, BTreeMap<String, String>)>>>;

    /// An issuer that takes the secret as `takes_basic` says and hands out numbered tokens.
    async fn issuer(takes_basic: bool, expires_in: &'static str) -> (String, Asked) {
        let asked: Asked = Arc::default();
        let seen = asked.clone();
        let answer = move |headers: HeaderMap, Form(form): Form<BTreeMap<String, String>>| {
            let seen = seen.clone();
            async move {
                let basic = headers.get("authorization");
                let basic = basic.map(|value| value.to_str().unwrap().to_owned());
                let is_welcome = basic.is_some() == takes_basic;
                let mut seen = seen.lock();
                seen.push((basic, form));
                if !is_welcome {
                    return (StatusCode::UNAUTHORIZED, String::new());
                }
                let number = seen.len();
                (
                    StatusCode::OK,
                    format!(
                        r#"{{"access_token": "t{number}", "token_type": "bearer", "expires_in": {expires_in}}}"#
                    ),
                )
            }
        };
        let router = axum::Router::new().route("/token", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        task::spawn("issuer", async move { axum::serve(listener, router).await });
        (url, asked)
    }

    fn token(url: &str, secret: &std::path::Path) -> Token {
        let oauth = policy::OAuth {
            client_id: "mixer".into(),
            client_secret: secret.display().to_string(),
            token_url: url.into(),
            scopes: vec!["a".into(), "b".into()],
            endpoint_params: [("audience".to_owned(), "x&y".to_owned())].into(),
        };
        let config = policy::Tls {
            token_source: Some(TokenSource::Oauth(oauth)),
            ..policy::Tls::default()
        };
        Token::new(&config).unwrap().unwrap()
    }

    async fn shown(token: &Token) -> String {
        let (header, value) = token.header().await.unwrap();
        format!("{header}: {}", value.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_token_is_fetched_once_while_it_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "s:1\n").unwrap();
        let (url, asked) = issuer(true, "\"3600\"").await;
        let token = token(&url, &secret);
        assert_eq!(shown(&token).await, "authorization: Bearer t1");
        assert_eq!(shown(&token).await, "authorization: Bearer t1");
        let asked = asked.lock();
        let [(basic, form)] = asked.as_slice() else {
            panic!("{asked:?}")
        };
        assert_eq!(
            basic.as_deref(),
            Some(format!("Basic {}", STANDARD.encode("mixer:s%3A1")).as_str())
        );
        let want = [
            ("audience", "x&y"),
            ("grant_type", "client_credentials"),
            ("scope", "a b"),
        ];
        assert_eq!(form.len(), want.len());
        assert!(want.iter().all(|(name, value)| form[*name] == *value));
    }

    #[tokio::test]
    async fn the_secret_goes_among_the_fields_where_it_must() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "s").unwrap();
        let (url, asked) = issuer(false, "3600").await;
        let token = token(&url, &secret);
        assert_eq!(shown(&token).await, "authorization: Bearer t2");
        let asked = asked.lock();
        assert_eq!(asked[1].1["client_secret"], "s");
        assert_eq!(asked[1].1["client_id"], "mixer");
    }

    #[tokio::test]
    async fn without_a_token_there_is_no_call() {
        let dir = tempfile::tempdir().unwrap();
        let token = token("http://127.0.0.1:9/token", &dir.path().join("none"));
        let status = token.header().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert!(status.message().contains("the secret's file"), "{status}");
    }

    #[tokio::test]
    async fn a_token_that_is_refused_is_fetched_anew_but_not_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "s").unwrap();
        let (url, _) = issuer(true, "0").await;
        let token = token(&url, &secret);
        assert_eq!(shown(&token).await, "authorization: Bearer t1");
        token.refused();
        assert_eq!(shown(&token).await, "authorization: Bearer t1");
        tokio::time::pause();
        tokio::time::advance(PAUSE).await;
        tokio::time::resume();
        token.refused();
        assert_eq!(shown(&token).await, "authorization: Bearer t2");
    }

    #[tokio::test]
    async fn a_caller_that_goes_does_not_take_the_answer_along() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "s").unwrap();
        let (url, asked) = issuer(true, "3600").await;
        let token = token(&url, &secret);
        let mut first = Box::pin(token.header());
        while asked.lock().is_empty() {
            assert!(futures::poll!(&mut first).is_pending());
            tokio::task::yield_now().await;
        }
        drop(first);
        assert_eq!(shown(&token).await, "authorization: Bearer t1");
        assert_eq!(asked.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_life_without_end_is_none() {
        for (expires_in, has_end) in [
            (serde_json::json!(3600), true),
            (serde_json::json!("3600"), true),
            (serde_json::json!(u64::MAX), false),
            (serde_json::json!(0), false),
            (serde_json::json!(null), false),
        ] {
            let issued = Issued {
                access_token: "t".into(),
                token_type: String::new(),
                expires_in: expires_in.clone(),
            };
            let answer = issued.into_answer();
            assert_eq!(answer.until.is_some(), has_end, "{expires_in}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut oauth = policy::OAuth {
            client_id: "mixer".into(),
            client_secret: "/secret".into(),
            token_url: "ftp://x".into(),
            ..policy::OAuth::default()
        };
        assert!(OAuth::new(&oauth).unwrap_err().starts_with("tokenUrl: "));
        oauth.client_id.clear();
        assert!(OAuth::new(&oauth).unwrap_err().starts_with("clientId: "));
    }
}
