//! Evaluation against the attributes of one request. Nothing is copied unless a function makes a new text.
//!
//! There are two ways to evaluate a node. Plainly: what is missing is an error. As a first operand of `|`: a missing
//! attribute, or the missing operand of an index, means "not there", and the next operand is tried. A call is never "not
//! there": something missing inside it is an error even then.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;

use prost_types::Timestamp;
use proto_mesh::attribute::{MapRef, Value, ValueRef, ValueType};

use super::compiler::{Expression, Node, Order};
use super::{names, time_text};
use crate::attributes::{Bag, Record, Slot};

/// The value of an expression.
#[derive(Clone, Debug)]
pub(crate) enum Val<'a> {
    /// STRING, DNS_NAME, EMAIL_ADDRESS or URI.
    String(Cow<'a, str>),
    Int64(i64),
    Double(f64),
    Bool(bool),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    Ip(IpAddr),
    StringMap(MapRef<'a>),
}

/// Why an expression has no value for this request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EvalError {
    /// An attribute that is needed is not there.
    #[error("lookup failed: '{0}'")]
    Missing(String),
    /// An attribute has another type than its manifest says.
    #[error("error converting value of {attribute} to {want}")]
    WrongType { attribute: String, want: ValueType },
    /// A function cannot take what it was given.
    #[error("{0}")]
    Convert(String),
    /// The checker let something through that it should not have.
    #[error("internal error: bad {0}")]
    Internal(&'static str),
}

impl Val<'_> {
    pub(crate) const EMPTY_MAP: Val<'static> = Val::StringMap(MapRef::Plain(&[]));

    /// A copy that owns what it holds, as attributes have it.
    pub(crate) fn to_value(&self) -> Value {
        let value = match self {
            Val::String(text) => ValueRef::String(text),
            Val::Int64(number) => ValueRef::Int64(*number),
            Val::Double(number) => ValueRef::Double(*number),
            Val::Bool(flag) => ValueRef::Bool(*flag),
            Val::Timestamp(time) => ValueRef::Timestamp(*time),
            Val::Duration(nanos) => ValueRef::Duration(time_text::wire_duration(*nanos)),
            Val::Ip(IpAddr::V4(ip)) => return Value::Bytes(ip.octets().into()),
            Val::Ip(IpAddr::V6(ip)) => return Value::Bytes(ip.octets().into()),
            Val::StringMap(map) => ValueRef::StringMap(*map),
        };
        value.to_value()
    }

    /// As text, the way labels and quota keys show it.
    pub(crate) fn to_text(&self) -> Cow<'_, str> {
        match self {
            Val::String(text) => Cow::Borrowed(text),
            Val::Int64(number) => Cow::Owned(number.to_string()),
            Val::Double(number) => Cow::Owned(number.to_string()),
            Val::Bool(true) => Cow::Borrowed("true"),
            Val::Bool(false) => Cow::Borrowed("false"),
            Val::Timestamp(time) => Cow::Owned(time_text::format_timestamp(*time)),
            Val::Duration(nanos) => Cow::Owned(time_text::format_duration(*nanos)),
            Val::Ip(address) => Cow::Owned(address.to_string()),
            Val::StringMap(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_unstable();
                let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                Cow::Owned(format!("map[{}]", entries.join(" ")))
            }
        }
    }
}

impl Expression {
    /// Evaluates it.
    pub(crate) fn eval<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Val<'a>, EvalError> {
        Eval { bag, record }.value(&self.root)
    }

    /// Evaluates it; `None` when it is a single attribute, and that is missing.
    pub(crate) fn eval_some<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<Option<Val<'a>>, EvalError> {
        let mut eval = Eval { bag, record };
        match &self.root {
            Node::Attribute(slot, kind) => eval.attribute(*slot, *kind),
            root => eval.value(root).map(Some),
        }
    }

    /// Evaluates a condition.
    pub(crate) fn eval_bool<'a, R: Record>(
        &'a self,
        bag: &Bag<'a>,
        record: &mut R,
    ) -> Result<bool, EvalError> {
        Eval { bag, record }.bool(&self.root)
    }
}

struct Eval<'b, 'a, R> {
    bag: &'b Bag<'a>,
    record: &'b mut R,
}

