//! The control API of a running mesh: HTTP and JSON over a Unix socket in the state directory. Whoever may open the socket
//! may do everything; the directory is its owner's alone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use proto_component::drain::Trigger;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixListener};

use super::{
    apply::{self, Outcome, Source},
    http_client, kinds,
    platform::Platform,
    pod::{lifecycle::PodContext, status::ContainerStatus},
    state::resident_memory,
    store::Key,
    workloads,
};

/// How long `apply` waits for a webhook that is just starting again.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Api {
    platform: Platform,
    stop: Trigger,
    /// Facts that do not change while the mesh runs.
    about: Value,
}

/// An object by kind, namespace and name; each may be left out where a list is wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Selector {
    /// Kind, plural or short name.
    #[serde(default)]
    pub kind: String,
    /// Namespace; all if empty.
    #[serde(default)]
    pub namespace: String,
    /// Name; all if empty.
    #[serde(default)]
    pub name: String,
    /// For `scale`.
    #[serde(default)]
    pub replicas: Option<u64>,
    /// For `kill`: the container, the first one that is not the proxy if empty.
    #[serde(default)]
    pub container: String,
}

/// A manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ManifestText {
    /// The file's name.
    pub file: String,
    /// Its text.
    pub text: String,
    /// Namespace of objects that name none.
    pub namespace: String,
}

/// A request to a port of a pod, from inside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodRequest {
    /// Namespace.
    pub namespace: String,
    /// Pod, or `deploy/NAME`.
    pub pod: String,
    /// Port on the pod's loopback.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Method.
    pub method: String,
}

/// A failure that the caller is told.
struct Failure(StatusCode, anyhow::Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": format!("{:#}", self.1)}))).into_response()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure(StatusCode::BAD_REQUEST, error)
    }
}

type Answer<T> = Result<Json<T>, Failure>;

/// Serves the API until the process ends.
pub(crate) fn serve(listener: UnixListener, platform: Platform, stop: Trigger, about: Value) {
    let router = Router::new()
        .route("/v1/about", get(about_mesh))
        .route("/v1/objects", get(objects))
        .route("/v1/apply", post(apply_manifest))
        .route("/v1/delete", post(delete_manifest))
        .route("/v1/delete-object", post(delete_object))
        .route("/v1/scale", post(scale))
        .route("/v1/restart", post(restart))
        .route("/v1/kill", post(kill))
        .route("/v1/status", get(status))
        .route("/v1/pod", get(pod))
        .route("/v1/request", post(request))
        .route("/v1/shutdown", post(shutdown))
        .with_state(Api {
            platform,
            stop,
            about,
        });
    proto_component::task::spawn("control-api", async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the control API has ended");
        }
    });
}

async fn about_mesh(State(api): State<Api>) -> Json<Value> {
    Json(api.about)
}

fn kind_of(selector: &Selector) -> Result<kinds::ObjectKind, Failure> {
    kinds::by_user_name(&selector.kind)
        .with_context(|| {
            let candidates = kinds::all().map(|kind| kind.plural);
            let hint = super::values::closest(&selector.kind, candidates);
            format!(
                "there is no kind {:?}{}",
                selector.kind,
                hint.map_or(String::new(), |kind| format!("; did you mean {kind}?"))
            )
        })
        .map_err(Failure::from)
}

async fn objects(State(api): State<Api>, Query(selector): Query<Selector>) -> Answer<Vec<Value>> {
    let kind = kind_of(&selector)?;
    let is_in = |key: &Key| {
        selector.namespace.is_empty() || !kind.is_namespaced || key.namespace == selector.namespace
    };
    let objects = api.platform.store.list(kind.group, kind.kind).into_iter();
    let found: Vec<Value> = objects
        .filter(|(key, _)| is_in(key) && (selector.name.is_empty() || key.name == selector.name))
        .map(|(_, object)| with_type(object, kind))
        .collect();
    if found.is_empty() && !selector.name.is_empty() {
        let error = anyhow::anyhow!(
            "{} {:?} not found in namespace {}",
            kind.qualified(),
            selector.name,
            selector.namespace
        );
        return Err(Failure(StatusCode::NOT_FOUND, error));
    }
    Ok(Json(found))
}

fn with_type(mut object: Value, kind: kinds::ObjectKind) -> Value {
    if object["apiVersion"].is_null() {
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
    }
    object
}

async fn apply_manifest(
    State(api): State<Api>,
    Json(manifest): Json<ManifestText>,
) -> Json<Vec<Outcome>> {
    let source = Source {
        name: &manifest.file,
        text: &manifest.text,
        namespace: &manifest.namespace,
    };
    Json(apply::apply(&api.platform, source, PATIENCE).await)
}

async fn delete_manifest(
    State(api): State<Api>,
    Json(manifest): Json<ManifestText>,
) -> Json<Vec<Outcome>> {
    let source = Source {
        name: &manifest.file,
        text: &manifest.text,
        namespace: &manifest.namespace,
    };
    Json(apply::delete(&api.platform, source))
}

