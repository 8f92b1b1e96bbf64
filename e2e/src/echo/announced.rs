//! What comes before lines by the second version of the proxy protocol, in binary: who the client is.

use std::io::{Error, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// What a header begins with; no line does.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2 on behalf of a client, TCP over IPv4, and so many bytes of addresses.
const OF_CLIENT: (u8, u8, u16) = (0x21, 0x11, 12);

/// Takes the header if there is one; what it says ends with a space.
pub(super) async fn take(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<String> {
    if stream.fill_buf().await?.first() != SIGNATURE.first() {
        return Ok(String::new());
    }
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    let (command, family) = (stream.read_u8().await?, stream.read_u8().await?);
    let length = stream.read_u16().await?;
    if &start != SIGNATURE || (command, family, length) != OF_CLIENT {
        return Err(Error::new(ErrorKind::InvalidData, "another header"));
    }
    let [source, destination] = [stream.read_u32().await?, stream.read_u32().await?];
    let [from, to] = [stream.read_u16().await?, stream.read_u16().await?];
    let source = SocketAddrV4::new(Ipv4Addr::from(source), from);
    let destination = SocketAddrV4::new(Ipv4Addr::from(destination), to);
    Ok(format!("PROXY2 {source} {destination} "))
}
