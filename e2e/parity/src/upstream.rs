//! Scripted servers: each answers what the case says, else what its own script says, and writes down what it saw.

use crate::{
    bootstrap,
    case::{Answer, Group, Protocol, Then, Upstream},
    connection::Connection,
    group::Place,
    http1::{self, Head},
    tls,
};
use anyhow::Context as _;
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    task::JoinHandle,
};

mod dns;
mod http2;

/// What all servers of a group share.
#[derive(Default)]
pub struct Record {
    /// What was seen, by server, with the connection's number.
    seen: IndexMap<String, Vec<(u64, Value)>>,
    /// The case's answers.
    answers: IndexMap<String, VecDeque<Answer>>,
    connections: u64,
}

/// The servers of a group.
pub struct Upstreams {
    record: Arc<Mutex<Record>>,
    tasks: Vec<JoinHandle<()>>,
}

/// One server.
struct Server {
    name: String,
    script: Upstream,
    certs: String,
    record: Arc<Mutex<Record>>,
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Upstreams {
    /// Starts all servers of a group.
    ///
    /// # Errors
    /// When an address is taken.
    pub fn start(group: &Group, place: &Place) -> anyhow::Result<Self> {
        let record: Arc<Mutex<Record>> = Arc::default();
        let mut tasks = Vec::new();
        for (name, script) in group.upstreams.iter().filter(|(_, script)| !script.absent) {
            let server = Arc::new(Server {
                name: name.clone(),
                script: script.clone(),
                certs: place.certs.clone(),
                record: record.clone(),
            });
            if let Some(path) = &script.unix {
                let listener =
                    UnixListener::bind(path).with_context(|| format!("listen at {path}"))?;
                tasks.push(proto_component::task::spawn("upstream", async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        server
                            .clone()
                            .serve(Connection::new(Box::new(stream)), None);
                    }
                }));
                continue;
            }
            let port =
                bootstrap::upstream_port(group, name).context("an upstream without a port")?;
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            let address = std::net::SocketAddr::new(place.address.into(), port);
            socket
                .bind(address)
                .with_context(|| format!("bind {address}"))?;
            if script.protocol == Protocol::Dns {
                let by_datagram = dns::by_datagram(server.clone(), dns::bind(address)?);
                tasks.push(proto_component::task::spawn("upstream", by_datagram));
            }
            tasks.push(proto_component::task::spawn(
                "upstream",
                server.accept(socket.listen(1024)?),
            ));
        }
        Ok(Self { record, tasks })
    }

    /// Ends all servers; their addresses are free afterwards.
    pub async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }

    /// Forgets what was seen and takes a case's answers.
    pub fn begin(&self, answers: &IndexMap<String, Vec<Answer>>) {
        let mut record = self.record.lock();
        record.seen.clear();
        record.answers = answers
            .iter()
            .map(|(name, answers)| (name.clone(), answers.iter().cloned().collect()))
            .collect();
    }

    /// How many requests (or connections of TCP servers) were seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.record.lock().seen.values().map(Vec::len).sum()
    }

    /// What was seen, by server: connection's number and request.
    #[must_use]
    pub fn seen(&self) -> IndexMap<String, Vec<(u64, Value)>> {
        let mut seen = self.record.lock().seen.clone();
        seen.sort_keys();
        seen
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let server = self.clone();
            let Some(tls) = self.script.tls.clone() else {
                server.serve(Connection::new(Box::new(stream)), None);
                continue;
            };
            proto_component::task::spawn("upstream-handshake", async move {
                match tls::accept(stream, &tls, &server.certs).await {
                    Ok((Some(connection), seen)) => server.serve(connection, Some(seen)),
                    Ok((None, seen)) => server.saw(0, json!({"tls": seen})),
                    Err(error) => server.saw(0, json!({"failed": format!("{error:#}")})),
                }
            });
        }
    }

    fn serve(self: Arc<Self>, connection: Connection, tls: Option<Value>) {
        let number = {
            let mut record = self.record.lock();
            record.connections += 1;
            record.connections
        };
        proto_component::task::spawn("upstream-connection", async move {
            let outcome = match self.script.protocol {
                Protocol::Http1 => self.http1(connection, number, tls).await,
                Protocol::Http2 | Protocol::Grpc => {
                    http2::serve(self.clone(), connection, number, tls).await
                }
                Protocol::Tcp => self.tcp(connection, number, tls).await,
                Protocol::Dns => dns::by_stream(&self, connection).await,
            };
            if let Err(error) = outcome {
                self.saw(
                    number,
                    json!({"failed": crate::normal::text(&format!("{error:#}"))}),
                );
            }
        });
    }

    fn saw(&self, connection: u64, what: Value) {
        self.record
            .lock()
            .seen
            .entry(self.name.clone())
            .or_default()
            .push((connection, what));
    }

    /// The answer to a request: the case's next one, the path's, the server's own.
    fn answer(&self, path: &str) -> Answer {
        let mut record = self.record.lock();
        if let Some(answers) = record.answers.get_mut(&self.name) {
            match answers.len() {
                0 => {}
                1 => return answers[0].clone(),
                _ => return answers.pop_front().unwrap_or_default(),
            }
        }
        let path = path.split('?').next().unwrap_or_default();
        self.script
            .paths
            .get(path)
            .unwrap_or(&self.script.answer)
            .clone()
    }

    async fn tcp(
        &self,
        mut connection: Connection,
        number: u64,
        tls: Option<Value>,
    ) -> anyhow::Result<()> {
        let mut log = Vec::new();
        log.extend(tls.map(|tls| json!({"tls": tls})));
        let echo = [crate::case::Step::Echo];
        let talk = if self.script.talk.is_empty() {
            &echo[..]
        } else {
            &self.script.talk
        };
        let played = connection.play(talk, &mut log).await;
        self.saw(number, Value::Array(log));
        played
    }

    async fn http1(
        &self,
        mut connection: Connection,
        number: u64,
        tls: Option<Value>,
    ) -> anyhow::Result<()> {
        loop {
            // A connection waits in the proxy's pool for as long as it likes.
            if connection.buffer.is_empty() {
                match tokio::time::timeout(Duration::from_secs(120), connection.fill()).await {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => return Ok(()),
                    Ok(Err(_)) => continue,
                    Err(_) => return Ok(()),
                }
            }
            let Some(head) = http1::head(&mut connection).await? else {
                return Ok(());
            };
            let mut request = json!({"line": head.line, "headers": head.fields_json()});
            if let Some(tls) = &tls {
                request["tls"] = tls.clone();
            }
            let path = head.line.split(' ').nth(1).unwrap_or("/").to_owned();
            let answer = self.answer(&path);
            if answer.early {
                self.saw(number, request.clone());
                self.send(&mut connection, &head, &request, &answer).await?;
                http1::request_body(&mut connection, &head, &mut request).await?;
            } else {
                if head.field("expect").is_some() {
                    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n").await;
                }
                let is_whole = http1::request_body(&mut connection, &head, &mut request).await?;
                self.saw(number, request.clone());
                if !is_whole {
                    return Ok(());
                }
                self.send(&mut connection, &head, &request, &answer).await?;
            }
            match answer.then {
                Then::Keep | Then::Goaway => {}
                Then::Close => return Ok(()),
                Then::Abort => {
                    connection.abort();
                    return Ok(());
                }
                Then::Echo => {
                    let echoed = connection.echo().await?;
                    self.saw(number, json!({"echoed": crate::normal::bytes(&echoed)}));
                    return Ok(());
                }
                Then::Hold => {
                    let fate = connection.fate(Duration::from_secs(5)).await;
                    self.saw(number, json!({"held": fate}));
                    return Ok(());
                }
            }
        }
    }

    async fn send(
        &self,
        connection: &mut Connection,
        head: &Head,
        request: &Value,
        answer: &Answer,
    ) -> anyhow::Result<()> {
        tokio::time::sleep(Duration::from_millis(answer.delay)).await;
        for status in &answer.interim {
            connection
                .send(format!("HTTP/1.1 {status} Interim\r\nx-interim: yes\r\n\r\n").as_bytes())
                .await;
        }
        if let Some(raw) = &answer.raw {
            connection.send(&raw.bytes()).await;
            return Ok(());
        }
        if matches!(answer.then, Then::Hold | Then::Abort) {
            return Ok(());
        }
        let (text, body) = self.render(head, request, answer);
        if answer.body_delay > 0 {
            connection.send(text.as_bytes()).await;
            tokio::time::sleep(Duration::from_millis(answer.body_delay)).await;
            connection.send(&body).await;
        } else {
            connection.send(&[text.as_bytes(), &body].concat()).await;
        }
        Ok(())
    }

    /// Head and body of an answer in HTTP/1.1.
    fn render(&self, head: &Head, request: &Value, answer: &Answer) -> (String, Vec<u8>) {
        let status = answer.status.unwrap_or(200);
        let fields = crate::client::flat(&answer.headers);
        let mut text = format!("HTTP/1.1 {status} {}\r\n", reason(status));
        for (name, value) in &fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = self.body(request, answer);
        let has = |name: &str| {
            fields
                .iter()
                .any(|(field, _)| field.eq_ignore_ascii_case(name))
        };
        if status == 101
            || status == 204
            || status == 304
            || (head.line.starts_with("CONNECT ") && status == 200)
        {
            text.push_str("\r\n");
            return (text, Vec::new());
        }
        if !answer.chunks.is_empty() || !answer.trailers.is_empty() {
            text.push_str("transfer-encoding: chunked\r\n\r\n");
            let one = vec![String::from_utf8_lossy(&body).into_owned()];
            let chunks = if answer.chunks.is_empty() {
                &one
            } else {
                &answer.chunks
            };
            let mut bytes = Vec::new();
            for chunk in chunks {
                bytes.extend(format!("{:x}\r\n{chunk}\r\n", chunk.len()).into_bytes());
            }
            bytes.extend(b"0\r\n");
            for (name, value) in crate::client::flat(&answer.trailers) {
                bytes.extend(format!("{name}: {value}\r\n").into_bytes());
            }
            bytes.extend(b"\r\n");
            return (text, bytes);
        }
        if !has("content-length") && !has("transfer-encoding") {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        let is_head = head.line.starts_with("HEAD ");
        (text, if is_head { Vec::new() } else { body })
    }

    fn body(&self, request: &Value, answer: &Answer) -> Vec<u8> {
        if answer.echo {
            return request["body"]
                .as_str()
                .unwrap_or_default()
                .as_bytes()
                .to_vec();
        }
        answer
            .body
            .as_ref()
            .map_or_else(|| self.name.clone().into_bytes(), crate::case::Text::bytes)
    }
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unknown")
}
