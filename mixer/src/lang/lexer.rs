//! Text → tokens, as Go's scanner splits them: keywords are not identifiers, and a line's end after an operand ends the
//! expression (the scanner inserts a semicolon there).

/// One token and where it starts (byte offset).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) start: usize,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TokenKind {
    /// A name that is not a Go keyword.
    Ident(String),
    /// A Go keyword: never part of a usable expression.
    Keyword(String),
    /// An integer literal's text.
    Int(String),
    /// A floating-point literal's text.
    Float(String),
    /// A string or character literal, unquoted.
    Str(String),
    /// An operator or delimiter.
    Op(&'static str),
    /// A line's end where Go inserts a semicolon.
    Newline,
    /// The end.
    End,
}

/// Text that is not made of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LexError {
    pub(crate) start: usize,
    pub(crate) problem: String,
}

const KEYWORDS: &[&str] = &[
    "break",
    "case",
    "chan",
    "const",
    "continue",
    "default",
    "defer",
    "else",
    "fallthrough",
    "for",
    "func",
    "go",
    "goto",
    "if",
    "import",
    "interface",
    "map",
    "package",
    "range",
    "return",
    "select",
    "struct",
    "switch",
    "type",
    "var",
];

/// Longest first, so that the first that fits is the right one.
const OPERATORS: &[&str] = &[
    "<<=", ">>=", "&^=", "...", "&&", "||", "<-", "++", "--", "==", "!=", "<=", ">=", ":=", "+=",
    "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<", ">>", "&^", "+", "-", "*", "/", "%", "&", "|",
    "^", "<", ">", "=", "!", "(", ")", "[", "]", "{", "}", ",", ";", ".", ":",
];

