//! The functions of the language: their signatures, and what those that are not operators do.

use std::borrow::Cow;
use std::net::IpAddr;

use proto_mesh::attribute::ValueType;

use super::eval::{EvalError, Val};
use super::{names, re2, time_text};

/// How a function may be called. A `None` argument is of any type, the same at every `None`.
pub(crate) struct Signature {
    pub(crate) name: &'static str,
    pub(crate) target: Option<ValueType>,
    pub(crate) arguments: &'static [Option<ValueType>],
    /// `None`: the type that stands for any.
    pub(crate) result: Option<ValueType>,
}

/// A function that is called with values (the operators are not among them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Ip,
    Timestamp,
    DnsName,
    Email,
    Uri,
    Match,
    Matches,
    StartsWith,
    EndsWith,
    EmptyStringMap,
    ConditionalString,
    ToLower,
    Size,
}

const ANY: Option<ValueType> = None;
const STRING: Option<ValueType> = Some(ValueType::String);
const BOOL: Option<ValueType> = Some(ValueType::Bool);

const SIGNATURES: &[Signature] = &[
    sign("EQ", &[ANY, ANY], BOOL),
    sign("NEQ", &[ANY, ANY], BOOL),
    sign("LT", &[ANY, ANY], BOOL),
    sign("LEQ", &[ANY, ANY], BOOL),
    sign("GT", &[ANY, ANY], BOOL),
    sign("GEQ", &[ANY, ANY], BOOL),
    sign("OR", &[ANY, ANY], ANY),
    sign("ADD", &[ANY, ANY], ANY),
    sign("LOR", &[BOOL, BOOL], BOOL),
    sign("LAND", &[BOOL, BOOL], BOOL),
    sign("INDEX", &[Some(ValueType::StringMap), STRING], STRING),
    sign("conditional", &[BOOL, ANY, ANY], ANY),
    sign("ip", &[STRING], Some(ValueType::IpAddress)),
    sign("timestamp", &[STRING], Some(ValueType::Timestamp)),
    sign("dnsName", &[STRING], Some(ValueType::DnsName)),
    sign("email", &[STRING], Some(ValueType::EmailAddress)),
    sign("uri", &[STRING], Some(ValueType::Uri)),
    sign("match", &[STRING, STRING], BOOL),
    method("matches", &[STRING], BOOL),
    method("startsWith", &[STRING], BOOL),
    method("endsWith", &[STRING], BOOL),
    sign("emptyStringMap", &[], Some(ValueType::StringMap)),
    sign("conditionalString", &[BOOL, STRING, STRING], STRING),
    sign("toLower", &[STRING], STRING),
    sign("size", &[STRING], Some(ValueType::Int64)),
];

const fn sign(
    name: &'static str,
    arguments: &'static [Option<ValueType>],
    result: Option<ValueType>,
) -> Signature {
    Signature {
        name,
        target: None,
        arguments,
        result,
    }
}

const fn method(
    name: &'static str,
    arguments: &'static [Option<ValueType>],
    result: Option<ValueType>,
) -> Signature {
    Signature {
        name,
        target: STRING,
        arguments,
        result,
    }
}

/// The signature of `name`.
pub(crate) fn signature(name: &str) -> Option<&'static Signature> {
    SIGNATURES.iter().find(|signature| signature.name == name)
}

impl Function {
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "ip" => Function::Ip,
            "timestamp" => Function::Timestamp,
            "dnsName" => Function::DnsName,
            "email" => Function::Email,
            "uri" => Function::Uri,
            "match" => Function::Match,
            "matches" => Function::Matches,
            "startsWith" => Function::StartsWith,
            "endsWith" => Function::EndsWith,
            "emptyStringMap" => Function::EmptyStringMap,
            "conditionalString" => Function::ConditionalString,
            "toLower" => Function::ToLower,
            "size" => Function::Size,
            _ => return None,
        })
    }

    /// Calls it. The target, if any, is the first of `values`; their number and types are what the checker let through.
    pub(crate) fn call<'a>(self, values: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
        let text = |at: usize| match values.get(at) {
            Some(Val::String(text)) => Ok(text.as_ref()),
            _ => Err(EvalError::Internal("argument")),
        };
        let keep = |at: usize| {
            values
                .get(at)
                .cloned()
                .ok_or(EvalError::Internal("argument"))
        };
        match self {
            Function::Ip => parse_ip(text(0)?).map(Val::Ip),
            Function::Timestamp => time_text::parse_timestamp(text(0)?)
                .map(Val::Timestamp)
                .ok_or_else(|| {
                    EvalError::Convert(format!(
                        "could not convert {:?} to TIMESTAMP: RFC 3339 is expected",
                        text(0).unwrap_or_default()
                    ))
                }),
            Function::DnsName => {
                names::check_dns_name(text(0)?).map_err(EvalError::Convert)?;
                keep(0)
            }
            Function::Email => {
                names::parse_email(text(0)?).map_err(EvalError::Convert)?;
                keep(0)
            }
            Function::Uri => {
                names::parse_uri(text(0)?).map_err(EvalError::Convert)?;
                keep(0)
            }
            Function::Match => Ok(Val::Bool(matches_pattern(text(0)?, text(1)?))),
            Function::Matches => re2::compile(text(0)?)
                .map(|regex| Val::Bool(regex.is_match(text(1).unwrap_or_default())))
                .map_err(EvalError::Convert),
            Function::StartsWith => Ok(Val::Bool(text(0)?.starts_with(text(1)?))),
            Function::EndsWith => Ok(Val::Bool(text(0)?.ends_with(text(1)?))),
            Function::EmptyStringMap => Ok(Val::EMPTY_MAP),
            Function::ConditionalString => match values.first() {
                Some(Val::Bool(true)) => keep(1),
                _ => keep(2),
            },
            Function::ToLower => Ok(Val::String(Cow::Owned(text(0)?.to_lowercase()))),
            Function::Size => Ok(Val::Int64(
                i64::try_from(text(0)?.len()).unwrap_or(i64::MAX),
            )),
        }
    }
}

/// `abc*` is a prefix, `*abc` a suffix, all else equality. The trailing star is looked for first.
pub(crate) fn matches_pattern(text: &str, pattern: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix('*') {
        return text.starts_with(prefix);
    }
    match pattern.strip_prefix('*') {
        Some(suffix) => text.ends_with(suffix),
        None => text == pattern,
    }
}

/// An address; a mapped IPv4 address is the IPv4 address. As in Go, IPv4 octets may have leading zeros.
fn parse_ip(text: &str) -> Result<IpAddr, EvalError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical());
    }
    let octets: Option<Vec<u8>> = text
        .split('.')
        .map(|octet| {
            let digits = octet.bytes().all(|byte| byte.is_ascii_digit());
            octet.parse().ok().filter(|_| digits)
        })
        .collect();
    octets
        .and_then(|octets| <[u8; 4]>::try_from(octets).ok())
        .map(IpAddr::from)
        .ok_or_else(|| EvalError::Convert(format!("could not convert {text} to IP_ADDRESS")))
}
