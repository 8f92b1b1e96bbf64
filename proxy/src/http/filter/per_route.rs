//! Configuration of filters on route tables, virtual hosts, routes and weighted clusters (`typed_per_filter_config`).

use std::collections::BTreeMap;

use prost_types::Any;
use proto::envoy::config::route::v3 as wire;

use crate::invalid::{At as _, Invalid};

use super::{FILTERS, RouteValue, cors};

/// The filter configurations of one level.
#[derive(Debug, Default)]
pub(crate) struct RouteConfigs(Vec<(Box<str>, RouteConfig)>);

/// One filter's configuration at one level.
#[derive(Debug, Clone)]
pub(crate) enum RouteConfig {
    /// Switched off here.
    Disabled,
    /// Switched on here, with the chain's own configuration.
    Enabled,
    /// Its own configuration.
    Value(RouteValue),
}

impl RouteConfigs {
    /// Checks one level's map.
    pub(crate) fn try_new(configs: &BTreeMap<String, Any>) -> Result<Self, Invalid> {
        let mut checked = Vec::new();
        for (name, any) in configs {
            if let Some(config) = check(any).at(format_args!("typed_per_filter_config[{name}]"))? {
                checked.push((name.as_str().into(), config));
            }
        }
        Ok(RouteConfigs(checked))
    }

    /// Adds the CORS policy that a route or virtual host carries in its own field.
    pub(crate) fn with_cors(mut self, policy: Option<&wire::CorsPolicy>) -> Result<Self, Invalid> {
        if let Some(policy) = policy
            && self.get(cors::NAME).is_none()
        {
            self.0.push((
                cors::NAME.into(),
                RouteConfig::Value(cors::from_route(policy)?),
            ));
        }
        Ok(self)
    }

    /// The configuration of a filter.
    pub(crate) fn get(&self, filter: &str) -> Option<&RouteConfig> {
        self.0
            .iter()
            .find(|(name, _)| name.as_ref() == filter)
            .map(|(_, config)| config)
    }
}

fn check(any: &Any) -> Result<Option<RouteConfig>, Invalid> {
    if !proto::any::is::<wire::FilterConfig>(any) {
        return value(any).map(|value| Some(RouteConfig::Value(value)));
    }
    let config: wire::FilterConfig = proto::any::unpack(any)?;
    if config.disabled {
        return Ok(Some(RouteConfig::Disabled));
    }
    let Some(inner) = config.config.filter(|inner| !inner.type_url.is_empty()) else {
        return Ok(Some(RouteConfig::Enabled));
    };
    match value(&inner) {
        Ok(value) => Ok(Some(RouteConfig::Value(value))),
        Err(_) if config.is_optional => Ok(None),
        Err(error) => Err(error.at("config")),
    }
}

fn value(any: &Any) -> Result<RouteValue, Invalid> {
    let message = proto::type_url::message_name(&any.type_url);
    let check = FILTERS
        .iter()
        .flat_map(|kind| kind.routes)
        .find(|(name, _)| *name == message)
        .map(|(_, check)| check)
        .ok_or_else(|| Invalid::unsupported(&format!("route configuration {message}")))?;
    check(any)
}
