//! What the connection manager does to a request's head before any filter sees it, and to a response's head last:
//! validation, path and host normalisation, client address, forwarding headers, request id.

mod client_cert;
mod date;
mod internal;
mod path;
mod request_id;

use std::net::{IpAddr, SocketAddr};

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use proto::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;

use crate::matcher::{FieldName, HeaderSource as _};
use crate::router::virtual_host::strip_port;
use crate::stream_info::{ResponseFlag, StreamInfo};

use super::config::{ClientDetection, ConnectionManager};
use super::headers::{RequestHeaders, ResponseHeaders, Scheme, names};
use super::local_reply::LocalReply;
use super::stream::DownstreamConnection;

/// Checks a request as it came from the codec; the error is the answer.
pub(crate) fn validate(
    connection: &DownstreamConnection,
    headers: &mut RequestHeaders,
    version: Version,
) -> Result<(), Box<LocalReply>> {
    let manager = &connection.manager;
    let server = &connection.worker.server;
    let refuse = |status: StatusCode, body: &'static str, details: &'static str| {
        Err(Box::new(LocalReply::new(status, body, details).closing()))
    };
    if version < Version::HTTP_11 {
        if !manager.accepts_http_10 {
            let reply = LocalReply::new(
                StatusCode::UPGRADE_REQUIRED,
                "Upgrade Required",
                "low_version",
            )
            .closing();
            return Err(Box::new(reply.flag(ResponseFlag::DownstreamProtocolError)));
        }
        if headers.authority.is_empty()
            && let Some(host) = &manager.default_host
        {
            headers.authority = host.clone();
        }
    }
    if headers.map.len() > manager.limits.headers_count {
        return refuse(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "",
            "too_many_headers",
        );
    }
    match manager.underscores {
        HeadersWithUnderscoresAction::Allow => {}
        HeadersWithUnderscoresAction::RejectRequest => {
            if refuses_names(manager, headers) {
                let stats = server.codecs.http1(&server.stats);
                stats.requests_rejected_with_underscores_in_headers.inc();
                return refuse(
                    StatusCode::BAD_REQUEST,
                    "Bad Request",
                    "http1.unexpected_underscore",
                );
            }
        }
        HeadersWithUnderscoresAction::DropHeader => {
            let dropped = drop_underscores(&mut headers.map);
            let is_http2 = version == Version::HTTP_2;
            server
                .codecs
                .count_dropped(&server.stats, is_http2, dropped);
        }
    }
    if headers.authority.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "", "missing_host_header");
    }
    if headers.method != Method::CONNECT && !headers.path.as_str().starts_with('/') {
        manager.stats.downstream_rq_non_relative_path.inc();
        return Err(Box::new(LocalReply::new(
            StatusCode::NOT_FOUND,
            "",
            "absolute_path_rejected",
        )));
    }
    Ok(())
}

/// Normalises path and host; the error is the answer.
pub(crate) fn normalize(
    manager: &ConnectionManager,
    headers: &mut RequestHeaders,
    info: &StreamInfo,
) -> Result<(), Box<LocalReply>> {
    let rules = &manager.paths;
    if headers.method != Method::CONNECT {
        match path::normalize(rules, headers.path.as_str()) {
            path::Normalized::Same => {}
            path::Normalized::Changed(path) if headers.set_path(&path).is_some() => {}
            path::Normalized::Redirect(path) => {
                manager
                    .stats
                    .downstream_rq_redirected_with_normalized_path
                    .inc();
                let location =
                    HeaderValue::from_str(&path).unwrap_or(HeaderValue::from_static("/"));
                return Err(Box::new(
                    LocalReply::new(
                        StatusCode::TEMPORARY_REDIRECT,
                        "",
                        "path_normalization_redirect",
                    )
                    .header(&header::LOCATION, location),
                ));
            }
            path::Normalized::Changed(_) | path::Normalized::Reject => {
                manager.stats.downstream_rq_failed_path_normalization.inc();
                return Err(Box::new(LocalReply::new(
                    StatusCode::BAD_REQUEST,
                    "",
                    "path_normalization_failed",
                )));
            }
        }
    }
    if rules.strips_any_port || rules.strips_matching_port || rules.strips_trailing_dot {
        let host = headers.host();
        let mut name = strip_port(host);
        let mut port = &host[name.len()..];
        let number = port
            .strip_prefix(':')
            .and_then(|port| port.parse::<u16>().ok());
        if rules.strips_any_port
            || rules.strips_matching_port && number == Some(info.connection.local_address.port())
        {
            port = "";
        }
        if rules.strips_trailing_dot {
            name = name.strip_suffix('.').unwrap_or(name);
        }
        if name.len() + port.len() < host.len() {
            let host = format!("{name}{port}");
            headers.set_host(host);
        }
    }
    Ok(())
}

