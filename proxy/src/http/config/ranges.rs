//! What a connection manager's configuration may hold at most and at least, as Envoy validates it.

use proto::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions,
    http1_protocol_options::header_key_format::HeaderFormat,
};
use proto::envoy::extensions::filters::network::http_connection_manager::v3 as wire;

use crate::invalid::Invalid;

/// Smallest and largest flow-control window.
const WINDOW: std::ops::RangeInclusive<u32> = 65_535..=0x7fff_ffff;
/// Largest size of request headers, in KiB.
const MAX_HEADERS_KB: u32 = 8192;

/// Refuses what is out of range or contradicts itself.
pub(super) fn check(config: &wire::HttpConnectionManager) -> Result<(), Invalid> {
    let refuse = |is_wrong: bool, text: &str, field: &'static str| match is_wrong {
        true => Err(Invalid::new(text.to_owned()).at(field)),
        false => Ok(()),
    };
    refuse(config.stat_prefix.is_empty(), "is needed", "stat_prefix")?;
    let kilobytes = config.max_request_headers_kb;
    refuse(
        kilobytes.is_some_and(|size| size == 0 || size > MAX_HEADERS_KB),
        "must be between 1 and 8192",
        "max_request_headers_kb",
    )?;
    let common = config.common_http_protocol_options.as_ref();
    refuse(
        common.and_then(|common| common.max_headers_count) == Some(0),
        "must be at least 1",
        "common_http_protocol_options.max_headers_count",
    )?;
    refuse(
        config.strip_matching_host_port && config.strip_port_mode.is_some(),
        "strip_matching_host_port and strip_any_host_port exclude each other",
        "strip_port_mode",
    )?;
    let mut seen = Vec::new();
    for upgrade in &config.upgrade_configs {
        let name = upgrade.upgrade_type.to_ascii_lowercase();
        refuse(
            seen.contains(&name),
            "an upgrade type may be there once",
            "upgrade_configs",
        )?;
        seen.push(name);
    }
    if let Some(options) = &config.http_protocol_options {
        http1(options).map_err(|error| error.at("http_protocol_options"))?;
    }
    match &config.http2_protocol_options {
        Some(options) => windows(options).map_err(|error| error.at("http2_protocol_options")),
        None => Ok(()),
    }
}

/// Refuses what the HTTP/1 codec does not do.
pub(crate) fn http1(options: &Http1ProtocolOptions) -> Result<(), Invalid> {
    let format = options.header_key_format.as_ref();
    match format.and_then(|format| format.header_format.as_ref()) {
        Some(HeaderFormat::StatefulFormatter(formatter)) => {
            let text = format!("formatter '{}'", formatter.name);
            Err(Invalid::unsupported(&text).at("header_key_format"))
        }
        Some(HeaderFormat::ProperCaseWords(_)) | None => Ok(()),
    }
}

/// Whether header names are written in proper case, as `http1` has let it pass.
pub(crate) fn has_proper_case(options: &Http1ProtocolOptions) -> bool {
    options.header_key_format.is_some()
}

/// Refuses windows that HTTP/2 does not have.
pub(crate) fn windows(options: &Http2ProtocolOptions) -> Result<(), Invalid> {
    for (field, window) in [
        (
            "initial_stream_window_size",
            options.initial_stream_window_size,
        ),
        (
            "initial_connection_window_size",
            options.initial_connection_window_size,
        ),
    ] {
        if window.is_some_and(|size| !WINDOW.contains(&size)) {
            return Err(Invalid::new("must be between 65535 and 2147483647".to_owned()).at(field));
        }
    }
    Ok(())
}
