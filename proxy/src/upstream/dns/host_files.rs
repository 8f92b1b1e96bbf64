//! What the machine says of names: `/etc/hosts`, and the name servers and domains of `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where name servers are, if nothing else is said.
pub(super) const PORT: u16 = 53;

/// `/etc/resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// Whom to ask.
    pub(super) servers: Vec<SocketAddr>,
    /// Where short names may be.
    pub(super) search: Vec<String>,
    /// Names with as many dots are not short.
    pub(super) dots: usize,
}

impl ResolvConf {
    /// The machine's; nothing if it has none.
    pub(super) fn read() -> Self {
        let text = std::fs::read_to_string("/etc/resolv.conf");
        Self::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut read = Self {
            dots: 1,
            ..Self::default()
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    let server = address.map(|ip| SocketAddr::new(ip, PORT));
                    read.servers.extend(server);
                }
                // The last line counts.
                Some("search" | "domain") => read.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let dots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    read.dots = dots.unwrap_or(read.dots);
                }
                _ => {}
            }
        }
        read
    }
}

/// The addresses that the machine itself knows a name by.
pub(super) async fn known(name: &str) -> Vec<IpAddr> {
    let text = tokio::fs::read_to_string("/etc/hosts").await;
    let name = name.trim_end_matches('.');
    let found = of_hosts(&text.unwrap_or_default(), name);
    let is_local = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.eq_ignore_ascii_case("localhost"));
    if found.is_empty() && is_local {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

fn of_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words
            .any(|known| known.eq_ignore_ascii_case(name))
            .then_some(address)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_names_servers_domains_and_dots() {
        let text = "# x\nnameserver 10.0.0.1\nnameserver bad\ndomain old.test\nsearch a.test b.test\nnameserver ::1\noptions rotate ndots:3\n";
        let read = ResolvConf::parse(text);
        assert_eq!(
            read.servers,
            ["10.0.0.1:53", "[::1]:53"].map(|text| text.parse().unwrap())
        );
        assert_eq!(read.search, ["a.test", "b.test"]);
        assert_eq!((read.dots, ResolvConf::parse("").dots), (3, 1));
    }

    #[test]
    fn hosts_are_known_by_any_of_their_names() {
        let text = "127.0.0.1 localhost\n10.0.0.1 a.test A # b\n::1 a.test\nbad a.test\n";
        let of = |name| of_hosts(text, name).len();
        assert_eq!(["a.test", "a", "b", "localhost"].map(of), [2, 1, 0, 1]);
    }
}
