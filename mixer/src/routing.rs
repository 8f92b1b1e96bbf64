//! The routing table: which rules are evaluated for a request of a namespace, and where their instances go.
//!
//! A request is judged by the rules of the root namespace, then by those of its identity namespace: the destination's for
//! what the server side reports, the source's for what the client side does.

mod sampling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::attributes::{Bag, Record, Slot, Vocabulary};
use crate::config::ItemError;
use crate::config::snapshot::{Counts, HeaderTemplate, Snapshot};
use crate::handler::{Handler, Handlers};
use crate::lang::Expression;
use crate::metrics::{DispatchMetrics, Metrics};
use crate::template::{Instance, Variety};
pub(crate) use sampling::Sampling;

/// Everything a request is judged by; swapped whole.
#[derive(Debug)]
pub(crate) struct Table {
    /// Counts configurations from 1; 0 is the empty table of the start.
    pub(crate) id: u64,
    pub(crate) vocabulary: Vocabulary,
    identity: Identity,
    namespaces: BTreeMap<String, Routes>,
    /// For a namespace without rules.
    root: Routes,
    /// Where report instances are collected, by position.
    pub(crate) destinations: Vec<Destination>,
    pub(crate) handlers: Handlers,
    pub(crate) instance_count: usize,
    quota_instances: BTreeSet<String>,
    /// Whether any rule makes attributes.
    pub(crate) has_generators: bool,
    /// Whether somebody out of process has to be asked for them.
    pub(crate) asks_generators: bool,
    pub(crate) errors: Vec<ItemError>,
    pub(crate) counts: Counts,
}

/// Slots from which a request's namespace is told.
#[derive(Clone, Copy, Debug)]
struct Identity {
    kind: Slot,
    source: Slot,
    destination: Slot,
}

/// Rules in the order in which they are evaluated.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) rules: Vec<Arc<Rule>>,
    /// Of the identity namespace's own rules only. QUIRK: the root namespace's are not inherited.
    pub(crate) directives: Vec<Arc<Rule>>,
}

/// A rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    condition: Option<Expression>,
    /// The condition as it is written.
    pub(crate) condition_text: String,
    /// None: all that it matches.
    sampling: Option<Sampling>,
    /// By variety.
    actions: [Vec<Action>; Variety::COUNT],
    pub(crate) request_headers: Vec<HeaderTemplate>,
    pub(crate) response_headers: Vec<HeaderTemplate>,
    /// All attributes and the outputs of the rule's actions, of which its header operations speak.
    pub(crate) outputs: Option<Vocabulary>,
}

/// Instances of one template for a handler.
#[derive(Debug)]
pub(crate) struct Action {
    /// By which the rule calls its outputs; empty if it does not.
    pub(crate) name: String,
    pub(crate) variety: Variety,
    /// Position in [`Table::destinations`].
    pub(crate) destination: usize,
    pub(crate) instances: Vec<Arc<Instance>>,
}

/// A handler with one of its templates.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) handler: Arc<Handler>,
    /// The template's name.
    pub(crate) template: String,
    pub(crate) metrics: DispatchMetrics,
}

impl Table {
    /// The table before any configuration has come.
    pub(crate) fn empty() -> Self {
        Self::new(0, Snapshot::build(&crate::config::Resources::default()))
    }

    fn new(id: u64, snapshot: Snapshot) -> Self {
        let vocabulary = snapshot.vocabulary;
        let slot = |name| {
            let attribute = vocabulary.find(name);
            attribute.map_or(Slot::FIRST, |attribute| attribute.slot)
        };
        let identity = Identity {
            kind: slot("context.reporter.kind"),
            source: slot("source.namespace"),
            destination: slot("destination.namespace"),
        };
        Self {
            id,
            identity,
            vocabulary,
            namespaces: BTreeMap::new(),
            root: Routes::default(),
            destinations: Vec::new(),
            handlers: Handlers::new(),
            instance_count: snapshot.instances.len(),
            quota_instances: BTreeSet::new(),
            has_generators: false,
            asks_generators: false,
            errors: snapshot.errors,
            counts: snapshot.counts,
        }
    }

