//! Puts the agent together and runs it: settings, secrets, bootstrap file, status server, then the proxy, at once; it does not
//! wait for certificates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto_component::drain::{self, Drain};
use proto_component::process::{Process, Usage};
use proto_component::task;
use proto_mesh::spiffe::SpiffeId;

use crate::admin::AdminClient;
use crate::args::{ProxyArgs, Role};
use crate::bootstrap;
use crate::citadel_client::CitadelClient;
use crate::credentials;
use crate::discovery::Pilot;
use crate::dns::{self, discovery::NameSource, forward::Resolvers};
use crate::drain::Termination;
use crate::health::Prober;
use crate::in_process;
use crate::mounted;
use crate::node::{Node, Surroundings};
use crate::offload;
use crate::rotation::{self, Grace, Rotation};
use crate::sds::{self, SecretDiscovery};
use crate::secret_cache::SecretCache;
use crate::settings::Settings;
use crate::status::{AppMetrics, AppProbers, Readiness, Status};
use crate::supervisor::Program;
use crate::trust;

/// The pod's resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The proxy's time to end once connections have had theirs.
const PROXY_GRACE: Duration = Duration::from_secs(2);
/// What the process needs beyond the connections' time.
const EXTRA_GRACE: Duration = Duration::from_secs(8);

/// An agent with everything decided.
pub struct Agent {
    args: ProxyArgs,
    settings: Settings,
    unknown_flags: Vec<String>,
}

/// How the proxy is run.
enum Runner {
    InProcess(Box<proxy::Options>),
    Program(Program),
}

impl Agent {
    /// Decides everything; reads the environment.
    pub fn new(args: ProxyArgs, unknown_flags: Vec<String>) -> anyhow::Result<Self> {
        let surroundings = Surroundings::read(&args, std::env::vars_os());
        let node = Node::new(&args, &surroundings)?;
        let settings = Settings::new(&args, offload::mesh(&args)?, node)?;
        Ok(Self {
            args,
            settings,
            unknown_flags,
        })
    }

    /// Whether the proxy is within this process.
    pub fn has_own_proxy(&self) -> bool {
        self.settings.binary_path.is_none()
    }

    /// How long a drain may take altogether.
    pub fn grace(&self) -> Duration {
        self.settings.termination_drain + EXTRA_GRACE
    }

    /// Runs until the drain's end, or until the proxy fails.
    pub async fn run(self, process: Process) -> anyhow::Result<()> {
        let settings = &self.settings;
        if !self.unknown_flags.is_empty() {
            tracing::warn!(flags = ?self.unknown_flags, "unknown flags are left out");
        }
        tracing::info!(
            node = %settings.node.id,
            discovery = settings.discovery_address,
            concurrency = settings.concurrency,
            "agent"
        );
        fs::create_dir_all(&settings.config_path)
            .with_context(|| format!("make --configPath {}", settings.config_path.display()))?;
        let secrets = self.start_secrets(&process).await?;
        self.start_health(secrets.clone(), &process)?;
        self.start_names(secrets.clone(), &process).await?;
        let admin = AdminClient::new(settings.admin_address());
        self.start_status(admin, &process).await?;
        self.check_files()?;
        let bootstrap = tokio::select! {
            bootstrap = self.bootstrap(secrets) => bootstrap,
            () = process.drain.signaled() => return Ok(()),
        };
        let runner = self.runner(bootstrap, &process)?;
        let (stop, proxy_drain) = drain::channel();
        let proxy = task::spawn("proxy", async move { runner.run(proxy_drain).await });
        tokio::pin!(proxy);
        tokio::select! {
            ended = &mut proxy => {
                ended.context("run the proxy")??;
                // Somebody asked it to, on its admin port.
                tracing::info!("the proxy has quit");
                return Ok(());
            }
            () = process.drain.signaled() => {}
        }
        let termination = Termination {
            duration: settings.termination_drain,
            ends_at_zero: self.args.features.exit_on_zero_active_connections,
            minimum: self.args.features.minimum_drain_duration,
        };
        tokio::select! {
            () = termination.run(&admin) => {}
            ended = &mut proxy => return ended.context("run the proxy")?,
        }
        stop.drain(PROXY_GRACE);
        proxy.await.context("end the proxy")?
    }

