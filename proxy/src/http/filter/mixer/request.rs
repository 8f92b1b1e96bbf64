//! The attributes of a request at the time of the check.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Timestamp};
use proto::envoy::config::core::v3::Node;
use proto::istio::mixer::v1 as mixer;
use proto_mesh::attribute::record::{Entries, Record};
use proto_mesh::attribute::{Attributes, Known, Value, ValueRef};

use crate::http::headers::RequestHeaders;
use crate::http::stream::Stream;
use crate::listener::ConnectionInfo;

/// What another proxy may tell about itself and about where the request goes.
const FORWARDABLE: [Known; 6] = [
    SOURCE_UID,
    SOURCE_NAMESPACE,
    Known::new("destination.service.name"),
    Known::new("destination.service.uid"),
    Known::new("destination.service.host"),
    Known::new("destination.service.namespace"),
];
/// Where the authentication filter leaves what it has found.
const AUTHENTICATION: &str = "istio_authn";
/// What it leaves as text.
const AUTHENTICATED: [Known; 6] = [
    Known::new("request.auth.principal"),
    Known::new("request.auth.presenter"),
    Known::new("request.auth.raw_claims"),
    Known::new("request.auth.audiences"),
    SOURCE_PRINCIPAL,
    SOURCE_USER,
];

const CONTEXT_PROTOCOL: Known = Known::new("context.protocol");
const DESTINATION_PRINCIPAL: Known = Known::new("destination.principal");
const MTLS: Known = Known::new("connection.mtls");
/// The list has no such name.
const ORIGIN_IP: &str = "origin.ip";
const REQUESTED_SERVER_NAME: Known = Known::new("connection.requested_server_name");
const REQUEST_CLAIMS: Known = Known::new("request.auth.claims");
const REQUEST_HEADERS: Known = Known::new("request.headers");
const REQUEST_HOST: Known = Known::new("request.host");
const REQUEST_METHOD: Known = Known::new("request.method");
const REQUEST_PATH: Known = Known::new("request.path");
const REQUEST_QUERY: Known = Known::new("request.query_params");
const REQUEST_REFERER: Known = Known::new("request.referer");
const REQUEST_SCHEME: Known = Known::new("request.scheme");
const REQUEST_TIME: Known = Known::new("request.time");
const REQUEST_URL_PATH: Known = Known::new("request.url_path");
const REQUEST_USERAGENT: Known = Known::new("request.useragent");
const SOURCE_NAMESPACE: Known = Known::new("source.namespace");
const SOURCE_PRINCIPAL: Known = Known::new("source.principal");
const SOURCE_UID: Known = Known::new("source.uid");
const SOURCE_USER: Known = Known::new("source.user");

/// What another proxy tells, of what it may.
type Forwarded = Vec<(Known, Value)>;

/// What different proxies have told, as kept by a worker; beyond, it begins anew. A mesh's proxies tell always the same.
const MAX_FORWARDED: usize = 256;

thread_local! {
    static FORWARDED: RefCell<HashMap<Box<[u8]>, Rc<Forwarded>, foldhash::quality::RandomState>> = RefCell::default();
}

/// Everything known of the request, on top of configuration; what comes later overwrites: request, authentication, forwarded.
pub(super) fn fill(
    record: &mut Record,
    headers: &RequestHeaders,
    stream: &Stream,
    forwarded: Option<&HeaderValue>,
) {
    add_head(record, headers);
    let begun = Timestamp::from(stream.info.start_time);
    record.set(REQUEST_TIME, ValueRef::Timestamp(begun));
    add_connection(record, &stream.info.connection);
    set_ip(record, ORIGIN_IP, stream.info.remote_address.ip());
    if let Some(found) = stream.info.metadata.get(AUTHENTICATION) {
        add_authentication(record, found);
    }
    if let Some(forwarded) = forwarded {
        add_forwarded(record, forwarded);
    }
}

fn add_head(record: &mut Record, headers: &RequestHeaders) {
    let path = headers.path.as_str();
    let pseudo = [
        (":authority", headers.host()),
        (":method", headers.method.as_str()),
        (":path", path),
        (":scheme", headers.scheme.as_str()),
    ];
    record.set_map(REQUEST_HEADERS, |entries| {
        add_fields(entries, &headers.map);
        for (name, value) in pseudo {
            entries.push(name, value.as_bytes());
        }
    });
    record.set_text(REQUEST_HOST, headers.host());
    record.set_text(REQUEST_PATH, path);
    record.set_text(REQUEST_METHOD, headers.method.as_str());
    record.set_text(REQUEST_SCHEME, headers.scheme.as_str());
    for (attribute, name) in [
        (REQUEST_REFERER, http::header::REFERER),
        (REQUEST_USERAGENT, http::header::USER_AGENT),
    ] {
        if let Some(value) = headers.text(&name) {
            record.set_text(attribute, value);
        }
    }
    let (url_path, query) = path.split_once('?').unwrap_or((path, ""));
    record.set_text(REQUEST_URL_PATH, url_path);
    let params = query.split('&').filter(|pair| !pair.is_empty());
    let mut params = params
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .peekable();
    if params.peek().is_some() {
        record.set_map(REQUEST_QUERY, |entries| {
            params.for_each(|(key, value)| entries.push(key, value.as_bytes()));
        });
    }
    let protocol = if headers.is_grpc() { "grpc" } else { "http" };
    record.set_text(CONTEXT_PROTOCOL, protocol);
}

