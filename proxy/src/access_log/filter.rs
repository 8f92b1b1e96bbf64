//! Which streams are logged.

use proto::envoy::config::accesslog::v3 as wire;
use proto::envoy::data::accesslog::v3::AccessLogType;
use proto::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use wire::access_log_filter::FilterSpecifier;
use wire::comparison_filter::Op;
use wire::extension_filter::ConfigType;

use crate::http::headers::names;
use crate::invalid::{At as _, Invalid, try_all};
use crate::matcher::{Fraction, HeaderMatcher, MetadataMatcher};
use crate::runtime::{RuntimeFraction, RuntimeNumber};
use crate::stream_info::ResponseFlag;

use super::FormatContext;
use super::expression::Expression;

/// A condition on a finished stream.
#[derive(Debug, Clone)]
pub(crate) enum LogFilter {
    /// On the status.
    StatusCode(Comparison),
    /// On the duration in milliseconds.
    Duration(Comparison),
    /// Not a health check.
    NotHealthCheck,
    /// Traced.
    Traceable,
    /// A share.
    Sample(RuntimeFraction),
    /// All of them.
    And(Vec<LogFilter>),
    /// Any of them.
    Or(Vec<LogFilter>),
    /// On a request header.
    Header(HeaderMatcher),
    /// Any flag, or one of these.
    Flags(Vec<ResponseFlag>),
    /// One of these gRPC statuses; the flag turns it round.
    GrpcStatus(Vec<u32>, bool),
    /// On dynamic metadata; the flag is the answer when the key is missing.
    Metadata(Option<MetadataMatcher>, bool),
    /// On attributes.
    Expression(Expression),
    /// On why it is written, for one of these reasons; the flag turns it round.
    LogType(Vec<AccessLogType>, bool),
}

/// A comparison with a number.
#[derive(Debug, Clone)]
pub(crate) struct Comparison {
    op: Op,
    value: RuntimeNumber,
}

impl TryFrom<&wire::AccessLogFilter> for LogFilter {
    type Error = Invalid;

    fn try_from(filter: &wire::AccessLogFilter) -> Result<Self, Invalid> {
        let specifier = filter
            .filter_specifier
            .as_ref()
            .ok_or_else(|| Invalid::new("an access log filter needs a specifier"))?;
        Ok(match specifier {
            FilterSpecifier::StatusCodeFilter(filter) => LogFilter::StatusCode(
                Comparison::try_from(filter.comparison.as_ref()).at("status_code_filter")?,
            ),
            FilterSpecifier::DurationFilter(filter) => LogFilter::Duration(
                Comparison::try_from(filter.comparison.as_ref()).at("duration_filter")?,
            ),
            FilterSpecifier::NotHealthCheckFilter(_) => LogFilter::NotHealthCheck,
            FilterSpecifier::RuntimeFilter(filter) => {
                let share = filter.percent_sampled.as_ref();
                let share = share.map_or(Fraction::NEVER, Fraction::from);
                LogFilter::Sample(RuntimeFraction::new(&filter.runtime_key, share))
            }
            FilterSpecifier::AndFilter(filter) => LogFilter::And(try_all(
                "and_filter.filters",
                &filter.filters,
                LogFilter::try_from,
            )?),
            FilterSpecifier::OrFilter(filter) => LogFilter::Or(try_all(
                "or_filter.filters",
                &filter.filters,
                LogFilter::try_from,
            )?),
            FilterSpecifier::HeaderFilter(filter) => {
                let header = filter
                    .header
                    .as_ref()
                    .ok_or_else(|| Invalid::new("header_filter needs a header"))?;
                LogFilter::Header(HeaderMatcher::try_from(header).at("header_filter.header")?)
            }
            FilterSpecifier::ResponseFlagFilter(filter) => LogFilter::Flags(try_all(
                "response_flag_filter.flags",
                &filter.flags,
                |flag| {
                    ResponseFlag::parse(flag)
                        .ok_or_else(|| Invalid::new(format!("unknown response flag '{flag}'")))
                },
            )?),
            FilterSpecifier::GrpcStatusFilter(filter) => LogFilter::GrpcStatus(
                filter
                    .statuses
                    .iter()
                    .filter_map(|status| u32::try_from(*status).ok())
                    .collect(),
                filter.exclude,
            ),
            FilterSpecifier::MetadataFilter(filter) => LogFilter::Metadata(
                filter
                    .matcher
                    .as_ref()
                    .map(MetadataMatcher::try_from)
                    .transpose()
                    .at("metadata_filter.matcher")?,
                filter.match_if_key_not_found.unwrap_or(true),
            ),
            FilterSpecifier::LogTypeFilter(filter) => {
                LogFilter::LogType(filter.types().collect(), filter.exclude)
            }
            FilterSpecifier::TraceableFilter(_) => LogFilter::Traceable,
            FilterSpecifier::ExtensionFilter(filter) => {
                LogFilter::Expression(expression(filter).at("extension_filter")?)
            }
        })
    }
}

