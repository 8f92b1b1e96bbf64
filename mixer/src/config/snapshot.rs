//! Resources → what they mean: a vocabulary, handlers and instances that can be used, [`rules`] whose every reference holds.

mod rules;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::istio::policy::v1beta1 as wire;
use proto_mesh::attribute::ValueType;
use serde_json::Value as Json;

use super::{ADAPTER, FullName, ItemError, Resources, TEMPLATE, params};
use crate::adapter::remote::RemoteInfo;
use crate::adapter::{self, AdapterConfig};
use crate::attributes::Vocabulary;
use crate::lang::Expression;
use crate::routing::Sampling;
use crate::template::remote::{self, RemoteTemplate};
use crate::template::{Instance, InstanceKind, Template, Variety};
use rules::RuleBuilder;

/// A configuration, understood.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) instances: HashMap<FullName, Arc<Instance>>,
    /// In the order of their namespaces and names.
    pub(crate) rules: Vec<RuleConfig>,
    /// What was left out, and why.
    pub(crate) errors: Vec<ItemError>,
    pub(crate) counts: Counts,
}

/// A handler that a rule may refer to.
pub(crate) struct HandlerConfig {
    /// `name.namespace`, what dispatch metrics and status messages say.
    pub(crate) label: String,
    /// The adapter's name.
    pub(crate) adapter_name: String,
    takes: Takes,
    pub(crate) adapter: Box<dyn AdapterConfig>,
    /// The configuration, to tell whether it changed.
    pub(crate) params: Json,
}

/// The templates that a handler takes.
#[derive(Clone, Debug)]
enum Takes {
    Compiled(&'static [Template]),
    /// By the names of the templates.
    Remote(Vec<String>),
}

/// A rule.
#[derive(Debug)]
pub(crate) struct RuleConfig {
    pub(crate) name: FullName,
    /// None: always.
    pub(crate) condition: Option<Expression>,
    pub(crate) condition_text: String,
    /// None: all that it matches.
    pub(crate) sampling: Option<Sampling>,
    pub(crate) actions: Vec<ActionConfig>,
    pub(crate) request_headers: Vec<HeaderTemplate>,
    pub(crate) response_headers: Vec<HeaderTemplate>,
    /// All attributes and the outputs of the rule's actions, if there are any.
    pub(crate) outputs: Option<Vocabulary>,
}

/// Instances for a handler.
#[derive(Debug)]
pub(crate) struct ActionConfig {
    /// By which the rule calls its outputs; empty if it does not.
    pub(crate) name: String,
    pub(crate) handler: Arc<HandlerConfig>,
    pub(crate) instances: Vec<Arc<Instance>>,
}

/// A change to a header, with values that depend on the request.
#[derive(Debug)]
pub(crate) struct HeaderTemplate {
    pub(crate) name: String,
    pub(crate) values: Vec<Expression>,
    pub(crate) operation: i32,
}

/// What there is and how much of it is wrong, as the metrics tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) attributes: usize,
    pub(crate) handlers: usize,
    pub(crate) handler_errors: usize,
    pub(crate) instances: usize,
    pub(crate) instance_errors: usize,
    pub(crate) rules: usize,
    pub(crate) rule_errors: usize,
    pub(crate) match_errors: usize,
    pub(crate) unsatisfied: usize,
    pub(crate) adapters: usize,
    pub(crate) adapter_errors: usize,
    pub(crate) templates: usize,
    pub(crate) template_errors: usize,
}

impl std::fmt::Debug for HandlerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.label, self.adapter_name)
    }
}

