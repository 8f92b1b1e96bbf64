//! `biremectl local up`: builds the platform, applies the control plane and the application, shows how they come up, and
//! stays until it is told to end.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use proto_component::{Process, process::Usage, task};
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixListener};

use super::{
    admission, api, apply,
    apply::Source,
    component_certificates,
    control_plane::{self, Addresses, NAMESPACE},
    http_client,
    isolation::Isolation,
    mixer,
    network::node::{self, Node},
    platform::{self, Mode, Platform},
    programs::Programs,
    progress::{Progress, print},
    state::{StateDir, create_private},
    store::Key,
    summary::{lateness, summary},
    values::{self, is_on},
};

/// The sample application, as it is applied to Kubernetes too.
const BOOKINFO: &[(&str, &str)] = &[
    (
        "e2e/bookinfo/bookinfo.yaml",
        include_str!("../../../../e2e/bookinfo/bookinfo.yaml"),
    ),
    (
        "e2e/bookinfo/bookinfo-gateway.yaml",
        include_str!("../../../../e2e/bookinfo/bookinfo-gateway.yaml"),
    ),
];

/// How long the mesh's configuration waits for Galley on the way up.
const STARTUP: Duration = Duration::from_secs(60);

/// After this long it is said what is not ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flags of `local up`.
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Values, with the Helm chart's keys; may be repeated.
    #[arg(short = 'f', long = "values", value_name = "VALUES.yaml")]
    pub values: Vec<PathBuf>,
    /// A value: KEY=VALUE[,KEY=VALUE…]. `local.hostPorts.{http,https,tcp,pilot,metrics}` are this machine's ports (0: none).
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The application: manifests to apply (may be repeated), or `none`; bookinfo if not given.
    #[arg(long, value_name = "FILE|none")]
    pub app: Vec<String>,
    /// Another program in a component's place: pilot, galley, citadel, mixer, injector, agent, capture, proxy (an Envoy).
    #[arg(long, value_name = "COMPONENT=PATH")]
    pub replace: Vec<String>,
    /// How pods are kept apart.
    #[arg(long, value_enum, default_value_t = Interception::Auto)]
    pub interception: Interception,
}

/// How pods are kept apart and their traffic is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Interception {
    /// What this machine allows.
    Auto,
    /// Network namespaces and iptables, or nft where that is absent.
    Redirect,
    /// Loopback addresses, sidecars as HTTP proxies.
    None,
}

/// Runs the mesh of `state`.
pub(crate) async fn run(
    process: Process,
    args: UpArgs,
    isolation: Isolation,
    state: StateDir,
) -> anyhow::Result<()> {
    let values = read_values(&args)?;
    let app = read_app(&args.app)?;
    let programs = Programs::find(&args.replace)?;
    if state.is_stale() {
        let ended = state.sweep().await?;
        print(&format!(
            "Cleaned up after an earlier run ({ended} processes).\n"
        ));
        create_private(&state.path(""))?;
    }
    let daemon = state.claim()?;
    let outcome = tokio::select! {
        outcome = run_claimed(&process, values, &app, programs, &state, &isolation, &daemon.mesh_id) => outcome,
        () = process.drain.signaled() => Ok(()),
    };
    print("Ending the mesh …\n");
    let swept = state.sweep().await;
    outcome?;
    swept?;
    print("Everything is gone.\n");
    Ok(())
}

async fn run_claimed(
    process: &Process,
    mut values: Value,
    app: &[(String, String)],
    programs: Programs,
    state: &StateDir,
    isolation: &Isolation,
    mesh_id: &str,
) -> anyhow::Result<()> {
    let mut progress = Progress::start();
    for directory in ["config", "data", "pods"] {
        create_private(&state.path(directory))?;
    }
    print(&format!(
        "Bireme {}: {}.\n",
        env!("CARGO_PKG_VERSION"),
        isolation.description
    ));
    let has_ipv6 = is_on(&values, "local.dualStack");
    let node = match isolation.mode {
        Mode::Isolated => Node::start_isolated(has_ipv6).await?,
        Mode::Shared if has_ipv6 => {
            let problem = "local.dualStack: pods that share the machine's network have no IPv6";
            return Err(Usage(problem.to_owned()).into());
        }
        Mode::Shared => Node::start_shared(mesh_id).await?,
    };
    let platform = Platform::new(
        node,
        isolation.mode,
        state.clone(),
        programs,
        mesh_id.to_owned(),
    )?;
    let addresses = find_services(&platform).await?;
    control_plane::settle_citadel(&mut values, &addresses);
    let values = &values;
    let has_galley = is_on(values, "galley.enabled") && is_on(values, "global.useMCP");
    bind_host_ports(&platform, values).await?;
    let listener = UnixListener::bind(state.socket()).context("open the control socket")?;
    api::serve(
        listener,
        platform.clone(),
        process.trigger.clone(),
        json!({"version": env!("CARGO_PKG_VERSION"), "values": values}),
    );
    let running = task::spawn(
        "platform",
        platform::run(platform.clone(), has_galley, process.drain.clone()),
    );
    start_helpers(&platform, values)?;

    let state_path = state
        .path("")
        .to_string_lossy()
        .trim_end_matches('/')
        .to_owned();
    let manifests = control_plane::manifests(values, &platform.identity, &state_path, &addresses)?;
    let texts = manifests.iter().map(|manifest| &manifest.text);
    let texts = texts.chain(app.iter().map(|(_, text)| text));
    if let Some(missing) = platform.programs.missing(texts.map(String::as_str)) {
        let missing = missing.display();
        let problem =
            format!("{missing} is missing: build everything first (`cargo build --release`)");
        return Err(Usage(problem).into());
    }
    for manifest in manifests {
        let source = Source {
            name: manifest.name,
            text: &manifest.text,
            namespace: NAMESPACE,
        };
        // Objects of the platform need nobody's consent; configuration waits for Galley below.
        report(&apply::apply(&platform, source, STARTUP).await)?;
    }
    let is_sample = app
        .iter()
        .any(|(name, _)| BOOKINFO.iter().any(|(sample, _)| sample == name));
    let configured = task::spawn(
        "configuration",
        apply_application(platform.clone(), values.clone(), app.to_vec()),
    );
    let outcome = show_until_ready(&platform, &mut progress, values, is_sample, configured).await;
    if outcome.is_ok() {
        process.drain.signaled().await;
    }
    running.abort();
    platform.stop_all(Duration::from_secs(2)).await;
    outcome
}

