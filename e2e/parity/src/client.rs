//! Scripted clients: HTTP/1 and HTTP/2 requests in words, conversations in bytes or frames, over plain TCP, TLS or a Unix socket.

use crate::{
    bootstrap,
    case::{Client, FrameStep, Group, Request, Step, Values},
    change,
    connection::{Connection, DEADLINE},
    frames,
    group::Place,
    grpc,
    http1::{self, fields_json},
    normal, tls,
};
use anyhow::Context as _;
use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::{Value, json};
use std::{fmt::Write as _, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpSocket, TcpStream, UnixStream},
    time::{sleep, timeout},
};

/// Plays one client; what it saw, step by step.
///
/// # Errors
/// When the case can't be played (not when the proxy answers badly: that is what is compared).
pub async fn play(client: &Client, group: &Group, place: &Place) -> anyhow::Result<Value> {
    sleep(Duration::from_millis(client.after)).await;
    let mut log = Vec::new();
    log.extend(change::make(&client.write, client.wait.as_ref(), place).await?);
    if !client.write.is_empty() && client.to.is_none() {
        return Ok(Value::Array(log));
    }
    let Some(mut connection) = connect(client, group, place, &mut log).await? else {
        return Ok(Value::Array(log));
    };
    let played = if !client.frames.is_empty() {
        frames(&mut connection, &client.frames, place, &mut log).await
    } else if !client.talk.is_empty() {
        talk(&mut connection, &client.talk, place, &mut log).await
    } else if client.h2 {
        http2(connection, client, &mut log).await
    } else {
        http1(&mut connection, &client.requests, &mut log).await
    };
    if let Err(error) = played {
        log.push(json!({"failed": normal::text(&format!("{error:#}"))}));
    }
    Ok(Value::Array(log))
}

async fn talk(
    connection: &mut Connection,
    steps: &[Step],
    place: &Place,
    log: &mut Vec<Value>,
) -> anyhow::Result<()> {
    for step in steps {
        match step {
            Step::Change(to) => {
                log.extend(change::make(&to.write, Some(&to.wait), place).await?);
            }
            step => connection.step(step, log).await?,
        }
    }
    Ok(())
}

async fn frames(
    connection: &mut Connection,
    steps: &[FrameStep],
    place: &Place,
    log: &mut Vec<Value>,
) -> anyhow::Result<()> {
    for step in steps {
        match step {
            FrameStep::Change(to) => {
                log.extend(change::make(&to.write, Some(&to.wait), place).await?);
            }
            step => frames::play(connection, step, log).await?,
        }
    }
    Ok(())
}

async fn connect(
    client: &Client,
    group: &Group,
    place: &Place,
    log: &mut Vec<Value>,
) -> anyhow::Result<Option<Connection>> {
    if let Some(path) = &client.unix {
        let Ok(stream) = UnixStream::connect(path).await else {
            log.push(json!("refused"));
            return Ok(None);
        };
        return Ok(Some(Connection::new(Box::new(stream))));
    }
    let to = client.to.as_deref().context("a client needs `to`")?;
    let port = bootstrap::listener_port(group, to)
        .or_else(|| (to == "admin").then_some(crate::group::ADMIN));
    let port = port.with_context(|| format!("there is no listener {to}"))?;
    let Some(stream) = tcp(SocketAddr::new(place.address.into(), port), client.from).await? else {
        log.push(json!("refused"));
        return Ok(None);
    };
    let mut stream = stream;
    if let Some(prelude) = &client.prelude {
        use tokio::io::AsyncWriteExt as _;
        stream.write_all(&crate::case::latin(prelude)).await?;
    }
    match &client.tls {
        Some(tls) => tls::connect(stream, tls, &place.certs, log).await,
        None => Ok(Some(Connection::new(Box::new(stream)))),
    }
}

/// Connects; `None` when that is refused.
///
/// # Errors
/// When there is no socket to be had.
pub async fn tcp(
    to: SocketAddr,
    from: Option<std::net::IpAddr>,
) -> anyhow::Result<Option<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    match timeout(DEADLINE, socket.connect(to)).await {
        Ok(Ok(stream)) => {
            stream.set_nodelay(true)?;
            Ok(Some(stream))
        }
        _ => Ok(None),
    }
}

