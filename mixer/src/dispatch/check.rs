//! Check: is the request let through, and what of its quotas is granted?

use std::sync::Arc;
use std::time::Duration;

use proto::google::rpc::Status;
use proto::istio::mixer::v1::check_response::{PreconditionResult, QuotaResult};
use proto::istio::mixer::v1::header_operation::Operation;
use proto::istio::mixer::v1::{CheckResponse, HeaderOperation, RouteDirective};
use proto_mesh::attribute::Value;
use proto_mesh::attribute::codec::Words;

use super::combine::Verdict;
use super::generate::{ask, generate};
use super::{DispatchError, call, wait};
use crate::adapter::QuotaRequest;
use crate::attributes::{Bag, OwnWords, Record as _, Tracker};
use crate::config::snapshot::HeaderTemplate;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::routing::{Action, Routes, Rule, Table};
use crate::server::message::CheckMessage;
use crate::template::{Instance, Variety};

/// What a quota is granted that no rule knows.
const UNKNOWN_QUOTA_DURATION: Duration = Duration::from_secs(60);

/// Answers a request.
pub(crate) async fn check(
    table: &Table,
    pods: &Pods,
    metrics: &Metrics,
    request: &CheckMessage<'_>,
) -> Result<CheckResponse, DispatchError> {
    let words = request.attributes.words();
    let own = OwnWords::new(&table.vocabulary, words);
    let mut bag = Bag::new(&table.vocabulary);
    bag.decode(&request.attributes, Words::borrowed(words), &own)
        .map_err(|error| DispatchError(error.to_string()))?;
    let mut tracker = Tracker::default();
    let asked = ask(table, &bag, &mut tracker).await?;
    generate(table, pods, &mut bag, &mut tracker, &asked);
    let session = Session {
        table,
        metrics,
        bag,
        global_words: usize::try_from(request.global_word_count).unwrap_or(usize::MAX),
    };
    let routes = table.routes(&session.bag, &mut tracker);
    // Every quota starts from what was looked at before the rules.
    let before_rules = tracker.clone();
    let (precondition, is_ok) = session.precondition(routes, tracker).await?;
    let mut response = CheckResponse {
        precondition: Some(precondition),
        ..CheckResponse::default()
    };
    if is_ok {
        for (&name, params) in &request.quotas {
            let deduplication_id = match request.deduplication_id {
                "" => String::new(),
                id => format!("{id}{name}"),
            };
            let quota = QuotaRequest {
                amount: params.amount,
                best_effort: params.best_effort,
                deduplication_id: &deduplication_id,
            };
            let before = before_rules.clone();
            let result = session.quota(routes, before, name, &quota).await?;
            response.quotas.insert(name.to_owned(), result);
        }
    }
    Ok(response)
}

/// What a handler has said besides its verdict.
struct Outputs<'a> {
    rule: &'a Arc<Rule>,
    action: &'a Action,
    values: Vec<(String, Value)>,
}

struct Session<'a> {
    table: &'a Table,
    metrics: &'a Metrics,
    bag: Bag<'a>,
    global_words: usize,
}

impl<'a> Session<'a> {
    async fn precondition(
        &self,
        routes: &'a Routes,
        mut tracker: Tracker,
    ) -> Result<(PreconditionResult, bool), DispatchError> {
        let mut verdict = Verdict::new();
        let mut outputs = Vec::new();
        let mut errors = Vec::new();
        let (mut destinations, mut instances) = (0u32, 0u32);
        for rule in &routes.rules {
            let actions = rule.actions(Variety::Check);
            if actions.is_empty() || !rule.applies(&self.bag, &mut tracker) {
                continue;
            }
            for action in actions {
                let destination = &self.table.destinations[action.destination];
                destinations += 1;
                for instance in &action.instances {
                    instances += 1;
                    let values = match instance.eval(&self.bag, &mut tracker) {
                        Ok(values) => values,
                        Err(error) => {
                            errors.push(error.to_string());
                            continue;
                        }
                    };
                    let adapter = &destination.handler.adapter;
                    let result = match adapter.waiting() {
                        Some(adapter) => wait(destination, adapter.check(&values)).await,
                        None => call(destination, || adapter.check(&values)),
                    };
                    match result {
                        Ok(mut result) => {
                            if !result.outputs.is_empty() && !action.name.is_empty() {
                                let values = std::mem::take(&mut result.outputs);
                                outputs.push(Outputs {
                                    rule,
                                    action,
                                    values,
                                });
                            }
                            verdict.add(&destination.handler.label, result);
                        }
                        Err(error) => errors.push(error.to_string()),
                    }
                }
            }
        }
        self.metrics
            .count_request(Variety::Check, destinations, instances);
        if !errors.is_empty() {
            return Err(DispatchError(errors.join("; ")));
        }
        let is_ok = verdict.is_ok();
        let (status, valid_duration, valid_use_count, mut directive) = verdict.into_parts();
        if is_ok {
            directive = self.directive(routes, &outputs, &mut tracker);
        }
        let result = PreconditionResult {
            status: Some(status),
            valid_duration: Some(wire_duration(valid_duration)),
            valid_use_count,
            referenced_attributes: Some(tracker.to_wire(&self.table.vocabulary, self.global_words)),
            route_directive: directive,
        };
        Ok((result, is_ok))
    }