async fn delete_object(State(api): State<Api>, Json(selector): Json<Selector>) -> Answer<Outcome> {
    let kind = kind_of(&selector)?;
    Ok(Json(apply::delete_one(
        &api.platform,
        &Key::new(kind, &selector.namespace, &selector.name),
    )))
}

async fn scale(State(api): State<Api>, Json(selector): Json<Selector>) -> Answer<Value> {
    let replicas = selector.replicas.unwrap_or(1);
    anyhow_ensure(
        replicas <= 100,
        "more than 100 replicas are no use on one machine",
    )?;
    let key = Key::platform("Deployment", &selector.namespace, &selector.name);
    let is_there = api.platform.store.update(&key, |deployment| {
        deployment["spec"]["replicas"] = json!(replicas);
    });
    anyhow_ensure(
        is_there,
        &format!(
            "there is no deployment {:?} in namespace {}",
            selector.name, selector.namespace
        ),
    )?;
    Ok(Json(
        json!({"object": key.to_string(), "replicas": replicas}),
    ))
}

fn anyhow_ensure(condition: bool, message: &str) -> Result<(), Failure> {
    if condition {
        Ok(())
    } else {
        Err(anyhow::anyhow!("{message}").into())
    }
}

async fn restart(State(api): State<Api>, Json(selector): Json<Selector>) -> Answer<Value> {
    let pod = Key::platform("Pod", &selector.namespace, &selector.name);
    if api.platform.stop_pod(&pod, None) {
        return Ok(Json(json!({"object": pod.to_string()})));
    }
    let key = Key::platform("Deployment", &selector.namespace, &selector.name);
    workloads::restart(&api.platform, &key)?;
    Ok(Json(json!({"object": key.to_string()})))
}

/// Kills the process of a component or pod, to see what happens then.
async fn kill(State(api): State<Api>, Json(selector): Json<Selector>) -> Answer<Value> {
    let pods = pods_named(&api.platform, &selector.namespace, &selector.name);
    anyhow_ensure(
        !pods.is_empty(),
        &format!(
            "no pod or deployment {:?} runs in namespace {}",
            selector.name, selector.namespace
        ),
    )?;
    let mut killed = Vec::new();
    for pod in pods {
        let containers = pod.status.lock().containers.clone();
        let wanted = |container: &&ContainerStatus| match selector.container.as_str() {
            "" => container.name != "istio-proxy" || containers.len() == 1,
            name => container.name == name,
        };
        for container in containers.iter().filter(wanted) {
            if let Some(pid) = container.pid() {
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .with_context(|| format!("kill process {pid}"))?;
                killed.push(json!({"pod": pod.name(), "container": container.name, "pid": pid}));
            }
        }
    }
    Ok(Json(json!({"killed": killed})))
}

type Pods = Vec<Arc<PodContext>>;

/// The pod of that name, or the pods of the deployment of that name (`deploy/NAME` or just `NAME`).
fn pods_named(platform: &Platform, namespace: &str, name: &str) -> Pods {
    let (is_deployment, name) = match name.split_once('/') {
        Some(("deploy" | "deployment" | "deployments" | "deployment.apps", name)) => (true, name),
        Some(("pod" | "pods" | "po", name)) => (false, name),
        _ => (false, name),
    };
    if !is_deployment && let Some(pod) = platform.pod(namespace, name) {
        return vec![pod];
    }
    let pods = platform.pods.lock();
    let owned = pods.values().filter(|pod| {
        let owner = pod.owner.as_ref().map(|owner| &owner.deployment);
        owner.is_some_and(|owner| owner.name == name && owner.namespace == namespace)
    });
    let alive = owned.filter(|pod| pod.context.stop.borrow().is_none());
    alive.map(|pod| pod.context.clone()).collect()
}

/// Every deployment (and every pod without one), with what people want to know of a process.
async fn status(State(api): State<Api>) -> Json<Vec<Value>> {
    Json(components(&api.platform))
}

/// Rows for `local status`.
pub(crate) fn components(platform: &Platform) -> Vec<Value> {
    let mut rows = Vec::new();
    for (key, deployment) in platform.store.list("apps", "Deployment") {
        let pods = pods_named(platform, &key.namespace, &format!("deploy/{}", key.name));
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let reason = deployment["status"]["conditions"][0]["message"]
            .as_str()
            .unwrap_or_default();
        let mut row = row_of_pods(&pods);
        let ready = pods
            .iter()
            .filter(|pod| pod.status.lock().is_ready())
            .count();
        row["namespace"] = json!(key.namespace);
        row["name"] = json!(key.name);
        row["ready"] = json!(format!("{ready}/{wanted}"));
        if pods.is_empty() && !reason.is_empty() {
            row["status"] = json!("Waiting");
            row["message"] = json!(reason);
        }
        rows.push(row);
    }
    let bare: Pods = {
        let pods = platform.pods.lock();
        pods.values()
            .filter(|pod| pod.owner.is_none())
            .map(|pod| pod.context.clone())
            .collect()
    };
    for pod in bare {
        let mut row = row_of_pods(std::slice::from_ref(&pod));
        row["namespace"] = json!(pod.namespace());
        row["name"] = json!(pod.name());
        row["ready"] = json!(if pod.status.lock().is_ready() {
            "1/1"
        } else {
            "0/1"
        });
        rows.push(row);
    }
    rows.sort_by_key(|row| {
        let namespace = row["namespace"].as_str().unwrap_or_default().to_owned();
        // The control plane first.
        (
            namespace != super::control_plane::NAMESPACE,
            namespace,
            row["name"].as_str().unwrap_or_default().to_owned(),
        )
    });
    rows
}

