//! HTTP headers in configuration: names, values with Envoy's `%VARIABLES%`, and operations on them.

use proto::istio::networking::v1alpha3::{Headers, headers::HeaderOperations};

use crate::finding::Report;

/// Checks a header's name: letters, digits, `-`, `_`.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the header's name is empty".into());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.bytes().all(fits) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no header name: give letters, digits, `-` and `_`"
    ))
}

/// Checks a header's name in a condition: any token of HTTP, or a pseudo header (`:path`).
pub(super) fn check_matched_name(name: &str) -> Result<(), String> {
    let token = name.strip_prefix(':').unwrap_or(name);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if token.is_empty() {
        return Err("the header's name is empty".into());
    }
    if token.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("{name:?} is no header name"))
}

/// Checks a header's name in a CORS policy, where `*` means any.
pub(super) fn check_cors_name(name: &str) -> Result<(), String> {
    if name == "*" {
        Ok(())
    } else {
        check_name(name)
    }
}

/// True for the two names of the authority.
pub(super) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// Whether an operation may touch `:authority` and `host`.
#[derive(Clone, Copy, PartialEq)]
enum Authority {
    Allowed,
    Refused,
}

fn check_operation_name(name: &str, authority: Authority) -> Result<(), String> {
    if name.is_empty() {
        return Err("the header's name is empty".into());
    }
    if is_authority(name) && authority == Authority::Allowed {
        return Ok(());
    }
    if name.eq_ignore_ascii_case("host") {
        return Err("the Host header can only be set or added on requests".into());
    }
    if name.starts_with(':') {
        return Err(format!(
            "{name:?}: headers that begin with `:` cannot be changed"
        ));
    }
    Ok(())
}

/// Checks a header's value: no control characters, and every `%` either doubled or part of a `%VARIABLE%`.
pub(super) fn check_value(value: &str) -> Result<(), String> {
    if value
        .chars()
        .any(|character| character.is_ascii_control() && character != '\t')
    {
        return Err(format!("{value:?} has control characters"));
    }
    let mut rest = value;
    while let Some((_, after)) = rest.split_once('%') {
        rest = match after.strip_prefix('%') {
            Some(escaped) => escaped,
            None if after.is_empty() => return Err(format!("{value:?}: write `%%` for a percent sign")),
            None => skip_variable(after)
                .ok_or_else(|| format!("{value:?} has a `%` without its end: write `%NAME%` or `%NAME(arguments)%`, and `%%` for a percent sign"))?,
        };
    }
    Ok(())
}

/// What follows the variable whose first `%` was read: `NAME%` or `NAME(…)%`; none when it has no end. Arguments may hold
/// escaped characters (`\)`) and, in JSON strings, parentheses.
fn skip_variable(text: &str) -> Option<&str> {
    let name_end = text.find(['%', '('])?;
    if text.as_bytes()[name_end] == b'%' {
        return Some(&text[name_end + 1..]);
    }
    let mut quoted = false;
    let mut is_list = false;
    let mut characters = text[name_end + 1..].char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '[' if !quoted => is_list = true,
            '"' if is_list => quoted = !quoted,
            '\\' => {
                characters.next()?;
            }
            ')' if !quoted => {
                let after = text[name_end + 1 + index + 1..].trim_start_matches(' ');
                return after.strip_prefix('%');
            }
            _ => {}
        }
    }
    None
}

/// Checks `headers` of a route or of a destination.
pub(super) fn check_headers(headers: Option<&Headers>, report: &mut Report) {
    let Some(headers) = headers else { return };
    report.at("headers", |report| {
        if let Some(request) = &headers.request {
            report.at("request", |report| {
                check_operations(request, Authority::Allowed, report);
            });
        }
        if let Some(response) = &headers.response {
            report.at("response", |report| {
                check_operations(response, Authority::Refused, report);
            });
        }
    });
}

fn check_operations(operations: &HeaderOperations, authority: Authority, report: &mut Report) {
    for (field, map) in [("set", &operations.set), ("add", &operations.add)] {
        report.entries(field, map, |report, name, value| {
            for result in [check_operation_name(name, authority), check_value(value)] {
                report.require(result);
            }
        });
    }
    report.each("remove", &operations.remove, |report, name| {
        report.require(check_operation_name(name, Authority::Refused));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_doubled_or_part_of_a_variable() {
        for value in [
            "",
            "foo",
            "%HOSTNAME%",
            "100%%",
            "a %START_TIME(%s)% b",
            "%REQ(:path)%",
            r#"%M(["a", ")"])%"#,
            "%X( a )%",
        ] {
            assert_eq!(check_value(value), Ok(()), "{value}");
        }
        for value in [
            "abc%123",
            "%START_TIME%%",
            "%",
            "%X(",
            "%X(a)b%",
            "%X(a\\",
            "a\nb",
        ] {
            assert!(check_value(value).is_err(), "{value}");
        }
    }
}