/// Cleans and completes a request's headers: hop-by-hop headers go, forwarding headers are set.
pub(crate) fn mutate_request(
    manager: &ConnectionManager,
    headers: &mut RequestHeaders,
    info: &mut StreamInfo,
    internal_only: &[HeaderName],
) {
    remove_hop_by_hop(headers);
    let is_tls = info.connection.tls.is_some();
    let peer = info.connection.remote_address;
    let client = &manager.client;
    let (found, is_single) = find_client(client, headers, info);
    set_scheme(manager, headers, is_tls);
    info.is_internal = is_single
        && found.is_some_and(|address| {
            client
                .internal
                .iter()
                .any(|range| range.contains(address.ip()))
        });
    info.remote_address = found.unwrap_or(peer);
    let is_edge = client.uses_remote_address && !info.is_internal;
    if info.is_internal {
        headers.map.insert(
            names::X_ENVOY_INTERNAL.clone(),
            HeaderValue::from_static("true"),
        );
    } else {
        internal::clean(&mut headers.map, is_edge, internal_only);
    }
    if is_edge {
        let address = info.remote_address.ip().to_string();
        if let Ok(address) = HeaderValue::from_str(&address) {
            headers
                .map
                .insert(names::X_ENVOY_EXTERNAL_ADDRESS.clone(), address);
        }
    }
    if let Some(cluster) = &manager.user_agent {
        headers.map.insert(
            names::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER.clone(),
            cluster.clone(),
        );
        headers
            .map
            .entry(header::USER_AGENT)
            .or_insert_with(|| cluster.clone());
    }
    request_id::set(&manager.request_id, headers, is_edge);
    client_cert::set(&manager.client_cert, headers, &info.connection);
    if let Some(via) = &manager.via {
        append_via(&mut headers.map, via);
    }
}

/// The client's address and whether nobody else was named as one; says who we saw to those behind us.
fn find_client(
    client: &ClientDetection,
    headers: &mut RequestHeaders,
    info: &StreamInfo,
) -> (Option<SocketAddr>, bool) {
    let is_tls = info.connection.tls.is_some();
    let peer = info.connection.remote_address;
    if client.uses_remote_address {
        let is_single = !headers.map.contains_key(&names::X_FORWARDED_FOR);
        let trusted = (client.trusted_hops > 0)
            .then(|| last_forwarded(&headers.map, client.trusted_hops - 1))
            .flatten()
            .map(|(address, _)| SocketAddr::new(address, 0));
        if !client.skips_append {
            // A client on this machine is named by the machine's address.
            let ip = if peer.ip().is_loopback() {
                client.local_address.unwrap_or(peer.ip())
            } else {
                peer.ip()
            };
            append_forwarded_for(&mut headers.map, ip);
        }
        if client.trusted_hops == 0 || !headers.map.contains_key(&names::X_FORWARDED_PROTO) {
            set_forwarded_proto(&mut headers.map, is_tls);
        }
        if client.appends_port
            && (client.trusted_hops == 0 || !headers.map.contains_key(&names::X_FORWARDED_PORT))
        {
            let port = info.connection.local_address.port();
            headers
                .map
                .insert(names::X_FORWARDED_PORT.clone(), HeaderValue::from(port));
        }
        (Some(trusted.unwrap_or(peer)), is_single)
    } else {
        match last_forwarded(&headers.map, client.trusted_hops) {
            Some((address, is_single)) => (Some(SocketAddr::new(address, 0)), is_single),
            None => (None, false),
        }
    }
}

/// Completes a response's headers.
pub(crate) fn mutate_response(
    manager: &ConnectionManager,
    response: &mut ResponseHeaders,
    request: Option<&RequestHeaders>,
    info: &mut StreamInfo,
) {
    let map = &mut response.map;
    let is_upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS;
    remove_of_hop(map, OfHop::of(map), is_upgrade);
    if manager.request_id.in_response
        && let Some(id) = request.and_then(|request| request.map.get(&names::X_REQUEST_ID))
    {
        map.insert(names::X_REQUEST_ID.clone(), id.clone());
    }
    if let Some(via) = &manager.via {
        append_via(map, via);
    }
    map.entry(header::DATE)
        .or_insert_with(|| date::header(info.start_time));
    match manager.server_header {
        hcm::ServerHeaderTransformation::Overwrite => {
            map.insert(header::SERVER, manager.server_name.clone());
        }
        hcm::ServerHeaderTransformation::AppendIfAbsent => {
            map.entry(header::SERVER)
                .or_insert_with(|| manager.server_name.clone());
        }
        hcm::ServerHeaderTransformation::PassThrough => {}
    }
    info.response_code = Some(response.status.as_u16());
}

/// Names this proxy behind those that `via` names, in one line as Envoy does.
fn append_via(map: &mut HeaderMap, via: &HeaderValue) {
    let joined = map.field(&FieldName::Header(header::VIA)).map(|known| {
        let all = [known.as_ref(), b", ", via.as_bytes()].concat();
        HeaderValue::try_from(all)
    });
    let value = joined.and_then(Result::ok).unwrap_or_else(|| via.clone());
    map.insert(header::VIA, value);
}

/// The headers of one hop that are in a map: one look over the names is cheaper than a lookup of each, and most heads have none.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct OfHop {
    connection: bool,
    upgrade: bool,
    te: bool,
    others: bool,
}

