//! Tries whether the rules are in place, from inside: a connection to an address that nobody listens on must arrive at the
//! proxy's inbound port, and the kernel must know where it was meant to go. What an init container `istio-validation` runs
//! where the node's CNI plugin programs the rules.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::OriginalDst};

use crate::options::Options;

/// Exit code that says that nothing is intercepted, by which such pods are told from others.
pub const FAILED: u8 = 126;
/// The inbound passthrough address: what goes there passes the inbound rules whoever sends it.
const TARGET: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the interception is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// The port of the proxy is taken, so that nothing can be tried.
    #[error("listen on port {port}: {error}")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        error: std::io::Error,
    },
    /// Nothing arrived.
    #[error("traffic is not intercepted: {0}")]
    NotIntercepted(String),
}

/// Waits until a connection is intercepted.
///
/// # Errors
/// When none is until the options' timeout. (Istio 1.4 waits for five minutes; rules that are not there before the first
/// container starts do not come later.)
pub fn run(options: &Options) -> Result<(), ValidationError> {
    let listen = |port| {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let bound = bound.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        bound.map_err(|error| ValidationError::Listen { port, error })
    };
    // Both are held, so that what goes to the wrong one is told from what goes nowhere.
    let (inbound, outbound) = (
        listen(options.inbound_port)?,
        listen(options.outbound_port)?,
    );
    let target = SocketAddrV4::new(TARGET, options.probe_port);
    let deadline = Instant::now() + Duration::from_secs(options.probe_timeout);
    loop {
        let outcome = attempt(target, &inbound, &outbound);
        match outcome {
            Ok(()) => return Ok(()),
            Err(reason) if Instant::now() >= deadline => {
                return Err(ValidationError::NotIntercepted(reason));
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

fn attempt(
    target: SocketAddrV4,
    inbound: &TcpListener,
    outbound: &TcpListener,
) -> Result<(), String> {
    let stream = TcpStream::connect_timeout(&target.into(), Duration::from_secs(1));
    let stream = stream.map_err(|error| format!("connect to {target}: {error}"))?;
    // The handshake is done, so the connection is in a listener's queue.
    let accepted = match (inbound.accept(), outbound.accept()) {
        (Ok((accepted, _)), _) => accepted,
        (_, Ok(_)) => return Err("the inbound connection went to the outbound port".to_owned()),
        (Err(error), _) if error.kind() == ErrorKind::WouldBlock => {
            return Err(format!("somebody else answers on {target}"));
        }
        (Err(error), _) => return Err(format!("accept: {error}")),
    };
    drop(stream);
    let meant = getsockopt(&accepted, OriginalDst)
        .map_err(|error| format!("original destination: {error}"))?;
    let port = u16::from_be(meant.sin_port);
    if port == target.port() {
        Ok(())
    } else {
        Err(format!(
            "the original destination's port is {port}, not {}",
            target.port()
        ))
    }
}
