//! DNS names, e-mail addresses and URIs: what is valid, and when two are equal although they are written differently.

use std::borrow::Cow;

/// The parts of a URI that equality looks at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UriParts<'a> {
    scheme: String,
    /// User information, host and port, when there is an authority.
    authority: Option<(&'a str, &'a str, &'a str)>,
    /// Everything after the authority, or after the scheme.
    rest: &'a str,
}

/// Checks a DNS name as registration does: labels of letters, digits and inner hyphens, at most 63 octets each and 253
/// together; one dot may close it.
pub(crate) fn check_dns_name(name: &str) -> Result<(), String> {
    canonical_dns_name(name).map(|_| ())
}

/// The form in which two DNS names are compared: ASCII, lower case, without the closing dot.
pub(crate) fn canonical_dns_name(name: &str) -> Result<String, String> {
    let error = |problem: &str| format!("error converting '{name}' to dns name: {problem}");
    let inner = name.strip_suffix('.').unwrap_or(name);
    let mut canonical = String::with_capacity(inner.len());
    for label in inner.split('.') {
        if label.is_empty() {
            return Err(error("empty label"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(error("a label may not begin or end with a hyphen"));
        }
        let label = ascii_label(label).ok_or_else(|| error("disallowed character"))?;
        if label.len() > 63 {
            return Err(error("a label is longer than 63 octets"));
        }
        if label.len() > 4 && &label.as_bytes()[2..4] == b"--" && !label.starts_with("xn--") {
            return Err(error("hyphens in the third and fourth position"));
        }
        if !canonical.is_empty() {
            canonical.push('.');
        }
        canonical.push_str(&label);
    }
    if canonical.len() > 253 {
        return Err(error("longer than 253 octets"));
    }
    Ok(canonical)
}

/// A label in ASCII and lower case; `None` when a character has no place in a name.
fn ascii_label(label: &str) -> Option<String> {
    if label.is_ascii() {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        return label
            .bytes()
            .all(allowed)
            .then(|| label.to_ascii_lowercase());
    }
    let lower = label.to_lowercase();
    let allowed = |c: char| c.is_alphanumeric() || c == '-' || is_mark(c);
    if !lower.chars().all(allowed) {
        return None;
    }
    punycode(&lower).map(|code| format!("xn--{code}"))
}

/// Combining marks of the scripts that need them; good enough to tell a name from noise.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{900}'..='\u{dff}' | '\u{e00}'..='\u{eff}' | '\u{b7}')
}

/// RFC 3492, the encoder.
fn punycode(label: &str) -> Option<String> {
    let mut output: String = label.chars().filter(char::is_ascii).collect();
    let basic = u32::try_from(output.len()).ok()?;
    let mut handled = basic;
    if basic > 0 {
        output.push('-');
    }
    let (mut code, mut delta, mut bias) = (128u32, 0u32, 72u32);
    let total = u32::try_from(label.chars().count()).ok()?;
    while handled < total {
        let next = label.chars().map(u32::from).filter(|c| *c >= code).min()?;
        delta = delta.checked_add((next - code).checked_mul(handled + 1)?)?;
        code = next;
        for c in label.chars().map(u32::from) {
            if c < code {
                delta = delta.checked_add(1)?;
            }
            if c == code {
                push_delta(&mut output, delta, bias);
                bias = adapt(delta, handled + 1, handled == basic);
                delta = 0;
                handled += 1;
            }
        }
        delta = delta.checked_add(1)?;
        code += 1;
    }
    Some(output)
}

fn push_delta(output: &mut String, delta: u32, bias: u32) {
    let digit = |value: u32| {
        let value = u8::try_from(value).unwrap_or(0);
        char::from(if value < 26 {
            b'a' + value
        } else {
            b'0' + value - 26
        })
    };
    let (mut rest, mut step) = (delta, 36);
    loop {
        let threshold = step.clamp(bias + 1, bias + 26) - bias;
        if rest < threshold {
            output.push(digit(rest));
            return;
        }
        output.push(digit(threshold + (rest - threshold) % (36 - threshold)));
        rest = (rest - threshold) / (36 - threshold);
        step += 36;
    }
}

fn adapt(delta: u32, points: u32, is_first: bool) -> u32 {
    let mut delta = if is_first { delta / 700 } else { delta / 2 };
    delta += delta / points;
    let mut step = 0;
    while delta > 455 {
        delta /= 35;
        step += 36;
    }
    step + 36 * delta / (delta + 38)
}

/// The local part (unquoted) and the domain of an address without a display name.
pub(crate) fn parse_email(text: &str) -> Result<(Cow<'_, str>, &str), String> {
    let error = |problem: &str| format!("error converting '{text}' to e-mail: {problem}");
    if text.trim_end().ends_with('>') {
        return Err(error("display names are not allowed"));
    }
    let (local, domain) = if let Some(rest) = text.strip_prefix('"') {
        let (local, rest) = quoted_local(rest).ok_or_else(|| error("quotes do not match"))?;
        let domain = rest
            .strip_prefix('@')
            .ok_or_else(|| error("the quoted part is not followed by '@'"))?;
        (Cow::Owned(local), domain)
    } else {
        let (local, domain) = text.split_once('@').ok_or_else(|| error("no '@'"))?;
        if local.split('.').any(str::is_empty) || !local.chars().all(|c| c == '.' || is_atom(c)) {
            return Err(error("the part before '@' is not an atom"));
        }
        (Cow::Borrowed(local), domain)
    };
    check_dns_name(domain).map_err(|problem| error(&problem))?;
    Ok((local, domain))
}

/// The text of a quoted string whose opening quote is gone, and what follows it.
fn quoted_local(text: &str) -> Option<(String, &str)> {
    let mut local = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((local, &text[at + 1..])),
            '\\' => local.push(chars.next()?.1),
            _ if c.is_control() => return None,
            _ => local.push(c),
        }
    }
    None
}

