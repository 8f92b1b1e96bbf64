//! Protocols of ports, and how a port's name or `appProtocol` tells which it is.

use std::fmt;

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1, or HTTP/2 when the client asks for an upgrade.
    Http,
    /// TLS that carries HTTP, passed through.
    Https,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC from browsers.
    GrpcWeb,
    /// An HTTP proxy's port.
    HttpProxy,
    /// `MongoDB`.
    Mongo,
    /// Redis.
    Redis,
    /// `MySQL`.
    MySql,
    /// Anything over TCP.
    Tcp,
    /// Anything over TLS, passed through.
    Tls,
    /// Anything over UDP; the mesh does not touch it.
    Udp,
    /// HTTP CONNECT tunnels between mesh members.
    Hbone,
    /// Not said, or unknown: the proxy looks at the first bytes.
    #[default]
    Unsupported,
}

/// Ports of server-first protocols: waiting for the client's first bytes would be in vain.
const SERVER_FIRST_PORTS: [u32; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// The protocol of this name, in whatever case.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "https" => Self::Https,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "http_proxy" => Self::HttpProxy,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::MySql,
            "tcp" => Self::Tcp,
            "tls" => Self::Tls,
            "udp" => Self::Udp,
            "hbone" => Self::Hbone,
            _ => Self::Unsupported,
        }
    }

    /// The protocol of a Kubernetes service's port. `appProtocol` wins over the name; of either only what stands before the
    /// first `-` counts (`http-metrics`), except for `grpc-web`.
    #[must_use]
    pub fn of_service_port(
        number: u32,
        name: &str,
        app_protocol: Option<&str>,
        transport: &str,
    ) -> Self {
        if transport.eq_ignore_ascii_case("udp") {
            return Self::Udp;
        }
        let name = match app_protocol {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Https,
            Some(name) => name,
            None => name,
        };
        let lower = name.to_ascii_lowercase();
        let protocol = if lower.starts_with("grpc-web") {
            Self::GrpcWeb
        } else {
            Self::parse(lower.split('-').next().unwrap_or_default())
        };
        if protocol == Self::Unsupported && SERVER_FIRST_PORTS.contains(&number) {
            return Self::Tcp;
        }
        protocol
    }

    /// The name in upper case, as configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-WEB",
            Self::HttpProxy => "HTTP_PROXY",
            Self::Mongo => "MONGO",
            Self::Redis => "REDIS",
            Self::MySql => "MYSQL",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Udp => "UDP",
            Self::Hbone => "HBONE",
            Self::Unsupported => "UNSUPPORTED",
        }
    }

    /// Requests can be seen: HTTP in any version, gRPC.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpProxy) || self.is_http2()
    }

    /// HTTP/2 is spoken.
    #[must_use]
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// gRPC in either form.
    #[must_use]
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::GrpcWeb)
    }

    /// TLS that the application speaks itself.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Only connections can be seen.
    #[must_use]
    pub fn is_tcp(self) -> bool {
        matches!(
            self,
            Self::Tcp | Self::Https | Self::Tls | Self::Mongo | Self::Redis | Self::MySql
        )
    }

    /// The proxy must find out by itself.
    #[must_use]
    pub fn is_unsupported(self) -> bool {
        self == Self::Unsupported
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_tells_its_protocol() {
        for (number, name, app_protocol, transport, want) in [
            (80, "http", None, "TCP", Protocol::Http),
            (80, "HTTP-metrics", None, "TCP", Protocol::Http),
            (80, "http2-x", None, "TCP", Protocol::Http2),
            (80, "grpc-web", None, "TCP", Protocol::GrpcWeb),
            (80, "grpc-x", None, "TCP", Protocol::Grpc),
            (80, "httpfoo", None, "TCP", Protocol::Unsupported),
            (80, "", None, "TCP", Protocol::Unsupported),
            (3306, "", None, "TCP", Protocol::Tcp),
            (3306, "http", None, "TCP", Protocol::Http),
            (80, "http", Some("tcp"), "TCP", Protocol::Tcp),
            (80, "", Some("kubernetes.io/h2c"), "TCP", Protocol::Http2),
            (80, "http", None, "UDP", Protocol::Udp),
        ] {
            assert_eq!(
                Protocol::of_service_port(number, name, app_protocol, transport),
                want,
                "{number} {name}"
            );
        }
    }

    #[test]
    fn a_protocol_is_read_as_it_is_written() {
        for name in [
            "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "REDIS", "MYSQL", "TCP", "TLS",
            "UDP",
        ] {
            assert_eq!(Protocol::parse(name).as_str(), name);
            assert_eq!(Protocol::parse(&name.to_lowercase()).as_str(), name);
        }
        assert!(Protocol::parse("kafka").is_unsupported());
    }
}