impl Snapshot {
    /// Understands `resources`; what cannot be used is left out and reported.
    pub(crate) fn build(resources: &Resources) -> Self {
        let mut errors = resources.errors.clone();
        let mut counts = Counts::default();
        let vocabulary = vocabulary(resources, &mut errors);
        counts.attributes = vocabulary.len();
        counts.handlers = resources.handlers.len();
        counts.instances = resources.instances.len();
        counts.rules = resources.rules.len();
        let templates = collect(&resources.templates, &mut errors, |name, wire| {
            RemoteTemplate::read(&name.to_string(), &wire.descriptor)
                .map_err(|problem| ItemError::new(name, "descriptor", problem))
        });
        counts.templates = resources.templates.len();
        counts.template_errors = counts.templates - templates.len();
        let adapters = collect(&resources.adapters, &mut errors, |name, wire| {
            remote_adapter(name, wire, &templates)
        });
        counts.adapters = resources.adapters.len();
        counts.adapter_errors = counts.adapters - adapters.len();
        let handlers = collect(&resources.handlers, &mut errors, |name, wire| {
            handler(name, wire, &adapters)
        });
        counts.handler_errors = counts.handlers - handlers.len();
        let mut sets = BTreeMap::new();
        let instances = collect(&resources.instances, &mut errors, |name, wire| {
            let mut instance = instance(name, wire, &templates, &vocabulary)?;
            instance.dimension_set = dimension_set(&mut sets, &instance);
            Ok(instance)
        });
        counts.instance_errors = counts.instances - instances.len();
        let mut builder = RuleBuilder {
            vocabulary: &vocabulary,
            handlers: &handlers,
            instances: &instances,
            errors: &mut errors,
            counts: &mut counts,
        };
        let rules = resources
            .rules
            .iter()
            .filter_map(|(name, rule)| builder.rule(name, rule))
            .collect();
        let errors = errors.into_iter();
        Self {
            vocabulary,
            instances,
            rules,
            errors: errors
                .map(|error| error.placed(&resources.places))
                .collect(),
            counts,
        }
    }
}

/// Keeps what can be used and reports the rest.
fn collect<W, T>(
    items: &BTreeMap<FullName, W>,
    errors: &mut Vec<ItemError>,
    mut read: impl FnMut(&FullName, &W) -> Result<T, ItemError>,
) -> HashMap<FullName, Arc<T>> {
    let mut known = HashMap::new();
    for (name, wire) in items {
        match read(name, wire) {
            Ok(item) => {
                known.insert(name.clone(), Arc::new(item));
            }
            Err(error) => errors.push(error),
        }
    }
    known
}

fn vocabulary(resources: &Resources, errors: &mut Vec<ItemError>) -> Vocabulary {
    let mut declared = BTreeMap::new();
    for (name, manifest) in &resources.manifests {
        for (attribute, info) in &manifest.attributes {
            match ValueType::from_wire(info.value_type) {
                Some(kind) => {
                    declared.insert(attribute.clone(), kind);
                }
                None => errors.push(ItemError::new(
                    name,
                    format!("attributes[{attribute}].valueType"),
                    "a type is needed",
                )),
            }
        }
    }
    Vocabulary::new(&declared)
}

/// A declared adapter; its templates are named as instances know them.
fn remote_adapter(
    name: &FullName,
    wire: &proto::istio::mixer::adapter::model::v1beta1::Info,
    templates: &HashMap<FullName, Arc<RemoteTemplate>>,
) -> Result<RemoteInfo, ItemError> {
    let error = |field: &str, problem: String| ItemError::new(name, field, problem);
    let mut info =
        RemoteInfo::read(&name.short, wire).map_err(|(field, problem)| error(field, problem))?;
    for (position, reference) in info.templates.iter_mut().enumerate() {
        let found = remote_template(reference, &name.namespace, templates).ok_or_else(|| {
            let problem = format!("template {reference:?} is not there or not valid");
            error(&format!("templates[{position}]"), problem)
        })?;
        reference.clone_from(&found.name);
    }
    Ok(info)
}

/// A declared template, or a standard one.
fn remote_template(
    reference: &str,
    namespace: &str,
    templates: &HashMap<FullName, Arc<RemoteTemplate>>,
) -> Option<Arc<RemoteTemplate>> {
    find(templates, reference, TEMPLATE, namespace).or_else(|| remote::builtin(reference))
}