/// What goes on beside the loop, as long as the process lives.
fn start_helpers(platform: &Platform, values: &Value) -> anyhow::Result<()> {
    let has_citadel = is_on(values, "security.enabled");
    task::spawn(
        "root-certificate",
        publish_root(platform.clone(), has_citadel),
    );
    task::spawn("logs", rotate_logs(platform.clone()));
    if control_plane::is_secured(values)? {
        let audience = &values["global"]["sds"]["token"]["aud"];
        let audience = audience.as_str().unwrap_or_default().to_owned();
        task::spawn(
            "component-certificates",
            component_certificates::keep(platform.clone(), audience),
        );
    }
    Ok(())
}

fn read_values(args: &UpArgs) -> anyhow::Result<Value> {
    let mut files = Vec::new();
    for path in &args.values {
        let text = fs::read_to_string(path)
            .map_err(|error| Usage(format!("{}: {error}", path.display())))?;
        files.push((path.display().to_string(), text));
    }
    values::load(&files, &args.set)
}

fn read_app(files: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    if files.is_empty() {
        return Ok(BOOKINFO
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect());
    }
    let mut manifests = Vec::new();
    for file in files.iter().filter(|file| *file != "none") {
        let text =
            fs::read_to_string(file).map_err(|error| Usage(format!("--app {file}: {error}")))?;
        manifests.push((file.clone(), text));
    }
    Ok(manifests)
}

/// How components find each other: by name, or where pods share the machine's network (whose resolver knows nothing of the
/// mesh) by address.
async fn find_services(platform: &Platform) -> anyhow::Result<Addresses> {
    if platform.mode.is_isolated() {
        let address = SocketAddr::from((node::DNS_ADDRESS, 53));
        platform.names.serve(&platform.node, address).await?;
        return Ok(Addresses::new());
    }
    let mut addresses = Addresses::new();
    for service in control_plane::FOUND_BY_ADDRESS {
        addresses.insert(service, platform.service_address()?.to_string());
    }
    Ok(addresses)
}

/// Takes the ports on the host before anything else, so that a taken one ends the start with one clear line.
async fn bind_host_ports(platform: &Platform, values: &Value) -> anyhow::Result<()> {
    for (name, switch) in [
        ("http", "gateways.istio-ingressgateway.enabled"),
        ("https", "gateways.istio-ingressgateway.enabled"),
        ("tcp", "gateways.istio-ingressgateway.enabled"),
        ("pilot", "pilot.enabled"),
        ("metrics", "mixer.telemetry.enabled"),
    ] {
        let port = host_port(values, name)?;
        if port != 0 && is_on(values, switch) {
            platform
                .forwarder
                .bind(SocketAddr::from(([127, 0, 0, 1], port)))
                .await
                .with_context(|| format!("local.hostPorts.{name}"))?;
        }
    }
    Ok(())
}

fn host_port(values: &Value, name: &str) -> anyhow::Result<u16> {
    let value = &values["local"]["hostPorts"][name];
    let number = value.as_u64().and_then(|port| u16::try_from(port).ok());
    number.ok_or_else(|| Usage(format!("local.hostPorts.{name}: {value} is no port")).into())
}

