//! Where tokens are: headers, query parameters, cookies.

use http::{HeaderName, header};
use proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;

use crate::access_log::format::query_value;
use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::router::{cookie, header_name};

/// The places of one provider.
#[derive(Debug)]
pub(super) struct Locations {
    headers: Vec<(HeaderName, Box<str>)>,
    parameters: Vec<Box<str>>,
    cookies: Vec<Box<str>>,
}

/// A place where a token was found.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Header(HeaderName),
    Parameter(Box<str>),
    Cookie,
}

impl Locations {
    /// Those configured; without any, `Authorization: Bearer` and the parameter `access_token`.
    pub(super) fn try_new(provider: &wire::JwtProvider) -> Result<Self, Invalid> {
        let is_default = provider.from_headers.is_empty()
            && provider.from_params.is_empty()
            && provider.from_cookies.is_empty();
        if is_default {
            return Ok(Locations {
                headers: vec![(header::AUTHORIZATION, "Bearer ".into())],
                parameters: vec!["access_token".into()],
                cookies: Vec::new(),
            });
        }
        let boxed = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect();
        Ok(Locations {
            headers: try_all("from_headers", &provider.from_headers, |header| {
                Ok((
                    header_name(&header.name).at("name")?,
                    header.value_prefix.as_str().into(),
                ))
            })?,
            parameters: boxed(&provider.from_params),
            cookies: boxed(&provider.from_cookies),
        })
    }

    /// All tokens, in the order of the places.
    pub(super) fn tokens<'a>(&self, request: &'a RequestHeaders) -> Vec<(&'a str, Place)> {
        let mut tokens = Vec::new();
        for (name, prefix) in &self.headers {
            for value in request.map.get_all(name) {
                let Ok(value) = value.to_str() else {
                    continue;
                };
                if let Some(at) = value.find(prefix.as_ref()) {
                    let rest = value[at + prefix.len()..].trim_start();
                    let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
                    tokens.push((&rest[..end], Place::Header(name.clone())));
                }
            }
        }
        for name in &self.parameters {
            tokens.extend(
                query_value(request.path.query(), name)
                    .map(|token| (token, Place::Parameter(name.clone()))),
            );
        }
        for name in &self.cookies {
            tokens.extend(cookie(request, name).map(|token| (token, Place::Cookie)));
        }
        tokens
    }
}

impl Place {
    /// Takes the token out of a request that goes on without it. A cookie stays, as in Envoy.
    pub(super) fn take_from(&self, request: &mut RequestHeaders) {
        match self {
            Place::Header(name) => {
                request.map.remove(name);
            }
            Place::Parameter(name) => {
                let Some(query) = request.path.query() else {
                    return;
                };
                let is_other = |pair: &&str| pair.split('=').next() != Some(name.as_ref());
                let rest: Vec<&str> = query.split('&').filter(is_other).collect();
                let mut path = request.path.path().to_owned();
                if !rest.is_empty() {
                    path.push('?');
                    path.push_str(&rest.join("&"));
                }
                // It was a path before, and is a shorter one now.
                let _ = request.set_path(path);
            }
            Place::Cookie => {}
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=' | '+' | '/')
}
