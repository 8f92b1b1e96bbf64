//! Listening sockets, one a worker.

use super::options::SocketOptions;
use crate::{transport::unpace, wire::AnyAddress};
use proto::envoy::config::core::v3::socket_option::SocketState;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

/// A bound socket before a runtime has it.
pub(crate) enum BoundSocket {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// Unix.
    Unix(std::os::unix::net::UnixListener),
}

/// Takes `count` sockets at an address; all or none. A port of 0 is the same for all.
pub(super) fn bind(
    address: &AnyAddress,
    options: &SocketOptions,
    count: usize,
) -> io::Result<Vec<BoundSocket>> {
    match address {
        AnyAddress::Socket(address) => {
            let mut address = *address;
            let mut sockets = Vec::with_capacity(count);
            for _ in 0..count {
                let socket = match sockets.first() {
                    Some(BoundSocket::Tcp(first)) if !options.is_port_shared => {
                        std::net::TcpListener::try_clone(first)?
                    }
                    _ => bind_tcp(address, options)?,
                };
                address = socket.local_addr()?;
                sockets.push(BoundSocket::Tcp(socket));
            }
            Ok(sockets)
        }
        AnyAddress::Pipe(path) => bind_unix(path, options.mode, count),
        AnyAddress::Name(name, _) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name} is not an address"),
        )),
    }
}

fn bind_tcp(address: SocketAddr, options: &SocketOptions) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if options.is_port_shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(!options.is_v4_compatible)?;
    }
    if options.is_transparent {
        if address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
    }
    if options.is_freebind {
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
    }
    unpace(&socket, address.ip());
    options.apply(&socket, SocketState::StatePrebind)?;
    socket.bind(&address.into())?;
    options.apply(&socket, SocketState::StateBound)?;
    socket.listen(options.backlog)?;
    options.apply(&socket, SocketState::StateListening)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, mode: u32, count: usize) -> io::Result<Vec<BoundSocket>> {
    // A socket file outlives its process.
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    if mode != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    // There is no SO_REUSEPORT for Unix sockets: the workers share one.
    (0..count)
        .map(|_| listener.try_clone().map(BoundSocket::Unix))
        .collect()
}

impl BoundSocket {
    /// The TCP address taken.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}