fn row_of_pods(pods: &[Arc<PodContext>]) -> Value {
    let (mut restarts, mut memory, mut pids, mut ports, mut message, mut status) = (
        0,
        0,
        Vec::new(),
        Vec::new(),
        String::new(),
        String::from("Pending"),
    );
    let mut processes = Vec::new();
    for pod in pods {
        let pod_status = pod.status.lock().clone();
        restarts += pod_status.restarts();
        if status != "Running" {
            status = pod_status.summary();
        }
        if message.is_empty() && !pod_status.is_ready() {
            message = pod_status.message();
        }
        for container in &pod_status.containers {
            if let Some(pid) = container.pid() {
                let resident = resident_memory(pid).unwrap_or_default();
                memory += resident;
                pids.push(pid);
                processes.push(json!({"pod": pod.name(), "container": container.name, "pid": pid, "memory": resident, "ip": pod_status.ip}));
            }
        }
        let containers = pod.pod.spec.iter().flat_map(|spec| &spec.containers);
        for port in containers.flat_map(|container| container.ports.iter().flatten()) {
            let text = match port.host_port {
                Some(host) if host > 0 => format!("127.0.0.1:{host}->{}", port.container_port),
                _ => port.container_port.to_string(),
            };
            if !ports.contains(&text) {
                ports.push(text);
            }
        }
    }
    json!({"status": status, "restarts": restarts, "pids": pids, "memory": memory, "ports": ports, "message": message, "processes": processes})
}

/// What `logs` and `exec` need of a pod.
async fn pod(State(api): State<Api>, Query(selector): Query<Selector>) -> Answer<Value> {
    let pods = pods_named(&api.platform, &selector.namespace, &selector.name);
    let pod = pods.first().with_context(|| {
        format!(
            "no pod or deployment {:?} in namespace {} (`biremectl local get pods` lists them)",
            selector.name, selector.namespace
        )
    })?;
    let status = pod.status.lock().clone();
    let spec = pod.pod.spec.as_ref();
    let describe = |container: &ContainerStatus| {
        let specs = spec.into_iter().flat_map(|spec| {
            spec.init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
        });
        let user = specs
            .filter(|candidate| candidate.name == container.name)
            .map(|candidate| super::pod::container::user(pod, candidate))
            .next();
        json!({"name": container.name, "pid": container.pid(), "log": container.log, "user": user, "restarts": container.restarts})
    };
    Ok(Json(json!({
        "name": pod.name(),
        "namespace": pod.namespace(),
        "ip": status.ip,
        "containers": status.containers.iter().map(describe).collect::<Vec<_>>(),
        "initContainers": status.init_containers.iter().map(describe).collect::<Vec<_>>(),
    })))
}

async fn request(
    State(api): State<Api>,
    Json(request): Json<PodRequest>,
) -> Result<Response, Failure> {
    let pods = pods_named(&api.platform, &request.namespace, &request.pod);
    let pod = pods
        .into_iter()
        .find(|pod| pod.status.lock().ip.is_some())
        .with_context(|| {
            format!(
                "no pod or deployment {:?} runs in namespace {}",
                request.pod, request.namespace
            )
        })?;
    let patience = Duration::from_secs(10);
    let stream = connect_inside(&api.platform, &pod, request.port, patience).await?;
    let method = request.method.parse().context("method")?;
    let message = http_client::request(
        method,
        &format!("127.0.0.1:{}", request.port),
        &request.path,
        None,
    )?;
    let answer = http_client::send(stream, message, patience)
        .await
        .with_context(|| format!("ask {} in pod {}", request.path, pod.name()))?;
    Ok((answer.status(), answer.into_body()).into_response())
}

/// Connects to a port on the pod's loopback.
async fn connect_inside(
    platform: &Platform,
    pod: &Arc<PodContext>,
    port: u16,
    patience: Duration,
) -> anyhow::Result<TcpStream> {
    if !platform.mode.is_isolated() {
        let address = (pod.ip(), port);
        return tokio::time::timeout(patience, TcpStream::connect(address))
            .await
            .context("the pod does not answer")?
            .with_context(|| format!("connect to port {port} of pod {}", pod.name()));
    }
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let target = pod.clone();
    let stream = tokio::task::spawn_blocking(move || {
        let network = target.network().context("the pod has no network yet")?;
        network.connect(address, patience)
    })
    .await
    .context("connect to the pod")??;
    stream.set_nonblocking(true).context("use the connection")?;
    TcpStream::from_std(stream).context("use the connection")
}

async fn shutdown(State(api): State<Api>) -> Json<Value> {
    api.stop.drain(Duration::from_secs(10));
    Json(json!({}))
}
