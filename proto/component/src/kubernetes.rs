//! The Kubernetes API, for those that follow it: a client from a kubeconfig file or from what a pod is given, and one stream of
//! changes a kind; [`token`]: whose token it is; [`lease`]: which of several replicas leads.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, utils, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;

use crate::backoff::Backoff;

pub mod lease;
pub mod token;

/// No single answer may take longer, watches apart.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch is sent something at least this often (bookmarks come each minute).
const READ_TIMEOUT: Duration = Duration::from_secs(295);

/// Objects that are listed at a time.
const PAGE: u32 = 500;

/// The waits of a watch that fails: from 0.8 s up to 10 s, so that an API server that was away for long is noticed soon.
#[derive(Clone, Debug)]
pub struct WatchBackoff(Backoff);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self(Backoff::new(
            Duration::from_millis(800),
            Duration::from_secs(10),
        ))
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next_delay())
    }
}

impl utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// How to reach the API server.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KubeArgs {
    /// Kubeconfig file; without it $KUBECONFIG or ~/.kube/config, then what a pod is given.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig to use.
    #[arg(long = "context", value_name = "NAME")]
    pub context: Option<String>,
}

impl KubeArgs {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// When the file, or what the pod is given, is unusable.
    pub fn client(&self) -> BoxFuture<'_, anyhow::Result<Client>> {
        Box::pin(self.connect())
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &self.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file)
                    .with_context(|| format!("read --kubeconfig {}", file.display()))?;
                Config::from_custom_kubeconfig(read, &options).await?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer()
                .await
                .context("find a cluster (--kubeconfig, $KUBECONFIG, or inside a pod)")?,
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        Client::try_from(config).context("make a client of the Kubernetes API")
    }
}

/// What a watcher has to tell of its kind.
#[derive(Clone, Debug)]
pub enum Change<T> {
    /// It is listed anew: what is not told from here to [`Change::Listed`] is gone.
    Listing,
    /// An object is there, or is there as it is now.
    Object(T),
    /// An object is gone.
    Gone(T),
    /// Everything has been told.
    Listed,
    /// The kind is not installed.
    Absent,
    /// It cannot be read for now; why.
    Failed(String),
    /// It may not be read; why.
    Denied(String),
}

impl<T> Change<T> {
    /// The same of another type.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Change<U> {
        match self {
            Change::Listing => Change::Listing,
            Change::Object(object) => Change::Object(change(object)),
            Change::Gone(object) => Change::Gone(change(object)),
            Change::Listed => Change::Listed,
            Change::Absent => Change::Absent,
            Change::Failed(reason) => Change::Failed(reason),
            Change::Denied(reason) => Change::Denied(reason),
        }
    }
}

/// Follows a kind for ever: a list in pages, then a watch that goes on from where it was (by bookmarks too), with back-off
/// while the API server is away.
pub fn watch<K>(api: Api<K>) -> impl Stream<Item = Change<K>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch_selected(api, "", "")
}

/// As [`watch`], of those objects only that selectors of fields and labels select; an empty one selects all.
pub fn watch_selected<K>(
    api: Api<K>,
    fields: &str,
    labels: &str,
) -> impl Stream<Item = Change<K>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = watcher::Config::default().page_size(PAGE);
    if !fields.is_empty() {
        config = config.fields(fields);
    }
    if !labels.is_empty() {
        config = config.labels(labels);
    }
    let events = watcher(api, config).backoff(WatchBackoff::default());
    events.filter_map(|event| std::future::ready(change_of(event)))
}

fn change_of<K>(event: watcher::Result<watcher::Event<K>>) -> Option<Change<K>> {
    Some(match event {
        Ok(watcher::Event::Init) => Change::Listing,
        Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
            Change::Object(object)
        }
        Ok(watcher::Event::Delete(object)) => Change::Gone(object),
        Ok(watcher::Event::InitDone) => Change::Listed,
        Err(error) => match code(&error) {
            Some(404) => Change::Absent,
            // What we had is too old to go on from: a new list follows by itself.
            Some(410) if matches!(error, watcher::Error::WatchError(_)) => return None,
            Some(401 | 403) => Change::Denied(error.to_string()),
            _ => Change::Failed(error.to_string()),
        },
    })
}

fn code(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => Some(status.code),
        WatchError(status) => Some(status.code),
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => None,
    }
}

#[cfg(test)]
mod tests;
