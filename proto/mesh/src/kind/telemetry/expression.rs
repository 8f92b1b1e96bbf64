//! The syntax of CEL, the language of access log filters. Names and types are not checked: what a request has, the proxy knows.

use std::iter::Peekable;
use std::str::Chars;

/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 64;

/// Words that cannot be names.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Checks that a text is an expression of CEL.
pub(super) fn check(text: &str) -> Result<(), String> {
    let tokens =
        tokens(text).map_err(|problem| format!("{text:?} is no CEL expression: {problem}"))?;
    let mut parser = Parser {
        tokens,
        position: 0,
        depth: 0,
    };
    parser
        .expression()
        .and_then(|()| parser.end())
        .map_err(|problem| format!("{text:?} is no CEL expression: {problem}"))
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Literal,
    Operator(&'static str),
}

/// Operators and marks, the longer first.
const OPERATORS: [&str; 26] = [
    "<=", ">=", "==", "!=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",",
    "(", ")", "[", "]", "{", "}", "=", "&",
];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = &rest[first.len_utf8()..];
        } else if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if let Some(length) = string_length(rest)? {
            tokens.push(Token::Literal);
            rest = &rest[length..];
        } else if first.is_ascii_digit()
            || (first == '.' && rest[1..].starts_with(|next: char| next.is_ascii_digit()))
        {
            tokens.push(Token::Literal);
            rest = &rest[number_length(rest)?..];
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest
                .find(|next: char| !next.is_ascii_alphanumeric() && next != '_')
                .unwrap_or(rest.len());
            tokens.push(match &rest[..end] {
                "true" | "false" | "null" => Token::Literal,
                "in" => Token::Operator("in"),
                name => Token::Name(name.to_owned()),
            });
            rest = &rest[end..];
        } else {
            let operator = OPERATORS
                .into_iter()
                .find(|operator| rest.starts_with(operator));
            let operator = operator.ok_or_else(|| format!("unexpected character {first:?}"))?;
            tokens.push(Token::Operator(operator));
            rest = &rest[operator.len()..];
        }
    }
    Ok(tokens)
}

/// The length of the string that a text begins with, its prefixes (`r`, `b`) and quotes included.
fn string_length(text: &str) -> Result<Option<usize>, String> {
    let prefix = text
        .find(|next: char| !"rRbB".contains(next))
        .unwrap_or(text.len());
    let quoted = &text[prefix..];
    let Some(quote) = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quote| quoted.starts_with(quote))
    else {
        return Ok(None);
    };
    if prefix > 2 {
        return Ok(None);
    }
    let is_raw = text[..prefix].contains(['r', 'R']);
    let mut characters: Peekable<Chars<'_>> = quoted[quote.len()..].chars().peekable();
    let mut length = prefix + quote.len();
    loop {
        if text[length..].starts_with(quote) {
            return Ok(Some(length + quote.len()));
        }
        let character = characters
            .next()
            .filter(|next| quote.len() == 3 || *next != '\n');
        length += character.ok_or("a string has no end")?.len_utf8();
        if character == Some('\\') && !is_raw {
            length += characters.next().ok_or("a string has no end")?.len_utf8();
        }
    }
}

fn number_length(text: &str) -> Result<usize, String> {
    let digits = |text: &str| {
        text.find(|next: char| !next.is_ascii_digit())
            .unwrap_or(text.len())
    };
    let mut length;
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        length = 2 + hexadecimal
            .find(|next: char| !next.is_ascii_hexdigit())
            .unwrap_or(hexadecimal.len());
    } else {
        length = digits(text);
        if let Some(fraction) = text[length..].strip_prefix('.') {
            length += 1 + digits(fraction);
        }
        if let Some(exponent) = text[length..].strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            length += 1 + sign + digits(&exponent[sign..]);
        }
    }
    length += usize::from(text[length..].starts_with(['u', 'U']));
    if text[length..].starts_with(|next: char| next.is_ascii_alphanumeric()) {
        return Err(format!("{:?} is no number", &text[..=length]));
    }
    Ok(length)
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
    depth: usize,
}

impl Parser {
    fn take(&mut self, wanted: &str) -> bool {
        let found = matches!(self.tokens.get(self.position), Some(Token::Operator(operator)) if *operator == wanted);
        self.position += usize::from(found);
        found
    }

