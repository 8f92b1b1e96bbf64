//! Replies that the proxy makes itself: Envoy's statuses and bodies, turned into gRPC statuses for gRPC requests and through
//! the connection manager's `local_reply_config`.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;

use crate::access_log::filter::LogFilter;
use crate::access_log::{FormatContext, LineFormat};
use crate::invalid::{At as _, Invalid, try_all};
use crate::router::HeaderMutations;
use crate::stream_info::{ResponseFlag, Rpc, StreamInfo};

use super::headers::{RequestHeaders, ResponseHeaders, names, number};

/// A reply that is not from upstream.
#[derive(Debug, Clone)]
pub(crate) struct LocalReply {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body; empty for none.
    pub(crate) body: Bytes,
    /// Why, for the access log.
    pub(crate) details: Cow<'static, str>,
    /// The flag to set, if any.
    pub(crate) flag: Option<ResponseFlag>,
    /// A gRPC status other than the one that the HTTP status stands for.
    pub(crate) grpc_status: Option<u32>,
    /// More headers.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Close the connection after it.
    pub(crate) closes: bool,
    /// It is what it is, for a gRPC client too.
    pub(crate) is_plain: bool,
    /// It is the route's own answer: the route's header changes apply.
    pub(crate) is_of_route: bool,
}

/// `local_reply_config`, checked.
#[derive(Debug, Default)]
pub(crate) struct LocalReplyConfig {
    mappers: Vec<Mapper>,
    format: Option<(LineFormat, HeaderValue)>,
}

#[derive(Debug)]
struct Mapper {
    filter: LogFilter,
    status: Option<StatusCode>,
    body: Option<Bytes>,
    format: Option<(LineFormat, HeaderValue)>,
    headers: HeaderMutations,
}

impl LocalReply {
    /// A reply with a status, a body and the details.
    pub(crate) fn new(
        status: StatusCode,
        body: impl Into<Bytes>,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        LocalReply {
            status,
            body: body.into(),
            details: details.into(),
            flag: None,
            grpc_status: None,
            headers: Vec::new(),
            closes: false,
            is_plain: false,
            is_of_route: false,
        }
    }

    /// The reply to a stream that took too long as a whole.
    pub(crate) fn duration_timeout(status: StatusCode) -> Self {
        LocalReply {
            grpc_status: Some(tonic::Code::DeadlineExceeded as u32),
            ..LocalReply::new(
                status,
                "downstream duration timeout",
                "max_duration_timeout",
            )
        }
    }

    /// The same with a response flag.
    #[must_use]
    pub(crate) fn flag(mut self, flag: ResponseFlag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// The same with a header.
    #[must_use]
    pub(crate) fn header(mut self, name: &HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name.clone(), value));
        self
    }

    /// Adds headers; several of one name stay several.
    pub(crate) fn append_headers(&mut self, more: &HeaderMap) {
        self.headers.extend(
            more.iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
    }

    /// The same, but the downstream connection is closed after it.
    #[must_use]
    pub(crate) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// The same as the route's own answer.
    #[must_use]
    pub(crate) fn of_route(mut self) -> Self {
        self.is_of_route = true;
        self
    }

    /// The response's head without what follows from the body.
    pub(crate) fn head(&self) -> ResponseHeaders {
        let mut map = HeaderMap::with_capacity(4 + self.headers.len());
        for (name, value) in &self.headers {
            map.append(name.clone(), value.clone());
        }
        ResponseHeaders {
            status: self.status,
            map,
        }
    }

    /// Completes the response's head for a request, and makes its body.
    pub(crate) fn build(
        self,
        mut head: ResponseHeaders,
        info: &mut StreamInfo,
        request: Option<&RequestHeaders>,
        config: &LocalReplyConfig,
    ) -> (ResponseHeaders, Bytes) {
        info.response_code = Some(self.status.as_u16());
        let (body, content_type) = config.rewrite(info, request, self.body, &mut head);
        match info.rpc {
            _ if self.is_plain => {}
            Rpc::Grpc => return (grpc_reply(self.grpc_status, &body, head), Bytes::new()),
            Rpc::Web if !body.is_empty() => {
                return (web_reply(self.grpc_status, &body, head), Bytes::new());
            }
            Rpc::Web | Rpc::None => {}
        }
        if !body.is_empty() {
            head.map.insert(CONTENT_LENGTH, number(body.len() as u64));
            head.map.entry(CONTENT_TYPE).or_insert(content_type);
        }
        let body = match request {
            Some(request) if request.method == Method::HEAD => Bytes::new(),
            _ => body,
        };
        (head, body)
    }
}

impl LocalReplyConfig {
    /// Checks the configuration.
    pub(crate) fn try_new(config: &wire::LocalReplyConfig) -> Result<Self, Invalid> {
        Ok(LocalReplyConfig {
            mappers: try_all("mappers", &config.mappers, Mapper::try_new)?,
            format: config
                .body_format
                .as_ref()
                .map(body_format)
                .transpose()
                .at("body_format")?,
        })
    }

