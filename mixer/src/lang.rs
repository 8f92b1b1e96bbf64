//! The attribute expression language (CEXL of the 1.4 line): Go's expression grammar, a small typed subset of it.
//!
//! text → [`lexer`] → [`parser`] ([`ast`]) → [`checker`] (types against a [`Vocabulary`]) → [`compiler`]
//! ([`Expression`]) → [`eval`] (against the attributes of a request, recording in a `Tracker` what it looked at).
//! [`functions`] holds the callable functions, [`names`] what DNS names, addresses and URIs are and when they are equal,
//! [`re2`] the dialect of regular expressions.
//!
//! A new function is a row in [`functions`] and an arm in its `call`.

pub(crate) mod ast;
pub(crate) mod checker;
pub(crate) mod compiler;
pub(crate) mod eval;
pub(crate) mod functions;
pub(crate) mod lexer;
pub(crate) mod names;
pub(crate) mod parser;
pub(crate) mod re2;
pub(crate) mod time_text;

#[cfg(test)]
mod tests;

pub(crate) use compiler::Expression;
pub(crate) use eval::{EvalError, Val};

use proto_mesh::attribute::ValueType;

use crate::attributes::Vocabulary;

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CompileError {
    /// It does not follow the grammar.
    #[error("unable to parse expression {expression:?}: at {position}: {problem}")]
    Parse {
        /// The text.
        expression: String,
        /// Byte position in it, from 1.
        position: usize,
        /// What is wrong there.
        problem: String,
    },
    /// It names an attribute that no manifest declares.
    #[error("unknown attribute {0}")]
    UnknownAttribute(String),
    /// It calls a function that does not exist.
    #[error("unknown function: {0}")]
    UnknownFunction(String),
    /// It calls a function with the wrong number of arguments.
    #[error("{call}: {got} argument(s) given where {want} are expected")]
    Arity {
        /// The call, as text.
        call: String,
        /// How many are given.
        got: usize,
        /// How many there must be.
        want: usize,
    },
    /// An operand has the wrong type.
    #[error("{call}: {operand} is of type {got} where {want} is expected")]
    Type {
        /// The call, as text.
        call: String,
        /// The operand, as text.
        operand: String,
        /// Its type.
        got: ValueType,
        /// The type it must have.
        want: ValueType,
    },
    /// A function is called the wrong way round.
    #[error("{0}")]
    Target(String),
    /// It is well typed, but the operator does not work on this type.
    #[error("{operator} does not work on {kind}")]
    Unsupported {
        /// The operator's name.
        operator: &'static str,
        /// The operand's type.
        kind: ValueType,
    },
    /// The whole has another type than its place demands.
    #[error("expression {expression:?} is of type {got} where {want} is expected")]
    Result {
        /// The text.
        expression: String,
        /// Its type.
        got: ValueType,
        /// The type that is wanted.
        want: ValueType,
    },
}

/// Compiles an expression of any type.
pub(crate) fn compile(text: &str, vocabulary: &Vocabulary) -> Result<Expression, CompileError> {
    let ast = parser::parse(text)?;
    let typed = checker::check(&ast, vocabulary)?;
    compiler::compile(&ast, typed, vocabulary)
}

/// Compiles an expression that must be of type `want`.
pub(crate) fn compile_as(
    text: &str,
    want: ValueType,
    vocabulary: &Vocabulary,
) -> Result<Expression, CompileError> {
    let expression = compile(text, vocabulary)?;
    if expression.value_type() == want {
        return Ok(expression);
    }
    Err(CompileError::Result {
        expression: text.to_owned(),
        got: expression.value_type(),
        want,
    })
}
