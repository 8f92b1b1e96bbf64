//! What the server does when it is asked for a tunnel: it connects, and passes on what comes from either side.

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::serve::Body;

/// The answer to CONNECT.
pub(super) async fn answer(request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Empty::new().boxed());
    let target = request.uri().authority().map(ToString::to_string);
    let Ok(mut there) = TcpStream::connect(target.unwrap_or_default()).await else {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return response;
    };
    proto_component::task::spawn("tunnel", async move {
        if let Ok(here) = hyper::upgrade::on(request).await {
            // Whoever breaks off ends it for both.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(here), &mut there).await;
        }
    });
    response
}
