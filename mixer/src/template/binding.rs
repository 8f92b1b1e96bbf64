//! What becomes of an attribute generator's outputs: bindings, expressions that speak of the outputs, make attributes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto_mesh::attribute::ValueRef;

use crate::attributes::{Bag, Slot, Unrecorded, Vocabulary};
use crate::lang::{self, Expression, Val};

/// How instances of compiled templates name the outputs, and how those of others do. Either is understood in both.
const PREFIX: (&str, &str) = ("$out.", "output.");

/// The attributes that an instance makes.
#[derive(Debug)]
pub(crate) struct Bindings {
    /// What the expressions speak of.
    outputs: Arc<Vocabulary>,
    bindings: Vec<(Slot, Expression)>,
}

impl Bindings {
    /// Compiles the bindings of an instance; the error begins with the attribute's name.
    pub(super) fn compile(
        bindings: &BTreeMap<String, String>,
        outputs: Arc<Vocabulary>,
        vocabulary: &Vocabulary,
    ) -> Result<Self, String> {
        let mut compiled = Vec::with_capacity(bindings.len());
        for (name, text) in bindings {
            let Some(attribute) = vocabulary.find(name) else {
                return Err(format!("{name}: no manifest declares this attribute"));
            };
            let text = text.replace(PREFIX.0, PREFIX.1);
            let expression = lang::compile_as(&text, attribute.value_type, &outputs)
                .map_err(|error| format!("{name}: {error}"))?;
            compiled.push((attribute.slot, expression));
        }
        Ok(Self {
            outputs,
            bindings: compiled,
        })
    }

    /// Gives the attributes that are made of a handler's outputs (by the names that expressions have for them) to `each`. A
    /// binding whose outputs are missing makes nothing.
    pub(crate) fn bind<'a, N: AsRef<str>>(
        &'a self,
        outputs: impl Iterator<Item = (N, ValueRef<'a>)>,
        mut each: impl FnMut(Slot, Val<'a>),
    ) {
        let mut bag = Bag::new(&self.outputs);
        for (name, value) in outputs {
            if let Some(attribute) = self.outputs.find(name.as_ref()) {
                bag.set(attribute.slot, value);
            }
        }
        for (slot, expression) in &self.bindings {
            // Most outputs are missing where a pod is not known.
            if let Ok(Some(value)) = expression.eval_some(&bag, &mut Unrecorded) {
                each(*slot, value);
            }
        }
    }
}