    /// Secrets: the cache, its rotation, and the socket on which the proxy asks for them.
    async fn start_secrets(&self, process: &Process) -> anyhow::Result<SecretCache> {
        let cache = SecretCache::new(self.args.credentials_path.clone());
        let metrics = sds::Metrics::new(&process.registry)?;
        SecretDiscovery::new(cache.clone(), metrics, process.drain.clone())
            .start(&self.settings.sds_socket())
            .await?;
        task::spawn(
            "credentials",
            credentials::follow(cache.clone(), process.drain.clone()),
        );
        if self.args.features.file_mounted_certs {
            let (folder, drain) = (mounted::FOLDER.into(), process.drain.clone());
            task::spawn("mounted", mounted::follow(folder, cache.clone(), drain));
            return Ok(cache);
        }
        if self.args.ca_address.is_empty() {
            tracing::warn!(target: "ca", "no --caAddress: this proxy has no certificate of its own");
            return Ok(cache);
        }
        let features = &self.args.features;
        let client = CitadelClient {
            address: self.args.ca_address.clone(),
            server_name: self.args.ca_server_name.clone(),
            root_certificate: self.args.ca_root_cert.clone(),
            token: self.args.token_path.clone(),
            identity: self.identity(),
            ttl: features.secret_ttl,
        };
        task::spawn(
            "trust",
            trust::follow(client.clone(), cache.clone(), process.drain.clone()),
        );
        let grace = Grace {
            ratio: features.secret_grace_period_ratio,
            jitter: features.secret_grace_period_ratio_jitter,
        };
        let metrics = rotation::Metrics::new(&process.registry)?;
        let rotation = Rotation::new(client, cache.clone(), grace, metrics);
        task::spawn("rotation", rotation.run(process.drain.clone()));
        Ok(cache)
    }

    /// The name server, where it is asked for. A gateway has no application that asks.
    async fn start_names(&self, secrets: SecretCache, process: &Process) -> anyhow::Result<()> {
        let (features, settings) = (&self.args.features, &self.settings);
        if !features.dns_capture || self.args.role == Role::Router {
            return Ok(());
        }
        let source = NameSource {
            pilot: self.pilot(secrets),
            namespace: settings.node.metadata.namespace.clone(),
            domain: settings.node.id.dns_domain.clone(),
        };
        let address = settings.dns_address(&features.dns_proxy_address)?;
        let resolvers = Resolvers::read(Path::new(RESOLV_CONF));
        let metrics = dns::server::Metrics::new(&process.registry)?;
        dns::start(address, source, resolvers, metrics, &process.drain).await
    }

    /// Our own way to Pilot.
    fn pilot(&self, secrets: SecretCache) -> Pilot {
        let settings = &self.settings;
        Pilot {
            address: settings.discovery_address.clone(),
            identity: settings.discovery_identity.clone(),
            secrets,
            node: bootstrap::node(&settings.node),
        }
    }

    /// Reports of the workload's health, where there is a probe for it.
    fn start_health(&self, secrets: SecretCache, process: &Process) -> anyhow::Result<()> {
        if let Some(probe) = &self.settings.readiness_probe {
            let prober = Prober::new(probe, self.settings.application_address())
                .map_err(|error| Usage(format!("{error:#}")))?;
            prober.start(self.pilot(secrets), process.drain.clone());
        }
        Ok(())
    }

    /// The identity that the token should give us.
    fn identity(&self) -> Option<String> {
        let metadata = &self.settings.node.metadata;
        let id = SpiffeId::new(
            &self.settings.trust_domain,
            &metadata.namespace,
            &metadata.service_account,
        );
        id.ok().map(|id| id.to_string())
    }

