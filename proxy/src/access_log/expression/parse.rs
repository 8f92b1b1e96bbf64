//! The text of a condition.

use std::iter::Peekable;
use std::str::Chars;
use std::vec::IntoIter;

use super::attribute::Attribute;
use super::{Comparison, Node, Test, Value};
use crate::invalid::Invalid;

/// Deeper ones are refused: each level is one on the stack.
const MAX_DEPTH: usize = 50;
/// The longest first.
const SYMBOLS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ".", ",",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    Number(i64),
    Symbol(&'static str),
}

pub(super) fn parse(text: &str) -> Result<Node, Invalid> {
    let mut parser = Parser {
        tokens: tokens(text)?.into_iter().peekable(),
        depth: 0,
    };
    let node = parser.any()?;
    match parser.tokens.next() {
        None => Ok(node),
        Some(token) => Err(unexpected(&token)),
    }
}

fn unexpected(token: &Token) -> Invalid {
    Invalid::new(match token {
        Token::Name(text) => format!("'{text}' is not expected there"),
        Token::Text(text) => format!("the string '{text}' is not expected there"),
        Token::Number(number) => format!("{number} is not expected there"),
        Token::Symbol(symbol) => format!("'{symbol}' is not expected there"),
    })
}

fn tokens(text: &str) -> Result<Vec<Token>, Invalid> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphabetic() || first == '_' {
            let length = length(rest, |letter| {
                letter.is_ascii_alphanumeric() || letter == '_'
            });
            tokens.push(Token::Name(rest[..length].to_owned()));
            length
        } else if first.is_ascii_digit() {
            let length = length(rest, |letter| letter.is_ascii_digit());
            let number = rest[..length].parse();
            tokens.push(Token::Number(number.map_err(|_| {
                Invalid::new(format!("{} is too large", &rest[..length]))
            })?));
            length
        } else if first == '\'' || first == '"' {
            let (text, length) = quoted(first, rest[1..].chars())?;
            tokens.push(Token::Text(text));
            length + 2
        } else {
            let symbol = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol));
            let symbol =
                symbol.ok_or_else(|| Invalid::unsupported(&format!("'{first}' in a condition")))?;
            tokens.push(Token::Symbol(symbol));
            symbol.len()
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// How long what begins `text` is.
fn length(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|letter| !belongs(letter)).unwrap_or(text.len())
}

/// What is before the next `quote`, and how long it is.
fn quoted(quote: char, letters: Chars<'_>) -> Result<(String, usize), Invalid> {
    let mut text = String::new();
    let mut length = 0;
    let mut is_escaped = false;
    for letter in letters {
        match letter {
            _ if is_escaped => {
                if !matches!(letter, '\\' | '\'' | '"') {
                    return Err(Invalid::unsupported(&format!("'\\{letter}' in a string")));
                }
                text.push(letter);
                is_escaped = false;
            }
            '\\' => is_escaped = true,
            _ if letter == quote => return Ok((text, length)),
            _ => text.push(letter),
        }
        length += letter.len_utf8();
    }
    Err(Invalid::new("a string has no end"))
}

struct Parser {
    tokens: Peekable<IntoIter<Token>>,
    depth: usize,
}

impl Parser {
    fn takes(&mut self, symbol: &'static str) -> bool {
        self.tokens.next_if_eq(&Token::Symbol(symbol)).is_some()
    }

    fn needs(&mut self, symbol: &'static str) -> Result<(), Invalid> {
        if self.takes(symbol) {
            return Ok(());
        }
        Err(Invalid::new(format!("'{symbol}' is missing")))
    }

    fn name(&mut self) -> Result<String, Invalid> {
        match self.tokens.next() {
            Some(Token::Name(name)) => Ok(name),
            Some(token) => Err(unexpected(&token)),
            None => Err(Invalid::new("a name is missing")),
        }
    }

