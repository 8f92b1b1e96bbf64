//! Handlers at work. On a configuration change a handler whose adapter, parameters and instances are the same is kept, with all
//! that it remembers; one that is no longer wanted closes when the last request that uses it is done.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::IntCounter;
use serde_json::Value as Json;

use crate::adapter::{Adapter, BuildContext};
use crate::config::snapshot::{HandlerConfig, Snapshot};
use crate::metrics::Metrics;
use crate::template::Instance;

/// A handler.
#[derive(Debug)]
pub(crate) struct Handler {
    /// `name.namespace`.
    pub(crate) label: String,
    pub(crate) adapter_name: String,
    pub(crate) adapter: Arc<dyn Adapter>,
    signature: Signature,
    closed: IntCounter,
}

/// What makes a handler the same as another.
#[derive(Debug, PartialEq)]
struct Signature {
    adapter: String,
    params: Json,
    /// Full name, template and parameters, sorted.
    instances: Vec<(String, String, Json)>,
}

/// A handler that rules refer to.
struct Wanted<'a> {
    config: &'a Arc<HandlerConfig>,
    signature: Signature,
    instances: Vec<Arc<Instance>>,
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
    let mut wanted: HashMap<&str, Wanted<'_>> = HashMap::new();
    for action in snapshot.rules.iter().flat_map(|rule| &rule.actions) {
        let wanted = wanted.entry(&action.handler.label);
        let wanted = wanted.or_insert_with(|| Wanted {
            config: &action.handler,
            signature: Signature {
                adapter: action.handler.adapter_name.clone(),
                params: action.handler.params.clone(),
                instances: Vec::new(),
            },
            instances: Vec::new(),
        });
        for instance in &action.instances {
            wanted.signature.instances.push((
                instance.full_name.clone(),
                instance.kind.name().to_owned(),
                instance.params.clone(),
            ));
            wanted.instances.push(instance.clone());
        }
    }
    let mut handlers = Handlers::new();
    for (label, wanted) in wanted {
        let (config, mut signature) = (wanted.config, wanted.signature);
        signature
            .instances
            .sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        signature.instances.dedup();
        if let Some(same) = old.get(label).filter(|known| known.signature == signature) {
            metrics.handlers.reused.inc();
            handlers.insert(label.to_owned(), same.clone());
            continue;
        }
        let context = BuildContext {
            handler: label.to_owned(),
            instances: wanted.instances,
            ..context.clone()
        };
        match config.adapter.build(&context) {
            Ok(adapter) => {
                metrics.handlers.new.inc();
                let handler = Handler {
                    label: label.to_owned(),
                    adapter_name: config.adapter_name.clone(),
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