/// Splits `text`. The last token is always [`TokenKind::End`].
pub(crate) fn tokens(text: &str) -> Result<Vec<Token>, LexError> {
    let mut lexer = Lexer {
        text,
        at: 0,
        tokens: Vec::new(),
    };
    while lexer.next_token()? {}
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn error<T>(&self, start: usize, problem: impl Into<String>) -> Result<T, LexError> {
        Err(LexError {
            start,
            problem: problem.into(),
        })
    }

    fn push(&mut self, kind: TokenKind, start: usize) {
        self.tokens.push(Token { kind, start });
    }

    /// Whether a line's end here would end the expression.
    fn after_operand(&self) -> bool {
        self.tokens.last().is_some_and(|token| match &token.kind {
            TokenKind::Ident(_) | TokenKind::Int(_) | TokenKind::Float(_) | TokenKind::Str(_) => {
                true
            }
            TokenKind::Keyword(word) => {
                matches!(
                    word.as_str(),
                    "break" | "continue" | "fallthrough" | "return"
                )
            }
            TokenKind::Op(op) => matches!(*op, ")" | "]" | "}" | "++" | "--"),
            TokenKind::Newline | TokenKind::End => false,
        })
    }

    fn next_token(&mut self) -> Result<bool, LexError> {
        if self.skip_blanks()? {
            return Ok(true);
        }
        let start = self.at;
        let Some(first) = self.peek() else {
            self.push(TokenKind::End, start);
            return Ok(false);
        };
        let second = self.rest().chars().nth(1);
        let kind = match first {
            _ if is_letter(first) => self.word(),
            '0'..='9' => self.number()?,
            '.' if second.is_some_and(|c| c.is_ascii_digit()) => self.number()?,
            '"' => self.quoted('"')?,
            '\'' => self.character()?,
            '`' => self.raw()?,
            _ => match OPERATORS.iter().find(|op| self.rest().starts_with(**op)) {
                Some(op) => {
                    self.at += op.len();
                    TokenKind::Op(op)
                }
                None => return self.error(start, format!("illegal character {first:?}")),
            },
        };
        self.push(kind, start);
        Ok(true)
    }

    /// Blanks and comments; true when a [`TokenKind::Newline`] was pushed.
    fn skip_blanks(&mut self) -> Result<bool, LexError> {
        loop {
            let start = self.at;
            match self.peek() {
                Some('\n') if self.after_operand() => {
                    self.at += 1;
                    self.push(TokenKind::Newline, start);
                    return Ok(true);
                }
                Some(' ' | '\t' | '\r' | '\n') => self.at += 1,
                _ if self.rest().starts_with("//") => {
                    let length = self.rest().find('\n').unwrap_or(self.rest().len());
                    self.at += length;
                }
                _ if self.rest().starts_with("/*") => match self.rest().find("*/") {
                    Some(length) => self.at += length + 2,
                    None => return self.error(start, "comment not terminated"),
                },
                _ => return Ok(false),
            }
        }
    }

    fn word(&mut self) -> TokenKind {
        let rest = self.rest();
        let length = rest
            .find(|c| !is_letter(c) && !c.is_numeric())
            .unwrap_or(rest.len());
        let word = rest[..length].to_owned();
        self.at += length;
        if KEYWORDS.contains(&word.as_str()) {
            TokenKind::Keyword(word)
        } else {
            TokenKind::Ident(word)
        }
    }

    fn digits(&mut self) -> usize {
        let length = self
            .rest()
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'_')
            .count();
        self.at += length;
        length
    }

    fn number(&mut self) -> Result<TokenKind, LexError> {
        let start = self.at;
        let mut is_float = false;
        self.digits();
        if self.peek() == Some('.') {
            is_float = true;
            self.at += 1;
            self.digits();
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            is_float = true;
            self.at += 1;
            if matches!(self.peek(), Some('+' | '-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return self.error(start, "exponent has no digits");
            }
        }
        let text = self.text[start..self.at].to_owned();
        // Hexadecimal and imaginary literals are Go's, not ours; a letter may not follow a number directly.
        if self.peek().is_some_and(is_letter) {
            return self.error(start, format!("number {text} runs into a letter"));
        }
        Ok(if is_float {
            TokenKind::Float(text)
        } else {
            TokenKind::Int(text)
        })
    }

    fn quoted(&mut self, quote: char) -> Result<TokenKind, LexError> {
        let start = self.at;
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n') => return self.error(start, "literal not terminated"),
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(c) => {
                    self.at += c.len_utf8();
                    if c == quote {
                        break;
                    }
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        // An escape can spell bytes that are not UTF-8; attributes are text, so they could never be equal to such a string.
        Ok(TokenKind::Str(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), LexError> {
        let start = self.at;
        self.at += 1;
        let Some(c) = self.peek() else {
            return self.error(start, "literal not terminated");
        };
        self.at += c.len_utf8();
        let simple = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            '0'..='7' => {
                self.at -= 1;
                return self.code(start, 3, 8, bytes);
            }
            'x' => return self.code(start, 2, 16, bytes),
            'u' => return self.code(start, 4, 16, bytes),
            'U' => return self.code(start, 8, 16, bytes),
            _ if c == quote => quote as u8,
            _ => return self.error(start, "unknown escape sequence"),
        };
        bytes.push(simple);
        Ok(())
    }

    fn code(
        &mut self,
        start: usize,
        digits: usize,
        radix: u32,
        bytes: &mut Vec<u8>,
    ) -> Result<(), LexError> {
        let text = self.rest().get(..digits);
        let value = text
            .filter(|text| text.chars().all(|c| c.is_digit(radix)))
            .and_then(|text| u32::from_str_radix(text, radix).ok());
        let Some(value) = value else {
            return self.error(start, "illegal escape sequence");
        };
        self.at += digits;
        if digits <= 3 {
            match u8::try_from(value) {
                Ok(byte) => bytes.push(byte),
                Err(_) => return self.error(start, "octal escape is above 255"),
            }
            return Ok(());
        }
        match char::from_u32(value) {
            Some(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            None => return self.error(start, "escape is not a Unicode code point"),
        }
        Ok(())
    }

    fn character(&mut self) -> Result<TokenKind, LexError> {
        let start = self.at;
        let token = self.quoted('\'')?;
        match &token {
            TokenKind::Str(text) if text.chars().count() == 1 => Ok(token),
            _ => self.error(start, "a character literal holds one character"),
        }
    }

    fn raw(&mut self) -> Result<TokenKind, LexError> {
        let start = self.at;
        let body = &self.text[start + 1..];
        let Some(length) = body.find('`') else {
            return self.error(start, "literal not terminated");
        };
        // Go drops carriage returns from raw strings.
        let text = body[..length].replace('\r', "");
        self.at = start + length + 2;
        Ok(TokenKind::Str(text))
    }
}

fn is_letter(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}
