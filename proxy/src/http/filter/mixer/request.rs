//! The attributes of a request at the time of the check.

use std::net::IpAddr;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp};
use proto::envoy::config::core::v3::Node;
use proto::istio::mixer::v1 as mixer;
use proto_mesh::attribute::{Attributes, Value};

use crate::http::headers::RequestHeaders;
use crate::http::stream::Stream;
use crate::listener::ConnectionInfo;

/// What another proxy may tell about itself and about where the request goes.
const FORWARDABLE: [&str; 6] = [
    "source.uid",
    "source.namespace",
    "destination.service.name",
    "destination.service.uid",
    "destination.service.host",
    "destination.service.namespace",
];
/// Where the authentication filter leaves what it has found.
const AUTHENTICATION: &str = "istio_authn";
/// What it leaves as text.
const AUTHENTICATED: [&str; 6] = [
    "request.auth.principal",
    "request.auth.presenter",
    "request.auth.raw_claims",
    "request.auth.audiences",
    "source.principal",
    "source.user",
];

/// Everything known of the request; what comes later overwrites: configuration, request, authentication, forwarded.
pub(super) fn attributes(
    headers: &RequestHeaders,
    stream: &Stream,
    layers: [&Attributes; 2],
    own: &Attributes,
    forwarded: Option<&HeaderValue>,
) -> Attributes {
    let mut attributes = own.clone();
    for layer in layers {
        attributes.merge(layer);
    }
    add_head(&mut attributes, headers);
    attributes.set(
        "request.time",
        Value::Timestamp(Timestamp::from(SystemTime::now())),
    );
    add_connection(&mut attributes, &stream.info.connection);
    let remote = stream.info.remote_address.ip();
    attributes.set("origin.ip", Value::Bytes(ip_bytes(remote)));
    if let Some(found) = stream.info.metadata.get(AUTHENTICATION) {
        add_authentication(&mut attributes, found);
    }
    if let Some(forwarded) = forwarded {
        add_forwarded(&mut attributes, forwarded);
    }
    attributes
}

fn add_head(attributes: &mut Attributes, headers: &RequestHeaders) {
    let path = headers.path.as_str();
    let mut map = map_of(&headers.map);
    for (name, value) in [
        (":authority", headers.host()),
        (":method", headers.method.as_str()),
        (":path", path),
        (":scheme", headers.scheme.as_str()),
    ] {
        map.push((name.into(), value.to_owned()));
    }
    attributes.set("request.headers", Value::StringMap(map));
    attributes.set("request.host", headers.host().to_owned());
    attributes.set("request.path", path.to_owned());
    attributes.set("request.method", headers.method.as_str().to_owned());
    attributes.set("request.scheme", headers.scheme.as_str());
    for (attribute, name) in [
        ("request.referer", http::header::REFERER),
        ("request.useragent", http::header::USER_AGENT),
    ] {
        if let Some(value) = headers.text(&name) {
            attributes.set(attribute, value.to_owned());
        }
    }
    let (url_path, query) = path.split_once('?').unwrap_or((path, ""));
    attributes.set("request.url_path", url_path.to_owned());
    let params: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (key.to_owned().into(), value.to_owned()))
        .collect();
    if !params.is_empty() {
        attributes.set("request.query_params", Value::StringMap(params));
    }
    let protocol = if headers.is_grpc() { "grpc" } else { "http" };
    attributes.set("context.protocol", protocol);
}

/// What the connection proves; also for TCP.
pub(crate) fn add_connection(attributes: &mut Attributes, connection: &ConnectionInfo) {
    let peer = connection.peer_principal();
    attributes.set("connection.mtls", peer.is_some());
    if let Some(name) = &connection.server_name {
        attributes.set("connection.requested_server_name", name.to_string());
    }
    let local = connection
        .tls
        .as_ref()
        .and_then(|tls| tls.local_uri_sans.first());
    if let Some(local) = local {
        attributes.set("destination.principal", without_scheme(local).to_owned());
    }
    if let Some(peer) = peer.map(without_scheme) {
        attributes.set("source.principal", peer.to_owned());
        attributes.set("source.user", peer.to_owned());
        if let Some(namespace) = namespace_of(peer) {
            attributes.set("source.namespace", namespace.to_owned());
        }
    }
}

/// 4 or 16 bytes; a mapped IPv4 address is the IPv4 address.
pub(crate) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What the node's metadata says of this workload: the source of what goes out, the destination of what comes in.
pub(crate) fn own_attributes(node: &Node, is_outbound: bool) -> Attributes {
    let mut attributes = Attributes::new();
    let Some(metadata) = &node.metadata else {
        return attributes;
    };
    let side = if is_outbound { "source" } else { "destination" };
    for (key, attribute) in [
        ("NAME", "name"),
        ("OWNER", "owner"),
        ("NAMESPACE", "workload.namespace"),
        ("WORKLOAD_NAME", "workload.name"),
        ("SERVICE_ACCOUNT", "serviceAccount"),
    ] {
        if let Some(text) = text(metadata, key) {
            attributes.set(format!("{side}.{attribute}"), text.to_owned());
        }
    }
    if let Some(Kind::StructValue(labels)) =
        metadata.fields.get("LABELS").and_then(|v| v.kind.as_ref())
    {
        let labels = struct_map(labels);
        attributes.set(format!("{side}.labels"), Value::StringMap(labels));
    }
    attributes
}

