//! What the `set_filter_state` filters do, wherever they stand.

use std::rc::Rc;
use std::sync::Arc;

use proto::envoy::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue as Wire,
    filter_state_value::{Key, SharedWithUpstream, Value},
};

use super::{CLUSTER, DESTINATION, IDLE_TIMEOUT, Object, Sharing};
use crate::access_log::{FormatContext, LineFormat};
use crate::http::headers::RequestHeaders;
use crate::invalid::{At as _, Invalid, try_all};
use crate::listener::ConnectionInfo;
use crate::stream_info::StreamInfo;

/// Makes a value of a text; none if the text is none of its kind.
type Factory = fn(&str) -> Option<Object>;

/// A text that upstream connections are kept apart by where they get it.
const HASHABLE: &str = "envoy.hashable_string";

/// Envoy's factories, as far as something here reads what they make, or nothing but logs need to.
const FACTORIES: &[(&str, Factory)] = &[
    ("envoy.string", |text| Some(Object::Text(text.into()))),
    (HASHABLE, |text| Some(Object::Text(text.into()))),
    ("envoy.bool", |text| truth(text).map(Object::Bool)),
    ("envoy.network.ip", |text| text.parse().ok().map(Object::Ip)),
    (CLUSTER, |text| Some(Object::Cluster(text.into()))),
    (DESTINATION, |text| text.parse().ok().map(Object::Address)),
    (IDLE_TIMEOUT, |text| {
        text.trim().parse().ok().map(Object::Milliseconds)
    }),
];

/// Values to set, in this order.
#[derive(Clone)]
pub(crate) struct Setters(Arc<[Setter]>);

struct Setter {
    key: Arc<str>,
    make: Factory,
    format: LineFormat,
    sharing: Sharing,
    is_skipped_if_empty: bool,
}

impl Setters {
    /// Checks the values.
    pub(crate) fn new(field: &str, wire: &[Wire]) -> Result<Self, Invalid> {
        let all: Vec<Setter> = try_all(field, wire, Setter::try_from)?;
        Ok(Self(all.into()))
    }

    /// Whether there is nothing to set.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets the values of a connection, one after another, so that those to come see those before them.
    pub(crate) fn set_on_connection(&self, info: &mut ConnectionInfo, is_secured: bool) {
        if self.is_empty() {
            return;
        }
        let mut known = info.clone();
        if !is_secured {
            known.tls = None;
        }
        let mut stream = StreamInfo::new(Rc::new(known), None);
        for setter in self.0.iter() {
            if let Some(object) = setter.make(&FormatContext::of(&stream)) {
                let state = &mut Rc::make_mut(&mut stream.connection).filter_state;
                state.set(&setter.key, object, setter.sharing);
            }
        }
        info.filter_state = stream.connection.filter_state.clone();
    }

    /// Sets the values of a request, as those of a connection.
    pub(crate) fn set_on_request(&self, info: &mut StreamInfo, headers: &RequestHeaders) {
        for setter in self.0.iter() {
            if let Some(object) = setter.make(&FormatContext::of_request(info, headers)) {
                (info.filter_state).set(&setter.key, object, setter.sharing);
            }
        }
    }
}

impl Setter {
    /// The value, if there is one now.
    fn make(&self, context: &FormatContext<'_>) -> Option<Object> {
        let mut text = String::new();
        self.format.write(context, &mut text);
        if text.is_empty() && self.is_skipped_if_empty {
            return None;
        }
        (self.make)(&text)
    }
}

impl TryFrom<&Wire> for Setter {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        let key = match &wire.key {
            Some(Key::ObjectKey(key)) if !key.is_empty() => key.as_str(),
            _ => return Err(Invalid::new("it is needed").at("object_key")),
        };
        let factory = match wire.factory_key.as_str() {
            "" => key,
            factory => factory,
        };
        let Some((_, make)) = FACTORIES.iter().find(|(name, _)| *name == factory) else {
            return Err(
                Invalid::unsupported(&format!("an object of {factory:?}")).at("factory_key")
            );
        };
        // There are no internal connections, whose own upstreams would get what is shared for good.
        let sharing = match (wire.shared_with_upstream(), factory) {
            (SharedWithUpstream::None, _) => Sharing::Own,
            (_, HASHABLE | DESTINATION) => Sharing::Apart,
            _ => Sharing::Upstream,
        };
        let Some(Value::FormatString(format)) = &wire.value else {
            return Err(Invalid::new("it is needed").at("format_string"));
        };
        Ok(Self {
            key: key.into(),
            make: *make,
            format: LineFormat::try_new(format).at("format_string")?,
            sharing,
            is_skipped_if_empty: wire.skip_if_empty,
        })
    }
}

