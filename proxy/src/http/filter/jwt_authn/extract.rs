//! Where tokens are: headers, query parameters, cookies.

use std::borrow::Cow;

use http::{HeaderName, header};
use proto::envoy::extensions::filters::http::jwt_authn::v3 as wire;

use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::router::{cookie, header_name, query_value};

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
    pub(super) fn tokens<'a>(&self, request: &'a RequestHeaders) -> Vec<(Cow<'a, str>, Place)> {
        let mut tokens = Vec::new();
        for (name, prefix) in &self.headers {
            let found = values(request, name).into_iter();
            let found = found.filter_map(|value| after(value, prefix));
            tokens.extend(found.map(|token| (token, Place::Header(name.clone()))));
        }
        for name in &self.parameters {
            let found = query_value(request.path.query(), name);
            let token = found.map(|token| String::from_utf8_lossy(&token).into_owned().into());
            tokens.extend(token.map(|token| (token, Place::Parameter(name.clone()))));
        }
        for name in &self.cookies {
            tokens.extend(cookie(request, name).map(|token| (token.into(), Place::Cookie)));
        }
        tokens
    }
}

/// What the lines of a header say. Those of `authorization` are one value, as in Envoy: two tokens there are none.
fn values<'a>(request: &'a RequestHeaders, name: &HeaderName) -> Vec<Cow<'a, str>> {
    let lines = request.map.get_all(name).into_iter();
    let lines: Vec<_> = lines
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    if *name == header::AUTHORIZATION && lines.len() > 1 {
        return vec![lines.join(",").into()];
    }
    lines
}

/// What comes after the prefix, to the end: what follows a token makes it a bad one.
fn after<'a>(value: Cow<'a, str>, prefix: &str) -> Option<Cow<'a, str>> {
    if prefix.is_empty() {
        return Some(value);
    }
    let rest = value.find(prefix)? + prefix.len();
    Some(match value[rest..].find(is_token) {
        Some(at) => value[rest + at..].to_owned().into(),
        None => value,
    })
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
                let is_other = |pair: &&str| query_value(Some(pair), name).is_none();
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
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}
