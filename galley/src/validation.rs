//! Validation: one object against the rules of its kind, as a library, on the command line (`galley validate`) and at the
//! door of the API server ([`webhook`]).
//!
//! text → documents → [`object::check`] → [`Verdict`] for each document. Every way in goes through the same check.

pub mod command;
pub mod document;
pub mod object;
mod operator;
pub mod registration;
pub mod webhook;

pub use document::{Problem, Verdict, validate_documents};
pub use object::{Kube, MeshObject, Subject, check};
