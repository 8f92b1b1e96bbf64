//! How much places count when an endpoint is chosen: Pilot's order and shares of localities, or the proxy's own preference of its
//! zone.
//!
//! QUIRK: an Envoy that knows its own cluster prefers its zone by itself, unless it is told not to; so a setting that is off is
//! told, one that is not there is not.

use proto::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
};
use proto::envoy::r#type::v3::Percent;
use proto::istio::networking::v1alpha3::{
    LocalityLoadBalancerSetting, ZoneAwareLoadBalancerSetting,
    locality_load_balancer_setting::Failover,
};

use super::TrafficPolicy;
use crate::model::Mesh;

/// What places count for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Places<'a> {
    /// Each gets its share, or the nearest are asked first.
    ByLocality(&'a LocalityLoadBalancerSetting),
    /// The own region is asked first; in it the proxy prefers its zone as far as that is fair.
    ByZone(&'a ZoneAwareLoadBalancerSetting),
}

impl<'a> Places<'a> {
    /// Labels by which endpoints are near or far, where nothing fixes the shares.
    #[must_use]
    pub fn labels(self) -> &'a [String] {
        match self {
            Places::ByLocality(setting) if !setting.distribute.is_empty() => &[],
            Places::ByLocality(setting) => &setting.failover_priority,
            Places::ByZone(setting) => &setting.failover_priority,
        }
    }

    /// Where the requests of a region go when it fails.
    #[must_use]
    pub fn failover(self) -> &'a [Failover] {
        match self {
            Places::ByLocality(setting) => &setting.failover,
            Places::ByZone(setting) => &setting.failover,
        }
    }
}

impl<'a> TrafficPolicy<'a> {
    /// What the rule says, else the mesh, of whose two settings the one about zones goes first.
    #[must_use]
    pub fn places<'m>(&self, mesh: &'m Mesh) -> Option<Places<'m>>
    where
        'a: 'm,
    {
        let own = self
            .load_balancer
            .and_then(|balancer| balancer.locality_lb_setting.as_ref());
        let of_mesh = || mesh.zone_aware_lb.as_ref().filter(|zones| is_on(zones));
        let zones = match (self.own_zones(), own) {
            (None, None) => of_mesh(),
            (zones, _) => zones,
        };
        if let Some(zones) = zones {
            return is_on(zones).then_some(Places::ByZone(zones));
        }
        let setting = own.or(mesh.locality_lb.as_ref())?;
        let mesh_enabled = mesh
            .locality_lb
            .as_ref()
            .and_then(|setting| setting.enabled);
        let is_enabled = setting.enabled.or(mesh_enabled).unwrap_or(true);
        is_enabled.then_some(Places::ByLocality(setting))
    }

    /// What the proxy has to know of it.
    pub(super) fn locality_config(&self, mesh: &Mesh) -> Option<LocalityConfigSpecifier> {
        let places = self.places(mesh);
        // Otherwise weights of places would only spoil the choice of the least busy endpoint.
        let has_weights = places.is_some_and(|places| match places {
            Places::ByZone(_) => false,
            Places::ByLocality(setting) => {
                let is_ordered = !places.failover().is_empty() || !places.labels().is_empty();
                !setting.distribute.is_empty() || (is_ordered && self.outlier_detection.is_some())
            }
        });
        if has_weights {
            let config = LocalityWeightedLbConfig {};
            return Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(config));
        }
        let config = match (places, self.own_zones().or(mesh.zone_aware_lb.as_ref())) {
            (Some(Places::ByZone(zones)), _) => ZoneAwareLbConfig {
                min_cluster_size: zones.min_cluster_size,
                ..ZoneAwareLbConfig::default()
            },
            (_, Some(zones)) if !is_on(zones) => ZoneAwareLbConfig {
                routing_enabled: Some(Percent { value: 0.0 }),
                ..ZoneAwareLbConfig::default()
            },
            _ => return None,
        };
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config))
    }

    fn own_zones(&self) -> Option<&'a ZoneAwareLoadBalancerSetting> {
        self.load_balancer?.zone_aware_lb_setting.as_ref()
    }
}

fn is_on(zones: &ZoneAwareLoadBalancerSetting) -> bool {
    zones.enabled != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::istio::networking::v1alpha3::LoadBalancerSettings;

    fn described(balancer: &str, mesh: &str) -> String {
        let balancer: LoadBalancerSettings = proto::yaml::from_str(balancer).unwrap();
        let mesh = Mesh::from(&proto_mesh::mesh_config::from_yaml(mesh).unwrap());
        let policy = TrafficPolicy {
            load_balancer: Some(&balancer),
            ..TrafficPolicy::default()
        };
        let places = match policy.places(&mesh) {
            None => "none",
            Some(Places::ByLocality(_)) => "locality",
            Some(Places::ByZone(_)) => "zone",
        };
        let told = match policy.locality_config(&mesh) {
            None => "nothing",
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => "weights",
            Some(LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
                config.routing_enabled.map_or("on", |_| "off")
            }
        };
        format!("{places} {told}")
    }

    #[test]
    fn the_rule_goes_before_the_mesh_and_zones_before_localities() {
        const WEIGHTS: &str = "localityLbSetting: {distribute: [{from: a, to: {a: 100}}]}";
        for (rule, mesh, want) in [
            ("{}", "{}", "locality nothing"),
            ("{}", WEIGHTS, "locality weights"),
            ("{}", "zoneAwareLbSetting: {}", "zone on"),
            ("{}", "zoneAwareLbSetting: {enabled: false}", "locality off"),
            ("zoneAwareLbSetting: {}", WEIGHTS, "zone on"),
            ("zoneAwareLbSetting: {enabled: false}", WEIGHTS, "none off"),
            (
                "zoneAwareLbSetting: {enabled: true}",
                "zoneAwareLbSetting: {enabled: false}",
                "zone on",
            ),
            (WEIGHTS, "zoneAwareLbSetting: {}", "locality weights"),
            (
                "localityLbSetting: {enabled: false}",
                "zoneAwareLbSetting: {}",
                "none nothing",
            ),
            (
                "localityLbSetting: {enabled: false}",
                WEIGHTS,
                "none nothing",
            ),
        ] {
            assert_eq!(described(rule, mesh), want, "{rule} in {mesh}");
        }
    }
}