/// As Envoy reads it, in any case.
fn truth(text: &str) -> Option<bool> {
    Some(match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => true,
        "false" | "f" | "no" | "n" | "0" => false,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream_info::testing::{connection, request};
    use serde_json::{Value as Json, json};

    fn setters(values: &Json) -> Result<Setters, Invalid> {
        let values: Vec<Wire> = (values.as_array().unwrap().iter())
            .map(|value| proto::json::from_value(value).unwrap())
            .collect();
        Setters::new("values", &values)
    }

    fn value(key: &str, factory: &str, text: &str) -> Json {
        json!({"object_key": key, "factory_key": factory, "format_string": {"text_format_source": {"inline_string": text}}})
    }

    #[test]
    fn values_are_made_of_formats() {
        let mut skipped = value("none", "envoy.string", "");
        skipped["skip_if_empty"] = json!(true);
        let setters = setters(&json!([
            value("a", "envoy.string", "first"),
            value("a", "envoy.string", "%REQ(x-a)% %DOWNSTREAM_LOCAL_PORT%"),
            value(CLUSTER, "", "there"),
            value("b", "envoy.bool", "Yes"),
            value("c", "envoy.bool", "perhaps"),
            value("d", IDLE_TIMEOUT, "12"),
            value("e", "envoy.string", ""),
            skipped,
        ]))
        .unwrap();
        let mut info = connection();
        let port = info.local_address.port();
        setters.set_on_connection(&mut info, true);
        let state = &info.filter_state;
        let text = |text: &str| Some(Object::Text(text.into()));
        assert_eq!(state.get("a").cloned(), text(&format!("- {port}")));
        assert_eq!(state.get(CLUSTER), Some(&Object::Cluster("there".into())));
        assert_eq!(state.get("b"), Some(&Object::Bool(true)));
        assert_eq!(state.get("c"), None);
        assert_eq!(state.get("d"), Some(&Object::Milliseconds(12)));
        assert_eq!(state.get("e").cloned(), text(""));
        assert_eq!(state.get("none"), None);
        let mut stream = StreamInfo::new(Rc::new(info), Some(http::Version::HTTP_11));
        stream.connection = Rc::new(connection());
        let head = request("h", "/", &[("x-a", "one")]);
        setters.set_on_request(&mut stream, &head);
        let made = stream.filter_state.get("a").cloned();
        assert_eq!(made, text(&format!("one {port}")));
    }

    #[test]
    fn values_see_those_before_them() {
        let setters = setters(&json!([
            value("a", "envoy.string", "1"),
            value("b", "envoy.string", "%FILTER_STATE(a:PLAIN)%2"),
            value("a", "envoy.string", "%FILTER_STATE(b:PLAIN)%3"),
        ]))
        .unwrap();
        let last = Some(Object::Text("123".into()));
        let mut info = connection();
        setters.set_on_connection(&mut info, true);
        assert_eq!(info.filter_state.get("a").cloned(), last);
        let mut stream = StreamInfo::new(Rc::new(connection()), Some(http::Version::HTTP_11));
        setters.set_on_request(&mut stream, &request("h", "/", &[]));
        assert_eq!(stream.filter_state.get("a").cloned(), last);
    }

    #[test]
    fn upstream_connections_are_kept_apart_by_what_can_be_hashed() {
        let shared = |factory, how| {
            let mut value = value("a", factory, "10.0.0.1:80");
            value["shared_with_upstream"] = json!(how);
            let mut info = connection();
            (setters(&json!([value])).unwrap()).set_on_connection(&mut info, true);
            let shared = info.filter_state.shared();
            (shared.get("a").is_some(), !shared.apart().is_empty())
        };
        assert_eq!(shared("envoy.string", "NONE"), (false, false));
        assert_eq!(shared("envoy.string", "ONCE"), (true, false));
        assert_eq!(shared(HASHABLE, "TRANSITIVE"), (true, true));
        assert_eq!(shared(DESTINATION, "ONCE"), (true, true));
    }

    #[test]
    fn what_nothing_here_reads_is_refused() {
        let refused = |value: Json| setters(&json!([value])).err().unwrap().to_string();
        let no_factory = refused(value("mine", "", "x"));
        assert!(no_factory.contains("values[0].factory_key"), "{no_factory}");
        let unread = refused(value("envoy.network.upstream_server_name", "", "x"));
        assert!(unread.contains("upstream_server_name"), "{unread}");
        assert!(
            refused(json!({"object_key": "a", "factory_key": "envoy.string"}))
                .contains("format_string")
        );
    }
}
