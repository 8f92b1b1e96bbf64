//! Envoy's command operators (`%REQ(:PATH)%`, `%RESPONSE_CODE%`, …): parsed once, written without intermediate strings.
//! Access logs, header mutations, local replies and direct responses use them.

mod address;
mod attempted;
mod connection_field;
mod forwarded_certificate;
mod json_value;
mod metadata;
mod moment;
mod operator;
mod parse;
mod request;
mod state;
mod time_format;
mod tls_field;
mod traffic;

#[cfg(test)]
mod tests;

use http::HeaderMap;
use proto::envoy::data::accesslog::v3 as wire;

use crate::http::headers::{RequestHeaders, ResponseHeaders};
use crate::invalid::Invalid;
use crate::stream_info::StreamInfo;

use operator::Operator;

pub(crate) use json_value::{write_json_text, write_value};

pub(crate) use time_format::TimeFormat;

/// Text with operators in it.
#[derive(Debug, Clone)]
pub(crate) struct Format {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<str>),
    Operator(Operator, Option<usize>),
}

/// What operators may read.
#[derive(Clone, Copy)]
pub(crate) struct FormatContext<'a> {
    /// The stream.
    pub(crate) info: &'a StreamInfo,
    /// The request's head.
    pub(crate) request: Option<&'a RequestHeaders>,
    /// The response's head.
    pub(crate) response: Option<&'a ResponseHeaders>,
    /// The response's trailers.
    pub(crate) trailers: Option<&'a HeaderMap>,
    /// The body of a local reply.
    pub(crate) local_reply_body: &'a str,
    /// Why an access log is written, if one is.
    pub(crate) log_type: LogType,
}

/// Why an access log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogType {
    /// It is none, or that of a listener.
    NotSet,
    /// A TCP connection has come.
    TcpConnectionStart,
    /// It has its upstream.
    TcpUpstreamConnected,
    /// It goes on.
    TcpPeriodic,
    /// It is over.
    TcpConnectionEnd,
    /// An HTTP request has come.
    DownstreamStart,
    /// It goes on.
    DownstreamPeriodic,
    /// It has become a tunnel.
    DownstreamTunnelSuccessfullyEstablished,
    /// An HTTP stream is over.
    DownstreamEnd,
}

impl<'a> FormatContext<'a> {
    /// A stream of which no heads are known.
    pub(crate) fn of(info: &'a StreamInfo) -> Self {
        FormatContext {
            info,
            request: None,
            response: None,
            trailers: None,
            local_reply_body: "",
            log_type: LogType::NotSet,
        }
    }

    /// A stream whose request is on its way.
    pub(crate) fn of_request(info: &'a StreamInfo, request: &'a RequestHeaders) -> Self {
        FormatContext {
            request: Some(request),
            ..FormatContext::of(info)
        }
    }
}

impl LogType {
    /// Envoy's name.
    fn name(self) -> &'static str {
        match self {
            LogType::NotSet => "",
            LogType::DownstreamStart => "DownstreamStart",
            LogType::DownstreamPeriodic => "DownstreamPeriodic",
            LogType::DownstreamTunnelSuccessfullyEstablished => {
                "DownstreamTunnelSuccessfullyEstablished"
            }
            LogType::TcpConnectionStart => "TcpConnectionStart",
            LogType::TcpUpstreamConnected => "TcpUpstreamConnected",
            LogType::TcpPeriodic => "TcpPeriodic",
            LogType::TcpConnectionEnd => "TcpConnectionEnd",
            LogType::DownstreamEnd => "DownstreamEnd",
        }
    }
}

impl From<LogType> for wire::AccessLogType {
    fn from(log_type: LogType) -> Self {
        match log_type {
            LogType::NotSet => Self::NotSet,
            LogType::TcpConnectionStart => Self::TcpConnectionStart,
            LogType::TcpUpstreamConnected => Self::TcpUpstreamConnected,
            LogType::TcpPeriodic => Self::TcpPeriodic,
            LogType::TcpConnectionEnd => Self::TcpConnectionEnd,
            LogType::DownstreamStart => Self::DownstreamStart,
            LogType::DownstreamPeriodic => Self::DownstreamPeriodic,
            LogType::DownstreamTunnelSuccessfullyEstablished => {
                Self::DownstreamTunnelSuccessfullyEstablished
            }
            LogType::DownstreamEnd => Self::DownstreamEnd,
        }
    }
}

/// What a single operator yields, for typed JSON.
pub(crate) enum Kind {
    /// A string.
    Text,
    /// A number.
    Number,
    /// Already JSON.
    Json,
}

impl Format {
    /// Parses text with operators.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        parse::parse(text).map(|parts| Format { parts })
    }

    /// The text when there is no operator in it.
    pub(crate) fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The kind of the value when the format is exactly one operator.
    pub(crate) fn single(&self) -> Option<Kind> {
        match self.parts.as_slice() {
            [Part::Operator(operator, _)] => Some(operator.kind()),
            _ => None,
        }
    }

    /// Writes the text; an operator without a value writes `missing`. Returns whether any operator had a value (or there
    /// is none).
    pub(crate) fn write(
        &self,
        context: &FormatContext<'_>,
        missing: &str,
        out: &mut String,
    ) -> bool {
        let mut has_operator = false;
        let mut has_value = false;
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Operator(operator, limit) => {
                    has_operator = true;
                    let start = out.len();
                    if operator.write(context, out) {
                        has_value = true;
                        truncate(out, start, *limit);
                    } else {
                        out.truncate(start);
                        out.push_str(missing);
                    }
                }
            }
        }
        has_value || !has_operator
    }

    /// Writes the value of the one operator as JSON; false when it has none.
    pub(crate) fn write_json(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        match self.parts.as_slice() {
            [Part::Operator(operator, limit)] => operator.write_json(context, *limit, out),
            _ => false,
        }
    }

    /// The text as a string of its own.
    pub(crate) fn text(&self, context: &FormatContext<'_>, missing: &str) -> String {
        let mut out = String::new();
        self.write(context, missing, &mut out);
        out
    }
}

fn truncate(out: &mut String, start: usize, limit: Option<usize>) {
    if let Some(limit) = limit
        && out.len() - start > limit
    {
        let mut end = start + limit;
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
    }
}
