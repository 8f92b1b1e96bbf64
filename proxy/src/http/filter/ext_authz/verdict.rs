//! What a service said, whichever way it was asked.

use bytes::Bytes;
use core::header_value_option::HeaderAppendAction;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use prost_types::{Struct, Value};
use proto::envoy::config::core::v3 as core;
use tokio::time::Instant;

use crate::http::headers::RequestHeaders;
use crate::http::stream::Stream;

use super::NAME;

/// May the request pass?
pub(super) enum Verdict {
    /// Yes, with changes.
    Ok(Box<Changes>),
    /// No.
    Denied(Box<Denied>),
    /// Nobody knows.
    Error,
}

/// What is done to a request that may pass, and to its response.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) set: Vec<(HeaderName, HeaderValue)>,
    pub(super) append: Vec<(HeaderName, HeaderValue)>,
    pub(super) remove: Vec<HeaderName>,
    pub(super) query_set: Vec<(String, String)>,
    pub(super) query_remove: Vec<String>,
    pub(super) metadata: Option<Struct>,
    pub(super) response: ResponseChanges,
}

/// What is done to the response.
#[derive(Debug, Default)]
pub(super) struct ResponseChanges(pub(super) Vec<(HeaderAppendAction, HeaderName, HeaderValue)>);

/// The reply.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    pub(super) metadata: Option<Struct>,
}

impl Changes {
    /// Changes the request; whether there was anything to change.
    pub(super) fn change_request(&self, headers: &mut RequestHeaders) -> bool {
        for (name, value) in &self.set {
            headers.map.insert(name.clone(), value.clone());
        }
        // QUIRK: appending to a header that is not there does nothing.
        for (name, value) in &self.append {
            if headers.map.contains_key(name) {
                headers.map.append(name.clone(), value.clone());
            }
        }
        for name in &self.remove {
            headers.map.remove(name);
        }
        if !self.query_set.is_empty() || !self.query_remove.is_empty() {
            self.change_query(headers);
        }
        !(self.set.is_empty()
            && self.append.is_empty()
            && self.remove.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty())
    }

    fn change_query(&self, headers: &mut RequestHeaders) {
        let mut pairs: Vec<(String, Option<String>)> = headers
            .path
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| match pair.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (pair.to_owned(), None),
            })
            .collect();
        for (key, value) in &self.query_set {
            match pairs.iter_mut().find(|(known, _)| known == key) {
                Some((_, old)) => *old = Some(value.clone()),
                None => pairs.push((key.clone(), Some(value.clone()))),
            }
        }
        pairs.retain(|(key, _)| !self.query_remove.contains(key));
        let mut path = headers.path.path().to_owned();
        for (index, (key, value)) in pairs.iter().enumerate() {
            path.push(if index == 0 { '?' } else { '&' });
            path.push_str(key);
            if let Some(value) = value {
                path.push('=');
                path.push_str(value);
            }
        }
        // A path that cannot be is not put.
        let _ = headers.set_path(path);
    }

    /// Leaves what the service wants others to know.
    pub(super) fn leave_metadata(&self, is_wanted: bool, started: Instant, stream: &mut Stream) {
        let Some(mut metadata) = self.metadata.clone().filter(|_| is_wanted) else {
            return;
        };
        if !metadata.fields.is_empty() {
            let took = started.elapsed().as_secs_f64() * 1000.0;
            let took = Value::from(took.floor());
            metadata
                .fields
                .insert("ext_authz_duration".to_owned(), took);
        }
        stream.info.metadata.merge(NAME, metadata);
    }
}

impl ResponseChanges {
    /// Changes the response.
    pub(super) fn apply(&self, map: &mut HeaderMap) {
        for (action, name, value) in &self.0 {
            let (name, value) = (name.clone(), value.clone());
            match action {
                HeaderAppendAction::AppendIfExistsOrAdd => {
                    map.append(name, value);
                }
                HeaderAppendAction::AddIfAbsent => {
                    map.entry(name).or_insert(value);
                }
                HeaderAppendAction::OverwriteIfExistsOrAdd => {
                    map.insert(name, value);
                }
                HeaderAppendAction::OverwriteIfExists => {
                    if map.contains_key(&name) {
                        map.insert(name, value);
                    }
                }
            }
        }
    }
}