fn is_atom(c: char) -> bool {
    !c.is_ascii() || c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
}

/// Splits a URI (or a reference) and refuses what cannot be one.
pub(crate) fn parse_uri(text: &str) -> Result<UriParts<'_>, String> {
    let error = |problem: &str| format!("error converting string to uri '{text}': {problem}");
    if text.is_empty() {
        return Err("error converting string to uri: empty string".into());
    }
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(error("invalid control character"));
    }
    let (scheme, after) = split_scheme(text).ok_or_else(|| error("missing protocol scheme"))?;
    let (before_fragment, fragment) = after.split_once('#').unwrap_or((after, ""));
    let (hierarchy, _query) = before_fragment
        .split_once('?')
        .unwrap_or((before_fragment, ""));
    if !are_escapes_valid(fragment) {
        return Err(error("invalid URL escape"));
    }
    let opaque = !scheme.is_empty() && !hierarchy.starts_with('/');
    if opaque {
        return Ok(UriParts {
            scheme,
            authority: None,
            rest: after,
        });
    }
    let first_segment = hierarchy.split('/').next().unwrap_or_default();
    if first_segment.contains(':') {
        return Err(error("first path segment in URL cannot contain colon"));
    }
    let has_authority = hierarchy.starts_with("//") && !hierarchy.starts_with("///");
    let has_authority = has_authority || (!scheme.is_empty() && hierarchy.starts_with("//"));
    let (authority, path, rest) = if has_authority {
        let length = hierarchy[2..].find('/').unwrap_or(hierarchy.len() - 2);
        let authority = split_authority(&hierarchy[2..2 + length]).map_err(error)?;
        (
            Some(authority),
            &hierarchy[2 + length..],
            &after[2 + length..],
        )
    } else {
        (None, hierarchy, after)
    };
    if !are_escapes_valid(path) {
        return Err(error("invalid URL escape"));
    }
    Ok(UriParts {
        scheme,
        authority,
        rest,
    })
}

/// The scheme in lower case and what follows its colon; `None` when the text begins with the colon.
fn split_scheme(text: &str) -> Option<(String, &str)> {
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return None,
            ':' => return Some((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => break,
        }
    }
    Some((String::new(), text))
}