impl Request {
    fn method(&self) -> &str {
        self.method
            .as_deref()
            .unwrap_or(if self.grpc.is_some() { "POST" } else { "GET" })
    }
    fn path(&self) -> &str {
        self.get
            .as_deref()
            .or(self.path.as_deref())
            .or(self.grpc.as_deref())
            .unwrap_or("/")
    }
    fn host(&self) -> &str {
        self.host.as_deref().unwrap_or("parity.test")
    }
    fn body(&self) -> Option<Vec<u8>> {
        let body = self.body.as_ref().map(crate::case::Text::bytes);
        if self.grpc.is_some() {
            Some(grpc::frame(&body.unwrap_or_default()))
        } else {
            body
        }
    }
    fn fields(&self) -> Vec<(String, String)> {
        let mut fields = flat(&self.headers);
        if self.grpc.is_some() {
            fields.push(("content-type".to_owned(), "application/grpc".to_owned()));
            fields.push(("te".to_owned(), "trailers".to_owned()));
        }
        fields
    }

    /// The request's bytes in HTTP/1.1.
    fn http1(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\n",
            self.method(),
            self.path(),
            self.host()
        );
        let fields = self.fields();
        for (name, value) in &fields {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let body = self.body();
        let framed = fields.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length")
                || name.eq_ignore_ascii_case("transfer-encoding")
        });
        let is_chunked = !self.trailers.is_empty();
        if is_chunked {
            head.push_str("transfer-encoding: chunked\r\n");
        } else if let (Some(body), false) = (&body, framed) {
            let _ = write!(head, "content-length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut bytes = crate::case::latin(&head);
        let body = body.unwrap_or_default();
        if is_chunked {
            bytes.extend(format!("{:x}\r\n", body.len()).into_bytes());
            bytes.extend(body);
            bytes.extend(b"\r\n0\r\n");
            for (name, value) in flat(&self.trailers) {
                bytes.extend(format!("{name}: {value}\r\n").into_bytes());
            }
            bytes.extend(b"\r\n");
        } else {
            bytes.extend(body);
        }
        bytes
    }
}

/// Names and values, in order.
#[must_use]
pub fn flat(fields: &IndexMap<String, Values>) -> Vec<(String, String)> {
    fields
        .iter()
        .flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (name.clone(), value.to_owned()))
        })
        .collect()
}

async fn http1(
    connection: &mut Connection,
    requests: &[Request],
    log: &mut Vec<Value>,
) -> anyhow::Result<()> {
    let mut closes = false;
    for request in requests {
        connection.send(&request.http1()).await;
        if let Some(time) = request.reset_after {
            sleep(Duration::from_millis(time)).await;
            connection.abort();
            log.push(json!("aborted"));
            return Ok(());
        }
        let response = http1::response(connection, request.method()).await?;
        closes = http1::says_close(&response);
        let is_over = response.is_string();
        log.push(response);
        if is_over {
            return Ok(());
        }
    }
    let fate = connection.usual_fate(closes).await;
    log.push(fate);
    Ok(())
}

async fn http2(
    connection: Connection,
    client: &Client,
    log: &mut Vec<Value>,
) -> anyhow::Result<()> {
    let (sender, driver) =
        timeout(DEADLINE, h2::client::handshake(connection.into_stream())).await??;
    let driver = proto_component::task::spawn("client-http2", driver);
    if client.concurrent {
        let all = client
            .requests
            .iter()
            .map(|request| exchange(sender.clone(), request));
        log.extend(futures::future::join_all(all).await);
    } else {
        for request in &client.requests {
            log.push(exchange(sender.clone(), request).await);
        }
    }
    drop(sender);
    driver.abort();
    Ok(())
}

