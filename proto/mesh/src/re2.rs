//! Regular expressions of configuration. They are RE2's (that of Envoy and of Go), which the `regex` crate reads nearly, but not
//! quite: here an expression is checked for what only RE2 refuses, and rewritten where only the crate would refuse it.

use regex::Regex;

/// Longest expression that configuration may have.
pub const MAX_LENGTH: usize = 1024;

/// Checks an expression of configuration: not empty, at most 1024 bytes, RE2's syntax.
///
/// # Errors
/// What is wrong with it.
pub fn check(expression: &str) -> Result<(), String> {
    if expression.is_empty() {
        return Err("the regular expression is empty".into());
    }
    if expression.len() > MAX_LENGTH {
        return Err(format!(
            "the regular expression has {} bytes; {MAX_LENGTH} are allowed",
            expression.len()
        ));
    }
    compile(expression).map(|_| ())
}

/// Compiles an expression that matches anywhere in a text.
///
/// # Errors
/// What is wrong with it.
pub fn compile(expression: &str) -> Result<Regex, String> {
    let rewritten = rewrite(expression)?;
    Regex::new(&rewritten)
        .map_err(|error| format!("{expression:?} is no RE2 expression: {}", summary(&error)))
}

/// Compiles an expression that must match the whole of a text, as Envoy's matchers want it.
///
/// # Errors
/// What is wrong with it.
pub fn compile_whole(expression: &str) -> Result<Regex, String> {
    let rewritten = rewrite(expression)?;
    Regex::new(&format!("^(?:{rewritten})$"))
        .map_err(|error| format!("{expression:?} is no RE2 expression: {}", summary(&error)))
}

/// The crate draws a picture of a syntax error; its last line says what it is.
fn summary(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// Walks through an expression, one item (literal, class, repetition, …) at a time.
struct Rewriter<'a> {
    rest: &'a str,
    output: String,
    /// The last item was a repetition, so another one may not follow.
    repeated: bool,
}

fn rewrite(expression: &str) -> Result<String, String> {
    let mut rewriter = Rewriter {
        rest: expression,
        output: String::with_capacity(expression.len()),
        repeated: false,
    };
    while let Some(character) = rewriter.rest.chars().next() {
        match character {
            '\\' => rewriter.escape(),
            '[' => rewriter.class(),
            '*' | '+' | '?' => rewriter.repetition(1)?,
            '{' => match braces(rewriter.rest) {
                Some(length) => rewriter.repetition(length)?,
                None => {
                    rewriter.output.push('\\');
                    rewriter.take(1);
                    rewriter.repeated = false;
                }
            },
            '}' => {
                rewriter.output.push('\\');
                rewriter.take(1);
                rewriter.repeated = false;
            }
            other => {
                rewriter.take(other.len_utf8());
                rewriter.repeated = false;
            }
        }
    }
    Ok(rewriter.output)
}

impl Rewriter<'_> {
    fn take(&mut self, length: usize) {
        let (head, rest) = self.rest.split_at(length);
        self.output.push_str(head);
        self.rest = rest;
    }

    /// `\Q…\E` is literal text; everything else both read alike.
    fn escape(&mut self) {
        self.repeated = false;
        if let Some(quoted) = self.rest.strip_prefix("\\Q") {
            let (text, rest) = quoted.split_once("\\E").unwrap_or((quoted, ""));
            self.output.push_str(&regex::escape(text));
            self.rest = rest;
            return;
        }
        let length = self.rest.chars().take(2).map(char::len_utf8).sum();
        self.take(length);
    }

    /// In a class the crate gives `[`, `&&`, `--` and `~~` a meaning; RE2 does not.
    fn class(&mut self) {
        self.repeated = false;
        self.take(1);
        if self.rest.starts_with('^') {
            self.take(1);
        }
        if self.rest.starts_with(']') {
            self.output.push('\\');
            self.take(1);
        }
        while let Some(character) = self.rest.chars().next() {
            match character {
                ']' => {
                    self.take(1);
                    return;
                }
                '\\' => {
                    let length = self.rest.chars().take(2).map(char::len_utf8).sum();
                    self.take(length);
                }
                '[' if self.rest.starts_with("[:") && self.rest.contains(":]") => {
                    let length = self.rest.find(":]").map_or(1, |end| end + 2);
                    self.take(length);
                }
                '[' | '&' | '~' => {
                    self.output.push('\\');
                    self.take(1);
                }
                other => self.take(other.len_utf8()),
            }
        }
    }

    /// A repetition, perhaps lazy. RE2 does not repeat a repetition.
    fn repetition(&mut self, length: usize) -> Result<(), String> {
        if self.repeated {
            return Err(format!(
                "a repetition cannot be repeated: {:?}; put a group around the first",
                &self.rest[..length]
            ));
        }
        self.take(length);
        if self.rest.starts_with('?') {
            self.take(1);
        }
        self.repeated = true;
        Ok(())
    }
}

/// The length of a repetition `{n}`, `{n,}` or `{n,m}` at the start of `text`; other braces are literal.
fn braces(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let (from, to) = text[1..end].split_once(',').unwrap_or((&text[1..end], ""));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(from) && (to.is_empty() || is_number(to))).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_re2_reads_is_read() {
        for (expression, text) in [
            ("a+b", "aab"),
            ("^/v[0-9]{1,3}/.*$", "/v12/x"),
            ("[[:alpha:]]+", "abc"),
            ("[a[]", "["),
            ("[]a]", "]"),
            ("[a&&b]", "&"),
            ("a{,2}", "a{,2}"),
            ("{}", "{}"),
            (r"\Qa.b\E", "a.b"),
            ("(?i)ABC", "abc"),
            ("a*?", ""),
        ] {
            let compiled = compile_whole(expression).unwrap();
            assert!(compiled.is_match(text), "{expression}");
        }
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for expression in [
            "",
            "*",
            "?",
            "a**",
            "%#@~++==`24c234`",
            "a{2}{3}",
            "(",
            "[a",
            "a)",
            "(?=a)",
            r"\1",
        ] {
            assert!(check(expression).is_err(), "{expression}");
        }
        assert!(check(&"a".repeat(1025)).is_err());
        assert!(check(&"a".repeat(1024)).is_ok());
    }

    proptest! {
        #[test]
        fn nothing_panics(expression in ".*") {
            let _ = check(&expression);
        }

        #[test]
        fn odd_expressions_do_not_panic(expression in r"[\[\]{}*+?a,1^\\QE:&-]{0,12}") {
            let _ = check(&expression);
        }
    }
}
