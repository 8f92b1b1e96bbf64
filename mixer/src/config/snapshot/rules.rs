//! Rules: conditions compiled, references followed; what cannot be used is left out and reported.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::istio::policy::v1beta1 as wire;
use proto_mesh::attribute::ValueType;

use super::{ActionConfig, Counts, HandlerConfig, HeaderTemplate, RuleConfig, find};
use crate::attributes::Vocabulary;
use crate::config::{FullName, HANDLER, INSTANCE, ItemError};
use crate::lang;
use crate::routing::Sampling;
use crate::template::{Instance, Variety};

/// Understands rules by the handlers and instances that there are.
pub(super) struct RuleBuilder<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) handlers: &'a HashMap<FullName, Arc<HandlerConfig>>,
    pub(super) instances: &'a HashMap<FullName, Arc<Instance>>,
    pub(super) errors: &'a mut Vec<ItemError>,
    pub(super) counts: &'a mut Counts,
}

impl RuleBuilder<'_> {
    /// A rule, if anything of it can be used.
    pub(super) fn rule(&mut self, name: &FullName, wire: &wire::Rule) -> Option<RuleConfig> {
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
        let outputs = self.outputs(name, &actions);
        let scope = outputs.as_ref().unwrap_or(self.vocabulary);
        let request_headers = self.headers(
            name,
            "requestHeaderOperations",
            &wire.request_header_operations,
            scope,
        );
        let response_headers = self.headers(
            name,
            "responseHeaderOperations",
            &wire.response_header_operations,
            scope,
        );
        if actions.is_empty() && request_headers.is_empty() && response_headers.is_empty() {
            self.errors
                .push(ItemError::new(name, "", "nothing of the rule can be used"));
            return None;
        }
        let sampling = match self.sampling(wire, &actions) {
            Ok(sampling) => sampling,
            Err((field, problem)) => {
                self.errors.push(ItemError::new(name, field, problem));
                return None;
            }
        };
        Some(RuleConfig {
            name: name.clone(),
            condition,
            condition_text: wire.r#match.clone(),
            sampling,
            actions,
            request_headers,
            response_headers,
            outputs,
        })
    }

    /// A verdict is kept and used again by the caller: only telemetry can be drawn request by request.
    fn sampling(
        &self,
        wire: &wire::Rule,
        actions: &[ActionConfig],
    ) -> Result<Option<Sampling>, (&'static str, String)> {
        let Some(sampling) = &wire.sampling else {
            return Ok(None);
        };
        let mut instances = actions.iter().flat_map(|action| &action.instances);
        if !instances.all(|instance| instance.kind.variety() == Variety::Report)
            || !wire.request_header_operations.is_empty()
            || !wire.response_header_operations.is_empty()
        {
            let problem = "is for rules with nothing but report templates";
            return Err(("sampling", problem.to_owned()));
        }
        Sampling::new(sampling, self.vocabulary).map(Some)
    }

    /// What header operations may speak of, where actions have outputs: `NAME.output.FIELD`.
    fn outputs(&mut self, rule: &FullName, actions: &[ActionConfig]) -> Option<Vocabulary> {
        let mut declared = BTreeMap::new();
        for (position, action) in actions.iter().enumerate() {
            if action.name.is_empty() {
                continue;
            }
            let mut before = actions[..position].iter();
            if before.any(|known| known.name == action.name) {
                let field = format!("actions[{position}].name");
                self.errors
                    .push(ItemError::new(rule, field, "is given twice"));
            }
            for instance in &action.instances {
                for (field, value_type) in instance.kind.outputs() {
                    declared.insert(format!("{}.output.{field}", action.name), value_type);
                }
            }
        }
        (!declared.is_empty()).then(|| self.vocabulary.extended(&declared))
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
                Some(instance) if !handler.takes(&instance.kind) => {
                    format!(
                        "is of template {}, which adapter {} does not handle",
                        instance.kind.name(),
                        handler.adapter_name
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
        Some(ActionConfig {
            name: action.name.clone(),
            handler,
            instances,
        })
    }

    fn headers(
        &mut self,
        rule: &FullName,
        field: &str,
        templates: &[wire::rule::HeaderOperationTemplate],
        scope: &Vocabulary,
    ) -> Vec<HeaderTemplate> {
        let mut headers = Vec::new();
        for (position, template) in templates.iter().enumerate() {
            let mut values = Vec::new();
            let mut problem = template
                .name
                .is_empty()
                .then(|| "name: a name is needed".to_owned());
            for (index, text) in template.values.iter().enumerate() {
                match lang::compile_as(text, ValueType::String, scope) {
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
