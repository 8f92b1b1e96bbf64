//! URI templates: `/a/*/b`, `/a/**`, `/a/{name}`, `/a/{name=*.txt}`. `*` is one segment, `**` is any number of characters,
//! at the end of the operators. Compiled to a regular expression over the path without its query.

use proto::envoy::config::core::v3::TypedExtensionConfig;
use regex::bytes::Regex;

use crate::invalid::Invalid;

use super::full_regex;

/// The characters that one segment may hold (RFC 3986 `pchar`).
const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]";

/// A compiled URI template.
#[derive(Debug, Clone)]
pub(crate) struct PathTemplate(Regex);

/// `envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig`, its only field.
#[derive(Clone, PartialEq, prost::Message)]
struct UriTemplateMatchConfig {
    #[prost(string, tag = "1")]
    path_template: String,
}

impl TryFrom<&TypedExtensionConfig> for PathTemplate {
    type Error = Invalid;

    fn try_from(config: &TypedExtensionConfig) -> Result<Self, Invalid> {
        let any = config
            .typed_config
            .as_ref()
            .ok_or_else(|| Invalid::new("a path template needs a typed_config"))?;
        if proto::type_url::message_name(&any.type_url)
            != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
        {
            return Err(Invalid::unsupported(&any.type_url));
        }
        let config = <UriTemplateMatchConfig as prost::Message>::decode(any.value.as_ref())
            .map_err(|error| Invalid::new(error.to_string()))?;
        PathTemplate::parse(&config.path_template)
    }
}

impl PathTemplate {
    /// Compiles a template.
    pub(crate) fn parse(template: &str) -> Result<Self, Invalid> {
        let refuse = |why: &str| Invalid::new(format!("invalid path template '{template}': {why}"));
        let rest = template
            .strip_prefix('/')
            .ok_or_else(|| refuse("it must start with '/'"))?;
        let mut expression = String::new();
        let mut is_open_ended = false;
        for segment in split_segments(rest) {
            expression.push('/');
            let pattern = match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                Some(variable) => variable.split_once('=').map_or("*", |(_, pattern)| pattern),
                None => segment,
            };
            for part in pattern.split('/').enumerate() {
                let (index, part) = part;
                if index > 0 {
                    expression.push('/');
                }
                if is_open_ended && (part.contains('*')) {
                    return Err(refuse("nothing with '*' may follow '**'"));
                }
                match part {
                    "*" => {
                        expression.push_str(SEGMENT);
                        expression.push('+');
                    }
                    "**" => {
                        is_open_ended = true;
                        expression.push_str(r"(?:[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*)");
                    }
                    literal if literal.contains(['*', '{', '}']) => {
                        // `*.txt` and the like: a star inside a segment.
                        if literal.contains(['{', '}']) || literal.matches('*').count() > 1 {
                            return Err(refuse("unbalanced braces or more than one '*'"));
                        }
                        let (before, after) = literal.split_once('*').unwrap_or((literal, ""));
                        expression.push_str(&regex::escape(before));
                        expression.push_str(SEGMENT);
                        expression.push('+');
                        expression.push_str(&regex::escape(after));
                    }
                    literal => expression.push_str(&regex::escape(literal)),
                }
            }
        }
        full_regex(&expression).map(PathTemplate)
    }

    /// True when the path (a query is ignored) fits.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        self.0.is_match(path.as_bytes())
    }
}

/// Splits at slashes that are not inside braces.
fn split_segments(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let mut start = 0;
    let mut segments = Vec::new();
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b'/' if depth == 0 => {
                segments.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    segments.push(&text[start..]);
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_by_segment() {
        let cases = [
            ("/a/*/c", "/a/b/c?x=1", true),
            ("/a/*/c", "/a/b/d/c", false),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a/", true),
            ("/a/**/z", "/a/b/c/z", true),
            ("/a/{user}/x", "/a/me/x", true),
            ("/a/{f=*.txt}", "/a/me.txt", true),
            ("/a/{f=*.txt}", "/a/me.csv", false),
            ("/a/{rest=b/**}", "/a/b/c/d", true),
        ];
        for (template, path, want) in cases {
            assert_eq!(
                PathTemplate::parse(template).unwrap().matches(path),
                want,
                "{template} {path}"
            );
        }
        assert!(PathTemplate::parse("a").is_err());
        assert!(PathTemplate::parse("/**/*").is_err());
    }
}
