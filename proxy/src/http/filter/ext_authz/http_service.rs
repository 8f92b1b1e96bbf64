//! Asking over HTTP: the request's head (and body) goes to the service; 200 lets it pass.

use std::rc::Rc;

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use prost_types::Struct;
use proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use proto::envoy::extensions::filters::http::ext_authz::v3 as wire;

use crate::http::client::HttpTarget;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::StringMatcher;
use crate::router::header_name;
use crate::worker::Worker;

use super::check::Request;
use super::config::matchers;
use super::verdict::{Changes, Denied, ResponseChanges, Verdict};

static PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// A checked HTTP service.
pub(super) struct HttpService {
    target: HttpTarget,
    prefix: String,
    path: Option<String>,
    allowed: Vec<StringMatcher>,
    added: Vec<(HeaderName, HeaderValue)>,
    to_upstream: Vec<StringMatcher>,
    to_upstream_appended: Vec<StringMatcher>,
    to_client: Option<Vec<StringMatcher>>,
    to_client_on_success: Vec<StringMatcher>,
    metadata: Vec<StringMatcher>,
}

impl HttpService {
    pub(super) fn try_new(
        service: &wire::HttpService,
        allowed: Option<&[StringMatcher]>,
    ) -> Result<Self, Invalid> {
        if service.retry_policy.is_some() {
            return Err(Invalid::unsupported("retry_policy"));
        }
        let uri = service
            .server_uri
            .as_ref()
            .ok_or_else(|| Invalid::new("server_uri is needed"))?;
        for (field, path) in [
            ("path_prefix", &service.path_prefix),
            ("path_override", &service.path_override),
        ] {
            if !path.is_empty() && !path.starts_with('/') {
                return Err(Invalid::new("a path must start with '/'").at(field));
            }
        }
        let request = service.authorization_request.clone().unwrap_or_default();
        let response = service.authorization_response.clone().unwrap_or_default();
        #[allow(deprecated, reason = "control planes still send the older field")]
        let of_service = matchers("allowed_headers", request.allowed_headers.as_ref())?;
        let list = |field: &str, list| matchers(field, list).map(Option::unwrap_or_default);
        Ok(HttpService {
            target: HttpTarget {
                says_from: false,
                ..HttpTarget::try_from(uri).at("server_uri")?
            },
            prefix: service.path_prefix.clone(),
            path: (!service.path_override.is_empty()).then(|| service.path_override.clone()),
            allowed: allowed
                .map(<[StringMatcher]>::to_vec)
                .or(of_service)
                .unwrap_or_default(),
            added: try_all("headers_to_add", &request.headers_to_add, |header| {
                let value = HeaderValue::from_str(&header.value)
                    .map_err(|_| Invalid::new("not a header value"))?;
                Ok((header_name(&header.key)?, value))
            })?,
            to_upstream: list(
                "allowed_upstream_headers",
                response.allowed_upstream_headers.as_ref(),
            )?,
            to_upstream_appended: list(
                "allowed_upstream_headers_to_append",
                response.allowed_upstream_headers_to_append.as_ref(),
            )?,
            to_client: matchers(
                "allowed_client_headers",
                response.allowed_client_headers.as_ref(),
            )?,
            to_client_on_success: list(
                "allowed_client_headers_on_success",
                response.allowed_client_headers_on_success.as_ref(),
            )?,
            metadata: list(
                "dynamic_metadata_from_headers",
                response.dynamic_metadata_from_headers.as_ref(),
            )?,
        })
    }

    pub(super) async fn ask(&self, worker: &Rc<Worker>, request: &Request) -> Verdict {
        let mut map = HeaderMap::new();
        for (name, value) in &request.headers.map {
            if name == header::AUTHORIZATION || is_in(&self.allowed, name) {
                map.append(name.clone(), value.clone());
            }
        }
        map.remove(header::CONTENT_LENGTH);
        map.remove(header::TRANSFER_ENCODING);
        for (name, value) in &self.added {
            map.insert(name.clone(), value.clone());
        }
        if let Some(is_partial) = request.is_partial {
            let value = if is_partial { "true" } else { "false" };
            map.insert(PARTIAL_BODY.clone(), HeaderValue::from_static(value));
        }
        if request.body.is_empty() {
            map.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let mut head = self.target.request(request.headers.method.clone(), map);
        // The service is asked as if it were the one that the client means.
        head.authority = request.headers.authority.clone();
        head.scheme = request.headers.scheme;
        let path = match &self.path {
            Some(path) => path.clone(),
            None => format!("{}{}", self.prefix, request.headers.path.as_str()),
        };
        if head.set_path(path).is_none() {
            return Verdict::Error;
        }
        match self.target.call(worker, head, request.body.clone()).await {
            Ok(response) if response.status().is_server_error() => Verdict::Error,
            Ok(response) if response.status() == StatusCode::OK => self.passed(response.headers()),
            Ok(response) => {
                let (parts, body) = response.into_parts();
                Verdict::Denied(Box::new(Denied {
                    status: parts.status,
                    headers: self.denial_headers(&parts.headers),
                    body,
                    metadata: None,
                }))
            }
            Err(error) => {
                tracing::debug!(target: "ext_authz", %error, "no answer");
                Verdict::Error
            }
        }
    }

    fn passed(&self, headers: &HeaderMap) -> Verdict {
        let of = |list: &[StringMatcher]| -> Vec<(HeaderName, HeaderValue)> {
            headers
                .iter()
                .filter(|(name, _)| is_in(list, name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        let metadata = of(&self.metadata);
        let fields = metadata.into_iter().map(|(name, value)| {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), prost_types::Value::from(text))
        });
        let fields: std::collections::BTreeMap<_, _> = fields.collect();
        Verdict::Ok(Box::new(Changes {
            set: of(&self.to_upstream),
            append: of(&self.to_upstream_appended),
            metadata: (!fields.is_empty()).then_some(Struct { fields }),
            response: ResponseChanges(
                of(&self.to_client_on_success)
                    .into_iter()
                    .map(|(name, value)| (HeaderAppendAction::AppendIfExistsOrAdd, name, value))
                    .collect(),
            ),
            ..Changes::default()
        }))
    }

    /// What the client may see of a refusal: all, or those that are listed and what a refusal needs.
    fn denial_headers(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let is_ours = |name: &HeaderName| {
            name == header::CONTENT_LENGTH
                || name == header::TRANSFER_ENCODING
                || name == header::CONNECTION
        };
        let is_needed = |name: &HeaderName| {
            name == header::WWW_AUTHENTICATE
                || name == header::LOCATION
                || name == header::PROXY_AUTHENTICATE
        };
        headers
            .iter()
            .filter(|(name, _)| !is_ours(name))
            .filter(|(name, _)| {
                let listed = self.to_client.as_ref();
                listed.is_none_or(|list| is_needed(name) || is_in(list, name))
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

fn is_in(list: &[StringMatcher], name: &HeaderName) -> bool {
    list.iter().any(|matcher| matcher.matches(name.as_str()))
}
