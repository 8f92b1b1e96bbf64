//! `splice(2)`: socket → pipe → socket, in the kernel.

use super::{Activity, Broken, Ended, join};
use crate::{
    listener::ConnectionInfo,
    transport::{DownstreamStream, UpstreamStream},
};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use std::{io, os::fd::OwnedFd};
use tokio::{io::Interest, net::TcpStream};

/// What is moved at once at most; also the pipe's size, where the system allows it.
const CHUNK: usize = 256 << 10;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new(size: usize) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A larger pipe means fewer calls; the usual size does too.
        let _ = fcntl(
            &write,
            FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(0)),
        );
        Ok(Self { read, write })
    }
}

/// Joins two plain sockets until both directions are done.
pub(super) async fn both(
    downstream: &DownstreamStream,
    info: &ConnectionInfo,
    upstream: &UpstreamStream,
    activity: &Activity,
) -> Ended {
    let (Some(client), Some(host)) = (downstream.plain_tcp(), upstream.plain_tcp()) else {
        return Ended::Finished;
    };
    let most = usize::try_from(info.buffer_limit).unwrap_or(CHUNK);
    // A limit of zero is none.
    let most = if most == 0 { CHUNK } else { CHUNK.min(most) };
    let request = one_way(client, host, most, |count| {
        activity.touch();
        info.meter.add(count, 0);
        upstream.count(0, count);
    });
    let response = one_way(host, client, most, |count| {
        activity.touch();
        info.meter.add(0, count);
        upstream.count(count, 0);
    });
    join(request, response).await
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    most: usize,
    moved: impl Fn(u64),
) -> Result<(), Broken> {
    // No pipe is taken before there is anything to carry: idle connections cost no file descriptors.
    from.readable().await.map_err(|_| Broken::Reader)?;
    let pipe = Pipe::new(most).map_err(|_| Broken::Reader)?;
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        let count = from
            .async_io(Interest::READABLE, || {
                splice(from, None, &pipe.write, None, most, flags).map_err(io::Error::from)
            })
            .await;
        let mut left = count.map_err(|_| Broken::Reader)?;
        if left == 0 {
            // The other side may be gone already.
            let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
            return Ok(());
        }
        moved(left as u64);
        while left > 0 {
            let written = to
                .async_io(Interest::WRITABLE, || {
                    splice(&pipe.read, None, to, None, left, flags).map_err(io::Error::from)
                })
                .await;
            left -= written.map_err(|_| Broken::Writer)?;
        }
    }
}
