//! String matchers. Values are compared as bytes: header values need not be UTF-8, and a rule must see them all the same.

use std::borrow::Cow;

use proto::envoy::r#type::matcher::v3 as wire;
use proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use regex::bytes::{Regex, RegexBuilder};

use crate::invalid::{At as _, Invalid};

/// Compiled regular expressions larger than this are refused, so that a configuration cannot exhaust memory.
const REGEX_SIZE_LIMIT: usize = 8 << 20;

/// A compiled `StringMatcher`.
#[derive(Debug, Clone)]
pub(crate) enum StringMatcher {
    /// Equal.
    Exact(Box<str>),
    /// Equal, ASCII case ignored.
    ExactIgnoreCase(Box<str>),
    /// Starts with; the flag is "ignore case".
    Prefix(Box<str>, bool),
    /// Ends with; the flag is "ignore case".
    Suffix(Box<str>, bool),
    /// Has inside; the flag is "ignore case" (the needle is lower case then).
    Contains(Box<str>, bool),
    /// The whole value matches the expression.
    Regex(Regex),
}

/// `RegexMatchAndSubstitute`: every match of the pattern is replaced.
#[derive(Debug, Clone)]
pub(crate) struct RegexSubstitution {
    pattern: Regex,
    /// In the regex crate's syntax (`${1}`).
    substitution: String,
}

impl TryFrom<&wire::StringMatcher> for StringMatcher {
    type Error = Invalid;

    fn try_from(matcher: &wire::StringMatcher) -> Result<Self, Invalid> {
        let ignore_case = matcher.ignore_case;
        let pattern = matcher
            .match_pattern
            .as_ref()
            .ok_or_else(|| Invalid::new("a string matcher needs a pattern"))?;
        Ok(match pattern {
            MatchPattern::Exact(text) if ignore_case => {
                StringMatcher::ExactIgnoreCase(text.as_str().into())
            }
            MatchPattern::Exact(text) => StringMatcher::Exact(text.as_str().into()),
            MatchPattern::Prefix(text) => StringMatcher::Prefix(text.as_str().into(), ignore_case),
            MatchPattern::Suffix(text) => StringMatcher::Suffix(text.as_str().into(), ignore_case),
            MatchPattern::Contains(text) if ignore_case => {
                StringMatcher::Contains(text.to_ascii_lowercase().into(), true)
            }
            MatchPattern::Contains(text) => StringMatcher::Contains(text.as_str().into(), false),
            MatchPattern::SafeRegex(regex) => {
                StringMatcher::Regex(full_regex(&regex.regex).at("safe_regex")?)
            }
            MatchPattern::Custom(_) => return Err(Invalid::unsupported("custom string matcher")),
        })
    }
}

impl StringMatcher {
    /// True when `value` fits.
    pub(crate) fn matches(&self, value: impl AsRef<[u8]>) -> bool {
        let value = value.as_ref();
        match self {
            StringMatcher::Exact(want) => value == want.as_bytes(),
            StringMatcher::ExactIgnoreCase(want) => value.eq_ignore_ascii_case(want.as_bytes()),
            StringMatcher::Prefix(want, ignore_case) => value
                .get(..want.len())
                .is_some_and(|head| same(head, want.as_bytes(), *ignore_case)),
            StringMatcher::Suffix(want, ignore_case) => value
                .len()
                .checked_sub(want.len())
                .is_some_and(|start| same(&value[start..], want.as_bytes(), *ignore_case)),
            StringMatcher::Contains(want, ignore_case) => {
                want.is_empty()
                    || value
                        .windows(want.len())
                        .any(|part| same(part, want.as_bytes(), *ignore_case))
            }
            StringMatcher::Regex(regex) => regex.is_match(value),
        }
    }
}

impl TryFrom<&wire::RegexMatchAndSubstitute> for RegexSubstitution {
    type Error = Invalid;

    fn try_from(rewrite: &wire::RegexMatchAndSubstitute) -> Result<Self, Invalid> {
        let pattern = rewrite
            .pattern
            .as_ref()
            .ok_or_else(|| Invalid::new("a regex rewrite needs a pattern"))?;
        Ok(RegexSubstitution {
            pattern: build(&pattern.regex).at("pattern")?,
            substitution: substitution(&rewrite.substitution).at("substitution")?,
        })
    }
}

impl RegexSubstitution {
    /// `value` with every match replaced.
    pub(crate) fn apply<'a>(&self, value: &'a [u8]) -> Cow<'a, [u8]> {
        self.pattern
            .replace_all(value, self.substitution.as_bytes())
    }
}

/// An expression that must match the whole value, as RE2's full match does.
pub(crate) fn full_regex(expression: &str) -> Result<Regex, Invalid> {
    // Compiled alone first: the wrapping must not turn an unbalanced expression into a valid one.
    build(expression)?;
    build(&format!(r"\A(?:{expression})\z"))
}

fn build(expression: &str) -> Result<Regex, Invalid> {
    RegexBuilder::new(expression)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
        .map_err(|error| {
            let reason = error.to_string();
            let line = reason.lines().last().unwrap_or_default().to_owned();
            Invalid::new(format!("invalid regex '{expression}': {line}"))
        })
}

/// RE2's `\1` becomes the regex crate's `${1}`.
fn substitution(text: &str) -> Result<String, Invalid> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => {
                    return Err(Invalid::new(
                        "a backslash must be followed by a digit or a backslash",
                    ));
                }
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case {
        a.eq_ignore_ascii_case(b)
    } else {
        a == b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(pattern: MatchPattern, ignore_case: bool) -> StringMatcher {
        StringMatcher::try_from(&wire::StringMatcher {
            match_pattern: Some(pattern),
            ignore_case,
        })
        .unwrap()
    }

    #[test]
    fn every_kind_matches_as_its_name_says() {
        let cases = [
            (MatchPattern::Exact("a".into()), false, "a", "A"),
            (MatchPattern::Exact("a".into()), true, "A", "ab"),
            (MatchPattern::Prefix("ab".into()), false, "abc", "aBc"),
            (MatchPattern::Prefix("ab".into()), true, "aBc", "xab"),
            (MatchPattern::Suffix("bc".into()), false, "abc", "c"),
            (MatchPattern::Suffix("bc".into()), true, "aBC", "bca"),
            (MatchPattern::Contains("b".into()), false, "abc", "aBc"),
            (MatchPattern::Contains("B".into()), true, "abc", "ac"),
            (
                MatchPattern::SafeRegex(wire::RegexMatcher {
                    regex: "a|b.*".into(),
                    ..Default::default()
                }),
                false,
                "bcd",
                "ab",
            ),
        ];
        for (pattern, ignore_case, good, bad) in cases {
            let matcher = matcher(pattern, ignore_case);
            assert!(matcher.matches(good), "{matcher:?} {good}");
            assert!(!matcher.matches(bad), "{matcher:?} {bad}");
        }
    }

    #[test]
    fn unbalanced_regex_is_refused_even_if_the_wrapping_would_balance_it() {
        assert!(full_regex("a)(b").is_err());
    }

    #[test]
    fn substitution_speaks_re2() {
        let rewrite = RegexSubstitution::try_from(&wire::RegexMatchAndSubstitute {
            pattern: Some(wire::RegexMatcher {
                regex: "^/service/([^/]+)(/.*)$".into(),
                ..Default::default()
            }),
            substitution: r"\2/instance/\1".into(),
        })
        .unwrap();
        assert_eq!(
            rewrite.apply(b"/service/foo/v1/api").as_ref(),
            b"/v1/api/instance/foo"
        );
        assert!(substitution(r"\x").is_err());
    }
}