/// Hands Citadel's root certificate to every namespace, as the config map that pods mount.
async fn publish_root(platform: Platform, has_citadel: bool) {
    let path = platform.state.path("data/root/root-cert.pem");
    let mut changes = platform.store.watch();
    loop {
        let root = match fs::read_to_string(&path) {
            Ok(root) => Some(root),
            // Without Citadel there is no root; pods start all the same, without certificates.
            Err(_) if !has_citadel => Some(String::new()),
            Err(_) => None,
        };
        if let Some(root) = &root {
            for (namespace, _) in platform.store.list("", "Namespace") {
                let key = Key::platform("ConfigMap", &namespace.name, "istio-ca-root-cert");
                let data = if root.is_empty() {
                    json!({})
                } else {
                    json!({"root-cert.pem": root})
                };
                platform.store.put(
                    &key,
                    json!({"apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": key.name, "namespace": key.namespace}, "data": data}),
                );
            }
        }
        // The file is Citadel's and announces itself by nothing.
        let patience = if root.is_some() {
            Duration::from_secs(2)
        } else {
            Duration::from_millis(20)
        };
        let _ = tokio::time::timeout(patience, changes.changed()).await;
    }
}

/// Keeps each container's log below a limit: what is over it moves to one older file.
async fn rotate_logs(platform: Platform) {
    const LIMIT: u64 = 16 * 1024 * 1024;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let logs: Vec<PathBuf> = {
            let pods = platform.pods.lock();
            let contexts = pods.values().map(|pod| pod.context.status.lock().clone());
            contexts
                .flat_map(|status| status.containers.into_iter().map(|container| container.log))
                .collect()
        };
        for log in logs {
            if fs::metadata(&log).is_ok_and(|meta| meta.len() > LIMIT) {
                let older = log.with_extension("log.1");
                // The writer appends, so it goes on at the start of the emptied file.
                let rotated = fs::copy(&log, older)
                    .and_then(|_| fs::OpenOptions::new().write(true).open(&log)?.set_len(0));
                if let Err(error) = rotated {
                    tracing::warn!(log = %log.display(), %error, "a log cannot be rotated");
                }
            }
        }
    }
}

fn report(outcomes: &[apply::Outcome]) -> anyhow::Result<()> {
    for outcome in outcomes {
        let messages = outcome.messages.join("; ");
        anyhow::ensure!(outcome.action.is_some(), "{}: {messages}", outcome.object);
        if !messages.is_empty() {
            tracing::info!(object = outcome.object, messages, "applied");
        }
    }
    Ok(())
}

/// The application's objects at once, and configuration when Galley can check it.
async fn apply_application(
    platform: Platform,
    values: Value,
    app: Vec<(String, String)>,
) -> anyhow::Result<()> {
    for (name, text) in &app {
        let source = Source {
            name,
            text,
            namespace: "default",
        };
        report(&apply::apply(&platform, source, STARTUP).await)?;
    }
    if let Some(manifest) = mixer::default_configuration(&values) {
        let source = Source {
            name: manifest.name,
            text: &manifest.text,
            namespace: NAMESPACE,
        };
        report(&apply::apply(&platform, source, STARTUP).await)?;
    }
    Ok(())
}

async fn show_until_ready(
    platform: &Platform,
    progress: &mut Progress,
    values: &Value,
    is_sample: bool,
    configured: tokio::task::JoinHandle<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut changes = platform.store.watch();
    let mut configured = Some(configured);
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    let mut is_patient = true;
    loop {
        changes.mark_unchanged();
        if configured
            .as_ref()
            .is_some_and(tokio::task::JoinHandle::is_finished)
            && let Some(handle) = configured.take()
        {
            handle.await.context("apply the application")??;
        }
        let rows = api::components(platform);
        let all_ready = progress.show(&rows);
        if all_ready && configured.is_none() {
            break;
        }
        if is_patient && patience.is_elapsed() {
            // What is late may still come; a manifest that is refused still ends the start.
            is_patient = false;
            print(&lateness(&rows, configured.is_some(), PATIENCE));
            progress.start_anew();
        }
        // Redrawn at most twenty times a second.
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::select! {
            () = &mut patience, if is_patient => {}
            _ = tokio::time::timeout(Duration::from_millis(250), changes.changed()) => {}
        }
    }
    let has_ingress = ["pilot", "gateways", "gateways.istio-ingressgateway"]
        .iter()
        .all(|component| is_on(values, &format!("{component}.enabled")));
    if is_sample && has_ingress {
        wait_for_page(platform).await;
    }
    print(&summary(values, is_sample, progress.seconds()));
    Ok(())
}

/// Waits until the sample's page comes through the ingress gateway: then all configuration has arrived.
async fn wait_for_page(platform: &Platform) {
    let fetch = || {
        let gateway = admission::endpoint(platform, NAMESPACE, "istio-ingressgateway", 80);
        platform.node.run("first-page", async move {
            let address = gateway?;
            let stream = TcpStream::connect(address).await?;
            let request = http_client::request(
                http::Method::GET,
                &address.to_string(),
                "/productpage",
                None,
            )?;
            let response = http_client::send(stream, request, Duration::from_secs(5)).await?;
            anyhow::ensure!(
                response.status().is_success(),
                "the page answered {}",
                response.status()
            );
            Ok(())
        })
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    while let Err(error) = fetch().await {
        if tokio::time::Instant::now() > deadline {
            print(&format!(
                "The sample's page does not come through the ingress gateway yet: {error:#}\n"
            ));
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