impl<'a, R: Record> Eval<'_, 'a, R> {
    fn value(&mut self, node: &'a Node) -> Result<Val<'a>, EvalError> {
        Ok(match node {
            Node::String(text) => Val::String(Cow::Borrowed(text)),
            Node::Int64(number) => Val::Int64(*number),
            Node::Double(number) => Val::Double(*number),
            Node::Bool(flag) => Val::Bool(*flag),
            Node::Duration(nanos) => Val::Duration(*nanos),
            Node::Attribute(slot, kind) => match self.attribute(*slot, *kind)? {
                Some(value) => value,
                None => return Err(EvalError::Missing(self.bag.name(*slot).to_owned())),
            },
            Node::Or(operands) => match self.available(&operands[0])? {
                Some(value) => value,
                None => self.value(&operands[1])?,
            },
            Node::Both(operands) => Val::Bool(self.bool(&operands[0])? && self.bool(&operands[1])?),
            Node::Either(operands) => {
                Val::Bool(self.bool(&operands[0])? || self.bool(&operands[1])?)
            }
            Node::Equal {
                kind,
                negated,
                operands,
            } => {
                let (left, right) = (self.value(&operands[0])?, self.value(&operands[1])?);
                Val::Bool(equal(*kind, &left, &right)? != *negated)
            }
            Node::Order(order, operands) => {
                let (left, right) = (self.value(&operands[0])?, self.value(&operands[1])?);
                Val::Bool(is_in_order(*order, &left, &right))
            }
            Node::Add(operands) => {
                let (left, right) = (self.value(&operands[0])?, self.value(&operands[1])?);
                add(left, &right)?
            }
            Node::Index(operands) => {
                let map = self.map(&operands[0])?;
                let key = self.value(&operands[1])?;
                // QUIRK: outside of `|`, a key that is not there reads as the empty text.
                self.entry(&operands[0], map, &key)?
                    .unwrap_or(Val::String(Cow::Borrowed("")))
            }
            Node::Conditional(operands) => {
                let chosen = if self.bool(&operands[0])? { 1 } else { 2 };
                self.value(&operands[chosen])?
            }
            Node::MatchesConstant(regex, text) => match self.value(text)? {
                Val::String(text) => Val::Bool(regex.is_match(&text)),
                _ => return Err(EvalError::Internal("subject")),
            },
            Node::Ip(address) => Val::Ip(*address),
            Node::Call(function, operands) => match operands.as_ref() {
                // No function has more operands than three.
                [] => function.call(&[])?,
                [a] => function.call(&[self.value(a)?])?,
                [a, b] => function.call(&[self.value(a)?, self.value(b)?])?,
                [a, b, c, ..] => {
                    function.call(&[self.value(a)?, self.value(b)?, self.value(c)?])?
                }
            },
        })
    }

    /// A node as a first operand of `|`: `None` when it is not there.
    fn available(&mut self, node: &'a Node) -> Result<Option<Val<'a>>, EvalError> {
        match node {
            Node::Attribute(slot, kind) => self.attribute(*slot, *kind),
            Node::Or(operands) => match self.available(&operands[0])? {
                Some(value) => Ok(Some(value)),
                None => self.available(&operands[1]),
            },
            Node::Index(operands) => {
                let Some(map) = self.available(&operands[0])? else {
                    return Ok(None);
                };
                let Some(key) = self.available(&operands[1])? else {
                    return Ok(None);
                };
                let Val::StringMap(map) = map else {
                    return Err(EvalError::Internal("map"));
                };
                self.entry(&operands[0], map, &key)
            }
            _ => self.value(node).map(Some),
        }
    }

    fn bool(&mut self, node: &'a Node) -> Result<bool, EvalError> {
        match self.value(node)? {
            Val::Bool(flag) => Ok(flag),
            _ => Err(EvalError::Internal("condition")),
        }
    }

    fn map(&mut self, node: &'a Node) -> Result<MapRef<'a>, EvalError> {
        match self.value(node)? {
            Val::StringMap(map) => Ok(map),
            _ => Err(EvalError::Internal("map")),
        }
    }

    /// Looks a key up and records it under the attribute that the map came from.
    fn entry(
        &mut self,
        node: &'a Node,
        map: MapRef<'a>,
        key: &Val<'a>,
    ) -> Result<Option<Val<'a>>, EvalError> {
        let Val::String(key) = key else {
            return Err(EvalError::Internal("key"));
        };
        let found = map.get(key);
        if let Some(slot) = self.origin(node) {
            self.record.key(slot, key, found.is_some());
        }
        Ok(found.map(|text| Val::String(Cow::Borrowed(text))))
    }

    /// The attribute that a map expression was read from: the first that is there.
    fn origin(&self, node: &Node) -> Option<Slot> {
        match node {
            Node::Attribute(slot, _) => self.bag.get(*slot).is_some().then_some(*slot),
            Node::Or(operands) => self
                .origin(&operands[0])
                .or_else(|| self.origin(&operands[1])),
            _ => None,
        }
    }

    fn attribute(&mut self, slot: Slot, kind: ValueType) -> Result<Option<Val<'a>>, EvalError> {
        let Some(value) = self.bag.get(slot) else {
            self.record.scalar(slot, false);
            return Ok(None);
        };
        if kind == ValueType::StringMap {
            self.record.map(slot);
        } else {
            self.record.scalar(slot, true);
        }
        match typed(value, kind) {
            Some(value) => Ok(Some(value)),
            None => Err(EvalError::WrongType {
                attribute: self.bag.name(slot).to_owned(),
                want: kind,
            }),
        }
    }
}

