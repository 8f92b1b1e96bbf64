//! Before anything else: attributes that handlers make from those of the request (who is behind an address, say). They overlay
//! the request's own for all that follows, the choice of the namespace included.

use super::call;
use crate::attributes::{Bag, Record};
use crate::pods::Pods;
use crate::routing::Table;
use crate::template::{Variety, bind};

/// Adds what the generators make of the attributes of `bag`. What was made is not reported as looked at: the caller does not
/// have it, only what it was made from.
pub(crate) fn generate<'a, R: Record>(
    table: &'a Table,
    pods: &'a Pods,
    bag: &mut Bag<'a>,
    record: &mut R,
) {
    if !table.has_generators {
        return;
    }
    // No generator sees what another has made.
    let mut made = Vec::new();
    for rule in &table.routes(bag, record).rules {
        let actions = rule.actions(Variety::Generator);
        if actions.is_empty() || !rule.applies(bag, record) {
            continue;
        }
        for action in actions {
            let destination = &table.destinations[action.destination];
            for instance in &action.instances {
                let generated = instance
                    .eval(bag, record)
                    .map_err(|error| error.to_string())
                    .and_then(|values| {
                        let generate = || destination.handler.adapter.generate(&values, pods);
                        call(destination, generate).map_err(|error| error.to_string())
                    });
                match generated {
                    Ok(generated) => {
                        let each = |slot, value| made.push((slot, value));
                        bind(&instance.bindings, &generated, pods, each);
                    }
                    // The request is judged by what it has itself.
                    Err(error) => {
                        tracing::debug!(target: "dispatcher", error, instance = instance.full_name, "no attributes could be made");
                    }
                }
            }
        }
    }
    for (slot, value) in made {
        bag.set(slot, value);
        record.hide(slot);
    }
}
