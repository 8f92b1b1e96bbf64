//! URLs in configuration, as far as they must be checked.

/// Scheme (lower case, empty when there is none) of a URL whose authority is checked too.
pub(super) fn check(url: &str) -> Result<String, String> {
    if let Some(bad) = url
        .chars()
        .find(|character| character.is_control() || *character == ' ')
    {
        return Err(format!("{url:?} is no URL: it has the character {bad:?}"));
    }
    check_escapes(url)?;
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok(scheme_of(url));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host_and_port = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    check_authority(url, host_and_port)?;
    Ok(scheme.to_ascii_lowercase())
}

/// `mailto` of `mailto:a`; a port after a host (`a.com:80/x`) is no scheme's end.
fn scheme_of(url: &str) -> String {
    match url.split_once(':') {
        Some((scheme, rest))
            if !rest.starts_with(|first: char| first.is_ascii_digit())
                && !scheme.contains(['/', '.']) =>
        {
            scheme.to_ascii_lowercase()
        }
        _ => String::new(),
    }
}

fn check_escapes(url: &str) -> Result<(), String> {
    for part in url.split('%').skip(1) {
        let is_escape = part
            .get(..2)
            .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !is_escape {
            return Err(format!(
                "{url:?} is no URL: `%` must be followed by two hexadecimal digits"
            ));
        }
    }
    Ok(())
}

fn check_authority(url: &str, authority: &str) -> Result<(), String> {
    let port = match authority.strip_prefix('[') {
        Some(address) => {
            let (_, rest) = address
                .split_once(']')
                .ok_or_else(|| format!("{url:?} is no URL: `]` is missing"))?;
            rest.strip_prefix(':').unwrap_or_default()
        }
        None => authority.split_once(':').map_or("", |(_, port)| port),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{url:?} is no URL: {port:?} is no port"));
    }
    if let Some(bad) = authority
        .chars()
        .find(|character| "\\^`{}|<>\"".contains(*character))
    {
        return Err(format!(
            "{url:?} is no URL: the host has the character {bad:?}"
        ));
    }
    Ok(())
}

/// Checks the address of a key set: HTTP or HTTPS.
pub(super) fn check_http(url: &str) -> Result<(), String> {
    match check(url)?.as_str() {
        "http" | "https" => Ok(()),
        _ => Err(format!(
            "{url:?} is no address of a key set: give an http:// or https:// URL"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sets_are_fetched_over_http() {
        for url in [
            "http://a",
            "https://a.b:8443/x?y=%20#z",
            "https://[::1]:1/",
            "HTTPS://a",
        ] {
            assert_eq!(check_http(url), Ok(()), "{url}");
        }
        for url in [
            "",
            "a.com/x",
            "ftp://a",
            "https://a:b",
            "https://a b",
            "http://a/%zz",
            "hTPp\\\u{8}lah",
            "https://[::1",
        ] {
            assert!(check_http(url).is_err(), "{url}");
        }
    }
}
