//! Resources → what they mean: a vocabulary, handlers and instances that can be used, rules whose every reference holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::istio::policy::v1beta1 as wire;
use proto_mesh::attribute::ValueType;
use serde_json::Value as Json;

use super::{FullName, HANDLER, INSTANCE, ItemError, Resources, params};
use crate::adapter::{self, AdapterConfig, Factory};
use crate::attributes::Vocabulary;
use crate::lang::{self, Expression};
use crate::template::{Instance, Template, Variety};

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
    pub(crate) factory: &'static Factory,
    pub(crate) adapter: Box<dyn AdapterConfig>,
    /// The configuration, to tell whether it changed.
    pub(crate) params: Json,
}

/// A rule.
#[derive(Debug)]
pub(crate) struct RuleConfig {
    pub(crate) name: FullName,
    /// None: always.
    pub(crate) condition: Option<Expression>,
    pub(crate) condition_text: String,
    pub(crate) actions: Vec<ActionConfig>,
    pub(crate) request_headers: Vec<HeaderTemplate>,
    pub(crate) response_headers: Vec<HeaderTemplate>,
}

/// Instances for a handler.
#[derive(Debug)]
pub(crate) struct ActionConfig {
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
}

impl std::fmt::Debug for HandlerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.label, self.factory.name)
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
        let handlers = collect(&resources.handlers, &mut errors, handler);
        counts.handler_errors = counts.handlers - handlers.len();
        let instances = collect(&resources.instances, &mut errors, |name, wire| {
            instance(name, wire, &vocabulary)
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
        Self {
            vocabulary,
            instances,
            rules,
            errors,
            counts,
        }
    }
}

/// Keeps what can be used and reports the rest.
fn collect<W, T>(
    items: &BTreeMap<FullName, W>,
    errors: &mut Vec<ItemError>,
    read: impl Fn(&FullName, &W) -> Result<T, ItemError>,
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

fn handler(name: &FullName, wire: &wire::Handler) -> Result<HandlerConfig, ItemError> {
    let error = |field: &str, problem: String| Err(ItemError::new(name, field, problem));
    let adapter = match (wire.compiled_adapter.as_str(), wire.adapter.as_str()) {
        ("", "") => return error("compiledAdapter", "an adapter is needed".into()),
        ("", remote) => {
            let problem = format!("adapter {remote} is out of process, which is not supported");
            return error("adapter", problem);
        }
        (compiled, "") => compiled,
        _ => return error("adapter", "give either compiledAdapter or adapter".into()),
    };
    let Some(factory) = adapter::factory(adapter) else {
        return error("compiledAdapter", format!("unknown adapter {adapter}"));
    };
    let params = params::to_json(wire.params.as_ref());
    match (factory.configure)(&params) {
        Ok(adapter) => Ok(HandlerConfig {
            label: format!("{}.{}", name.short, name.namespace),
            factory,
            adapter,
            params,
        }),
        Err(problem) => error("params", problem),
    }
}

fn instance(
    name: &FullName,
    wire: &wire::Instance,
    vocabulary: &Vocabulary,
) -> Result<Instance, ItemError> {
    let error = |field: &str, problem: String| Err(ItemError::new(name, field, problem));
    let template = match (wire.compiled_template.as_str(), wire.template.as_str()) {
        ("", "") => return error("compiledTemplate", "a template is needed".into()),
        ("", dynamic) => {
            let problem = format!("template {dynamic} is not compiled in, which is not supported");
            return error("template", problem);
        }
        (compiled, "") => compiled,
        _ => {
            return error(
                "template",
                "give either compiledTemplate or template".into(),
            );
        }
    };
    let Some(template) = Template::by_name(template) else {
        return error("compiledTemplate", format!("unknown template {template}"));
    };
    if !wire.attribute_bindings.is_empty() && template.variety() != Variety::Generator {
        let problem = "only attribute generators produce attributes";
        return error("attributeBindings", problem.into());
    }
    let params = params::to_json(wire.params.as_ref());
    Instance::compile(name, template, params, &wire.attribute_bindings, vocabulary)
        .or_else(|(field, problem)| error(field, problem))
}

struct RuleBuilder<'a> {
    vocabulary: &'a Vocabulary,
    handlers: &'a HashMap<FullName, Arc<HandlerConfig>>,
    instances: &'a HashMap<FullName, Arc<Instance>>,
    errors: &'a mut Vec<ItemError>,
    counts: &'a mut Counts,
}

