//! The overload manager as configured: the checked form of `envoy.config.overload.v3.OverloadManager`.

use super::{
    action::{Action, Trigger},
    monitor::Monitor,
    streams::StreamClasses,
    timer::Minimums,
};
use crate::{
    invalid::{At as _, Invalid, try_all},
    wire::duration_or,
};
use prost_types::Any;
use proto::envoy::{
    config::overload::v3::{
        BufferFactoryConfig, OverloadAction, OverloadManager as Wire, ResourceMonitor,
        ScaleTimersOverloadActionConfig, Trigger as WireTrigger, resource_monitor::ConfigType,
        trigger::TriggerOneof,
    },
    extensions::resource_monitors::{
        cgroup_memory::v3::CgroupMemoryConfig,
        downstream_connections::v3::DownstreamConnectionsConfig, fixed_heap::v3::FixedHeapConfig,
        injected_resource::v3::InjectedResourceConfig,
    },
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// A checked configuration.
#[derive(Debug, Default)]
pub(crate) struct OverloadConfig {
    pub(super) interval: Duration,
    pub(super) resources: Vec<(String, Monitor)>,
    pub(super) actions: Vec<(Action, HashMap<String, Trigger>)>,
    /// The name of the connections' monitor, and their limit.
    pub(super) connections: Option<(String, u64)>,
    /// How streams are told apart by what they hold.
    pub(super) streams: Option<StreamClasses>,
    /// What time limits can go down to.
    pub(super) minimums: Option<Minimums>,
}

/// What a resource monitor is about.
enum Kind {
    Polled(Monitor),
    Connections(u64),
}

impl TryFrom<&Wire> for OverloadConfig {
    type Error = Invalid;

    fn try_from(wire: &Wire) -> Result<Self, Invalid> {
        let mut config = Self {
            interval: duration_or(
                wire.refresh_interval.as_ref(),
                Duration::from_secs(1),
                "refresh_interval",
            )?
            .max(Duration::from_millis(1)),
            streams: wire
                .buffer_factory_config
                .map(classes)
                .transpose()
                .at("buffer_factory_config")?,
            ..Self::default()
        };
        config.add_monitors(&wire.resource_monitors)?;
        let polled = |name: &str| config.resources.iter().any(|(known, _)| known == name);
        let triggers = |wire: &[WireTrigger]| {
            let triggers = try_all("triggers", wire, |wire| {
                if !polled(&wire.name) {
                    return Err(Invalid::new(format!(
                        "Unknown trigger resource {}",
                        wire.name
                    )));
                }
                trigger(wire).map(|trigger| (wire.name.clone(), trigger))
            })?;
            if triggers.is_empty() {
                return Err(Invalid::new("at least one is needed").at("triggers"));
            }
            Ok(triggers.into_iter().collect::<HashMap<_, _>>())
        };
        let mut minimums = None;
        let mut actions = try_all("actions", &wire.actions, |action| {
            let known = Action::by_name(&action.name).filter(|known| !known.is_load_shed_point());
            let known = known
                .ok_or_else(|| Invalid::new(format!("Unknown Overload Action {}", action.name)))?;
            if known == Action::ReduceTimeouts {
                minimums = Some(reduced_timers(action).at("typed_config")?);
            } else if action.typed_config.is_some() {
                return Err(Invalid::unsupported("typed_config of an overload action"));
            }
            if known == Action::ResetStreams && wire.buffer_factory_config.is_none() {
                return Err(Invalid::new(format!(
                    "{} needs buffer_factory_config",
                    action.name
                )));
            }
            Ok((known, triggers(&action.triggers)?))
        })?;
        actions.extend(try_all(
            "loadshed_points",
            &wire.loadshed_points,
            |point| {
                let known = Action::by_name(&point.name).filter(|known| known.is_load_shed_point());
                let known = known.ok_or_else(|| {
                    Invalid::new(format!("Unknown load shed point {}", point.name))
                })?;
                Ok((known, triggers(&point.triggers)?))
            },
        )?);
        let mut seen = HashSet::new();
        if let Some((twice, _)) = actions.iter().find(|(action, _)| !seen.insert(*action)) {
            return Err(Invalid::new(format!(
                "Duplicate overload action {}",
                twice.name()
            )));
        }
        config.actions = actions;
        config.minimums = minimums;
        Ok(config)
    }
}

impl OverloadConfig {
    fn add_monitors(&mut self, wire: &[ResourceMonitor]) -> Result<(), Invalid> {
        let mut names = HashSet::new();
        try_all("resource_monitors", wire, |monitor| {
            if !names.insert(monitor.name.clone()) {
                return Err(Invalid::new(format!(
                    "Duplicate resource monitor {}",
                    monitor.name
                )));
            }
            match kind(monitor)? {
                Kind::Polled(polled) => self.resources.push((monitor.name.clone(), polled)),
                Kind::Connections(most) => self.connections = Some((monitor.name.clone(), most)),
            }
            Ok(())
        })
        .map(drop)
    }
}

fn reduced_timers(action: &OverloadAction) -> Result<Minimums, Invalid> {
    let any = action.typed_config.as_ref();
    let any = any.ok_or_else(|| Invalid::new("it is needed"))?;
    let wire: ScaleTimersOverloadActionConfig = proto::any::unpack(any)?;
    Minimums::try_from(&wire)
}

fn classes(wire: BufferFactoryConfig) -> Result<StreamClasses, Invalid> {
    let power = wire.minimum_account_to_track_power_of_two;
    if StreamClasses::POWERS.contains(&power) {
        return Ok(StreamClasses::new(power));
    }
    Err(Invalid::new(format!("{power} is not between 10 and 56"))
        .at("minimum_account_to_track_power_of_two"))
}

fn kind(wire: &ResourceMonitor) -> Result<Kind, Invalid> {
    let Some(ConfigType::TypedConfig(any)) = &wire.config_type else {
        return Err(Invalid::new("it is needed").at("typed_config"));
    };
    parse(any).at("typed_config")
}

fn parse(any: &Any) -> Result<Kind, Invalid> {
    if proto::any::is::<FixedHeapConfig>(any) {
        let config: FixedHeapConfig = proto::any::unpack(any)?;
        if config.max_heap_size_bytes == 0 {
            return Err(Invalid::new("it must not be zero").at("max_heap_size_bytes"));
        }
        return Ok(Kind::Polled(Monitor::Heap {
            most: config.max_heap_size_bytes,
        }));
    }
    if proto::any::is::<CgroupMemoryConfig>(any) {
        let config: CgroupMemoryConfig = proto::any::unpack(any)?;
        let most = config.max_memory_bytes;
        return Ok(Kind::Polled(Monitor::Cgroup {
            most: (most > 0).then_some(most),
        }));
    }
    if proto::any::is::<InjectedResourceConfig>(any) {
        let config: InjectedResourceConfig = proto::any::unpack(any)?;
        return Ok(Kind::Polled(Monitor::Injected(config.filename.into())));
    }
    if proto::any::is::<DownstreamConnectionsConfig>(any) {
        let config: DownstreamConnectionsConfig = proto::any::unpack(any)?;
        let most = u64::try_from(config.max_active_downstream_connections).unwrap_or(0);
        if most == 0 {
            return Err(Invalid::new("it must be positive").at("max_active_downstream_connections"));
        }
        return Ok(Kind::Connections(most));
    }
    Err(Invalid::new(format!(
        "no resource monitor for {}",
        any.type_url
    )))
}

fn trigger(wire: &WireTrigger) -> Result<Trigger, Invalid> {
    let share = |value: f64| {
        if (0.0..=1.0).contains(&value) {
            Ok(value)
        } else {
            Err(Invalid::new(format!("{value} is not between 0 and 1")))
        }
    };
    match &wire.trigger_oneof {
        Some(TriggerOneof::Threshold(threshold)) => share(threshold.value)
            .at("threshold")
            .map(Trigger::Threshold),
        Some(TriggerOneof::Scaled(scaled)) => {
            let begin = share(scaled.scaling_threshold).at("scaled.scaling_threshold")?;
            let full = share(scaled.saturation_threshold).at("scaled.saturation_threshold")?;
            if begin >= full {
                return Err(Invalid::new(
                    "scaling_threshold must be less than saturation_threshold",
                )
                .at("scaled"));
            }
            Ok(Trigger::Scaled(begin, full))
        }
        None => Err(Invalid::new("a trigger is needed")),
    }
}
