//! Types: every attribute must be declared, every call must fit its function's signature. There is no coercion; a function
//! that works on any type takes it from its first argument.

use proto_mesh::attribute::ValueType;

use super::CompileError;
use super::ast::Ast;
use super::functions::{self, Signature};
use crate::attributes::Vocabulary;

/// The type of the whole expression.
pub(crate) fn check(ast: &Ast, vocabulary: &Vocabulary) -> Result<ValueType, CompileError> {
    match ast {
        Ast::Const(constant) => Ok(constant.value_type()),
        Ast::Attribute(name) => vocabulary
            .find(name)
            .map(|attribute| attribute.value_type)
            .ok_or_else(|| CompileError::UnknownAttribute(name.clone())),
        Ast::Call {
            name,
            target,
            arguments,
        } => {
            let Some(signature) = functions::signature(name) else {
                return Err(CompileError::UnknownFunction(name.clone()));
            };
            check_target(ast, signature, target.as_deref(), vocabulary)?;
            check_arguments(ast, signature, arguments, vocabulary)
        }
    }
}

fn check_target(
    call: &Ast,
    signature: &Signature,
    target: Option<&Ast>,
    vocabulary: &Vocabulary,
) -> Result<(), CompileError> {
    match (signature.target, target) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(CompileError::Target(format!(
            "invoking regular function on instance method: {}",
            signature.name
        ))),
        (Some(_), None) => Err(CompileError::Target(format!(
            "invoking instance method without an instance: {}",
            signature.name
        ))),
        (Some(want), Some(target)) => {
            let got = check(target, vocabulary)?;
            if got == want {
                return Ok(());
            }
            Err(CompileError::Type {
                call: call.to_string(),
                operand: target.to_string(),
                got,
                want,
            })
        }
    }
}

fn check_arguments(
    call: &Ast,
    signature: &Signature,
    arguments: &[Ast],
    vocabulary: &Vocabulary,
) -> Result<ValueType, CompileError> {
    if arguments.len() != signature.arguments.len() {
        return Err(CompileError::Arity {
            call: call.to_string(),
            got: arguments.len(),
            want: signature.arguments.len(),
        });
    }
    // What stands for `None` (any type) in the signature.
    let mut any = None;
    for (argument, want) in arguments.iter().zip(signature.arguments) {
        let got = check(argument, vocabulary)?;
        let want = want.unwrap_or_else(|| *any.get_or_insert(got));
        if got != want {
            return Err(CompileError::Type {
                call: call.to_string(),
                operand: argument.to_string(),
                got,
                want,
            });
        }
    }
    signature.result.or(any).ok_or_else(|| CompileError::Arity {
        call: call.to_string(),
        got: 0,
        want: 1,
    })
}