impl OfHop {
    fn of(map: &HeaderMap) -> Self {
        let mut found = OfHop::default();
        for name in map.keys() {
            found.connection |= *name == header::CONNECTION;
            found.upgrade |= *name == header::UPGRADE;
            found.te |= *name == header::TE;
            found.others |= *name == header::TRANSFER_ENCODING
                || *name == names::KEEP_ALIVE
                || *name == names::PROXY_CONNECTION;
        }
        found
    }
}

fn remove_of_hop(map: &mut HeaderMap, found: OfHop, is_upgrade: bool) {
    if found.connection && !is_upgrade {
        map.remove(header::CONNECTION);
    }
    if found.upgrade && !is_upgrade {
        map.remove(header::UPGRADE);
    }
    if found.others {
        map.remove(header::TRANSFER_ENCODING);
        map.remove(&names::KEEP_ALIVE);
        map.remove(&names::PROXY_CONNECTION);
    }
}

fn remove_hop_by_hop(headers: &mut RequestHeaders) {
    let map = &mut headers.map;
    let found = OfHop::of(map);
    if found == OfHop::default() {
        return;
    }
    // Headers named by `connection` belong to that hop alone; `te` alone has a say of its own.
    let named: Vec<HeaderName> = map
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| !is_protected(name))
        .collect();
    for name in named {
        map.remove(name);
    }
    remove_of_hop(map, found, headers.upgrade.is_some());
    if let Some(te) = map.get(header::TE) {
        let takes_trailers = te
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        if takes_trailers {
            map.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            map.remove(header::TE);
        }
    }
}

/// Headers that a client may not have removed by naming them in `connection`.
fn is_protected(name: &HeaderName) -> bool {
    name == header::UPGRADE
        || name == header::TE
        || name == header::CONTENT_LENGTH
        || name == header::TRANSFER_ENCODING
        || name == header::COOKIE
        || name == header::AUTHORIZATION
        || name.as_str().starts_with("x-forwarded-")
        || name.as_str().starts_with("x-envoy-")
}

fn set_forwarded_proto(map: &mut HeaderMap, is_tls: bool) {
    let scheme = if is_tls { "https" } else { "http" };
    map.insert(
        names::X_FORWARDED_PROTO.clone(),
        HeaderValue::from_static(scheme),
    );
}

/// The scheme as it is configured, as who is before us says, or as the connection is; those behind us are told.
fn set_scheme(manager: &ConnectionManager, headers: &mut RequestHeaders, is_tls: bool) {
    let own = if is_tls { Scheme::Https } else { Scheme::Http };
    if let Some(scheme) = manager.scheme_override {
        let proto = HeaderValue::from_static(scheme.as_str());
        headers.map.insert(names::X_FORWARDED_PROTO.clone(), proto);
        headers.scheme = scheme;
        return;
    }
    headers.scheme = match headers.map.entry(&names::X_FORWARDED_PROTO) {
        Entry::Vacant(vacant) => {
            vacant.insert(HeaderValue::from_static(own.as_str()));
            own
        }
        Entry::Occupied(said) => match said.get().as_bytes() {
            proto if proto.eq_ignore_ascii_case(b"https") => Scheme::Https,
            proto if proto.eq_ignore_ascii_case(b"http") => Scheme::Http,
            _ => own,
        },
    };
}

/// The entry of `x-forwarded-for` that is `skip` before the last, and whether it is the only one.
fn last_forwarded(map: &HeaderMap, skip: usize) -> Option<(IpAddr, bool)> {
    let values: Vec<&str> = map
        .get_all(&names::X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let entry = values.iter().rev().nth(skip)?;
    let address = entry
        .parse()
        .ok()
        .or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()))?;
    Some((address, values.len() == 1))
}

/// Appends an address to `x-forwarded-for`, which becomes one line.
pub(crate) fn append_forwarded_for(map: &mut HeaderMap, address: IpAddr) {
    let mut text = String::with_capacity(48);
    for value in map.get_all(&names::X_FORWARDED_FOR) {
        if let Ok(value) = value.to_str() {
            text.push_str(value);
            text.push(',');
        }
    }
    // Writing to a string cannot fail.
    let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{}", address.to_canonical()));
    if let Ok(value) = HeaderValue::try_from(text) {
        map.insert(names::X_FORWARDED_FOR.clone(), value);
    }
}

/// Whether names of fields are such that the request is refused.
pub(crate) fn refuses_names(manager: &ConnectionManager, headers: &RequestHeaders) -> bool {
    let is_asked = manager.underscores == HeadersWithUnderscoresAction::RejectRequest;
    is_asked && (headers.map.keys()).any(|name| name.as_str().contains('_'))
}

/// How many there were.
fn drop_underscores(map: &mut HeaderMap) -> u64 {
    let names: Vec<HeaderName> = map
        .keys()
        .filter(|name| name.as_str().contains('_'))
        .cloned()
        .collect();
    let before = map.len();
    for name in names {
        map.remove(name);
    }
    (before - map.len()) as u64
}
