//! URI templates: `/a/*/b`, `/a/**`, `/a/{name}`, `/a/{name=*.txt}`. `*` is one segment, `**` is any number of characters,
//! at the end of the operators. Compiled to a regular expression over the path without its query.

use proto::envoy::config::core::v3::TypedExtensionConfig;
use proto::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
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
            let variable = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            let (name, pattern) = match variable {
                Some(variable) => match variable.split_once('=') {
                    Some((name, pattern)) => (Some(name), pattern),
                    None => (Some(variable), "*"),
                },
                None => (None, segment),
            };
            if let Some(name) = name {
                if !is_name(name) {
                    return Err(refuse("a variable's name has letters, digits and '_'"));
                }
                expression.push_str(&format!("(?P<{name}>"));
            }
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
            if name.is_some() {
                expression.push(')');
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

/// A path made of what a template's variables stand for: `/x/{name}/y`.
#[derive(Debug, Clone)]
pub(crate) struct PathTemplateRewrite(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    Variable(String),
}

impl TryFrom<&TypedExtensionConfig> for PathTemplateRewrite {
    type Error = Invalid;

    fn try_from(config: &TypedExtensionConfig) -> Result<Self, Invalid> {
        let any = config.typed_config.clone().unwrap_or_default();
        if !proto::any::is::<UriTemplateRewriteConfig>(&any) {
            return Err(Invalid::unsupported(&format!(
                "path rewrite '{}'",
                config.name
            )));
        }
        let config: UriTemplateRewriteConfig = proto::any::unpack(&any)?;
        PathTemplateRewrite::parse(&config.path_template_rewrite)
    }
}

impl PathTemplateRewrite {
    fn parse(text: &str) -> Result<Self, Invalid> {
        let refuse = || Invalid::new(format!("invalid path template rewrite '{text}'"));
        if !text.starts_with('/') {
            return Err(refuse());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(refuse)?;
            if before.contains('}') || !is_name(name) {
                return Err(refuse());
            }
            parts.push(Part::Literal(before.to_owned()));
            parts.push(Part::Variable(name.to_owned()));
            rest = after;
        }
        if rest.contains('}') {
            return Err(refuse());
        }
        parts.push(Part::Literal(rest.to_owned()));
        Ok(PathTemplateRewrite(parts))
    }

    /// The variable that a template does not have, if there is one.
    pub(crate) fn missing_in(&self, template: &PathTemplate) -> Option<&str> {
        self.0.iter().find_map(|part| match part {
            Part::Variable(name) => {
                let mut names = template.0.capture_names().flatten();
                (!names.any(|known| known == name)).then_some(name.as_str())
            }
            Part::Literal(_) => None,
        })
    }
}

impl PathTemplate {
    /// The path (without its query) rewritten by what the variables stand for; `None` when it does not fit.
    pub(crate) fn rewrite(&self, path: &str, rewrite: &PathTemplateRewrite) -> Option<Vec<u8>> {
        let captures = self.0.captures(path.as_bytes())?;
        let mut out = Vec::with_capacity(path.len());
        for part in &rewrite.0 {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable(name) => out.extend_from_slice(captures.name(name)?.as_bytes()),
            }
        }
        Some(out)
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
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
        let template = PathTemplate::parse("/a/{user}/{rest=**}").unwrap();
        let rewrite = PathTemplateRewrite::parse("/{rest}/of/{user}").unwrap();
        assert_eq!(rewrite.missing_in(&template), None);
        let path = template.rewrite("/a/me/b/c", &rewrite).unwrap();
        assert_eq!(path, b"/b/c/of/me");
        assert!(PathTemplateRewrite::parse("/{a").is_err());
        assert!(PathTemplate::parse("a").is_err());
        assert!(PathTemplate::parse("/**/*").is_err());
    }

    #[test]
    fn fuzz_path_templates() {
        crate::fuzz::fuzz_text("path_templates", |text| {
            let mut parts = text.split(' ');
            let [template, rewrite, path] = [(); 3].map(|()| parts.next().unwrap_or_default());
            let Ok(template) = PathTemplate::parse(template) else {
                return;
            };
            template.matches(path);
            let Ok(rewrite) = PathTemplateRewrite::parse(rewrite) else {
                return;
            };
            // With every variable there, what matches can be rewritten.
            if rewrite.missing_in(&template).is_none() {
                let rewritten = template.rewrite(path, &rewrite);
                assert_eq!(rewritten.is_some(), template.matches(path), "{text:?}");
            }
        });
    }
}
