//! Conditions of access logs in CEL (`envoy.access_loggers.extension_filters.cel`), as Telemetry resources have them: comparisons,
//! membership, presence and tests of strings on Envoy's attributes. What else CEL has is refused when it is read. As in Envoy a
//! condition that cannot be told, because an attribute is not there or is of another type, does not hold.

mod attribute;
mod parse;

use super::FormatContext;
use super::format::write_json_text;
use crate::invalid::Invalid;
use attribute::Attribute;

/// A condition on a stream.
#[derive(Debug, Clone)]
pub(crate) struct Expression(Node);

#[derive(Debug, Clone)]
enum Node {
    Literal(Value),
    Attribute(Attribute),
    /// The presence of an attribute.
    Has(Attribute),
    Not(Box<Node>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    Compare(Comparison, Box<[Node; 2]>),
    In(Box<Node>, Vec<Node>),
    Test(Test, Box<[Node; 2]>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bool(bool),
    Number(i64),
    Text(String),
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What a string is asked.
#[derive(Debug, Clone, Copy)]
enum Test {
    StartsWith,
    EndsWith,
    Contains,
}

impl Expression {
    /// Reads a condition.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        parse::parse(text).map(Expression)
    }

    /// Appends its value; false if it cannot be told.
    pub(crate) fn write(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        match self.0.value(context) {
            Some(Value::Text(text)) => out.push_str(&text),
            Some(Value::Number(number)) => out.push_str(&number.to_string()),
            Some(Value::Bool(truth)) => out.push_str(if truth { "true" } else { "false" }),
            None => return false,
        }
        true
    }

    /// The same as JSON.
    pub(crate) fn write_json(&self, context: &FormatContext<'_>, out: &mut String) -> bool {
        match self.0.value(context) {
            Some(Value::Text(text)) => {
                write_json_text(&text, out);
                true
            }
            _ => self.write(context, out),
        }
    }

    /// True when it holds.
    pub(crate) fn holds(&self, context: &FormatContext<'_>) -> bool {
        self.0.truth(context) == Some(true)
    }
}

impl Node {
    /// Its value; none if it cannot be told.
    fn value(&self, context: &FormatContext<'_>) -> Option<Value> {
        let pair = |nodes: &[Node; 2]| Some((nodes[0].value(context)?, nodes[1].value(context)?));
        let truth = match self {
            Node::Literal(value) => return Some(value.clone()),
            Node::Attribute(attribute) => return attribute.value(context),
            Node::Has(attribute) => attribute.value(context).is_some(),
            Node::Not(node) => !node.truth(context)?,
            Node::And(nodes) => either(nodes, context, false)?,
            Node::Or(nodes) => either(nodes, context, true)?,
            Node::Compare(comparison, nodes) => {
                let (left, right) = pair(nodes)?;
                comparison.holds(&left, &right)?
            }
            Node::In(node, list) => {
                let value = node.value(context)?;
                list.iter()
                    .any(|item| item.value(context).as_ref() == Some(&value))
            }
            Node::Test(test, nodes) => match pair(nodes)? {
                (Value::Text(text), Value::Text(part)) => test.holds(&text, &part),
                _ => return None,
            },
        };
        Some(Value::Bool(truth))
    }

    fn truth(&self, context: &FormatContext<'_>) -> Option<bool> {
        match self.value(context)? {
            Value::Bool(truth) => Some(truth),
            Value::Number(_) | Value::Text(_) => None,
        }
    }
}

/// `decisive` if one of both is, whatever becomes of the other; else the opposite if both can be told.
fn either(nodes: &[Node; 2], context: &FormatContext<'_>, decisive: bool) -> Option<bool> {
    let left = nodes[0].truth(context);
    if left == Some(decisive) {
        return left;
    }
    let right = nodes[1].truth(context);
    if right == Some(decisive) {
        return right;
    }
    left.and(right)
}

impl Comparison {
    /// None for values of different types, and for an order of truths.
    fn holds(self, left: &Value, right: &Value) -> Option<bool> {
        let order = match (left, right) {
            (Value::Number(left), Value::Number(right)) => left.cmp(right),
            (Value::Text(left), Value::Text(right)) => left.cmp(right),
            (Value::Bool(left), Value::Bool(right)) if self.is_of_equality() => left.cmp(right),
            _ => return None,
        };
        Some(match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        })
    }

    fn is_of_equality(self) -> bool {
        matches!(self, Comparison::Equal | Comparison::NotEqual)
    }
}

impl Test {
    fn holds(self, text: &str, part: &str) -> bool {
        match self {
            Test::StartsWith => text.starts_with(part),
            Test::EndsWith => text.ends_with(part),
            Test::Contains => text.contains(part),
        }
    }
}

#[cfg(test)]
mod tests;
