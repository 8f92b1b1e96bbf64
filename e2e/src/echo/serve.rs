//! The server: HTTP/1.1, HTTP/2 and gRPC on its HTTP ports (also over TLS), lines on its TCP ports. It answers with what it got.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::try_join_all;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Collected, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use proto_component::tls::{ClientAuth, PemFiles, ServerTls};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::{MARK, announced, check, tunnel};

/// Where to listen, and fixed answers.
#[derive(Clone, Debug)]
pub struct Server {
    /// Address of all ports.
    pub address: IpAddr,
    /// Ports for HTTP.
    pub http: Vec<u16>,
    /// Paths of sockets for HTTP.
    pub unix: Vec<PathBuf>,
    /// Ports for HTTP over TLS.
    pub tls: Vec<u16>,
    /// Ports for HTTP over TLS, for clients with a certificate.
    pub mutual_tls: Vec<u16>,
    /// Folder with `tls.crt`, `tls.key` and, for clients, `ca.crt`.
    pub tls_files: PathBuf,
    /// Ports for lines.
    pub tcp: Vec<u16>,
    /// Ports for an external authorizer.
    pub check: Vec<u16>,
    /// Bodies by path, instead of what was asked; after an `@`, the file that has it. `?after=N` makes any answer wait for so many milliseconds.
    pub files: Vec<(String, String)>,
    /// Said in every answer that tells what was asked, if there is a name.
    pub name: String,
    /// Of every answer over HTTP.
    pub status: StatusCode,
    /// What was asked lately, which `/seen` tells.
    pub seen: Seen,
}

/// The last requests: a line for each, and what was posted.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<VecDeque<String>>>);

impl Seen {
    /// More of them are forgotten.
    const LIMIT: usize = 1000;

    fn add(&self, request: &Request<Bytes>) {
        let host = request.headers().get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok());
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        let host = authority.or(host).unwrap_or_default();
        let mut seen = self.0.lock();
        let posted = String::from_utf8_lossy(request.body());
        seen.push_back(format!("seen {} of {host}\n{posted}", request.uri().path()));
        if seen.len() > Self::LIMIT {
            seen.pop_front();
        }
    }

    fn tell(&self) -> String {
        self.0.lock().iter().map(String::as_str).collect()
    }
}

/// The path of what was asked lately.
const SEEN: &str = "/seen";
/// gRPC's own question of health, and the answer: field `status`, of value `SERVING`.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const SERVING: &[u8] = &[0x08, 0x01];

pub(super) type Body = BoxBody<Bytes, Infallible>;

/// What is spoken on a port.
#[derive(Clone)]
enum Speech {
    Http,
    Tls(ServerTls),
    Lines,
    Check,
}

impl Server {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn run(self) -> anyhow::Result<()> {
        let server = Arc::new(self);
        let mut ports = Vec::new();
        for (port, speech) in server.ports()? {
            let address = SocketAddr::from((server.address, port));
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("bind {address}"))?;
            ports.push((listener, speech));
        }
        let mut sockets = Vec::new();
        for path in &server.unix {
            sockets.push(bind(path).with_context(|| format!("bind {}", path.display()))?);
        }
        let sockets = sockets
            .into_iter()
            .map(|listener| accept_local(server.clone(), listener).boxed());
        let loops = ports
            .into_iter()
            .map(|(listener, speech)| accept(server.clone(), listener, speech).boxed())
            .chain(sockets);
        try_join_all(loops).await.map(drop)
    }

    fn ports(&self) -> anyhow::Result<Vec<(u16, Speech)>> {
        let file = |name: &str| self.tls_files.join(name);
        let files = PemFiles::new(file("tls.crt"), file("tls.key"), Some(file("ca.crt")));
        let mut ports = Vec::new();
        ports.extend(self.http.iter().map(|port| (*port, Speech::Http)));
        ports.extend(self.tcp.iter().map(|port| (*port, Speech::Lines)));
        ports.extend(self.check.iter().map(|port| (*port, Speech::Check)));
        for (of, auth) in [
            (&self.tls, ClientAuth::None),
            (&self.mutual_tls, ClientAuth::Required),
        ] {
            for port in of {
                // What comes is told by its first bytes; the mesh's own name says that a sidecar speaks.
                let alpn = ["h2", "http/1.1", "istio"];
                let tls = ServerTls::from_files(files.clone(), auth, &alpn)?;
                ports.push((*port, Speech::Tls(tls)));
            }
        }
        Ok(ports)
    }

    async fn answer(&self, request: Request<Incoming>, is_check: bool) -> Response<Body> {
        if is_check {
            return check::answer(request).await;
        }
        if request.method() == Method::CONNECT {
            return tunnel::answer(request).await;
        }
        let request = with_posted(request).await;
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if is_grpc && request.uri().path() == HEALTH {
            return unary(SERVING);
        }
        if is_grpc {
            self.seen.add(&request);
            return unary(self.describe(&request).as_bytes());
        }
        let (path, query) = (request.uri().path(), request.uri().query());
        let after = query.and_then(|query| query.strip_prefix("after=")?.parse().ok());
        if let Some(after) = after {
            tokio::time::sleep(Duration::from_millis(after)).await;
        }
        let fixed = self.files.iter().find(|(name, _)| name == path);
        let text = match fixed {
            Some((_, text)) => match text.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file).unwrap_or_default(),
                None => text.clone(),
            },
            None if path == SEEN => self.seen.tell(),
            None => self.describe(&request),
        };
        self.seen.add(&request);
        let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
        *response.status_mut() = self.status;
        response
    }

    /// What a request looks like from here, a line for each part.
    fn describe(&self, request: &Request<Bytes>) -> String {
        let mut text = describe(request);
        if !self.name.is_empty() {
            text.push_str(&format!("server: {}\n", self.name));
        }
        text
    }
}

