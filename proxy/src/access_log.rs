//! Access logs: what is written (`format`, `json`), when (`filter`) and where (`sink`, `grpc`, `open_telemetry`).
//!
//! A line is made on the worker's thread and handed to the sink's buffer; one background thread a file writes it out, so
//! that a slow disk never slows a request. When the buffer is full, lines are dropped and counted.

mod expression;
pub(crate) mod filter;
pub(crate) mod format;
mod grpc;
mod json;
mod open_telemetry;
mod sink;

use std::cell::RefCell;
use std::sync::Arc;

use prost_types::Any;
use proto::envoy::config::accesslog::v3 as wire;
use proto::envoy::config::core::v3 as core;
use proto::envoy::extensions::access_loggers::file::v3 as file;
use proto::envoy::extensions::access_loggers::stream::v3 as stream;

use crate::invalid::{At as _, Invalid, try_all};
use crate::server::ServerContext;

use filter::LogFilter;
use grpc::GrpcLog;
use json::JsonFormat;
use open_telemetry::OpenTelemetryLog;

pub(crate) use format::{Format, FormatContext, LogType, write_json_text};
pub(crate) use sink::{Sink, Sinks};

/// Envoy's default line.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// The access logs of one configuration.
#[derive(Debug, Default)]
pub(crate) struct AccessLogs(Vec<AccessLog>);

#[derive(Debug)]
struct AccessLog {
    filter: Option<LogFilter>,
    logger: Logger,
}

/// Where an entry goes, and what it looks like.
#[derive(Debug)]
enum Logger {
    Line(LineFormat, Arc<Sink>),
    Grpc(Box<GrpcLog>),
    OpenTelemetry(Box<OpenTelemetryLog>),
}

/// A text or JSON format, with how to write what is missing.
#[derive(Debug, Clone)]
pub(crate) enum LineFormat {
    /// Text; the flag is `omit_empty_values`.
    Text(Format, bool),
    /// One JSON object.
    Json(JsonFormat),
}

thread_local! {
    /// The line being made; kept so that its memory is.
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
}

impl AccessLogs {
    /// Checks the configuration and opens the files.
    pub(crate) fn try_new(
        logs: &[wire::AccessLog],
        server: &Arc<ServerContext>,
    ) -> Result<Self, Invalid> {
        try_all("access_log", logs, |log| AccessLog::try_new(log, server)).map(AccessLogs)
    }

    /// Writes the line of a stream that is over to every log whose filter lets it through.
    pub(crate) fn log(&self, context: &FormatContext<'_>) {
        for log in &self.0 {
            if log
                .filter
                .as_ref()
                .is_none_or(|filter| filter.matches(context))
            {
                log.logger.log(context);
            }
        }
    }

    /// True when there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl AccessLog {
    fn try_new(log: &wire::AccessLog, server: &Arc<ServerContext>) -> Result<Self, Invalid> {
        let filter = log
            .filter
            .as_ref()
            .map(LogFilter::try_from)
            .transpose()
            .at("filter")?;
        let Some(wire::access_log::ConfigType::TypedConfig(any)) = &log.config_type else {
            return Err(Invalid::new("typed_config is needed"));
        };
        Ok(AccessLog {
            filter,
            logger: Logger::try_new(any, server)?,
        })
    }
}

