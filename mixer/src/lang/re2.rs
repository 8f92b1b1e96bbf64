//! RE2's dialect over the crate `regex`: the same automaton, but classes have no set operations and the Perl classes are ASCII.

use regex::{Regex, RegexBuilder};

/// A compiled pattern may not take more memory than this.
const SIZE_LIMIT: usize = 1 << 20;

/// Compiles a pattern; the text of the error says what is wrong with it.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern))
        .size_limit(SIZE_LIMIT)
        .build()
        .map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim();
            format!("bad regular expression {pattern:?}: {reason}")
        })
}

/// Rewrites what the two dialects read differently.
fn translate(pattern: &str) -> String {
    let mut output = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    // Position in a bracket class: 0 outside, 1 right after the opening, 2 later.
    let mut class = 0;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('Q') => {
                    let mut literal = String::new();
                    while let Some(c) = chars.next() {
                        if c == '\\' && chars.peek() == Some(&'E') {
                            chars.next();
                            break;
                        }
                        literal.push(c);
                    }
                    output.push_str(&regex::escape(&literal));
                }
                Some(c) => push_escape(&mut output, c, class > 0),
                None => output.push('\\'),
            },
            '[' if class == 0 => {
                output.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    output.push('^');
                }
                class = 1;
                continue;
            }
            '[' if chars.peek() == Some(&':') => {
                // A POSIX class: copied up to its closing bracket.
                output.push('[');
                for c in chars.by_ref() {
                    output.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' | '&' | '~' if class > 0 => {
                output.push('\\');
                output.push(c);
            }
            ']' if class == 1 => output.push_str("\\]"),
            ']' if class > 1 => {
                output.push(']');
                class = 0;
                continue;
            }
            _ => output.push(c),
        }
        if class == 1 {
            class = 2;
        }
    }
    output
}

fn push_escape(output: &mut String, c: char, in_class: bool) {
    let ascii = match c {
        'd' => "0-9",
        's' => r"\t\n\f\r ",
        'w' => "0-9A-Za-z_",
        'D' => "^0-9",
        'S' => r"^\t\n\f\r ",
        'W' => "^0-9A-Za-z_",
        'b' | 'B' if !in_class => {
            output.push_str(if c == 'b' { r"(?-u:\b)" } else { r"(?-u:\B)" });
            return;
        }
        _ => {
            output.push('\\');
            output.push(c);
            return;
        }
    };
    if in_class && !ascii.starts_with('^') {
        output.push_str(ascii);
    } else {
        output.push('[');
        output.push_str(ascii);
        output.push(']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_re2_means() {
        for (pattern, text, want) in [
            ("ab.*d", "xabcd", true),
            ("^ab$", "abc", false),
            (r"[[a]", "[", true),
            (r"[a&&b]", "&", true),
            (r"^[\w-]+$", "a-b_9", true),
            (r"^\d$", "٣", false),
            (r"\Qa.b\E.", "a.bc", true),
            (r"\Qa.b\E", "axb", false),
            (r"[]a]", "]", true),
            (r"[^\D]", "7", true),
            (r"[[:digit:]]+x", "12x", true),
            (r"\bfoo\b", "a foo b", true),
        ] {
            let regex = compile(pattern).unwrap();
            assert_eq!(regex.is_match(text), want, "{pattern} on {text}");
        }
        assert!(compile("*").is_err());
        assert!(compile("(").is_err());
    }
}