/// The request with all of its body if it is a POST, else with none: nobody asks for it.
async fn with_posted(request: Request<Incoming>) -> Request<Bytes> {
    let (head, body) = request.into_parts();
    let posted = match head.method {
        Method::POST => body.collect().await.map(Collected::to_bytes),
        _ => Ok(Bytes::new()),
    };
    // Of a body that breaks off nothing is told.
    Request::from_parts(head, posted.unwrap_or_default())
}

async fn accept(server: Arc<Server>, listener: TcpListener, speech: Speech) -> anyhow::Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (server, speech) = (server.clone(), speech.clone());
        proto_component::task::spawn("echo", async move {
            // A caller that breaks off is its own affair.
            match speech {
                Speech::Http => http(server, stream, false).await,
                Speech::Check => http(server, stream, true).await,
                Speech::Lines => drop(lines(&server.name, stream).await),
                Speech::Tls(tls) => {
                    if let Ok(stream) = tls.acceptor().accept(stream).await {
                        http(server, stream, false).await;
                    }
                }
            }
        });
    }
}

/// A socket that everybody may connect to.
fn bind(path: &Path) -> std::io::Result<UnixListener> {
    // Left by a server before.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

async fn accept_local(server: Arc<Server>, listener: UnixListener) -> anyhow::Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        proto_component::task::spawn("echo", http(server.clone(), stream, false));
    }
}

async fn http(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_check: bool,
) {
    let answer = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request, is_check).await) }
    });
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), answer)
        .await;
}

/// Answers each line with itself, with what announced the client, and with the server's name if it has one.
async fn lines(name: &str, mut stream: TcpStream) -> std::io::Result<()> {
    let by = if name.is_empty() {
        String::new()
    } else {
        format!(" server: {name}")
    };
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let client = announced::take(&mut read).await?;
    let mut lines = read.lines();
    while let Some(line) = lines.next_line().await? {
        write
            .write_all(format!("{MARK} {client}{line}{by}\n").as_bytes())
            .await?;
    }
    Ok(())
}

/// What a request looks like from here, a line for each part.
fn describe(request: &Request<Bytes>) -> String {
    let mut text = format!(
        "{MARK}\nversion: {:?}\nmethod: {}\npath: {}\nauthority: {}\n",
        request.version(),
        request.method(),
        request
            .uri()
            .path_and_query()
            .map_or("", |path| path.as_str()),
        request
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str()),
    );
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes());
        text.push_str(&format!("header {name}: {value}\n"));
    }
    text
}

/// One message and its trailers.
pub(super) fn unary(content: &[u8]) -> Response<Body> {
    let mut message = vec![0];
    message.extend(
        u32::try_from(content.len())
            .unwrap_or_default()
            .to_be_bytes(),
    );
    message.extend(content);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [
        Ok(Frame::data(Bytes::from(message))),
        Ok(Frame::trailers(trailers)),
    ];
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}
