//! Path normalisation: dot segments, superfluous escapes, slashes. Follows the URL standard as Envoy does: `\` is a slash,
//! unreserved characters lose their escapes, and a path that leaves its root stays at the root.

use proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;

use crate::http::config::PathRules;

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Normalized {
    /// Nothing.
    Same,
    /// Another path.
    Changed(String),
    /// The client is to come again with this path.
    Redirect(String),
    /// Not acceptable.
    Reject,
}

/// Normalises a path with its query, by the rules.
pub(super) fn normalize(rules: &PathRules, full: &str) -> Normalized {
    use hcm::PathWithEscapedSlashesAction as Action;
    let (path, query) = match full.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (full, None),
    };
    let mut path = std::borrow::Cow::Borrowed(path);
    let mut must_redirect = false;
    if !matches!(
        rules.escaped_slashes,
        Action::ImplementationSpecificDefault | Action::KeepUnchanged
    ) && let Some(unescaped) = unescape_slashes(&path)
    {
        match rules.escaped_slashes {
            Action::RejectRequest => return Normalized::Reject,
            Action::UnescapeAndRedirect => must_redirect = true,
            Action::UnescapeAndForward
            | Action::ImplementationSpecificDefault
            | Action::KeepUnchanged => {}
        }
        path = unescaped.into();
    }
    if rules.normalizes && needs_work(&path) {
        match canonical(&path) {
            Some(canonical) => path = canonical.into(),
            None => return Normalized::Reject,
        }
    }
    if rules.merges_slashes && path.contains("//") {
        path = merge_slashes(&path).into();
    }
    let std::borrow::Cow::Owned(path) = path else {
        return Normalized::Same;
    };
    let path = match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    match must_redirect {
        true => Normalized::Redirect(path),
        false if path == full => Normalized::Same,
        false => Normalized::Changed(path),
    }
}

/// True when something in the path could change; most paths need no second look.
fn needs_work(path: &str) -> bool {
    path.contains("/.") || path.bytes().any(|byte| !is_plain(byte))
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-_.~!$&'()*+,;=:@|^[]".contains(&byte)
}

fn canonical(path: &str) -> Option<String> {
    let rest = path.strip_prefix(['/', '\\'])?;
    let mut segments: Vec<String> = Vec::new();
    let mut ends_open = false;
    for segment in rest.split(['/', '\\']) {
        let segment = escape(segment)?;
        ends_open = false;
        match segment.as_str() {
            "." => ends_open = true,
            ".." => {
                segments.pop();
                ends_open = true;
            }
            _ => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if ends_open || out.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// Unreserved characters without escapes, everything that may not stand in a path with one. `None` for a NUL.
fn escape(segment: &str) -> Option<String> {
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let byte = bytes[index];
        if byte == b'%' {
            let decoded = bytes
                .get(index + 1..index + 3)
                .and_then(crate::wire::hex_byte);
            match decoded {
                Some(0) => return None,
                Some(plain) if plain.is_ascii_alphanumeric() || b"-_.~".contains(&plain) => {
                    out.push(plain);
                }
                Some(_) => out.extend_from_slice(&bytes[index..index + 3]),
                None => {
                    out.push(b'%');
                    index += 1;
                    continue;
                }
            }
            index += 3;
            continue;
        }
        if is_plain(byte) {
            out.push(byte);
        } else {
            out.push(b'%');
            out.push(b"0123456789ABCDEF"[usize::from(byte >> 4)]);
            out.push(b"0123456789ABCDEF"[usize::from(byte & 15)]);
        }
        index += 1;
    }
    String::from_utf8(out).ok()
}

/// `%2F` and `%5C` decoded; `None` when there is neither.
fn unescape_slashes(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let escape = rest.get(at..at + 3).unwrap_or_default();
        match escape {
            "%2F" | "%2f" => out.push('/'),
            "%5C" | "%5c" => out.push('\\'),
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
                continue;
            }
        }
        found = true;
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    found.then_some(out)
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(escaped_slashes: hcm::PathWithEscapedSlashesAction) -> PathRules {
        PathRules {
            normalizes: true,
            merges_slashes: true,
            escaped_slashes,
            strips_matching_port: false,
            strips_any_port: false,
            strips_trailing_dot: false,
        }
    }

    #[test]
    fn paths_are_normalized_as_by_envoy() {
        let rules = rules(hcm::PathWithEscapedSlashesAction::KeepUnchanged);
        let cases = [
            ("/a/b", None),
            ("/", None),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/b/..", Some("/a/")),
            ("/../../a", Some("/a")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/%41bc", Some("/Abc")),
            ("/a%2fb", None),
            ("/a\\b", Some("/a/b")),
            ("/a//b", Some("/a/b")),
            ("/a b", Some("/a%20b")),
            ("/a/../b?x=/../y", Some("/b?x=/../y")),
            ("/a?x=//y", None),
        ];
        for (path, want) in cases {
            let want = want.map_or(Normalized::Same, |want| {
                Normalized::Changed(want.to_owned())
            });
            assert_eq!(normalize(&rules, path), want, "{path}");
        }
        assert_eq!(normalize(&rules, "/a%00b"), Normalized::Reject);
    }

    #[test]
    fn escaped_slashes_follow_the_action() {
        use hcm::PathWithEscapedSlashesAction as Action;
        let path = "/a%2Fb%5c..%2f?x=%2F";
        assert_eq!(
            normalize(&rules(Action::RejectRequest), path),
            Normalized::Reject
        );
        let want = "/a/?x=%2F".to_owned();
        assert_eq!(
            normalize(&rules(Action::UnescapeAndForward), path),
            Normalized::Changed(want.clone())
        );
        assert_eq!(
            normalize(&rules(Action::UnescapeAndRedirect), path),
            Normalized::Redirect(want)
        );
        assert_eq!(
            normalize(&rules(Action::RejectRequest), "/a"),
            Normalized::Same
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_is_idempotent(path in "/\\PC{0,40}|/[a-z./\\\\%0-9A-F?]{0,40}") {
            let rules = rules(hcm::PathWithEscapedSlashesAction::KeepUnchanged);
            if let Normalized::Changed(once) = normalize(&rules, &path) {
                let path_only = once.split('?').next().unwrap_or_default();
                prop_assert!(!path_only.split('/').any(|segment| segment == ".." || segment == "."));
            }
        }
    }

    #[test]
    fn fuzz_paths() {
        use hcm::PathWithEscapedSlashesAction as Action;
        let escape = regex::Regex::new("%[0-9a-fA-F]{2}").unwrap();
        crate::fuzz::fuzz_text("paths", |path| {
            // No codec lets anything else pass.
            if !path.starts_with('/') || path.contains(char::is_control) {
                return;
            }
            for action in [
                Action::KeepUnchanged,
                Action::UnescapeAndForward,
                Action::RejectRequest,
            ] {
                let Normalized::Changed(once) = normalize(&rules(action), path) else {
                    continue;
                };
                let mut segments = once.split('?').next().unwrap_or_default().split('/');
                assert!(
                    !segments.any(|segment| segment == ".." || segment == "."),
                    "{once}"
                );
                // Whoever normalizes it again comes to the same, unless a broken escape has become a whole one.
                if escape.find_iter(path).count() == path.matches('%').count() {
                    let again = normalize(&rules(Action::KeepUnchanged), &once);
                    assert!(matches!(again, Normalized::Same), "{once}");
                }
            }
        });
    }
}
