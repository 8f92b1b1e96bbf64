//! Tree → what is evaluated: attributes are slots, operators know their operand's type, constant patterns are compiled once.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use proto_mesh::attribute::ValueType;
use regex::Regex;

use super::CompileError;
use super::ast::{Ast, Constant};
use super::eval::Val;
use super::functions::Function;
use super::re2;
use crate::attributes::{Slot, Vocabulary};

/// A compiled expression.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    pub(super) root: Node,
    value_type: ValueType,
}

/// A step of the evaluation.
#[derive(Clone, Debug)]
pub(super) enum Node {
    String(Box<str>),
    Int64(i64),
    Double(f64),
    Bool(bool),
    /// Nanoseconds.
    Duration(i64),
    /// `ip("constant")`.
    Ip(IpAddr),
    Attribute(Slot, ValueType),
    /// First of the two that is there.
    Or(Box<[Node; 2]>),
    Both(Box<[Node; 2]>),
    Either(Box<[Node; 2]>),
    Equal {
        kind: ValueType,
        negated: bool,
        operands: Box<[Node; 2]>,
    },
    Order(Order, Box<[Node; 2]>),
    Add(Box<[Node; 2]>),
    Index(Box<[Node; 2]>),
    /// Condition, then, else.
    Conditional(Box<[Node; 3]>),
    /// `"constant".matches(text)`.
    MatchesConstant(Arc<Regex>, Box<Node>),
    Call(Function, Box<[Node]>),
}

/// Which order a comparison asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Expression {
    /// The type of what it evaluates to.
    pub(crate) fn value_type(&self) -> ValueType {
        self.value_type
    }

    /// True when it is the constant `true`.
    pub(crate) fn is_true(&self) -> bool {
        matches!(self.root, Node::Bool(true))
    }
}

/// Compiles a tree that the checker has found to be of type `value_type`.
pub(super) fn compile(
    ast: &Ast,
    value_type: ValueType,
    vocabulary: &Vocabulary,
) -> Result<Expression, CompileError> {
    let root = node(ast, vocabulary)?;
    Ok(Expression { root, value_type })
}

fn node(ast: &Ast, vocabulary: &Vocabulary) -> Result<Node, CompileError> {
    Ok(match ast {
        Ast::Const(Constant::String(text)) => Node::String(text.as_str().into()),
        Ast::Const(Constant::Int64(number)) => Node::Int64(*number),
        Ast::Const(Constant::Double(number, _)) => Node::Double(*number),
        Ast::Const(Constant::Bool(flag)) => Node::Bool(*flag),
        Ast::Const(Constant::Duration(nanos, _)) => Node::Duration(*nanos),
        Ast::Attribute(name) => {
            let attribute = vocabulary
                .find(name)
                .ok_or_else(|| CompileError::UnknownAttribute(name.clone()))?;
            Node::Attribute(attribute.slot, attribute.value_type)
        }
        Ast::Call {
            name,
            target,
            arguments,
        } => {
            let mut operands = Vec::with_capacity(arguments.len() + 1);
            for operand in target.as_deref().into_iter().chain(arguments) {
                operands.push(node(operand, vocabulary)?);
            }
            let kind = match arguments.first() {
                Some(first) => Some(super::checker::check(first, vocabulary)?),
                None => None,
            };
            call(name, kind, operands)?
        }
    })
}

fn call(name: &str, kind: Option<ValueType>, operands: Vec<Node>) -> Result<Node, CompileError> {
    if let Some(function) = Function::by_name(name) {
        return Ok(function_call(function, operands));
    }
    let unknown = || CompileError::UnknownFunction(name.to_owned());
    let kind = kind.ok_or_else(unknown)?;
    if name == "conditional" {
        let operands = <[Node; 3]>::try_from(operands).map_err(|_| unknown())?;
        return Ok(Node::Conditional(Box::new(operands)));
    }
    let operands = Box::new(<[Node; 2]>::try_from(operands).map_err(|_| unknown())?);
    let unsupported = |operator| CompileError::Unsupported { operator, kind };
    Ok(match name {
        "OR" => Node::Or(operands),
        "LAND" => Node::Both(operands),
        "LOR" => Node::Either(operands),
        "INDEX" => Node::Index(operands),
        "EQ" | "NEQ" => match kind {
            ValueType::StringMap | ValueType::Duration => return Err(unsupported("==")),
            _ => Node::Equal {
                kind,
                negated: name == "NEQ",
                operands,
            },
        },
        "ADD" => match kind {
            ValueType::String | ValueType::Int64 | ValueType::Double => Node::Add(operands),
            _ => return Err(unsupported("+")),
        },
        "LT" | "LEQ" | "GT" | "GEQ" => match kind {
            ValueType::String | ValueType::Int64 | ValueType::Double | ValueType::Timestamp => {
                let order = match name {
                    "LT" => Order::Less,
                    "LEQ" => Order::LessOrEqual,
                    "GT" => Order::Greater,
                    _ => Order::GreaterOrEqual,
                };
                Node::Order(order, operands)
            }
            _ => return Err(unsupported("<")),
        },
        _ => return Err(unknown()),
    })
}

fn function_call(function: Function, operands: Vec<Node>) -> Node {
    if function == Function::Matches
        && let [Node::String(pattern), _] = operands.as_slice()
        && let Ok(regex) = re2::compile(pattern)
    {
        // A constant that does not compile stays a call: it fails when it is evaluated, as it always did.
        let text = operands.into_iter().nth(1).unwrap_or(Node::Bool(false));
        return Node::MatchesConstant(Arc::new(regex), Box::new(text));
    }
    // So does an address that is none.
    if function == Function::Ip
        && let [Node::String(text)] = operands.as_slice()
        && let Ok(Val::Ip(address)) = function.call(&[Val::String(Cow::Borrowed(text))])
    {
        return Node::Ip(address);
    }
    Node::Call(function, operands.into_boxed_slice())
}
