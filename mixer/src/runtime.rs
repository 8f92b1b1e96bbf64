//! Configuration → the routing table in force. Each change is understood as a whole and put in force at once; requests in
//! flight finish with the table that they began with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use proto_component::drain::Drain;
use proto_component::readiness::Condition;

use crate::adapter::BuildContext;
use crate::config::Resources;
use crate::config::snapshot::Snapshot;
use crate::handler;
use crate::metrics::Metrics;
use crate::routing::Table;
use crate::store::Configurations;

/// Changes that come closer together than this are taken as one.
const QUIET: Duration = Duration::from_millis(250);
/// The longest that changes are gathered.
const QUIET_CAP: Duration = Duration::from_secs(2);

/// Puts configurations in force.
#[derive(Debug)]
pub(crate) struct Runtime {
    table: Arc<ArcSwap<Table>>,
    context: BuildContext,
    metrics: Metrics,
    root_namespace: String,
}

impl Runtime {
    pub(crate) fn new(context: BuildContext, metrics: Metrics, root_namespace: &str) -> Self {
        Self {
            table: Arc::new(ArcSwap::from_pointee(Table::empty())),
            context,
            metrics,
            root_namespace: root_namespace.to_owned(),
        }
    }

    /// The table in force.
    pub(crate) fn table(&self) -> Arc<ArcSwap<Table>> {
        self.table.clone()
    }

    /// Puts `resources` in force.
    pub(crate) fn apply(&self, resources: &Resources) {
        // Handlers are built outside of it: the tasks that they start would keep it open.
        let span = tracing::info_span!(target: "runtime", "apply_configuration");
        let old = self.table.load_full();
        let snapshot = span.in_scope(|| Snapshot::build(resources));
        for error in &snapshot.errors {
            if !old.errors.contains(error) {
                tracing::error!(target: "runtime", item = error.name, place = error.place, field = error.field, problem = error.problem, "configuration left out");
            }
        }
        self.metrics.show_config(&snapshot.counts);
        let handlers = handler::build(&snapshot, &old.handlers, &self.context, &self.metrics);
        let table = Table::build(
            old.id + 1,
            snapshot,
            handlers,
            &self.root_namespace,
            &self.metrics,
        );
        tracing::info!(
            target: "runtime",
            id = table.id,
            rules = table.counts.rules,
            handlers = table.handlers.len(),
            errors = table.errors.len(),
            "configuration in force"
        );
        self.table.store(Arc::new(table));
    }

    /// Follows the store until the drain.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut source: Configurations,
        ready: Condition,
        drain: Drain,
    ) {
        loop {
            let latest = source.borrow_and_update().clone();
            if let Some(resources) = latest {
                self.apply(&resources);
                ready.set();
            }
            tokio::select! {
                changed = source.changed() => if changed.is_err() { return },
                () = drain.signaled() => return,
            }
            // The first configuration is put in force at once.
            if self.table.load().id > 0 {
                let quiet = async {
                    while let Ok(Ok(())) = tokio::time::timeout(QUIET, source.changed()).await {}
                };
                // The cap is as good an end as the quiet.
                let _ = tokio::time::timeout(QUIET_CAP, quiet).await;
            }
        }
    }
}
