//! One patch of an EnvoyFilter, decoded.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_reflect::DynamicMessage;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto::envoy::config::cluster::v3::Cluster;
use proto::envoy::config::core::v3::TypedExtensionConfig;
use proto::envoy::config::listener::v3::{Filter, FilterChain, Listener, ListenerFilter};
use proto::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use proto::istio::networking::v1alpha3::envoy_filter::{
    self as wire, ApplyTo, PatchContext,
    envoy_config_object_match::ObjectTypes,
    patch::{FilterClass, Operation},
};
use proto_mesh::{json_struct, re2};
use regex::Regex;

use super::legacy;
use crate::model::Proxy;

/// What is added, inserted or put in the place of something.
#[derive(Clone, Debug)]
pub enum Value {
    /// LISTENER.
    Listener(Box<Listener>),
    /// FILTER_CHAIN.
    FilterChain(Box<FilterChain>),
    /// LISTENER_FILTER.
    ListenerFilter(ListenerFilter),
    /// NETWORK_FILTER.
    NetworkFilter(Filter),
    /// HTTP_FILTER.
    HttpFilter(HttpFilter),
    /// ROUTE_CONFIGURATION.
    RouteConfiguration(Box<RouteConfiguration>),
    /// VIRTUAL_HOST.
    VirtualHost(Box<VirtualHost>),
    /// HTTP_ROUTE.
    Route(Box<Route>),
    /// CLUSTER.
    Cluster(Box<Cluster>),
    /// EXTENSION_CONFIG.
    Extension(TypedExtensionConfig),
    /// BOOTSTRAP.
    Bootstrap(Box<Bootstrap>),
}

/// One patch.
#[derive(Debug)]
pub struct Patch {
    /// What is patched.
    pub apply_to: ApplyTo,
    /// What is done.
    pub operation: Operation,
    /// Where traffic goes.
    pub context: PatchContext,
    /// Which objects.
    pub object: Option<ObjectTypes>,
    /// Where an added filter belongs.
    pub class: FilterClass,
    /// The value as a message; none for REMOVE.
    pub value: Option<Value>,
    /// The value for merging: only what was written.
    pub merge: Option<DynamicMessage>,
    version: Option<Regex>,
    metadata: BTreeMap<String, String>,
}

impl Patch {
    /// Reads it.
    ///
    /// # Errors
    /// When the value is no message of its kind, an expression does not compile, or the operation is none for the kind.
    pub fn read(patch: &wire::EnvoyConfigObjectPatch) -> Result<Self, String> {
        let apply_to = patch.apply_to();
        let change = patch.patch.as_ref().ok_or("no patch")?;
        if !is_known(apply_to, change.operation()) {
            let (what, operation) = (apply_to.as_str_name(), change.operation().as_str_name());
            return Err(format!("{operation} is no operation for {what}"));
        }
        let condition = patch.r#match.clone().unwrap_or_default();
        let proxy = condition.proxy.clone().unwrap_or_default();
        let version = (!proxy.proxy_version.is_empty())
            .then(|| re2::compile(&proxy.proxy_version))
            .transpose()?;
        let (value, merge) = match &change.value {
            Some(fields) if change.operation() != Operation::Remove => {
                let (value, merge) = decode(
                    apply_to,
                    serde_json::Value::Object(json_struct::to_json(fields)),
                )?;
                (Some(value), Some(merge))
            }
            _ => (None, None),
        };
        if value.is_none() && change.operation() != Operation::Remove {
            return Err("no value".to_owned());
        }
        let context = condition.context();
        Ok(Patch {
            apply_to,
            operation: change.operation(),
            context,
            object: condition.object_types.map(modernize_match),
            class: change.filter_class(),
            value,
            merge,
            version,
            metadata: proxy.metadata,
        })
    }

    /// True when a proxy of this version and metadata is meant.
    #[must_use]
    pub fn is_for(&self, proxy: &Proxy) -> bool {
        let version = proxy.metadata_text("ISTIO_VERSION").unwrap_or_default();
        self.version
            .as_ref()
            .is_none_or(|wanted| !version.is_empty() && wanted.is_match(version))
            && self
                .metadata
                .iter()
                .all(|(key, value)| proxy.metadata_text(key) == Some(value))
    }