/// User information, host and port.
fn split_authority(text: &str) -> Result<(&str, &str, &str), &'static str> {
    let (user, host) = text.rsplit_once('@').unwrap_or(("", text));
    let is_user_valid = user
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(c));
    if !is_user_valid || !are_escapes_valid(user) {
        return Err("invalid userinfo");
    }
    let (name, port) = if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        host.split_at(end + 1)
    } else {
        host.split_at(host.rfind(':').unwrap_or(host.len()))
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !digits.bytes().all(|byte| byte.is_ascii_digit())
        || (!port.is_empty() && !port.starts_with(':'))
    {
        return Err("invalid port after host");
    }
    let is_host_valid = name.chars().all(|c| {
        !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c)
    });
    if !is_host_valid {
        return Err("invalid character in host name");
    }
    // A colon without a port says nothing.
    Ok((user, name, digits))
}

fn are_escapes_valid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| {
        *byte != b'%'
            || bytes
                .get(at + 1..at + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    })
}

/// DNS names are equal when they name the same host.
pub(crate) fn dns_names_equal(a: &str, b: &str) -> Result<bool, String> {
    Ok(canonical_dns_name(a)? == canonical_dns_name(b)?)
}

/// Addresses are equal when the local parts are, byte for byte, and the domains name the same host.
pub(crate) fn emails_equal(a: &str, b: &str) -> Result<bool, String> {
    let (a, b) = (parse_email(a)?, parse_email(b)?);
    Ok(a.0 == b.0 && dns_names_equal(a.1, b.1)?)
}

/// URIs are equal when they are written alike, up to the scheme's case and, for HTTP, the way the host is written.
pub(crate) fn uris_equal(a: &str, b: &str) -> Result<bool, String> {
    let (a, b) = (parse_uri(a)?, parse_uri(b)?);
    let is_http = matches!(a.scheme.as_str(), "http" | "https");
    match (&a.authority, &b.authority) {
        (Some((user, host, port)), Some((other_user, other_host, other_port))) if is_http => {
            Ok(a.scheme == b.scheme
                && a.rest == b.rest
                && user == other_user
                && port == other_port
                // A host that is no DNS name (an address in brackets) is compared as it stands.
                && (host == other_host || dns_names_equal(host, other_host).unwrap_or(false)))
        }
        _ => Ok(a == b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_compare_in_their_ascii_form() {
        assert_eq!(
            canonical_dns_name("Bücher.Example.").unwrap(),
            "xn--bcher-kva.example"
        );
        assert!(dns_names_equal("bücher.example", "XN--bcher-kva.example.").unwrap());
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "a_b",
            "ab--cd",
            &"a".repeat(64),
        ] {
            assert!(check_dns_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_an_atom_or_a_quoted_part() {
        assert_eq!(parse_email("\"a b\"@c.d").unwrap(), ("a b".into(), "c.d"));
        for bad in [
            "", "a", "@b", "a@", ".a@b", "a.@b", "a b@c", "\"a@b", "x <a@b>",
        ] {
            assert!(parse_email(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn uris_follow_go() {
        for bad in [
            "",
            ":/",
            "http://[::1",
            "http://a:b",
            "http://a/%zz",
            "1:2",
            "http://a b/",
        ] {
            assert!(parse_uri(bad).is_err(), "{bad}");
        }
        for good in [
            "a",
            "/a:b",
            "urn:x",
            "http://a:/",
            "http://u:p@[::1]:80/x?y#z",
            "//h/p",
            "a/b:c",
        ] {
            assert!(parse_uri(good).is_ok(), "{good}");
        }
        assert!(uris_equal("HTTP://A.com/x", "http://a.COM./x").unwrap());
        assert!(uris_equal("http://a:/x", "http://a/x").unwrap());
        assert!(!uris_equal("http://a.com/x", "http://a.com/X").unwrap());
        assert!(!uris_equal("ftp://A.com", "ftp://a.com").unwrap());
    }
}