    fn any(&mut self) -> Result<Node, Invalid> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Invalid::new("it is too deep"));
        }
        let mut node = self.all()?;
        while self.takes("||") {
            node = Node::Or(Box::new([node, self.all()?]));
        }
        self.depth -= 1;
        Ok(node)
    }

    fn all(&mut self) -> Result<Node, Invalid> {
        let mut node = self.relation()?;
        while self.takes("&&") {
            node = Node::And(Box::new([node, self.relation()?]));
        }
        Ok(node)
    }

    fn relation(&mut self) -> Result<Node, Invalid> {
        let left = self.negation()?;
        if self
            .tokens
            .next_if_eq(&Token::Name("in".to_owned()))
            .is_some()
        {
            return self.list().map(|list| Node::In(Box::new(left), list));
        }
        let comparison = match self.tokens.peek() {
            Some(Token::Symbol("==")) => Comparison::Equal,
            Some(Token::Symbol("!=")) => Comparison::NotEqual,
            Some(Token::Symbol("<")) => Comparison::Less,
            Some(Token::Symbol("<=")) => Comparison::LessOrEqual,
            Some(Token::Symbol(">")) => Comparison::Greater,
            Some(Token::Symbol(">=")) => Comparison::GreaterOrEqual,
            _ => return Ok(left),
        };
        self.tokens.next();
        let right = self.negation()?;
        Ok(Node::Compare(comparison, Box::new([left, right])))
    }

    fn list(&mut self) -> Result<Vec<Node>, Invalid> {
        self.needs("[")?;
        let mut list = Vec::new();
        while !self.takes("]") {
            if !list.is_empty() {
                self.needs(",")?;
            }
            list.push(self.any()?);
        }
        Ok(list)
    }

    fn negation(&mut self) -> Result<Node, Invalid> {
        let mut is_negated = false;
        while self.takes("!") {
            is_negated = !is_negated;
        }
        let node = self.tested()?;
        Ok(if is_negated {
            Node::Not(Box::new(node))
        } else {
            node
        })
    }

    /// A value, and what it is asked as a string.
    fn tested(&mut self) -> Result<Node, Invalid> {
        let (mut node, mut method) = self.primary()?;
        loop {
            let name = match method.take() {
                Some(name) => name,
                None if self.takes(".") => self.name()?,
                None => return Ok(node),
            };
            let test = match name.as_str() {
                "startsWith" => Test::StartsWith,
                "endsWith" => Test::EndsWith,
                "contains" => Test::Contains,
                _ => return Err(Invalid::unsupported(&format!("'{name}' in a condition"))),
            };
            self.needs("(")?;
            let argument = self.any()?;
            self.needs(")")?;
            node = Node::Test(test, Box::new([node, argument]));
        }
    }

    /// A value, and the name of a test that has been read behind it.
    fn primary(&mut self) -> Result<(Node, Option<String>), Invalid> {
        let node = match self.tokens.next() {
            Some(Token::Symbol("(")) => {
                let node = self.any()?;
                self.needs(")")?;
                node
            }
            Some(Token::Text(text)) => Node::Literal(Value::Text(text)),
            Some(Token::Number(number)) => Node::Literal(Value::Number(number)),
            Some(Token::Name(name)) => match name.as_str() {
                "true" => Node::Literal(Value::Bool(true)),
                "false" => Node::Literal(Value::Bool(false)),
                "has" => {
                    self.needs("(")?;
                    let name = self.name()?;
                    let (attribute, method) = self.attribute(name)?;
                    self.needs(")")?;
                    if let Some(method) = method {
                        return Err(unexpected(&Token::Name(method)));
                    }
                    Node::Has(attribute)
                }
                _ => {
                    let (attribute, method) = self.attribute(name)?;
                    return Ok((Node::Attribute(attribute), method));
                }
            },
            Some(token) => return Err(unexpected(&token)),
            None => return Err(Invalid::new("a value is missing")),
        };
        Ok((node, None))
    }

    /// The attribute whose name begins with `name`, and the name of a test behind it.
    fn attribute(&mut self, mut name: String) -> Result<(Attribute, Option<String>), Invalid> {
        while self.takes(".") {
            let part = self.name()?;
            if self.tokens.peek() == Some(&Token::Symbol("(")) {
                return Ok((Attribute::named(&name)?, Some(part)));
            }
            name = format!("{name}.{part}");
        }
        if !self.takes("[") {
            return Ok((Attribute::named(&name)?, None));
        }
        let Some(Token::Text(key)) = self.tokens.next() else {
            return Err(Invalid::unsupported("an index that is no string"));
        };
        self.needs("]")?;
        Ok((Attribute::header(&name, &key)?, None))
    }
}