/// The entries of a struct that have a text.
pub(super) fn struct_map(fields: &Struct) -> Vec<(std::borrow::Cow<'static, str>, String)> {
    let text = |kind: &Kind| match kind {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::BoolValue(flag) => Some(flag.to_string()),
        Kind::ListValue(list) => {
            let texts = list.values.iter().filter_map(|value| match &value.kind {
                Some(Kind::StringValue(text)) => Some(text.as_str()),
                _ => None,
            });
            Some(texts.collect::<Vec<_>>().join(","))
        }
        Kind::NullValue(_) | Kind::StructValue(_) => None,
    };
    fields
        .fields
        .iter()
        .filter_map(|(key, value)| Some((key.clone().into(), text(value.kind.as_ref()?)?)))
        .collect()
}

/// Header fields by name; of several with one name the last counts.
pub(super) fn map_of(headers: &HeaderMap) -> Vec<(std::borrow::Cow<'static, str>, String)> {
    headers
        .keys()
        .filter_map(|name| {
            let value = headers.get_all(name).iter().next_back()?;
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            Some((name.as_str().to_owned().into(), value))
        })
        .collect()
}

fn text<'a>(fields: &'a Struct, key: &str) -> Option<&'a str> {
    match fields.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

fn add_authentication(attributes: &mut Attributes, found: &Struct) {
    for name in AUTHENTICATED {
        if let Some(text) = text(found, name) {
            attributes.set(name, text.to_owned());
        }
    }
    let namespace = attributes
        .get_string("source.principal")
        .and_then(namespace_of)
        .map(str::to_owned);
    if let Some(namespace) = namespace {
        attributes.set("source.namespace", namespace);
    }
    if let Some(Kind::StructValue(claims)) = found
        .fields
        .get("request.auth.claims")
        .and_then(|v| v.kind.as_ref())
    {
        attributes.set("request.auth.claims", Value::StringMap(struct_map(claims)));
    }
}

fn add_forwarded(attributes: &mut Attributes, header: &HeaderValue) {
    let decoded = STANDARD
        .decode(header.as_bytes())
        .ok()
        .and_then(|bytes| mixer::Attributes::decode(bytes.as_slice()).ok());
    // Whatever else it may be, it is not from a proxy.
    let Some(message) = decoded else {
        return;
    };
    let forwarded = Attributes::from_wire(&message);
    for name in FORWARDABLE {
        if let Some(value) = forwarded.get(name) {
            attributes.set(name, value.clone());
        }
    }
}

/// The header for the next proxy; none without attributes.
pub(super) fn encode_forwarded(forward: &Attributes) -> Option<HeaderValue> {
    if forward.is_empty() {
        return None;
    }
    let text = STANDARD.encode(forward.to_wire().encode_to_vec());
    HeaderValue::from_str(&text).ok()
}

fn without_scheme(uri: &str) -> &str {
    uri.strip_prefix("spiffe://").unwrap_or(uri)
}

/// The namespace in `trust-domain/ns/NAMESPACE/sa/ACCOUNT`.
fn namespace_of(principal: &str) -> Option<&str> {
    let (_, rest) = principal.split_once("/ns/")?;
    rest.split('/')
        .next()
        .filter(|namespace| !namespace.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_attributes_are_taken_by_name() {
        let mut sent = Attributes::new();
        sent.set("source.uid", "kubernetes://a.ns");
        sent.set("source.principal", "cluster.local/ns/root/sa/admin");
        let header = encode_forwarded(&sent).unwrap();
        let mut attributes = Attributes::new();
        attributes.set("source.uid", "old");
        add_forwarded(&mut attributes, &header);
        assert_eq!(
            attributes.get_string("source.uid"),
            Some("kubernetes://a.ns")
        );
        assert_eq!(attributes.get("source.principal"), None);
        add_forwarded(&mut attributes, &HeaderValue::from_static("not base64!"));
        assert_eq!(attributes.len(), 1);
        assert_eq!(encode_forwarded(&Attributes::new()), None);
    }

    #[test]
    fn a_principal_names_its_namespace() {
        assert_eq!(namespace_of("cluster.local/ns/shop/sa/web"), Some("shop"));
        assert_eq!(namespace_of("someone"), None);
    }

    #[test]
    fn the_node_tells_of_its_own_side() {
        let string = |text: &str| prost_types::Value {
            kind: Some(Kind::StringValue(text.into())),
        };
        let labels = Struct {
            fields: [("app".to_owned(), string("web"))].into(),
        };
        let labels = prost_types::Value {
            kind: Some(Kind::StructValue(labels)),
        };
        let fields = [
            ("WORKLOAD_NAME".to_owned(), string("web-v1")),
            ("NAMESPACE".to_owned(), string("shop")),
            ("LABELS".to_owned(), labels),
        ];
        let node = Node {
            metadata: Some(Struct {
                fields: fields.into(),
            }),
            ..Node::default()
        };
        let own = own_attributes(&node, true);
        assert_eq!(own.get_string("source.workload.name"), Some("web-v1"));
        assert_eq!(own.get_string("source.workload.namespace"), Some("shop"));
        assert_eq!(
            own.get("source.labels"),
            Some(&Value::StringMap(vec![("app".into(), "web".into())]))
        );
        let own = own_attributes(&node, false);
        assert_eq!(own.get_string("destination.workload.name"), Some("web-v1"));
    }
}