    async fn start_status(&self, admin: AdminClient, process: &Process) -> anyhow::Result<()> {
        let probers = AppProbers::parse(&self.args.features.app_probers)
            .map_err(|error| Usage(error.to_string()))?
            .at(self.settings.application_address());
        if self.settings.status_port == 0 {
            return Ok(());
        }
        // Only a gateway has ports of its own to wait for.
        let ports = match self.args.role {
            Role::Router => self.args.application_ports.clone(),
            Role::Sidecar => Vec::new(),
        };
        let address = self.settings.application_address();
        let annotations = &self.args.features.prometheus_annotations;
        let metrics = AppMetrics::new(annotations, address, &process.registry)
            .map_err(|error| Usage(error.to_string()))?;
        let status = Status {
            admin,
            metrics,
            readiness: Readiness::new(ports),
            probers,
            registry: process.registry.clone(),
            trigger: process.trigger.clone(),
        };
        status.start(self.settings.status_port, process).await?;
        Ok(())
    }

    /// What the user gives must be there, and fit together.
    fn check_files(&self) -> Result<(), Usage> {
        let custom = self.args.custom_config_file.as_ref();
        let program = self.settings.binary_path.as_ref();
        for (flag, path) in [("--customConfigFile", custom), ("--binaryPath", program)] {
            if let Some(path) = path.filter(|path| !path.exists()) {
                return Err(Usage(format!("{flag} {}: no such file", path.display())));
            }
        }
        if custom.is_some() && self.args.features.bootstrap_xds_agent {
            let text = "BOOTSTRAP_XDS_AGENT: nothing can be merged into --customConfigFile";
            return Err(Usage(text.to_owned()));
        }
        Ok(())
    }

    /// The bootstrap, with what Pilot says about it where that is asked for.
    async fn bootstrap(&self, secrets: SecretCache) -> Bootstrap {
        let mut built = bootstrap::build(&self.settings, &self.settings.sds_socket());
        if self.args.features.bootstrap_xds_agent {
            bootstrap::discovery::patch(&mut built, &self.pilot(secrets)).await;
        }
        built
    }

    fn runner(&self, bootstrap: Bootstrap, process: &Process) -> anyhow::Result<Runner> {
        let custom = self.args.custom_config_file.as_ref();
        let program = self.settings.binary_path.as_ref();
        let file = self.settings.bootstrap_file();
        let Some(program) = program else {
            let source = match custom {
                Some(custom) => in_process::Source::File(custom.clone()),
                None => {
                    // The proxy gets the message itself: the file is for people, it need not wait for it.
                    write_later(bootstrap.clone(), file);
                    in_process::Source::Message(Box::new(bootstrap))
                }
            };
            let options = in_process::options(source, &self.settings, process);
            return Ok(Runner::InProcess(Box::new(options)));
        };
        let file = match custom {
            Some(custom) => custom.clone(),
            None => {
                write_bootstrap(&bootstrap, &file)?;
                file
            }
        };
        Ok(Runner::Program(Program::envoy(
            program,
            &file,
            &self.settings,
            &self.args.proxy_log_level,
            &self.args.proxy_component_log_level,
        )))
    }
}

impl Runner {
    async fn run(self, drain: Drain) -> anyhow::Result<()> {
        match self {
            Self::InProcess(options) => in_process::run(*options, drain).await,
            Self::Program(program) => program.run(&drain).await,
        }
    }
}

fn write_later(bootstrap: Bootstrap, file: PathBuf) {
    task::spawn("bootstrap-file", async move {
        let written = tokio::task::spawn_blocking(move || write_bootstrap(&bootstrap, &file)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(error = format!("{error:#}"), "no bootstrap file");
        }
    });
}

fn write_bootstrap(bootstrap: &Bootstrap, file: &Path) -> anyhow::Result<()> {
    let text = offload::bootstrap_json(bootstrap)?;
    replace(file, &text).with_context(|| format!("write {}", file.display()))
}

/// Replaces a file in one step.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}
