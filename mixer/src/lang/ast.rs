//! The tree of an expression before types are known: constants, attributes, calls. Operators are calls of the functions
//! `EQ`, `OR`, `INDEX`, ….

use std::fmt;

use proto_mesh::attribute::ValueType;

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ast {
    /// A literal.
    Const(Constant),
    /// An attribute, by its dotted name.
    Attribute(String),
    /// A call, with the value it is called on if any.
    Call {
        name: String,
        target: Option<Box<Ast>>,
        arguments: Vec<Ast>,
    },
}

/// A literal's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Constant {
    String(String),
    Int64(i64),
    /// The value and how it was written.
    Double(f64, String),
    Bool(bool),
    /// A string that spells a Go duration; nanoseconds, and how it was written.
    Duration(i64, String),
}

impl Constant {
    pub(crate) fn value_type(&self) -> ValueType {
        match self {
            Constant::String(_) => ValueType::String,
            Constant::Int64(_) => ValueType::Int64,
            Constant::Double(..) => ValueType::Double,
            Constant::Bool(_) => ValueType::Bool,
            Constant::Duration(..) => ValueType::Duration,
        }
    }
}

impl fmt::Display for Ast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ast::Const(Constant::String(text) | Constant::Duration(_, text)) => {
                write!(f, "{text:?}")
            }
            Ast::Const(Constant::Int64(number)) => write!(f, "{number}"),
            Ast::Const(Constant::Double(_, text)) => f.write_str(text),
            Ast::Const(Constant::Bool(flag)) => write!(f, "{flag}"),
            Ast::Attribute(name) => write!(f, "${name}"),
            Ast::Call {
                name,
                target,
                arguments,
            } => {
                if let Some(target) = target {
                    write!(f, "{target}:")?;
                }
                write!(f, "{name}(")?;
                for (position, argument) in arguments.iter().enumerate() {
                    if position > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{argument}")?;
                }
                f.write_str(")")
            }
        }
    }
}
