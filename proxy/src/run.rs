//! Build, then run: bootstrap → stores → workers → xDS → serve → drain.

use crate::{
    admin::{self, Admin},
    args::Options,
    bootstrap::Bootstrap,
    config::ConfigStore,
    drain as shutdown,
    listener::run_listeners,
    memory,
    server::{ServerContext, ServerParts, ServerState},
    upstream::{run_outlier_sweep, run_zone_routing},
    worker::Worker,
    xds,
};
use anyhow::Context as _;
use futures::future::BoxFuture;
use proto_component::{
    drain::{self, Drain, Trigger},
    task, tls,
};
use std::{rc::Rc, sync::Arc, thread::JoinHandle, time::Duration};
use tokio_util::sync::CancellationToken;

/// Stack of a worker's thread: futures live on the heap, so that a quarter of the usual size is plenty.
const WORKER_STACK: usize = 512 << 10;
/// How long static clusters are waited for before listeners begin to serve.
const INITIAL_WAIT: Duration = Duration::from_secs(15);

/// Runs a proxy until `drain` is over, or until it is told to quit by its admin interface.
///
/// # Errors
/// When the bootstrap is not good, or an address cannot be had.
pub fn run(options: Options, drain: Drain) -> BoxFuture<'static, anyhow::Result<()>> {
    // Boxed here: who awaits it (the program, the agent, tests) does not compile the proxy once more.
    Box::pin(build_and_run(options, drain))
}

async fn build_and_run(options: Options, drain: Drain) -> anyhow::Result<()> {
    tls::install_provider();
    let bootstrap = Bootstrap::load(&options)?;
    let concurrency = options
        .concurrency
        .filter(|count| *count > 0)
        .unwrap_or_else(cores);
    let (quit, own) = drain::channel();
    task::spawn("drain", pass_on(drain, quit.clone()));
    let server = ServerContext::new(ServerParts {
        node: bootstrap.node.clone(),
        drain_time: options.drain_time,
        log_flush_interval: options.log_flush_interval,
        drain: own,
        quit,
        concurrency,
        overload: bootstrap.overload()?,
    });
    if let Some(tracer) = bootstrap.tracer() {
        // Nobody else sets it.
        let _ = server.tracing.set(tracer.clone());
    }
    let store = ConfigStore::new(server.clone());
    bootstrap.apply_static(&store)?;
    if options.validate_only {
        bootstrap.check_listeners(&store)?;
        tracing::info!(target: "main", "configuration OK");
        return Ok(());
    }
    let bootstrap = Arc::new(bootstrap);
    if let Some(address) = &bootstrap.admin {
        let admin = Arc::new(Admin::new(store.clone(), bootstrap.clone(), &options));
        admin::start(admin, address, options.admin_address_path.as_deref())
            .await
            .context("start the admin interface")?;
    }
    let stop = CancellationToken::new();
    let workers = start_workers(&server, &store, &stop)?;
    task::spawn("overload", run_overload(server.clone()));
    task::spawn("secret-files", run_secret_files(store.clone()));
    task::spawn("outlier-sweep", run_outlier_sweep(server.clusters.clone()));
    *server.state.lock() = ServerState::Initializing;
    task::spawn("zone-routing", run_zone_routing(server.clusters.clone()));
    task::spawn("trim", memory::run_trim());
    task::spawn("warm-clusters", store.clone().run_warming());
    bootstrap.apply_listeners(&store)?;
    store.refresh_wanted();
    let ready = xds::start(&store, &bootstrap);
    task::spawn(
        "initialize",
        initialize(server.clone(), store.clone(), ready),
    );
    shutdown::run_shutdown(server, store).await;
    stop.cancel();
    join(workers).await;
    Ok(())
}

/// Follows the files that secrets are made of, for ever.
async fn run_secret_files(store: Arc<ConfigStore>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        let store = store.clone();
        let looked = tokio::task::spawn_blocking(move || store.secrets.refresh_files());
        if looked.await.is_err() {
            return;
        }
    }
}

async fn run_overload(server: Arc<ServerContext>) {
    server.overload.run().await;
}

/// The process's drain is ours too; ours can also begin without it.
async fn pass_on(outer: Drain, own: Trigger) {
    outer.signaled().await;
    own.drain(outer.remaining().unwrap_or_default());
}

/// Live once the first configuration is in force.
async fn initialize(server: Arc<ServerContext>, store: Arc<ConfigStore>, ready: xds::Ready) {
    // As long as the sources' own timeouts say, which may be for ever, as in Envoy.
    ready.wait().await;
    let first = async {
        store.clusters_ready().await;
        store.listeners_ready().await;
    };
    // A cluster whose names do not resolve must not keep the rest from serving.
    let _ = tokio::time::timeout(INITIAL_WAIT, first).await;
    *server.state.lock() = ServerState::Live;
    tracing::info!(target: "main", "all dependencies initialized, serving");
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn start_workers(
    server: &Arc<ServerContext>,
    store: &Arc<ConfigStore>,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    (0..server.concurrency)
        .map(|index| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_park(crate::gather::before_waiting)
                .build()
                .context("make a worker's runtime")?;
            let (server, listeners, stop) = (server.clone(), store.listeners.clone(), stop.clone());
            let work = move || {
                crate::gather::enter_worker();
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, async move {
                    let worker = Rc::new(Worker::new(index, server));
                    crate::http::export::enter_worker(&worker);
                    let sweep = worker.clone();
                    tokio::task::spawn_local(async move { sweep.pools.run_sweep().await });
                    if worker.server.overload.stream_classes().is_some() {
                        let worker = worker.clone();
                        tokio::task::spawn_local(async move {
                            let reset = |value| worker.accounts.reset(value);
                            worker.server.overload.run_resets(reset).await;
                        });
                    }
                    tokio::select! {
                        () = run_listeners(worker.clone(), listeners) => {}
                        () = stop.cancelled() => {}
                    }
                    worker.redis.clear();
                    worker.tunnels.clear();
                    worker.pools.clear();
                });
            };
            std::thread::Builder::new()
                .name(format!("wrk:{index}"))
                .stack_size(WORKER_STACK)
                .spawn(work)
                .context("start a worker")
        })
        .collect()
}

async fn join(workers: Vec<JoinHandle<()>>) {
    let all = tokio::task::spawn_blocking(move || {
        for worker in workers {
            // A worker that panicked has said so in the log.
            let _ = worker.join();
        }
    });
    if tokio::time::timeout(Duration::from_secs(2), all)
        .await
        .is_err()
    {
        tracing::warn!(target: "main", "workers did not end in time");
    }
}
