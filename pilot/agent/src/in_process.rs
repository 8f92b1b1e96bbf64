//! The proxy inside this process: the library `proxy`, with its own worker threads. Its admin port, xDS and the rest of its
//! control side run on the agent's thread.

use std::path::PathBuf;

use proto::envoy::config::bootstrap::v3::Bootstrap;
use proto_component::drain::Drain;
use proto_component::process::Process;
use proxy::{BootstrapSource, Options};

use crate::settings::Settings;

/// Where the proxy's bootstrap comes from.
pub(crate) enum Source {
    /// Built by the agent.
    Message(Box<Bootstrap>),
    /// A file of the user's.
    File(PathBuf),
}

/// How the proxy is to run, from the agent's settings.
pub(crate) fn options(source: Source, settings: &Settings, process: &Process) -> Options {
    let source = match source {
        Source::Message(bootstrap) => BootstrapSource::Message(bootstrap),
        Source::File(path) => BootstrapSource::File(path),
    };
    Options {
        // None means as many as there are processors.
        concurrency: usize::try_from(settings.concurrency)
            .ok()
            .filter(|count| *count > 0),
        drain_time: settings.drain_duration,
        logging: Some(process.logging.clone()),
        ..Options::new(source)
    }
}

/// Runs the proxy until the drain, until it is told to quit on its admin port, or until it fails.
pub(crate) async fn run(options: Options, drain: Drain) -> anyhow::Result<()> {
    proxy::run(options, drain).await
}
