//! Matchers shared by routes, RBAC, access-log filters and TLS: strings, headers, metadata values, fractions, addresses,
//! path templates. Each is compiled once from its v3 message and then only borrowed.

mod address;
mod fraction;
mod header;
mod metadata;
mod path_template;
mod string;

pub(crate) use address::Cidr;
pub(crate) use fraction::Fraction;
pub(crate) use header::{FieldName, HeaderMatcher, HeaderSource};
pub(crate) use metadata::{MetadataMatcher, value_at};
pub(crate) use path_template::{PathTemplate, PathTemplateRewrite};
pub(crate) use string::{RegexSubstitution, StringMatcher, full_regex};
