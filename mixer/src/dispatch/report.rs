//! Report: every set of attributes becomes instances; each handler gets all of the request's in one call.

use futures::stream::{self, StreamExt as _};
use proto_mesh::attribute::Value;
use proto_mesh::attribute::codec::Words;

use super::generate::{Made, ask, generate};
use super::{DispatchError, call};
use crate::attributes::{Bag, OwnWords, Slot, Unrecorded};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::routing::Table;
use crate::server::message::ReportMessage;
use crate::template::{SharedSets, Values, Variety};

/// What generators out of process make of a set of attributes.
type Asked = Result<Made, DispatchError>;

/// Sets of attributes for which generators are asked at once.
const AT_ONCE: usize = 64;

/// Asks the generators out of process for all sets of a request; nothing where there are none.
pub(crate) async fn ask_all(
    table: &Table,
    request: &ReportMessage<'_>,
) -> Result<Vec<Asked>, DispatchError> {
    if !table.asks_generators {
        return Ok(Vec::new());
    }
    let mut bags = Vec::with_capacity(request.sets.len());
    each(table, request, |_, bag| bags.push(bag.clone()))?;
    let asked: Vec<_> = bags.iter().map(|bag| ask_unrecorded(table, bag)).collect();
    Ok(stream::iter(asked).buffered(AT_ONCE).collect().await)
}

async fn ask_unrecorded(table: &Table, bag: &Bag<'_>) -> Asked {
    ask(table, bag, &mut Unrecorded).await
}

/// Takes note of everything in a request. What can't be made or delivered is told at the end; the rest is.
pub(crate) fn report<'a>(
    table: &'a Table,
    pods: &'a Pods,
    metrics: &'a Metrics,
    request: &'a ReportMessage<'_>,
    asked: &'a [Asked],
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
    each(table, request, |position, bag| match asked.get(position) {
        None => session.collect(bag, &[]),
        Some(Ok(made)) => session.collect(bag, made),
        Some(Err(error)) => session.errors.push(error.to_string()),
    })?;
    session.flush()
}

/// Gives the attributes of every set, with its position, to `each`.
fn each<'a>(
    table: &'a Table,
    request: &'a ReportMessage<'_>,
    mut each: impl FnMut(usize, &mut Bag<'a>),
) -> Result<(), DispatchError> {
    let refused = |error: &dyn std::error::Error| DispatchError(error.to_string());
    let mut bag = Bag::new(&table.vocabulary);
    let mut accumulated = Bag::new(&table.vocabulary);
    let default_own = OwnWords::new(&table.vocabulary, &request.default_words);
    for (position, set) in request.sets.iter().enumerate() {
        // A set without words of its own uses the request's.
        let own;
        let (words, own) = if set.words().is_empty() {
            (request.default_words.as_slice(), &default_own)
        } else {
            own = OwnWords::new(&table.vocabulary, set.words());
            (set.words(), &own)
        };
        let words = Words::borrowed(words);
        if request.is_delta {
            accumulated
                .apply(set, words)
                .map_err(|error| refused(&error))?;
            bag.clone_from(&accumulated);
        } else {
            bag.decode(set, words, own)
                .map_err(|error| refused(&error))?;
        }
        each(position, &mut bag);
    }
    Ok(())
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
    fn collect(&mut self, bag: &mut Bag<'a>, made: &'a [(Slot, Value)]) {
        let mut record = Unrecorded;
        generate(self.table, self.pods, bag, &mut record, made);
        let bag = &*bag;
        let routes = self.table.routes(bag, &mut record);
        let (mut destinations, mut instances) = (0u32, 0u32);
        self.sets.clear();
        for rule in &routes.rules {
            let actions = rule.actions(Variety::Report);
            if actions.is_empty() || !rule.applies(bag, &mut record) || !rule.is_sampled(bag) {
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