    /// True when objects for traffic of `context` are meant.
    #[must_use]
    pub fn is_in(&self, context: PatchContext) -> bool {
        self.context == PatchContext::Any || self.context == context
    }

    /// True when lists are replaced and not appended to.
    #[must_use]
    pub fn replaces_lists(&self) -> bool {
        self.operation == Operation::MergeAndReplaceList
    }

    /// True for both ways of merging.
    #[must_use]
    pub fn is_merge(&self) -> bool {
        matches!(
            self.operation,
            Operation::Merge | Operation::MergeAndReplaceList
        )
    }
}

/// True when `operation` can be done to such objects.
fn is_known(apply_to: ApplyTo, operation: Operation) -> bool {
    use Operation::{Add, Merge, MergeAndReplaceList, Remove, Replace};
    match apply_to {
        ApplyTo::NetworkFilter | ApplyTo::HttpFilter | ApplyTo::ListenerFilter => {
            operation != Operation::Invalid
        }
        ApplyTo::Listener | ApplyTo::FilterChain | ApplyTo::Cluster => {
            matches!(operation, Add | Remove | Merge | MergeAndReplaceList)
        }
        ApplyTo::VirtualHost => matches!(
            operation,
            Add | Remove | Replace | Merge | MergeAndReplaceList
        ),
        ApplyTo::HttpRoute => !matches!(operation, Operation::Invalid | Replace),
        ApplyTo::RouteConfiguration => matches!(operation, Merge | MergeAndReplaceList),
        ApplyTo::Bootstrap => operation == Merge,
        ApplyTo::ExtensionConfig => operation == Add,
        // What is missing is told with the value.
        ApplyTo::Invalid => true,
    }
}

/// Old filter names in conditions.
fn modernize_match(mut object: ObjectTypes) -> ObjectTypes {
    if let ObjectTypes::Listener(listener) = &mut object {
        let name = legacy::today(&listener.listener_filter).to_owned();
        listener.listener_filter = name;
        let filter = listener
            .filter_chain
            .as_mut()
            .and_then(|chain| chain.filter.as_mut());
        if let Some(filter) = filter {
            filter.name = legacy::today(&filter.name).to_owned();
            if let Some(inner) = &mut filter.sub_filter {
                inner.name = legacy::today(&inner.name).to_owned();
            }
        }
    }
    object
}

fn decode(
    apply_to: ApplyTo,
    mut json: serde_json::Value,
) -> Result<(Value, DynamicMessage), String> {
    if let (
        serde_json::Value::Object(fields),
        ApplyTo::NetworkFilter | ApplyTo::HttpFilter | ApplyTo::ListenerFilter,
    ) = (&mut json, apply_to)
    {
        legacy::modernize(fields);
    }
    macro_rules! decode {
        ($variant:ident $message:ty) => {
            decode!($variant $message, |message| message)
        };
        ($variant:ident $message:ty, $wrap:expr) => {{
            let name = <$message as prost::Name>::full_name();
            let dynamic = proto::json::lenient_extension_from_value(&name, &json)
                .map_err(|error| error.to_string())?;
            let message = <$message>::decode(dynamic.encode_to_vec().as_slice())
                .map_err(|error| error.to_string())?;
            let wrap: fn($message) -> _ = $wrap;
            (Value::$variant(wrap(message)), dynamic)
        }};
    }
    Ok(match apply_to {
        ApplyTo::Listener => decode!(Listener Listener, Box::new),
        ApplyTo::FilterChain => decode!(FilterChain FilterChain, Box::new),
        ApplyTo::ListenerFilter => decode!(ListenerFilter ListenerFilter),
        ApplyTo::NetworkFilter => decode!(NetworkFilter Filter),
        ApplyTo::HttpFilter => decode!(HttpFilter HttpFilter),
        ApplyTo::RouteConfiguration => decode!(RouteConfiguration RouteConfiguration, Box::new),
        ApplyTo::VirtualHost => decode!(VirtualHost VirtualHost, Box::new),
        ApplyTo::HttpRoute => decode!(Route Route, Box::new),
        ApplyTo::Cluster => decode!(Cluster Cluster, Box::new),
        ApplyTo::ExtensionConfig => decode!(Extension TypedExtensionConfig),
        ApplyTo::Bootstrap => decode!(Bootstrap Bootstrap, Box::new),
        ApplyTo::Invalid => return Err("applyTo is missing".to_owned()),
    })
}