    /// The header operations of the rules that apply.
    fn directive(
        &self,
        routes: &'a Routes,
        outputs: &[Outputs<'_>],
        tracker: &mut Tracker,
    ) -> Option<RouteDirective> {
        let mut directive = RouteDirective::default();
        for rule in &routes.directives {
            if !rule.applies(&self.bag, tracker) {
                continue;
            }
            let with_outputs = self.with_outputs(rule, outputs, tracker);
            let bag = with_outputs.as_ref().unwrap_or(&self.bag);
            for (templates, operations) in [
                (
                    &rule.request_headers,
                    &mut directive.request_header_operations,
                ),
                (
                    &rule.response_headers,
                    &mut directive.response_header_operations,
                ),
            ] {
                for template in templates {
                    operations_of(template, bag, tracker, operations);
                }
            }
        }
        (directive != RouteDirective::default()).then_some(directive)
    }

    /// The attributes and what the rule's own handlers have said, if its header operations may speak of that.
    fn with_outputs<'b>(
        &'b self,
        rule: &'b Arc<Rule>,
        outputs: &'b [Outputs<'_>],
        tracker: &mut Tracker,
    ) -> Option<Bag<'b>> {
        let vocabulary = rule.outputs.as_ref()?;
        let mut bag = self.bag.extended(vocabulary);
        // The caller does not have them.
        for slot in vocabulary.slots_beyond(&self.table.vocabulary) {
            tracker.hide(slot);
        }
        for said in outputs.iter().filter(|said| Arc::ptr_eq(said.rule, rule)) {
            for (field, value) in &said.values {
                let name = format!("{}.output.{field}", said.action.name);
                if let Some(attribute) = vocabulary.find(&name) {
                    bag.set(attribute.slot, value.as_ref());
                }
            }
        }
        Some(bag)
    }

    /// One quota: the first result that says anything, or all that was asked for when nobody limits it.
    async fn quota(
        &self,
        routes: &'a Routes,
        mut tracker: Tracker,
        name: &str,
        request: &QuotaRequest<'_>,
    ) -> Result<QuotaResult, DispatchError> {
        if !self.table.knows_quota(name) {
            tracing::debug!(target: "dispatcher", quota = name, "a request asks for an unknown quota");
        }
        let mut found = None;
        let (mut destinations, mut instances) = (0u32, 0u32);
        for rule in &routes.rules {
            let actions = rule.actions(Variety::Quota);
            let is_meant = |instance: &Instance| instance.name.short.eq_ignore_ascii_case(name);
            let has_quota =
                |action: &Action| action.instances.iter().any(|instance| is_meant(instance));
            if !actions.iter().any(has_quota) || !rule.applies(&self.bag, &mut tracker) {
                continue;
            }
            for action in actions {
                let destination = &self.table.destinations[action.destination];
                destinations += u32::from(has_quota(action));
                for instance in &action.instances {
                    if !is_meant(instance) {
                        continue;
                    }
                    instances += 1;
                    let values = instance
                        .eval(&self.bag, &mut tracker)
                        .map_err(|error| DispatchError(error.to_string()))?;
                    let adapter = &destination.handler.adapter;
                    let result = match adapter.waiting() {
                        Some(adapter) => {
                            wait(destination, adapter.allocate(&values, request)).await
                        }
                        None => call(destination, || adapter.allocate(&values, request)),
                    };
                    let result = result.unwrap_or_else(|error| {
                        tracing::debug!(target: "dispatcher", %error, quota = name, "a quota handler failed");
                        // QUIRK: a failure reads as "nothing granted", and the next handler is asked.
                        Default::default()
                    });
                    if found
                        .as_ref()
                        .is_none_or(|known| *known == Default::default())
                    {
                        found = Some(result);
                    }
                }
            }
        }
        self.metrics
            .count_request(Variety::Quota, destinations, instances);
        let (granted, valid_duration, status) = match found {
            Some(result) => (result.granted, result.valid_duration, result.status),
            None => (request.amount, UNKNOWN_QUOTA_DURATION, Status::default()),
        };
        Ok(QuotaResult {
            valid_duration: Some(wire_duration(valid_duration)),
            granted_amount: granted,
            referenced_attributes: Some(tracker.to_wire(&self.table.vocabulary, self.global_words)),
            status: Some(status),
        })
    }
}

fn operations_of<'a>(
    template: &'a HeaderTemplate,
    bag: &Bag<'a>,
    tracker: &mut Tracker,
    operations: &mut Vec<HeaderOperation>,
) {
    let mut push = |value: String| {
        operations.push(HeaderOperation {
            name: template.name.clone(),
            value,
            operation: template.operation,
        });
    };
    if template.operation == i32::from(Operation::Remove) {
        push(String::new());
        return;
    }
    for expression in &template.values {
        match expression.eval(bag, tracker) {
            // An empty value sets nothing.
            Ok(value) if value.to_text().is_empty() => {}
            Ok(value) => push(value.to_text().into_owned()),
            Err(error) => {
                tracing::debug!(target: "dispatcher", %error, header = template.name, "a header operation is skipped");
            }
        }
    }
}

fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}
