//! Is the proxy ready? It has had listeners and clusters from the control plane once (accepted or refused: latched), a gateway
//! listens on its ports, and the server is live.
//!
//! Asked of the proxy at each probe, so that the answer is never old; a ready proxy is asked for its liveness only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::admin::AdminClient;

const DEADLINE: Duration = Duration::from_secs(1);
const STATS: &str = "/stats?usedonly&filter=%5E(cluster_manager%5C.cds%7Clistener_manager%5C.lds)%5C.update_(success%7Crejected)%24";

/// The readiness of one proxy.
#[derive(Debug, Default)]
pub struct Readiness {
    application_ports: Vec<u16>,
    has_configuration: AtomicBool,
}

impl Readiness {
    /// A proxy that is to listen on `application_ports` too.
    pub fn new(application_ports: Vec<u16>) -> Self {
        Self {
            application_ports,
            has_configuration: AtomicBool::new(false),
        }
    }

    /// Asks the proxy; says what is missing.
    pub async fn check(&self, admin: &AdminClient) -> Result<(), String> {
        if !self.has_configuration.load(Ordering::Relaxed) {
            let stats = admin.get(STATS, DEADLINE).await;
            let stats = stats.ok_or("the proxy's admin port does not answer")?;
            check_updates(&stats)?;
            if !self.application_ports.is_empty() {
                let listeners = admin.get("/listeners", DEADLINE).await.unwrap_or_default();
                check_ports(&listeners, &self.application_ports)?;
            }
            self.has_configuration.store(true, Ordering::Relaxed);
        }
        match admin.get("/ready", DEADLINE).await {
            Some(_) => Ok(()),
            None => Err("the proxy is not live".to_owned()),
        }
    }
}

/// At least one update of each kind, whatever became of it.
fn check_updates(stats: &str) -> Result<(), String> {
    let (mut clusters, mut listeners) = (0, 0);
    for line in stats.lines() {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        let value: u64 = value.trim().parse().unwrap_or_default();
        match name {
            "cluster_manager.cds.update_success" | "cluster_manager.cds.update_rejected" => {
                clusters += value;
            }
            "listener_manager.lds.update_success" | "listener_manager.lds.update_rejected" => {
                listeners += value;
            }
            _ => {}
        }
    }
    if clusters > 0 && listeners > 0 {
        return Ok(());
    }
    Err(format!(
        "no configuration from the control plane yet: {clusters} cluster updates, {listeners} listener updates"
    ))
}

/// `/listeners` is a line `name::address:port` for each.
fn check_ports(listeners: &str, ports: &[u16]) -> Result<(), String> {
    let is_there = |port: &u16| {
        let suffix = format!(":{port}");
        listeners
            .lines()
            .any(|line| line.trim_end().ends_with(&suffix))
    };
    match ports.iter().find(|port| !is_there(port)) {
        Some(port) => Err(format!("no listener on port {port} yet")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_update_of_each_kind_is_needed_rejected_ones_count() {
        let stats = |cds: u32, lds: u32| {
            format!(
                "cluster_manager.cds.update_success: {cds}\nlistener_manager.lds.update_rejected: {lds}\nother: 7\n"
            )
        };
        assert!(check_updates(&stats(1, 1)).is_ok());
        assert!(check_updates(&stats(0, 1)).is_err());
        assert!(check_updates(&stats(1, 0)).is_err());
        assert!(check_updates("").is_err());
    }

    #[test]
    fn a_gateways_ports_must_be_listened_on() {
        let listeners = "0.0.0.0_80::0.0.0.0:80\nv6::[::]:443\n";
        assert!(check_ports(listeners, &[80, 443]).is_ok());
        assert!(
            check_ports(listeners, &[80, 8080])
                .unwrap_err()
                .contains("8080")
        );
    }
}
