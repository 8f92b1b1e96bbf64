//! Report: every set of attributes becomes instances; each handler gets all of the request's in one call.

use proto::istio::mixer::v1::ReportRequest;
use proto::istio::mixer::v1::report_request::RepeatedAttributesSemantics;
use proto_mesh::attribute::codec::Words;

use super::generate::generate;
use super::{DispatchError, call};
use crate::attributes::{Bag, OwnWords, Unrecorded};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::routing::Table;
use crate::template::{SharedSets, Values, Variety};

/// Takes note of everything in a request. What can't be made or delivered is told at the end; the rest is.
pub(crate) fn report(
    table: &Table,
    pods: &Pods,
    metrics: &Metrics,
    request: &ReportRequest,
) -> Result<(), DispatchError> {
    let mut session = Session {
        table,
        pods,
        metrics,
        buffers: std::iter::repeat_with(Vec::new)
            .take(table.destinations.len())
            .collect(),
        sets: SharedSets::default(),
        errors: Vec::new(),
    };
    let is_delta = request.repeated_attributes_semantics
        != i32::from(RepeatedAttributesSemantics::IndependentEncoding);
    let mut accumulated = Bag::new(&table.vocabulary);
    let default_words = Words::new(&request.default_words);
    let default_own = OwnWords::new(&table.vocabulary, default_words);
    for message in &request.attributes {
        // A set without words of its own uses the request's.
        let own;
        let (words, own) = if message.words.is_empty() {
            (default_words, &default_own)
        } else {
            let words = Words::new(&message.words);
            own = OwnWords::new(&table.vocabulary, words);
            (words, &own)
        };
        if is_delta {
            accumulated
                .apply(message, words)
                .map_err(|error| DispatchError(error.to_string()))?;
            session.collect(&accumulated);
        } else {
            session.collect(&Bag::decode(&table.vocabulary, message, words, own));
        }
    }
    session.flush()
}

struct Session<'a> {
    table: &'a Table,
    pods: &'a Pods,
    metrics: &'a Metrics,
    /// Instances for each destination.
    buffers: Vec<Vec<Values<'a>>>,
    /// Dimensions of this set of attributes that several instances have in common.
    sets: SharedSets<'a>,
    errors: Vec<String>,
}

impl<'a> Session<'a> {
    fn collect(&mut self, bag: &Bag<'a>) {
        let mut record = Unrecorded;
        let made = generate(self.table, self.pods, bag, &mut record);
        let bag = made.as_ref().unwrap_or(bag);
        let routes = self.table.routes(bag, &mut record);
        let (mut destinations, mut instances) = (0u32, 0u32);
        self.sets.clear();
        for rule in &routes.rules {
            let actions = rule.actions(Variety::Report);
            if actions.is_empty() || !rule.applies(bag, &mut record) {
                continue;
            }
            for action in actions {
                destinations += 1;
                for instance in &action.instances {
                    instances += 1;
                    match instance.eval_shared(bag, &mut record, &mut self.sets) {
                        Ok(values) => self.buffers[action.destination].push(values),
                        Err(error) => self.errors.push(error.to_string()),
                    }
                }
            }
        }
        self.metrics
            .count_request(Variety::Report, destinations, instances);
    }

    fn flush(mut self) -> Result<(), DispatchError> {
        for (destination, values) in self.table.destinations.iter().zip(&self.buffers) {
            if values.is_empty() {
                continue;
            }
            if let Err(error) = call(destination, || destination.handler.adapter.report(values)) {
                self.errors.push(error.to_string());
            }
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        // A hundred sets may fail for the same reason.
        self.errors.sort_unstable();
        self.errors.dedup();
        self.errors.truncate(10);
        Err(DispatchError(self.errors.join("; ")))
    }
}