fn handler(
    name: &FullName,
    wire: &wire::Handler,
    adapters: &HashMap<FullName, Arc<RemoteInfo>>,
) -> Result<HandlerConfig, ItemError> {
    let error = |field: &str, problem: String| Err(ItemError::new(name, field, problem));
    let params = params::to_json(wire.params.as_ref());
    let label = format!("{}.{}", name.short, name.namespace);
    let adapter = match (wire.compiled_adapter.as_str(), wire.adapter.as_str()) {
        ("", "") => return error("compiledAdapter", "an adapter is needed".into()),
        ("", remote) => {
            let Some(info) = find(adapters, remote, ADAPTER, &name.namespace) else {
                let problem = format!("adapter {remote:?} is not there or not valid");
                return error("adapter", problem);
            };
            return match info.configure(&params, wire.connection.as_ref()) {
                Ok(adapter) => Ok(HandlerConfig {
                    label,
                    adapter_name: info.name.clone(),
                    takes: Takes::Remote(info.templates.clone()),
                    adapter,
                    params: signature(&params, wire.connection.as_ref(), &info),
                }),
                Err((field, problem)) => error(field, problem),
            };
        }
        (compiled, "") => compiled,
        _ => return error("adapter", "give either compiledAdapter or adapter".into()),
    };
    let Some(factory) = adapter::factory(adapter) else {
        let problem = format!(
            "unknown adapter {adapter:?}; there are {}",
            adapter::known()
        );
        return error("compiledAdapter", problem);
    };
    match (factory.configure)(&params) {
        Ok(adapter) => Ok(HandlerConfig {
            label,
            adapter_name: factory.name.to_owned(),
            takes: Takes::Compiled(factory.templates),
            adapter,
            params,
        }),
        Err(problem) => error("params", problem),
    }
}

/// What makes a handler out of process the same as another: its connection and its adapter's declaration count, too.
fn signature(params: &Json, connection: Option<&wire::Connection>, info: &RemoteInfo) -> Json {
    serde_json::json!({
        "params": params,
        "connection": format!("{connection:?}"),
        "adapter": format!("{info:?}"),
    })
}

fn instance(
    name: &FullName,
    wire: &wire::Instance,
    templates: &HashMap<FullName, Arc<RemoteTemplate>>,
    vocabulary: &Vocabulary,
) -> Result<Instance, ItemError> {
    let error = |field: &str, problem: String| Err(ItemError::new(name, field, problem));
    let params = params::to_json(wire.params.as_ref());
    let compile = |kind: InstanceKind| {
        if !wire.attribute_bindings.is_empty() && kind.variety() != Variety::Generator {
            let problem = "only attribute generators produce attributes";
            return error("attributeBindings", problem.into());
        }
        Instance::compile(name, kind, params, &wire.attribute_bindings, vocabulary)
            .or_else(|(field, problem)| error(field, problem))
    };
    let template = match (wire.compiled_template.as_str(), wire.template.as_str()) {
        ("", "") => return error("compiledTemplate", "a template is needed".into()),
        ("", dynamic) => {
            let Some(template) = remote_template(dynamic, &name.namespace, templates) else {
                let problem = format!("template {dynamic:?} is not there or not valid");
                return error("template", problem);
            };
            return compile(InstanceKind::Remote(template));
        }
        (compiled, "") => compiled,
        _ => {
            return error(
                "template",
                "give either compiledTemplate or template".into(),
            );
        }
    };
    match Template::by_name(template) {
        Some(template) => compile(InstanceKind::Compiled(template)),
        None => {
            let known: Vec<_> = Template::ALL.iter().map(|known| known.name()).collect();
            let problem = format!(
                "unknown template {template:?}; there are {}",
                known.join(", ")
            );
            error("compiledTemplate", problem)
        }
    }
}

impl HandlerConfig {
    fn takes(&self, kind: &InstanceKind) -> bool {
        match (&self.takes, kind) {
            (Takes::Compiled(templates), InstanceKind::Compiled(template)) => {
                templates.contains(template)
            }
            (Takes::Remote(names), InstanceKind::Remote(template)) => {
                names.contains(&template.name)
            }
            _ => false,
        }
    }
}

/// A number that metrics with the same dimensions have in common; 0 for everything else.
fn dimension_set(known: &mut BTreeMap<String, usize>, instance: &Instance) -> usize {
    if !matches!(instance.kind, InstanceKind::Compiled(Template::Metric)) {
        return 0;
    }
    let next = known.len() + 1;
    *known
        .entry(instance.params["dimensions"].to_string())
        .or_insert(next)
}

fn find<T>(
    known: &HashMap<FullName, Arc<T>>,
    reference: &str,
    kind: &str,
    namespace: &str,
) -> Option<Arc<T>> {
    FullName::candidates(reference, kind, namespace)
        .iter()
        .find_map(|name| known.get(name).cloned())
}