impl Logger {
    fn try_new(any: &Any, server: &Arc<ServerContext>) -> Result<Self, Invalid> {
        let sinks = &server.sinks;
        Ok(match proto::type_url::message_name(&any.type_url) {
            "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                let config: file::FileAccessLog = proto::any::unpack(any)?;
                let line = file_format(config.access_log_format.as_ref())?;
                Logger::Line(line, sinks.file(&config.path).at("path")?)
            }
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
                let config: stream::StdoutAccessLog = proto::any::unpack(any)?;
                let format = config.access_log_format.map(|format| match format {
                    stream::stdout_access_log::AccessLogFormat::LogFormat(format) => format,
                });
                let line = stream_format(format.as_ref())?;
                Logger::Line(line, sinks.file("/dev/stdout").at("stdout")?)
            }
            "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
                let config: stream::StderrAccessLog = proto::any::unpack(any)?;
                let format = config.access_log_format.map(|format| match format {
                    stream::stderr_access_log::AccessLogFormat::LogFormat(format) => format,
                });
                let line = stream_format(format.as_ref())?;
                Logger::Line(line, sinks.file("/dev/stderr").at("stderr")?)
            }
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
                let config = proto::any::unpack(any)?;
                Logger::Grpc(Box::new(GrpcLog::http(&config, server)?))
            }
            "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
                let config = proto::any::unpack(any)?;
                Logger::Grpc(Box::new(GrpcLog::tcp(&config, server)?))
            }
            "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
                let config = proto::any::unpack(any)?;
                Logger::OpenTelemetry(Box::new(OpenTelemetryLog::try_new(&config, server)?))
            }
            other => return Err(Invalid::unsupported(&format!("access logger {other}"))),
        })
    }

    fn log(&self, context: &FormatContext<'_>) {
        match self {
            Logger::Line(format, sink) => LINE.with_borrow_mut(|line| {
                line.clear();
                format.write(context, line);
                sink.write(line.as_bytes());
            }),
            Logger::Grpc(log) => log.log(context),
            Logger::OpenTelemetry(log) => log.log(context),
        }
    }
}

impl LineFormat {
    /// Checks a `SubstitutionFormatString`.
    pub(crate) fn try_new(format: &core::SubstitutionFormatString) -> Result<Self, Invalid> {
        use core::substitution_format_string::Format as Wire;
        match &format.format {
            #[allow(deprecated, reason = "control planes still send text_format")]
            Some(Wire::TextFormat(text)) => Ok(LineFormat::Text(
                Format::parse(text).at("text_format")?,
                format.omit_empty_values,
            )),
            Some(Wire::TextFormatSource(source)) => {
                let text =
                    crate::http::local_reply::data_source(source).at("text_format_source")?;
                let text = String::from_utf8(text.to_vec())
                    .map_err(|_| Invalid::new("the format is not UTF-8"))?;
                Ok(LineFormat::Text(
                    Format::parse(&text)?,
                    format.omit_empty_values,
                ))
            }
            Some(Wire::JsonFormat(fields)) => {
                JsonFormat::try_new(fields, format.omit_empty_values, true)
                    .map(LineFormat::Json)
                    .at("json_format")
            }
            None => Err(Invalid::new("a format is needed")),
        }
    }

    /// Appends the line.
    pub(crate) fn write(&self, context: &FormatContext<'_>, out: &mut String) {
        match self {
            LineFormat::Text(format, omit_empty) => {
                format.write(context, if *omit_empty { "" } else { "-" }, out);
            }
            LineFormat::Json(format) => {
                format.write(context, out);
                out.push('\n');
            }
        }
    }

    /// True for JSON, whose content type differs.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self, LineFormat::Json(_))
    }
}

fn stream_format(format: Option<&core::SubstitutionFormatString>) -> Result<LineFormat, Invalid> {
    format.map_or_else(default_format, |format| {
        LineFormat::try_new(format).at("log_format")
    })
}

#[allow(
    deprecated,
    reason = "older control planes send the file logger's own format fields"
)]
fn file_format(
    format: Option<&file::file_access_log::AccessLogFormat>,
) -> Result<LineFormat, Invalid> {
    use file::file_access_log::AccessLogFormat as Wire;
    match format {
        None => default_format(),
        Some(Wire::Format(text)) if text.is_empty() => default_format(),
        Some(Wire::Format(text)) => Ok(LineFormat::Text(Format::parse(text).at("format")?, false)),
        Some(Wire::JsonFormat(fields)) => JsonFormat::try_new(fields, false, false)
            .map(LineFormat::Json)
            .at("json_format"),
        Some(Wire::TypedJsonFormat(fields)) => JsonFormat::try_new(fields, false, true)
            .map(LineFormat::Json)
            .at("typed_json_format"),
        Some(Wire::LogFormat(format)) => LineFormat::try_new(format).at("log_format"),
    }
}

fn default_format() -> Result<LineFormat, Invalid> {
    Format::parse(DEFAULT_FORMAT).map(|format| LineFormat::Text(format, false))
}