/// The only extension there is: a condition in CEL.
fn expression(filter: &wire::ExtensionFilter) -> Result<Expression, Invalid> {
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(Invalid::new("a configuration is needed"));
    };
    if !proto::any::is::<ExpressionFilter>(any) {
        return Err(Invalid::unsupported(&format!(
            "access log filter extension '{}'",
            filter.name
        )));
    }
    let config: ExpressionFilter = proto::any::unpack(any)?;
    Expression::parse(&config.expression).at("expression")
}

impl Comparison {
    fn try_from(filter: Option<&wire::ComparisonFilter>) -> Result<Self, Invalid> {
        let filter = filter.ok_or_else(|| Invalid::new("a comparison is needed"))?;
        Ok(Comparison {
            op: filter.op(),
            value: filter
                .value
                .as_ref()
                .map_or(RuntimeNumber::fixed(0), RuntimeNumber::from),
        })
    }

    fn holds(&self, value: u64) -> bool {
        let bound = self.value.now();
        match self.op {
            Op::Eq => value == bound,
            Op::Ge => value >= bound,
            Op::Le => value <= bound,
            Op::Ne => value != bound,
        }
    }
}

impl LogFilter {
    /// True when the stream is to be logged.
    pub(crate) fn matches(&self, context: &FormatContext<'_>) -> bool {
        let info = context.info;
        match self {
            LogFilter::StatusCode(comparison) => {
                comparison.holds(u64::from(info.response_code.unwrap_or(0)))
            }
            LogFilter::Duration(comparison) => {
                comparison.holds(u64::try_from(info.duration().as_millis()).unwrap_or(u64::MAX))
            }
            LogFilter::NotHealthCheck => !info.is_health_check,
            LogFilter::Traceable => info.trace_reason.is_traced(),
            LogFilter::Sample(fraction) => fraction.draw(),
            LogFilter::And(filters) => filters.iter().all(|filter| filter.matches(context)),
            LogFilter::Or(filters) => filters.iter().any(|filter| filter.matches(context)),
            LogFilter::Header(header) => context
                .request
                .is_some_and(|request| header.matches(request)),
            LogFilter::Flags(flags) if flags.is_empty() => !info.flags.is_empty(),
            LogFilter::Flags(flags) => flags.iter().any(|flag| info.flags.contains(*flag)),
            LogFilter::GrpcStatus(statuses, exclude) => {
                statuses.contains(&grpc_status(context)) != *exclude
            }
            LogFilter::Metadata(matcher, if_missing) => match matcher {
                None => true,
                Some(matcher) => match info.metadata.get(matcher.filter()) {
                    None => *if_missing,
                    some => matcher.matches(some),
                },
            },
            LogFilter::Expression(expression) => expression.holds(context),
            LogFilter::LogType(types, is_excluded) => {
                types.contains(&context.log_type.into()) != *is_excluded
            }
        }
    }
}

/// The gRPC status, or the one that the HTTP status stands for.
fn grpc_status(context: &FormatContext<'_>) -> u32 {
    let sent = context
        .trailers
        .and_then(|map| map.get(&names::GRPC_STATUS))
        .or_else(|| {
            context
                .response
                .and_then(|head| head.map.get(&names::GRPC_STATUS))
        })
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok());
    sent.unwrap_or_else(|| {
        crate::http::local_reply::grpc_status_of(context.info.response_code.unwrap_or(0))
    })
}
