//! Short ways to write Envoy's messages.

use std::collections::BTreeMap;

use prost::{Message, Name};
use prost_types::{Any, Duration, Struct, Value, value::Kind};
use proto::envoy::config::core::v3::{
    self as core, Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
    TransportSocket, address, config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
    transport_socket,
};
use proto::envoy::config::listener::v3::{self as listener, filter, listener_filter};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use proto::envoy::r#type::matcher::v3::{
    self as matcher, StringMatcher, string_matcher::MatchPattern,
};
use proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

pub(super) fn any<T: Message + Name>(message: &T) -> Any {
    proto::any::pack(message)
}

pub(super) const fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

pub(super) const fn millis(millis: i64) -> Duration {
    #[allow(clippy::cast_possible_truncation, reason = "less than 10⁹")]
    Duration {
        seconds: millis / 1000,
        nanos: (millis % 1000 * 1_000_000) as i32,
    }
}

/// An IP and port, or a Unix socket when `host` starts with `unix://` or a slash.
pub(super) fn address(host: &str, port: u32) -> Address {
    let path = host.strip_prefix("unix://").unwrap_or(host);
    if path.starts_with('/') {
        return Address {
            address: Some(address::Address::Pipe(core::Pipe {
                path: path.to_owned(),
                mode: 0,
            })),
        };
    }
    Address {
        address: Some(address::Address::SocketAddress(socket(host, port))),
    }
}

pub(super) fn socket(host: &str, port: u32) -> SocketAddress {
    SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    }
}

pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        initial_fetch_timeout: Some(seconds(0)),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

pub(super) fn cidr(address: &str, prefix: u32) -> core::CidrRange {
    core::CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: Some(prefix),
    }
}

/// `10.0.0.0/8`, or a single address.
pub(super) fn parse_cidr(text: &str) -> Option<core::CidrRange> {
    if let Ok(net) = text.parse::<ipnet::IpNet>() {
        return Some(cidr(&net.addr().to_string(), u32::from(net.prefix_len())));
    }
    let ip: std::net::IpAddr = text.parse().ok()?;
    Some(cidr(&ip.to_string(), if ip.is_ipv4() { 32 } else { 128 }))
}

pub(super) fn network_filter<T: Message + Name>(name: &str, config: &T) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(any(config))),
    }
}

pub(super) fn http_filter<T: Message + Name>(name: &str, config: &T) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(config))),
        ..HttpFilter::default()
    }
}

pub(super) fn listener_filter<T: Message + Name>(
    name: &str,
    config: &T,
) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(config))),
        filter_disabled: None,
    }
}

pub(super) fn transport_socket<T: Message + Name>(name: &str, config: &T) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(config))),
    }
}

pub(super) fn string_value(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

pub(super) fn strings<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Struct {
    let fields: BTreeMap<String, Value> = fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), string_value(value)))
        .collect();
    Struct { fields }
}

pub(super) fn exact(text: &str) -> StringMatcher {
    pattern(MatchPattern::Exact(text.to_owned()))
}

pub(super) fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

pub(super) fn regex(text: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: text.to_owned(),
        engine_type: None,
    }
}

/// A percentage as Envoy's fraction, with Istio's resolution.
pub(super) fn fraction(percent: f64) -> FractionalPercent {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=1000000"
    )]
    let numerator = (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32;
    FractionalPercent {
        numerator,
        denominator: DenominatorType::Million as i32,
    }
}

/// Every request, one by one, in a fraction that can be read.
pub(super) fn whole_percent(percent: u32) -> FractionalPercent {
    FractionalPercent {
        numerator: percent,
        denominator: DenominatorType::Hundred as i32,
    }
}

pub(super) fn header_option(name: &str, value: &str, append: bool) -> core::HeaderValueOption {
    use core::header_value_option::HeaderAppendAction;
    let action = if append {
        HeaderAppendAction::AppendIfExistsOrAdd
    } else {
        HeaderAppendAction::OverwriteIfExistsOrAdd
    };
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..core::HeaderValue::default()
        }),
        append_action: action as i32,
        ..core::HeaderValueOption::default()
    }
}

/// Metadata under Istio's own key: which resource this comes from.
pub(super) fn origin(kind: &str, version: &str, namespace: &str, name: &str) -> core::Metadata {
    let path = format!("/apis/{version}/namespaces/{namespace}/{kind}/{name}");
    let filter_metadata =
        BTreeMap::from([("istio".to_owned(), strings([("config", path.as_str())]))]);
    core::Metadata {
        filter_metadata,
        ..core::Metadata::default()
    }
}
