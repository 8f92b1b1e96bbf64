//! NDS: the names that the agent's DNS proxy answers: the services that the proxy can see, with their addresses; the pods of
//! headless ones.

use std::collections::BTreeMap;

use proto::istio::networking::nds::v1::{NameTable, name_table::NameInfo};

use super::View;
use crate::model::{Registry, Resolution};

/// The table of a proxy.
#[must_use]
pub fn build(view: &View<'_>) -> NameTable {
    let mut table: BTreeMap<String, NameInfo> = BTreeMap::new();
    for service in &view.scope.services {
        if service.resolution == Resolution::DynamicDns {
            continue;
        }
        let mut ips: Vec<String> = service
            .ips_for(view.proxy)
            .into_iter()
            .map(str::to_owned)
            .collect();
        let is_platform = service.registry == Registry::Kubernetes;
        let (shortname, namespace) = if is_platform {
            (service.name.clone(), service.namespace.clone())
        } else {
            (String::new(), String::new())
        };
        let info = |ips| NameInfo {
            ips,
            registry: if is_platform {
                "Kubernetes"
            } else {
                "External"
            }
            .to_owned(),
            shortname: shortname.clone(),
            namespace: namespace.clone(),
        };
        if service.is_headless() {
            for endpoint in view.push.endpoints.of(&service.key()) {
                if !endpoint.is_ready || endpoint.address.parse::<std::net::IpAddr>().is_err() {
                    continue;
                }
                ips.push(endpoint.address.clone());
                // Pods of a stateful set have names of their own.
                let name = &endpoint.name;
                if !name.is_empty() {
                    let entry = table
                        .entry(format!("{name}.{}", service.host))
                        .or_insert_with(|| NameInfo {
                            shortname: format!("{name}.{}", service.name),
                            ..info(Vec::new())
                        });
                    entry.ips.push(endpoint.address.clone());
                }
            }
            ips.sort();
        }
        if !ips.is_empty() {
            table
                .entry(service.host.clone())
                .or_insert_with(|| info(ips));
        }
    }
    NameTable { table }
}
