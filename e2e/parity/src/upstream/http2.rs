//! Scripted HTTP/2 and gRPC servers.

use super::Server;
use crate::{
    case::{Answer, Then},
    client::{flat, header_map, map_json, send_body},
    connection::{Connection, DEADLINE},
    grpc, normal,
};
use bytes::Bytes;
use h2::server::SendResponse;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Serves one connection to its end.
///
/// # Errors
/// When the handshake fails.
pub(super) async fn serve(
    server: Arc<Server>,
    connection: Connection,
    number: u64,
    tls: Option<Value>,
) -> anyhow::Result<()> {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    let mut http2 = timeout(
        DEADLINE,
        builder.handshake::<_, Bytes>(connection.into_stream()),
    )
    .await??;
    while let Some(accepted) = http2.accept().await {
        let Ok((request, respond)) = accepted else {
            return Ok(());
        };
        if server.next_is_goaway() {
            http2.graceful_shutdown();
        }
        let (server, tls) = (server.clone(), tls.clone());
        proto_component::task::spawn("upstream-stream", async move {
            let whole = stream(server.clone(), request, respond, number, tls);
            if let Err(error) = whole.await {
                server.saw(number, json!({"failed": format!("{error:#}")}));
            }
        });
    }
    Ok(())
}

impl Server {
    /// Whether the coming answer says GOAWAY.
    fn next_is_goaway(&self) -> bool {
        let record = self.record.lock();
        let next = record
            .answers
            .get(&self.name)
            .and_then(|answers| answers.front());
        next.is_some_and(|answer| answer.then == Then::Goaway)
    }
}

async fn stream(
    server: Arc<Server>,
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    number: u64,
    tls: Option<Value>,
) -> anyhow::Result<()> {
    let (head, mut body) = request.into_parts();
    let mut seen = json!({
        "method": head.method.as_str(),
        "scheme": head.uri.scheme_str(),
        "authority": head.uri.authority().map(|authority| normal::text(authority.as_str())),
        "path": head.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
        "headers": map_json(&head.headers),
    });
    if let Some(tls) = tls {
        seen["tls"] = tls;
    }
    let path = head.uri.path().to_owned();
    let answer = server.answer(&path);
    if head.method == http::Method::CONNECT {
        server.saw(number, seen.clone());
        return tunnel(&answer, respond, body).await;
    }
    let is_over = read_request(&mut body, &path, &mut seen).await;
    server.saw(number, seen.clone());
    if !is_over {
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(answer.delay)).await;
    if answer.then == Then::Hold {
        let reset = timeout(
            DEADLINE,
            std::future::poll_fn(|context| respond.poll_reset(context)),
        )
        .await;
        let held = match reset {
            Ok(Ok(reason)) => json!(format!("reset {reason:?}")),
            Ok(Err(_)) => json!("closed"),
            Err(_) => json!("open"),
        };
        server.saw(number, json!({"held": held}));
        return Ok(());
    }
    if let Some(code) = answer.reset {
        respond.send_reset(h2::Reason::from(code));
        return Ok(());
    }
    let sent = if answer.messages.is_empty() && answer.grpc_status.is_none() {
        let body = server.body(&seen, &answer);
        plain(&answer, respond, body).await
    } else {
        messages(&answer, respond, &path).await
    };
    // A proxy that lost interest is what the case may be about.
    if let Err(error) = sent
        && error.downcast_ref::<h2::Error>().is_none()
    {
        return Err(error);
    }
    Ok(())
}

/// Reads the request's body and trailers; `false` when it was reset.
async fn read_request(body: &mut h2::RecvStream, path: &str, seen: &mut Value) -> bool {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.len());
                bytes.extend_from_slice(&data);
            }
            Err(error) => {
                seen["reset"] = json!(error.reason().map(|reason| format!("{reason:?}")));
                return false;
            }
        }
    }
    if let Some(messages) = grpc::request_json(path, &bytes) {
        seen["messages"] = messages;
    } else if !bytes.is_empty() {
        seen["body"] = normal::bytes(&bytes);
    }
    if let Ok(Some(trailers)) = body.trailers().await {
        seen["trailers"] = map_json(&trailers);
    }
    true
}

fn response(answer: &Answer) -> anyhow::Result<http::Response<()>> {
    let mut response = http::Response::builder()
        .status(answer.status.unwrap_or(200))
        .body(())?;
    *response.headers_mut() = header_map(&flat(&answer.headers))?;
    Ok(response)
}

async fn plain(
    answer: &Answer,
    mut respond: SendResponse<Bytes>,
    body: Vec<u8>,
) -> anyhow::Result<()> {
    let is_empty = body.is_empty() && answer.trailers.is_empty();
    let mut stream = respond.send_response(response(answer)?, is_empty)?;
    if is_empty {
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(answer.body_delay)).await;
    send_body(&mut stream, &body, answer.trailers.is_empty()).await?;
    if answer.then == Then::Abort {
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
    } else if !answer.trailers.is_empty() {
        stream.send_trailers(header_map(&flat(&answer.trailers))?)?;
    }
    Ok(())
}

/// gRPC's answer: messages, then the status in the trailers.
async fn messages(
    answer: &Answer,
    mut respond: SendResponse<Bytes>,
    path: &str,
) -> anyhow::Result<()> {
    let mut head = response(answer)?;
    head.headers_mut().insert(
        "content-type",
        http::HeaderValue::from_static("application/grpc"),
    );
    let status = http::HeaderValue::from(answer.grpc_status.unwrap_or(0));
    if answer.messages.is_empty() {
        head.headers_mut().insert("grpc-status", status);
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut stream = respond.send_response(head, false)?;
    for message in &answer.messages {
        send_body(&mut stream, &grpc::answer(path, message)?, false).await?;
    }
    let mut trailers = header_map(&flat(&answer.trailers))?;
    trailers.insert("grpc-status", status);
    stream.send_trailers(trailers)?;
    Ok(())
}

/// CONNECT: what comes goes back.
async fn tunnel(
    answer: &Answer,
    mut respond: SendResponse<Bytes>,
    mut body: h2::RecvStream,
) -> anyhow::Result<()> {
    let is_refused = answer.status.is_some_and(|status| status >= 300);
    let mut stream = respond.send_response(response(answer)?, is_refused)?;
    if is_refused {
        return Ok(());
    }
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        send_body(&mut stream, &data, false).await?;
    }
    // A proxy that has reset the stream is done with it.
    let _ = stream.send_data(Bytes::new(), true);
    Ok(())
}