/// The value as its declared type; `None` when it is of another.
fn typed(value: ValueRef<'_>, kind: ValueType) -> Option<Val<'_>> {
    Some(match (kind, value) {
        (
            ValueType::String | ValueType::DnsName | ValueType::EmailAddress | ValueType::Uri,
            ValueRef::String(text),
        ) => Val::String(Cow::Borrowed(text)),
        (ValueType::Int64, ValueRef::Int64(number)) => Val::Int64(number),
        (ValueType::Double, ValueRef::Double(number)) => Val::Double(number),
        (ValueType::Bool, ValueRef::Bool(flag)) => Val::Bool(flag),
        (ValueType::Timestamp, ValueRef::Timestamp(time)) => Val::Timestamp(time),
        (ValueType::Duration, ValueRef::Duration(duration)) => {
            Val::Duration(time_text::duration_nanos(duration))
        }
        (ValueType::IpAddress, ValueRef::Bytes(bytes)) => Val::Ip(ip_of_bytes(bytes)?),
        (ValueType::StringMap, ValueRef::StringMap(map)) => Val::StringMap(map),
        _ => return None,
    })
}

/// 4 or 16 bytes; a mapped IPv4 address is the IPv4 address.
fn ip_of_bytes(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(octets));
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::from(octets).to_canonical())
}

fn equal(kind: ValueType, left: &Val<'_>, right: &Val<'_>) -> Result<bool, EvalError> {
    Ok(match (left, right) {
        (Val::String(left), Val::String(right)) => match kind {
            ValueType::DnsName => {
                names::dns_names_equal(left, right).map_err(EvalError::Convert)?
            }
            ValueType::EmailAddress => {
                names::emails_equal(left, right).map_err(EvalError::Convert)?
            }
            ValueType::Uri => names::uris_equal(left, right).map_err(EvalError::Convert)?,
            _ => left == right,
        },
        (Val::Int64(left), Val::Int64(right)) => left == right,
        (Val::Double(left), Val::Double(right)) => left == right,
        (Val::Bool(left), Val::Bool(right)) => left == right,
        (Val::Timestamp(left), Val::Timestamp(right)) => left == right,
        (Val::Ip(left), Val::Ip(right)) => left == right,
        _ => return Err(EvalError::Internal("comparison")),
    })
}

fn is_in_order(order: Order, left: &Val<'_>, right: &Val<'_>) -> bool {
    let ordering = match (left, right) {
        (Val::String(left), Val::String(right)) => Some(left.as_bytes().cmp(right.as_bytes())),
        (Val::Int64(left), Val::Int64(right)) => Some(left.cmp(right)),
        (Val::Double(left), Val::Double(right)) => left.partial_cmp(right),
        (Val::Timestamp(left), Val::Timestamp(right)) => {
            Some((left.seconds, left.nanos).cmp(&(right.seconds, right.nanos)))
        }
        _ => None,
    };
    match (order, ordering) {
        // A double that is not a number is in no order.
        (_, None) => false,
        (Order::Less, Some(ordering)) => ordering == Ordering::Less,
        (Order::LessOrEqual, Some(ordering)) => ordering != Ordering::Greater,
        (Order::Greater, Some(ordering)) => ordering == Ordering::Greater,
        (Order::GreaterOrEqual, Some(ordering)) => ordering != Ordering::Less,
    }
}

fn add<'a>(left: Val<'a>, right: &Val<'_>) -> Result<Val<'a>, EvalError> {
    Ok(match (left, right) {
        (Val::String(left), Val::String(right)) => {
            Val::String(Cow::Owned(left.into_owned() + right))
        }
        // Go's integers wrap.
        (Val::Int64(left), Val::Int64(right)) => Val::Int64(left.wrapping_add(*right)),
        (Val::Double(left), Val::Double(right)) => Val::Double(left + right),
        _ => return Err(EvalError::Internal("addition")),
    })
}
