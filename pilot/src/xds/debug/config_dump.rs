//! A proxy's configuration in the shape of Envoy's `/config_dump`, made anew from the newest push context.

use prost_types::Any;
use proto::envoy::admin::v3::{
    BootstrapConfigDump, ClustersConfigDump, ConfigDump, EndpointsConfigDump, ListenersConfigDump,
    RoutesConfigDump,
    clusters_config_dump::DynamicCluster,
    endpoints_config_dump::DynamicEndpointConfig,
    listeners_config_dump::{DynamicListener, DynamicListenerState},
    routes_config_dump::DynamicRouteConfig,
};
use proto::json::{FieldNames, JsonError};

use crate::networking::View;
use crate::xds::generate::{Generated, generate};
use crate::xds::{Connection, Discovery, ResourceType};

/// Builds the dump.
pub(super) fn build(
    discovery: &Discovery,
    connection: &Connection,
) -> Result<serde_json::Value, JsonError> {
    let current = discovery.current();
    let view = View::new(&connection.proxy, &current.push);
    let make = |kind: ResourceType| {
        let names = connection
            .watched(kind)
            .map(|watched| watched.asked.names().clone())
            .unwrap_or_default();
        generate(&view, kind, names.iter(), &current.cache)
    };
    let version = |kind: ResourceType| {
        connection
            .watched(kind)
            .map(|watched| watched.version_sent)
            .unwrap_or_default()
    };
    let clusters = ClustersConfigDump {
        version_info: version(ResourceType::Cluster),
        dynamic_active_clusters: make(ResourceType::Cluster).iter().map(cluster).collect(),
        ..ClustersConfigDump::default()
    };
    let listeners = ListenersConfigDump {
        version_info: version(ResourceType::Listener),
        dynamic_listeners: make(ResourceType::Listener).iter().map(listener).collect(),
        ..ListenersConfigDump::default()
    };
    let routes = RoutesConfigDump {
        dynamic_route_configs: make(ResourceType::Route).iter().map(route).collect(),
        ..RoutesConfigDump::default()
    };
    let endpoints = EndpointsConfigDump {
        dynamic_endpoint_configs: make(ResourceType::Endpoint).iter().map(endpoint).collect(),
        ..EndpointsConfigDump::default()
    };
    let configs: Vec<Any> = vec![
        proto::any::pack(&BootstrapConfigDump::default()),
        proto::any::pack(&clusters),
        proto::any::pack(&listeners),
        proto::any::pack(&routes),
        proto::any::pack(&endpoints),
    ];
    proto::json::to_value_with(&ConfigDump { configs }, FieldNames::Proto)
}

fn cluster(resource: &Generated) -> DynamicCluster {
    DynamicCluster {
        version_info: resource.version(),
        cluster: Some(resource.any()),
        ..DynamicCluster::default()
    }
}

fn listener(resource: &Generated) -> DynamicListener {
    DynamicListener {
        active_state: Some(DynamicListenerState {
            version_info: resource.version(),
            listener: Some(resource.any()),
            ..DynamicListenerState::default()
        }),
        name: resource.name.to_string(),
        ..DynamicListener::default()
    }
}

fn route(resource: &Generated) -> DynamicRouteConfig {
    DynamicRouteConfig {
        version_info: resource.version(),
        route_config: Some(resource.any()),
        ..DynamicRouteConfig::default()
    }
}

fn endpoint(resource: &Generated) -> DynamicEndpointConfig {
    DynamicEndpointConfig {
        version_info: resource.version(),
        endpoint_config: Some(resource.any()),
        ..DynamicEndpointConfig::default()
    }
}