impl RuleBuilder<'_> {
    fn rule(&mut self, name: &FullName, wire: &wire::Rule) -> Option<RuleConfig> {
        let before = self.errors.len();
        let rule = self.build(name, wire);
        if self.errors.len() > before {
            self.counts.rule_errors += 1;
        }
        rule
    }

    fn build(&mut self, name: &FullName, wire: &wire::Rule) -> Option<RuleConfig> {
        let condition = match wire.r#match.trim() {
            "" | "true" => None,
            text => match lang::compile_as(text, ValueType::Bool, self.vocabulary) {
                Ok(condition) => Some(condition).filter(|condition| !condition.is_true()),
                Err(error) => {
                    // A rule that cannot tell when it applies never does.
                    self.counts.match_errors += 1;
                    self.errors.push(ItemError::new(name, "match", error));
                    return None;
                }
            },
        };
        let mut actions = Vec::new();
        for (position, action) in wire.actions.iter().enumerate() {
            actions.extend(self.action(name, position, action));
        }
        let request_headers = self.headers(
            name,
            "requestHeaderOperations",
            &wire.request_header_operations,
        );
        let response_headers = self.headers(
            name,
            "responseHeaderOperations",
            &wire.response_header_operations,
        );
        if actions.is_empty() && request_headers.is_empty() && response_headers.is_empty() {
            self.errors
                .push(ItemError::new(name, "", "nothing of the rule can be used"));
            return None;
        }
        Some(RuleConfig {
            name: name.clone(),
            condition,
            condition_text: wire.r#match.clone(),
            actions,
            request_headers,
            response_headers,
        })
    }

    fn action(
        &mut self,
        rule: &FullName,
        position: usize,
        action: &wire::Action,
    ) -> Option<ActionConfig> {
        let handler = find(self.handlers, &action.handler, HANDLER, &rule.namespace);
        let Some(handler) = handler else {
            self.counts.unsatisfied += 1;
            self.errors.push(ItemError::new(
                rule,
                format!("actions[{position}].handler"),
                format!("handler {:?} is not there or not valid", action.handler),
            ));
            return None;
        };
        let mut instances: Vec<Arc<Instance>> = Vec::new();
        for (index, reference) in action.instances.iter().enumerate() {
            let problem = match find(self.instances, reference, INSTANCE, &rule.namespace) {
                None => "is not there or not valid".to_owned(),
                Some(instance) if instances.iter().any(|known| known.name == instance.name) => {
                    "is given twice".to_owned()
                }
                Some(instance) if !handler.factory.templates.contains(&instance.template) => {
                    format!(
                        "is of template {}, which adapter {} does not handle",
                        instance.template.name(),
                        handler.factory.name
                    )
                }
                Some(instance) => {
                    instances.push(instance);
                    continue;
                }
            };
            self.errors.push(ItemError::new(
                rule,
                format!("actions[{position}].instances[{index}]"),
                format!("instance {reference:?} {problem}"),
            ));
        }
        if instances.is_empty() {
            self.errors.push(ItemError::new(
                rule,
                format!("actions[{position}].instances"),
                "no instance is left",
            ));
            return None;
        }
        Some(ActionConfig { handler, instances })
    }

    fn headers(
        &mut self,
        rule: &FullName,
        field: &str,
        templates: &[wire::rule::HeaderOperationTemplate],
    ) -> Vec<HeaderTemplate> {
        let mut headers = Vec::new();
        for (position, template) in templates.iter().enumerate() {
            let mut values = Vec::new();
            let mut problem = template
                .name
                .is_empty()
                .then(|| "name: a name is needed".to_owned());
            for (index, text) in template.values.iter().enumerate() {
                match lang::compile_as(text, ValueType::String, self.vocabulary) {
                    Ok(expression) => values.push(expression),
                    Err(error) => problem = Some(format!("values[{index}]: {error}")),
                }
            }
            match problem {
                Some(problem) => {
                    let field = format!("{field}[{position}]");
                    self.errors.push(ItemError::new(rule, field, problem));
                }
                None => headers.push(HeaderTemplate {
                    name: template.name.to_ascii_lowercase(),
                    values,
                    operation: template.operation,
                }),
            }
        }
        headers
    }
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
