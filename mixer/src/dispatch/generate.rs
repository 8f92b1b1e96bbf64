//! Before anything else: attributes that handlers make from those of the request (who is behind an address, say). They overlay
//! the request's own for all that follows, the choice of the namespace included. No generator sees what another has made.
//!
//! Handlers out of process are asked first ([`ask`]), all at once; what the others make is there in no time ([`generate`]).

use std::borrow::Cow;

use futures::future::try_join_all;
use proto_mesh::attribute::{Value, ValueRef};

use super::{DispatchError, call, wait};
use crate::adapter::Waiting;
use crate::attributes::{Bag, Record, Slot};
use crate::lang::Val;
use crate::pods::Pods;
use crate::routing::{Destination, Table};
use crate::template::{Instance, Values, Variety};

/// Attributes that handlers out of process have made.
pub(crate) type Made = Vec<(Slot, Value)>;

/// Asks the generators out of process. One that fails is an error: nobody is judged by half of what the rules go by.
pub(crate) async fn ask<R: Record>(
    table: &Table,
    bag: &Bag<'_>,
    record: &mut R,
) -> Result<Made, DispatchError> {
    if !table.asks_generators {
        return Ok(Made::new());
    }
    let mut calls = Vec::new();
    each(table, bag, record, |destination, instance, values| {
        if let Some(adapter) = destination.handler.adapter.waiting() {
            calls.push(one(destination, adapter, instance, values));
        }
    });
    Ok(try_join_all(calls).await?.concat())
}

async fn one(
    destination: &Destination,
    adapter: &dyn Waiting,
    instance: &Instance,
    values: Values<'_>,
) -> Result<Made, DispatchError> {
    let outputs = wait(destination, adapter.generate(&values)).await;
    let outputs = outputs.map_err(|error| {
        let name = &instance.full_name;
        DispatchError(format!("preprocessing attributes failed: {name}: {error}"))
    })?;
    let outputs = outputs
        .iter()
        .map(|(field, value)| (format!("output.{field}"), value.as_ref()));
    let mut made = Made::new();
    let bindings = &instance.bindings;
    bindings.bind(outputs, |slot, value| made.push((slot, value.to_value())));
    Ok(made)
}

/// Adds what was made out of process, and what the other generators make of the attributes of `bag`. What was made is not
/// reported as looked at: the caller does not have it, only what it was made from.
pub(crate) fn generate<'a, R: Record>(
    table: &'a Table,
    pods: &'a Pods,
    bag: &mut Bag<'a>,
    record: &mut R,
    asked: &'a [(Slot, Value)],
) {
    if !table.has_generators {
        return;
    }
    let mut made: Vec<_> = asked
        .iter()
        .map(|(slot, value)| (*slot, value.as_ref()))
        .collect();
    each(table, bag, record, |destination, instance, values| {
        if destination.handler.adapter.waiting().is_some() {
            return;
        }
        let generate = || destination.handler.adapter.generate(&values, pods);
        match call(destination, generate) {
            Ok(outputs) => instance.bindings.bind(outputs.into_iter(), |slot, value| {
                made.extend(borrowed(&value, pods).map(|value| (slot, value)));
            }),
            // The request is judged by what it has itself.
            Err(error) => {
                tracing::debug!(target: "dispatcher", %error, instance = instance.full_name, "no attributes could be made");
            }
        }
    });
    for (slot, value) in made {
        bag.set(slot, value);
        record.hide(slot);
    }
}

/// A value that belongs to the pods. One put together from outputs has nobody to own it, and no use here.
fn borrowed<'a>(value: &Val<'a>, pods: &'a Pods) -> Option<ValueRef<'a>> {
    match value {
        Val::String(Cow::Borrowed(text)) => Some(ValueRef::String(text)),
        Val::Ip(ip) => pods.bytes_of(*ip).map(ValueRef::Bytes),
        Val::StringMap(map) => Some(ValueRef::StringMap(*map)),
        Val::Int64(number) => Some(ValueRef::Int64(*number)),
        Val::Bool(flag) => Some(ValueRef::Bool(*flag)),
        Val::String(Cow::Owned(_)) | Val::Double(_) | Val::Timestamp(_) | Val::Duration(_) => None,
    }
}

/// Gives every instance of a generator that this request has to `each`.
fn each<'a, R: Record>(
    table: &'a Table,
    bag: &Bag<'a>,
    record: &mut R,
    mut each: impl FnMut(&'a Destination, &'a Instance, Values<'a>),
) {
    for rule in &table.routes(bag, record).rules {
        let actions = rule.actions(Variety::Generator);
        if actions.is_empty() || !rule.applies(bag, record) {
            continue;
        }
        for action in actions {
            let destination = &table.destinations[action.destination];
            for instance in &action.instances {
                match instance.eval(bag, record) {
                    Ok(values) => each(destination, instance, values),
                    // The request is judged by what it has itself.
                    Err(error) => {
                        tracing::debug!(target: "dispatcher", %error, "no attributes could be made");
                    }
                }
            }
        }
    }
}