/// One request and its answer over HTTP/2.
async fn exchange(sender: h2::client::SendRequest<Bytes>, request: &Request) -> Value {
    match timeout(DEADLINE, exchange_whole(sender, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => json!({"failed": format!("{error:#}")}),
        Err(_) => json!({"failed": "no answer in time"}),
    }
}

async fn exchange_whole(
    sender: h2::client::SendRequest<Bytes>,
    request: &Request,
) -> anyhow::Result<Value> {
    let mut sender = match sender.ready().await {
        Ok(sender) => sender,
        Err(error) => return Ok(failure(&error)),
    };
    let mut builder = http::Request::builder()
        .method(request.method())
        .version(http::Version::HTTP_2);
    builder = if request.method() == "CONNECT" && !request.headers.contains_key(":protocol") {
        builder.uri(request.host())
    } else {
        let scheme = request.scheme.as_deref().unwrap_or("http");
        builder.uri(format!("{scheme}://{}{}", request.host(), request.path()))
    };
    for (name, value) in request.fields() {
        builder = if name == ":protocol" {
            builder.extension(h2::ext::Protocol::from(value.as_str()))
        } else {
            builder.header(name, value)
        };
    }
    let body = request.body();
    let has_trailers = !request.trailers.is_empty();
    let (response, mut stream) =
        match sender.send_request(builder.body(())?, body.is_none() && !has_trailers) {
            Ok(sent) => sent,
            Err(error) => return Ok(failure(&error)),
        };
    if let Some(body) = body {
        // An answer may come even if the body is not taken.
        let _ = send_body(&mut stream, &body, !has_trailers).await;
    }
    if has_trailers {
        let _ = stream.send_trailers(header_map(&flat(&request.trailers))?);
    }
    if let Some(time) = request.reset_after {
        sleep(Duration::from_millis(time)).await;
        stream.send_reset(h2::Reason::CANCEL);
        // The frame needs the connection to be driven once more.
        sleep(Duration::from_millis(50)).await;
        return Ok(json!("reset by us"));
    }
    read_answer(response).await
}

async fn read_answer(response: h2::client::ResponseFuture) -> anyhow::Result<Value> {
    let mut response = match response.await {
        Ok(response) => response,
        Err(error) => return Ok(failure(&error)),
    };
    let mut answer = json!({
        "status": response.status().as_u16(),
        "headers": map_json(response.headers()),
    });
    let (mut body, stream) = (Vec::new(), response.body_mut());
    while let Some(data) = stream.data().await {
        match data {
            Ok(data) => {
                let _ = stream.flow_control().release_capacity(data.len());
                body.extend_from_slice(&data);
            }
            Err(error) => {
                answer["then"] = failure(&error);
                break;
            }
        }
    }
    answer["body"] = normal::bytes(&body);
    match stream.trailers().await {
        Ok(Some(trailers)) => answer["trailers"] = map_json(&trailers),
        Ok(None) => {}
        Err(error) => answer["then"] = failure(&error),
    }
    Ok(answer)
}

/// Sends a body as the window allows.
///
/// # Errors
/// When the stream ends before.
pub async fn send_body(
    stream: &mut h2::SendStream<Bytes>,
    body: &[u8],
    is_end: bool,
) -> Result<(), h2::Error> {
    let mut rest = Bytes::copy_from_slice(body);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len().min(16 << 10));
        let granted = match std::future::poll_fn(|context| stream.poll_capacity(context)).await {
            Some(granted) => granted?,
            None => return Err(h2::Reason::CANCEL.into()),
        };
        let part = rest.split_to(granted.min(rest.len()));
        stream.send_data(part, rest.is_empty() && is_end)?;
    }
    if body.is_empty() {
        stream.send_data(Bytes::new(), is_end)?;
    }
    Ok(())
}

/// Fields as HTTP's map.
///
/// # Errors
/// When a name or value is none.
pub fn header_map(fields: &[(String, String)]) -> anyhow::Result<http::HeaderMap> {
    let mut map = http::HeaderMap::new();
    for (name, value) in fields {
        map.append(
            http::HeaderName::try_from(name.as_str())?,
            http::HeaderValue::try_from(value.as_str())?,
        );
    }
    Ok(map)
}

/// HTTP's map as it is compared.
#[must_use]
pub fn map_json(map: &http::HeaderMap) -> Value {
    let fields: Vec<(&str, String)> = map
        .iter()
        .map(|(name, value)| {
            (
                name.as_str(),
                value
                    .as_bytes()
                    .iter()
                    .map(|byte| char::from(*byte))
                    .collect(),
            )
        })
        .collect();
    fields_json(fields.iter().map(|(name, value)| (*name, value.as_str())))
}

fn failure(error: &h2::Error) -> Value {
    match error.reason() {
        Some(reason) if error.is_go_away() => json!(format!("goaway {reason:?}")),
        Some(reason) => json!(format!("reset {reason:?}")),
        None => json!("connection closed"),
    }
}
