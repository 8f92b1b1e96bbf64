//! `splice(2)`: socket → pipe → socket, in the kernel.

use super::Broken;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use std::{cell::RefCell, io, os::fd::OwnedFd};
use tokio::{io::Interest, net::TcpStream};

/// A pipe's size: what is moved at once at most. A user's pipes share 64 MiB, so that it must not be much more.
const SIZE: i32 = 512 << 10;
/// The system's usual size; it grants less only to users who have too many pipes, and then copying is cheaper.
const LEAST: i32 = 64 << 10;
/// Others have their turn after so much.
const TURN: usize = 2 << 20;
/// Empty pipes that a worker keeps.
const KEPT: usize = 16;

/// A worker's empty pipes.
#[derive(Default)]
pub(super) struct Pipes(RefCell<Vec<Pipe>>);

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// How a flow came to rest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flow {
    /// Nothing more is to be read for now, or it is others' turn; so much was moved.
    Dry(usize),
    /// The reader's side is over.
    End,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let granted = fcntl(&write, FcntlArg::F_SETPIPE_SZ(SIZE))
            .or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))?;
        if granted < LEAST {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self { read, write })
    }
}

impl Pipes {
    /// Moves what there is to read, at most `most` at once, and tells `moved` of it; `None` without a pipe.
    ///
    /// The pipe is held only while there are bytes to move: idle connections cost no file descriptors.
    pub(super) async fn flow(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        most: usize,
        moved: &impl Fn(u64),
    ) -> Option<Result<Flow, Broken>> {
        let kept = self.0.borrow_mut().pop();
        let pipe = kept.map_or_else(Pipe::new, Ok).ok()?;
        let flow = flow(&pipe, from, to, most, moved).await;
        let mut kept = self.0.borrow_mut();
        // One that broke off may have bytes left.
        if flow.is_ok() && kept.len() < KEPT {
            kept.push(pipe);
        }
        Some(flow)
    }
}

async fn flow(
    pipe: &Pipe,
    from: &TcpStream,
    to: &TcpStream,
    most: usize,
    moved: &impl Fn(u64),
) -> Result<Flow, Broken> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    let mut total = 0;
    loop {
        let count = from.try_io(Interest::READABLE, || {
            splice(from, None, &pipe.write, None, most, flags).map_err(io::Error::from)
        });
        let mut left = match count {
            Ok(0) => return Ok(Flow::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Flow::Dry(total));
            }
            Err(error) => return Err(Broken::reader(&error)),
        };
        total += left;
        moved(left as u64);
        while left > 0 {
            let written = to
                .async_io(Interest::WRITABLE, || {
                    splice(&pipe.read, None, to, None, left, flags).map_err(io::Error::from)
                })
                .await;
            left -= written.map_err(|error| Broken::writer(&error))?;
        }
        moved(0);
        if total >= TURN {
            tokio::task::yield_now().await;
            return Ok(Flow::Dry(total));
        }
    }
}