    fn take_any(&mut self, wanted: &[&str]) -> bool {
        wanted.iter().any(|operator| self.take(operator))
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        if self.take(wanted) {
            Ok(())
        } else {
            Err(format!("`{wanted}` is missing"))
        }
    }

    fn take_name(&mut self) -> Result<bool, String> {
        let Some(Token::Name(name)) = self.tokens.get(self.position) else {
            return Ok(false);
        };
        if RESERVED.contains(&name.as_str()) {
            return Err(format!("{name} is a reserved word"));
        }
        self.position += 1;
        Ok(true)
    }

    fn end(&self) -> Result<(), String> {
        if self.position == self.tokens.len() {
            Ok(())
        } else {
            Err("it goes on after its end".into())
        }
    }

    fn expression(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        self.binary()?;
        if self.take("?") {
            self.binary()?;
            self.expect(":")?;
            self.expression()?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Operands with operators between them: for the syntax, their precedence makes no difference.
    fn binary(&mut self) -> Result<(), String> {
        loop {
            self.unary()?;
            let goes_on = self.take_any(&[
                "||", "&&", "<=", ">=", "==", "!=", "<", ">", "in", "+", "-", "*", "/", "%",
            ]);
            if !goes_on {
                return Ok(());
            }
        }
    }

    fn unary(&mut self) -> Result<(), String> {
        if self.take("!") {
            while self.take("!") {}
        } else if self.take("-") {
            while self.take("-") {}
        }
        self.primary()?;
        loop {
            if self.take(".") {
                if !self.take_name()? {
                    return Err("a name is missing after `.`".into());
                }
                if self.take("(") {
                    self.list(")")?;
                }
            } else if self.take("[") {
                self.expression()?;
                self.expect("]")?;
            } else if self.take("{") {
                self.fields()?;
            } else {
                return Ok(());
            }
        }
    }

    fn primary(&mut self) -> Result<(), String> {
        if self.take("(") {
            self.expression()?;
            return self.expect(")");
        }
        if self.take("[") {
            return self.list("]");
        }
        if self.take("{") {
            return self.map();
        }
        if self.tokens.get(self.position) == Some(&Token::Literal) {
            self.position += 1;
            return Ok(());
        }
        self.take(".");
        if !self.take_name()? {
            return Err("an operand is missing".into());
        }
        if self.take("(") {
            return self.list(")");
        }
        Ok(())
    }

    fn list(&mut self, end: &str) -> Result<(), String> {
        while !self.take(end) {
            self.expression()?;
            if !self.take(",") {
                return self.expect(end);
            }
        }
        Ok(())
    }

    /// The fields of a message.
    fn fields(&mut self) -> Result<(), String> {
        while !self.take("}") {
            if !self.take_name()? {
                return Err("a field's name is missing".into());
            }
            self.expect(":")?;
            self.expression()?;
            if !self.take(",") {
                return self.expect("}");
            }
        }
        Ok(())
    }

    fn map(&mut self) -> Result<(), String> {
        while !self.take("}") {
            self.expression()?;
            self.expect(":")?;
            self.expression()?;
            if !self.take(",") {
                return self.expect("}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expressions_are_cel() {
        for text in [
            "response.code >= 400",
            "response.code >= 400 && request.url_path.contains('v1beta3')",
            r#"request.headers["x"] == "a\"b" ? true : !has(source.labels.app)"#,
            "[1, 2u, 0x1F, 1.5e-3, .5].exists(x, x in {'a': 1,})",
            "connection.mtls == false // why",
            "r'\\' + b\"x\" == '''a\nb'''",
            "-(-1) < .a.b(c)[0]",
            "!!true",
            "a.B{c: 1, d: 2}.c",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn other_texts_are_not() {
        for text in [
            "",
            "a >",
            "a >= 400)",
            "(a",
            "a b",
            "a = 1",
            "'abc",
            "1a",
            "a..b",
            "if",
            "a ? b",
            "[1",
            "{1}",
            "a[",
            "#",
            "&a",
            "a & b",
            "@x",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
        assert!(check(&"(".repeat(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*") {
            let _ = check(&text);
        }

        #[test]
        fn odd_texts_do_not_panic(text in r#"[ab1.'"\\rx(){}\[\]?:!<=é-]{0,16}"#) {
            let _ = check(&text);
        }
    }
}
