//! Which addresses a mesh gives out: private ones where pods have namespaces, loopback ones of this machine where they share
//! its network.
//!
//! A mesh that shares the network has `127.S.0.0/16` for itself, S being its own number among the meshes of the machine. The
//! third byte says what an address is for: the node (0), pods (1 to 63), the applications in these pods (65 to 127), services
//! (from 128). Where an application and its proxy both want port 9080, the proxy has it on the pod's address, as the mesh
//! sees it, and the application on its own.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use anyhow::Context as _;

/// Held on the node's address for as long as the mesh lives: so no other mesh takes the same addresses.
const HELD_PORT: u16 = 15999;
/// Between a pod's third byte and its application's.
const TO_APPLICATION: u8 = 64;
const FIRST_SERVICE: u8 = 128;
/// What IPv6 addresses have before the IPv4 address that they go with.
const IPV6_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, 0);
/// Second bytes that meshes may have: away from what people use by hand (127.0.0.1, 127.0.1.1, 127.1.…).
const MESHES: std::ops::Range<u8> = 64..255;

/// The addresses of one mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Each pod has a network of its own.
    Isolated {
        /// Pods and services have IPv6 addresses besides.
        has_ipv6: bool,
    },
    /// All pods are on the machine's loopback interface.
    Shared {
        /// Second byte.
        mesh: u8,
    },
}

impl Plan {
    /// Finds addresses on the loopback interface that no other mesh has, and the socket that keeps them.
    pub(crate) fn take_loopback(name: &str) -> anyhow::Result<(Self, TcpListener)> {
        let count = usize::from(MESHES.end - MESHES.start);
        let first = name
            .bytes()
            .fold(0usize, |sum, byte| (sum * 31 + usize::from(byte)) % count);
        let mut problem = None;
        for mesh in MESHES.cycle().skip(first).take(count) {
            let plan = Plan::Shared { mesh };
            match TcpListener::bind((plan.node(), HELD_PORT)) {
                Ok(held) => return Ok((plan, held)),
                Err(error) => problem = Some(error),
            }
        }
        let error = problem.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
        Err(error).context("no loopback addresses (127.64.0.0 and up) are to be had")
    }

    /// The node's address: where probes and forwarded connections come from.
    pub(crate) fn node(self) -> Ipv4Addr {
        match self {
            Plan::Isolated { .. } => super::node::ADDRESS,
            Plan::Shared { mesh } => Ipv4Addr::new(127, mesh, 0, 1),
        }
    }

    /// The address of the pod with this number, from 1.
    pub(crate) fn pod(self, number: u16) -> Option<Ipv4Addr> {
        match self {
            Plan::Isolated { .. } => {
                let [high, low] = number.checked_add(1)?.to_be_bytes();
                Some(Ipv4Addr::new(10, 244, high, low))
            }
            Plan::Shared { mesh } => {
                let [high, low] = number.checked_add(255)?.to_be_bytes();
                (high < TO_APPLICATION).then(|| Ipv4Addr::new(127, mesh, high, low))
            }
        }
    }

    /// The IPv6 address that goes with a pod's or service's, where there is IPv6.
    pub(crate) fn second(self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let bits = IPV6_PREFIX.to_bits() | u128::from(address.to_bits());
        self.has_ipv6().then(|| Ipv6Addr::from_bits(bits))
    }

    /// Whether pods have IPv6 addresses besides.
    pub(crate) fn has_ipv6(self) -> bool {
        matches!(self, Plan::Isolated { has_ipv6: true })
    }

    /// Where the application of a pod listens for its proxy.
    pub(crate) fn application(self, pod: Ipv4Addr) -> Ipv4Addr {
        match self {
            Plan::Isolated { .. } => Ipv4Addr::LOCALHOST,
            Plan::Shared { .. } => {
                let [first, second, third, fourth] = pod.octets();
                Ipv4Addr::new(first, second, third.saturating_add(TO_APPLICATION), fourth)
            }
        }
    }

    /// The cluster address of the service with this number, from 1.
    pub(crate) fn service(self, number: u16) -> Option<Ipv4Addr> {
        match self {
            Plan::Isolated { .. } => {
                // The first ones are the name server's and its neighbours'.
                let [high, low] = number.checked_add(20)?.to_be_bytes();
                Some(Ipv4Addr::new(10, 96, high, low))
            }
            Plan::Shared { mesh } => {
                let [high, low] = number.to_be_bytes();
                Some(Ipv4Addr::new(
                    127,
                    mesh,
                    FIRST_SERVICE.checked_add(high)?,
                    low,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_meshes_never_have_the_same_addresses() {
        let (first, _held) = Plan::take_loopback("plan-test").unwrap();
        let (second, _also_held) = Plan::take_loopback("plan-test").unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn pods_applications_and_services_stay_apart() {
        let plan = Plan::Shared { mesh: 77 };
        assert_eq!(plan.pod(1).unwrap().to_string(), "127.77.1.0");
        let last = (1..=u16::MAX).map_while(|number| plan.pod(number)).last();
        assert_eq!(last.unwrap().to_string(), "127.77.63.255");
        assert_eq!(
            plan.application(last.unwrap()).to_string(),
            "127.77.127.255"
        );
        assert_eq!(plan.service(1).unwrap().to_string(), "127.77.128.1");
        assert_eq!(plan.second(last.unwrap()), None);
        let plan = Plan::Isolated { has_ipv6: true };
        assert_eq!(plan.pod(1).unwrap().to_string(), "10.244.0.2");
        let second = plan.second(plan.pod(1).unwrap());
        assert_eq!(second.unwrap().to_string(), "fd42::af4:2");
        assert_eq!(plan.service(1).unwrap().to_string(), "10.96.0.21");
        assert!(plan.pod(u16::MAX).is_none());
    }
}
