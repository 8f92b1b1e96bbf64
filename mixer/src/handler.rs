//! Handlers at work. On a configuration change a handler whose adapter, parameters and instances are the same is kept, with all
//! that it remembers; one that is no longer wanted closes when the last request that uses it is done.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::IntCounter;
use serde_json::Value as Json;

use crate::adapter::{Adapter, BuildContext};
use crate::config::snapshot::{HandlerConfig, Snapshot};
use crate::metrics::Metrics;

/// A handler.
#[derive(Debug)]
pub(crate) struct Handler {
    /// `name.namespace`.
    pub(crate) label: String,
    pub(crate) adapter_name: &'static str,
    pub(crate) adapter: Arc<dyn Adapter>,
    signature: Signature,
    closed: IntCounter,
}

/// What makes a handler the same as another.
#[derive(Debug, PartialEq)]
struct Signature {
    adapter: &'static str,
    params: Json,
    /// Full name, template and parameters, sorted.
    instances: Vec<(String, &'static str, Json)>,
}

/// Handlers by label.
pub(crate) type Handlers = HashMap<String, Arc<Handler>>;

/// Builds the handlers that the rules of `snapshot` refer to; those of `old` are kept where nothing changed.
pub(crate) fn build(
    snapshot: &Snapshot,
    old: &Handlers,
    context: &BuildContext,
    metrics: &Metrics,
) -> Handlers {
    let mut wanted: HashMap<&str, (&Arc<HandlerConfig>, Signature)> = HashMap::new();
    for action in snapshot.rules.iter().flat_map(|rule| &rule.actions) {
        let (_, signature) = wanted.entry(&action.handler.label).or_insert_with(|| {
            let signature = Signature {
                adapter: action.handler.factory.name,
                params: action.handler.params.clone(),
                instances: Vec::new(),
            };
            (&action.handler, signature)
        });
        for instance in &action.instances {
            signature.instances.push((
                instance.full_name.clone(),
                instance.template.name(),
                instance.params.clone(),
            ));
        }
    }
    let mut handlers = Handlers::new();
    for (label, (config, mut signature)) in wanted {
        signature
            .instances
            .sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        signature.instances.dedup();
        if let Some(same) = old.get(label).filter(|known| known.signature == signature) {
            metrics.handlers.reused.inc();
            handlers.insert(label.to_owned(), same.clone());
            continue;
        }
        match config.adapter.build(context) {
            Ok(adapter) => {
                metrics.handlers.new.inc();
                let handler = Handler {
                    label: label.to_owned(),
                    adapter_name: config.factory.name,
                    adapter,
                    signature,
                    closed: metrics.handlers.closed.clone(),
                };
                handlers.insert(label.to_owned(), Arc::new(handler));
            }
            Err(error) => {
                metrics.handlers.build_failures.inc();
                tracing::error!(target: "runtime", %error, handler = label, "cannot build a handler");
            }
        }
    }
    handlers
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.closed.inc();
        tracing::debug!(target: "runtime", handler = self.label, "handler closed");
    }
}