    /// The table of a configuration. Rules whose handler could not be built go without it.
    pub(crate) fn build(
        id: u64,
        mut snapshot: Snapshot,
        handlers: Handlers,
        root_namespace: &str,
        metrics: &Metrics,
    ) -> Self {
        let rules = std::mem::take(&mut snapshot.rules);
        let mut table = Self::new(id, snapshot);
        table.handlers = handlers;
        let mut by_namespace: BTreeMap<String, Vec<Arc<Rule>>> = BTreeMap::new();
        for config in rules {
            let namespace = config.name.namespace.clone();
            let mut rule = Rule {
                name: config.name.to_string(),
                condition: config.condition,
                condition_text: config.condition_text,
                sampling: config.sampling,
                actions: Default::default(),
                request_headers: config.request_headers,
                response_headers: config.response_headers,
                outputs: config.outputs,
            };
            for action in &config.actions {
                let Some(handler) = table.handlers.get(&action.handler.label).cloned() else {
                    continue;
                };
                for instance in &action.instances {
                    let destination = table.destination(&handler, instance.kind.name(), metrics);
                    rule.add(destination, &action.name, instance);
                    if instance.kind.variety() == Variety::Generator {
                        table.has_generators = true;
                        table.asks_generators |= handler.adapter.waiting().is_some();
                    }
                    if instance.kind.variety() == Variety::Quota {
                        let name = instance.name.short.to_lowercase();
                        table.quota_instances.insert(name);
                    }
                }
            }
            by_namespace
                .entry(namespace)
                .or_default()
                .push(Arc::new(rule));
        }
        let root = by_namespace.remove(root_namespace).unwrap_or_default();
        for (namespace, own) in by_namespace {
            let directives = own.iter().filter(|rule| rule.has_directives());
            let routes = Routes {
                directives: directives.cloned().collect(),
                rules: root.iter().chain(&own).cloned().collect(),
            };
            table.namespaces.insert(namespace, routes);
        }
        let directives = root.iter().filter(|rule| rule.has_directives());
        table.root = Routes {
            directives: directives.cloned().collect(),
            rules: root,
        };
        table
    }

    fn destination(&mut self, handler: &Arc<Handler>, template: &str, metrics: &Metrics) -> usize {
        let known = self
            .destinations
            .iter()
            .position(|known| Arc::ptr_eq(&known.handler, handler) && known.template == template);
        known.unwrap_or_else(|| {
            self.destinations.push(Destination {
                metrics: metrics.dispatch(template, &handler.label, &handler.adapter_name),
                handler: handler.clone(),
                template: template.to_owned(),
            });
            self.destinations.len() - 1
        })
    }

    /// The rules for a request. What tells the namespace is recorded: the answer depends on it.
    pub(crate) fn routes<R: Record>(&self, bag: &Bag<'_>, record: &mut R) -> &Routes {
        let mut read = |slot| {
            record.scalar(slot, bag.get(slot).is_some());
            bag.text(slot)
        };
        let namespace = match read(self.identity.kind) {
            Some("outbound") => read(self.identity.source),
            _ => read(self.identity.destination),
        };
        namespace
            .and_then(|namespace| self.namespaces.get(namespace))
            .unwrap_or(&self.root)
    }

    /// Whether any rule uses a quota instance of that short name.
    pub(crate) fn knows_quota(&self, name: &str) -> bool {
        self.quota_instances.contains(&name.to_lowercase())
    }

    /// The rules by namespace, for a debug page; the root namespace's stand under the empty name.
    pub(crate) fn all_routes(&self) -> impl Iterator<Item = (&str, &Routes)> {
        let own = self
            .namespaces
            .iter()
            .map(|(namespace, routes)| (namespace.as_str(), routes));
        std::iter::once(("", &self.root)).chain(own)
    }
}

impl Rule {
    fn add(&mut self, destination: usize, name: &str, instance: &Arc<Instance>) {
        let variety = instance.kind.variety();
        let actions = &mut self.actions[variety as usize];
        let known = actions
            .iter_mut()
            .find(|action| action.destination == destination && action.name == name);
        match known {
            Some(action) => action.instances.push(instance.clone()),
            None => actions.push(Action {
                name: name.to_owned(),
                variety,
                destination,
                instances: vec![instance.clone()],
            }),
        }
    }

    fn has_directives(&self) -> bool {
        !self.request_headers.is_empty() || !self.response_headers.is_empty()
    }

    /// Its actions of one variety.
    pub(crate) fn actions(&self, variety: Variety) -> &[Action] {
        &self.actions[variety as usize]
    }

    /// All of them.
    pub(crate) fn all_actions(&self) -> impl Iterator<Item = &Action> {
        self.actions.iter().flatten()
    }

    /// Whether the rule applies. One that cannot tell does not.
    pub(crate) fn applies<'a, R: Record>(&'a self, bag: &Bag<'a>, record: &mut R) -> bool {
        let Some(condition) = &self.condition else {
            return true;
        };
        condition.eval_bool(bag, record).unwrap_or_else(|error| {
            tracing::debug!(target: "runtime", %error, rule = self.name, "a rule's match cannot be evaluated");
            false
        })
    }

    /// Whether a request to which the rule applies is one that is told of.
    pub(crate) fn is_sampled(&self, bag: &Bag<'_>) -> bool {
        let sampling = self.sampling.as_ref();
        sampling.is_none_or(|sampling| sampling.chooses(bag))
    }
}