/// What the connection proves; also for TCP.
pub(crate) fn add_connection(record: &mut Record, connection: &ConnectionInfo) {
    let peer = connection.peer_principal();
    record.set(MTLS, ValueRef::Bool(peer.is_some()));
    if let Some(name) = &connection.server_name {
        record.set_text(REQUESTED_SERVER_NAME, name);
    }
    let local = connection
        .tls
        .as_ref()
        .and_then(|tls| tls.local.uri_sans.first());
    if let Some(local) = local {
        record.set_text(DESTINATION_PRINCIPAL, without_scheme(local));
    }
    if let Some(peer) = peer.map(without_scheme) {
        record.set_text(SOURCE_PRINCIPAL, peer);
        record.set_text(SOURCE_USER, peer);
        if let Some(namespace) = namespace_of(peer) {
            record.set_text(SOURCE_NAMESPACE, namespace);
        }
    }
}

/// 4 or 16 bytes; a mapped IPv4 address is the IPv4 address.
pub(crate) fn set_ip(record: &mut Record, name: &str, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => record.set_named(name, ValueRef::Bytes(&address.octets())),
        IpAddr::V6(address) => record.set_named(name, ValueRef::Bytes(&address.octets())),
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
        let labels = labels.map(|(key, value)| (key.to_owned().into(), value.into_owned()));
        attributes.set(format!("{side}.labels"), Value::StringMap(labels.collect()));
    }
    attributes
}

/// The entries of a struct that have a text.
pub(super) fn struct_map(fields: &Struct) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    let text = |kind: &Kind| match kind {
        Kind::NumberValue(number) => Some(number.to_string()),
        Kind::BoolValue(flag) => Some(flag.to_string()),
        Kind::ListValue(list) => {
            let texts = list.values.iter().filter_map(|value| match &value.kind {
                Some(Kind::StringValue(text)) => Some(text.as_str()),
                _ => None,
            });
            Some(texts.collect::<Vec<_>>().join(","))
        }
        Kind::StringValue(_) | Kind::NullValue(_) | Kind::StructValue(_) => None,
    };
    fields.fields.iter().filter_map(move |(key, value)| {
        let value = match value.kind.as_ref()? {
            Kind::StringValue(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(text(other)?),
        };
        Some((key.as_str(), value))
    })
}

/// Header fields by name; of several with one name the last counts. Returns the size of all names and values.
pub(super) fn add_fields(entries: &mut Entries<'_>, headers: &HeaderMap) -> usize {
    let mut size = 0;
    // Fields with one name come one after the other.
    let mut fields = headers.iter().peekable();
    while let Some((name, value)) = fields.next() {
        size += name.as_str().len() + value.len();
        if fields.peek().is_none_or(|(next, _)| *next != name) {
            entries.push(name.as_str(), value.as_bytes());
        }
    }
    size
}

fn text<'a>(fields: &'a Struct, key: &str) -> Option<&'a str> {
    match fields.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

fn add_authentication(record: &mut Record, found: &Struct) {
    for name in AUTHENTICATED {
        if let Some(text) = text(found, name.as_str()) {
            record.set_text(name, text);
        }
    }
    let namespace = match record.get_known(SOURCE_PRINCIPAL) {
        Some(ValueRef::String(principal)) => namespace_of(principal).map(str::to_owned),
        _ => None,
    };
    if let Some(namespace) = namespace {
        record.set_text(SOURCE_NAMESPACE, &namespace);
    }
    if let Some(Kind::StructValue(claims)) = found
        .fields
        .get(REQUEST_CLAIMS.as_str())
        .and_then(|v| v.kind.as_ref())
    {
        record.set_map(REQUEST_CLAIMS, |entries| {
            for (key, value) in struct_map(claims) {
                entries.push(key, value.as_bytes());
            }
        });
    }
}

fn add_forwarded(record: &mut Record, header: &HeaderValue) {
    let forwarded = FORWARDED.with_borrow_mut(|known| {
        if let Some(forwarded) = known.get(header.as_bytes()) {
            return forwarded.clone();
        }
        if known.len() >= MAX_FORWARDED {
            known.clear();
        }
        let forwarded = Rc::new(read_forwarded(header));
        known.insert(header.as_bytes().into(), forwarded.clone());
        forwarded
    });
    for (name, value) in &*forwarded {
        record.set(*name, value.as_ref());
    }
}

/// What another proxy tells; nothing if it is not from a proxy.
fn read_forwarded(header: &HeaderValue) -> Forwarded {
    let decoded = STANDARD
        .decode(header.as_bytes())
        .ok()
        .and_then(|bytes| mixer::Attributes::decode(bytes.as_slice()).ok());
    let told = decoded.map(|message| Attributes::from_wire(&message));
    let told = told.unwrap_or_default();
    let value = |name: Known| Some((name, told.get(name.as_str())?.clone()));
    FORWARDABLE.into_iter().filter_map(value).collect()
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
    use proto_mesh::attribute::record::Base;

    use super::*;

    #[test]
    fn forwarded_attributes_are_taken_by_name() {
        let mut sent = Attributes::new();
        sent.set("source.uid", "kubernetes://a.ns");
        sent.set("source.principal", "cluster.local/ns/root/sa/admin");
        let header = encode_forwarded(&sent).unwrap();
        let mut own = Attributes::new();
        own.set("source.uid", "old");
        for _ in 0..2 {
            let mut record = Record::new(Base::new(&own, &Rc::default()));
            add_forwarded(&mut record, &header);
            add_forwarded(&mut record, &HeaderValue::from_static("not base64!"));
            let all: Vec<_> = record
                .iter()
                .map(|(name, value)| (name, value.to_value()))
                .collect();
            assert_eq!(all, [("source.uid", "kubernetes://a.ns".into())]);
        }
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