    fn rewrite(
        &self,
        info: &mut StreamInfo,
        request: Option<&RequestHeaders>,
        mut body: Bytes,
        head: &mut ResponseHeaders,
    ) -> (Bytes, HeaderValue) {
        let mut format = self.format.as_ref();
        let mapper = {
            let context = reply_context(info, request, "");
            let mut mappers = self.mappers.iter();
            mappers.find(|mapper| mapper.filter.matches(&context))
        };
        if let Some(mapper) = mapper {
            head.status = mapper.status.unwrap_or(head.status);
            info.response_code = Some(head.status.as_u16());
            body = mapper.body.clone().unwrap_or(body);
            format = mapper.format.as_ref().or(format);
            mapper.headers.apply_to_response(head, request, info);
        }
        let Some((format, content_type)) = format else {
            return (body, HeaderValue::from_static("text/plain"));
        };
        let text = String::from_utf8_lossy(&body).into_owned();
        let mut out = String::new();
        format.write(&reply_context(info, request, &text), &mut out);
        (Bytes::from(out), content_type.clone())
    }
}

fn reply_context<'a>(
    info: &'a StreamInfo,
    request: Option<&'a RequestHeaders>,
    local_reply_body: &'a str,
) -> FormatContext<'a> {
    FormatContext {
        request,
        local_reply_body,
        ..FormatContext::of(info)
    }
}

impl Mapper {
    fn try_new(mapper: &wire::ResponseMapper) -> Result<Self, Invalid> {
        let filter = mapper
            .filter
            .as_ref()
            .ok_or_else(|| Invalid::new("a mapper needs a filter"))?;
        let status = mapper
            .status_code
            .map(|code| status_code(code).at("status_code"))
            .transpose()?;
        Ok(Mapper {
            filter: LogFilter::try_from(filter).at("filter")?,
            status,
            body: mapper
                .body
                .as_ref()
                .map(data_source)
                .transpose()
                .at("body")?,
            format: mapper
                .body_format_override
                .as_ref()
                .map(body_format)
                .transpose()
                .at("body_format_override")?,
            headers: HeaderMutations::try_new(&mapper.headers_to_add, &[]).at("headers_to_add")?,
        })
    }
}

/// A number as a status that Envoy would send.
pub(crate) fn status_code(code: u32) -> Result<StatusCode, Invalid> {
    u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| Invalid::new(format!("status {code} is not in 200..=599")))
}

/// Reads a data source: inline, from a file or from the environment.
pub(crate) fn data_source(source: &core::DataSource) -> Result<Bytes, Invalid> {
    use core::data_source::Specifier;
    Ok(match &source.specifier {
        None => Bytes::new(),
        Some(Specifier::InlineBytes(bytes)) => Bytes::copy_from_slice(bytes),
        Some(Specifier::InlineString(text)) => Bytes::copy_from_slice(text.as_bytes()),
        Some(Specifier::Filename(path)) => std::fs::read(path)
            .map_err(|error| Invalid::new(format!("cannot read {path}: {error}")))?
            .into(),
        Some(Specifier::EnvironmentVariable(name)) => {
            let value = std::env::var_os(name)
                .ok_or_else(|| Invalid::new(format!("environment variable {name} is not set")))?;
            value.into_encoded_bytes().into()
        }
    })
}

/// The gRPC status that an HTTP status stands for.
pub(crate) fn grpc_status_of(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// A body format with its content type.
pub(crate) fn body_format(
    format: &core::SubstitutionFormatString,
) -> Result<(LineFormat, HeaderValue), Invalid> {
    let line = LineFormat::try_new(format)?;
    let content_type = match format.content_type.as_str() {
        "" if line.is_json() => HeaderValue::from_static("application/json"),
        "" => HeaderValue::from_static("text/plain"),
        text => HeaderValue::from_str(text)
            .map_err(|_| Invalid::new("content_type is not a header value"))?,
    };
    Ok((line, content_type))
}

/// As the gRPC-web filter makes it of an answer that is none of gRPC's.
fn web_reply(grpc_status: Option<u32>, body: &[u8], head: ResponseHeaders) -> ResponseHeaders {
    let status = head.status;
    let mut head = grpc_reply(grpc_status, body, head);
    let kind = HeaderValue::from_static("application/grpc-web+proto");
    head.map.insert(CONTENT_TYPE, kind);
    head.map.insert(CONTENT_LENGTH, number(0));
    ResponseHeaders { status, ..head }
}

fn grpc_reply(grpc_status: Option<u32>, body: &[u8], head: ResponseHeaders) -> ResponseHeaders {
    let code = grpc_status.unwrap_or_else(|| grpc_status_of(head.status.as_u16()));
    let mut map = head.map;
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    map.insert(names::GRPC_STATUS.clone(), HeaderValue::from(code));
    // The end of a formatted body's line is not part of the message.
    let body = body.trim_ascii_end();
    if !body.is_empty()
        && let Ok(message) = HeaderValue::from_str(&percent_encode(body))
    {
        map.insert(names::GRPC_MESSAGE.clone(), message);
    }
    ResponseHeaders {
        status: StatusCode::OK,
        map,
    }
}

/// gRPC's message encoding: what is not printable ASCII, and `%`, as `%XX`.
fn percent_encode(body: &[u8]) -> String {
    let mut out = String::with_capacity(body.len());
    for byte in body {
        match byte {
            b' '..=b'~' if *byte != b'%' => out.push(char::from(*byte)),
            other => {
                out.push('%');
                for digit in [other >> 4, other & 15] {
                    out.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
                }
            }
        }
    }
    out
}
