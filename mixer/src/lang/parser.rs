//! Tokens → tree, with Go's operator precedence. What Go parses but no expression can use (`*x`, `a % b`) becomes a call of
//! a function that does not exist, so that the checker names it.

use proto_mesh::attribute::ValueType;

use super::CompileError;
use super::ast::{Ast, Constant};
use super::lexer::{self, Token, TokenKind};
use super::time_text;

/// Nesting beyond this is refused: the tree is walked by recursion.
const MAX_DEPTH: usize = 100;
/// Longer text is refused; no real expression comes near.
const MAX_LENGTH: usize = 64 * 1024;

/// Parses `text`.
pub(crate) fn parse(text: &str) -> Result<Ast, CompileError> {
    let error = |position: usize, problem: String| CompileError::Parse {
        expression: text.to_owned(),
        position: position + 1,
        problem,
    };
    if text.len() > MAX_LENGTH {
        return Err(error(MAX_LENGTH, "the expression is too long".into()));
    }
    let tokens = lexer::tokens(text).map_err(|e| error(e.start, e.problem))?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
    };
    parser
        .whole()
        .map_err(|problem| error(parser.token().start, problem))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

type Parsed = Result<Ast, String>;

impl Parser {
    fn token(&self) -> &Token {
        // `at` never passes the last token, which is End.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn advance(&mut self) {
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    fn accept(&mut self, op: &str) -> bool {
        let found = matches!(&self.token().kind, TokenKind::Op(found) if *found == op);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, op: &str) -> Result<(), String> {
        if self.accept(op) {
            return Ok(());
        }
        Err(format!("expected {op:?}, found {}", self.found()))
    }

    fn found(&self) -> String {
        match &self.token().kind {
            TokenKind::Ident(word) | TokenKind::Keyword(word) => format!("{word:?}"),
            TokenKind::Int(text) | TokenKind::Float(text) => text.clone(),
            TokenKind::Str(text) => format!("string {text:?}"),
            TokenKind::Op(op) => format!("{op:?}"),
            TokenKind::Newline => "a new line".into(),
            TokenKind::End => "the end".into(),
        }
    }

    fn whole(&mut self) -> Parsed {
        let ast = self.binary(1)?;
        if self.token().kind == TokenKind::Newline {
            self.advance();
        }
        match self.token().kind {
            TokenKind::End => Ok(ast),
            TokenKind::Op("=") => Err("expected \"==\", found \"=\"".into()),
            _ => Err(format!("expected the end, found {}", self.found())),
        }
    }

    /// Operators of at least `lowest` precedence, left-associative.
    fn binary(&mut self, lowest: usize) -> Parsed {
        let mut left = self.unary()?;
        let mut length = 0;
        loop {
            let TokenKind::Op(op) = self.token().kind else {
                return Ok(left);
            };
            let Some((precedence, name)) = binary_operator(op) else {
                return Ok(left);
            };
            if precedence < lowest {
                return Ok(left);
            }
            // A long chain nests to the left as deeply as brackets would.
            length += 1;
            if length > MAX_DEPTH {
                return Err("too many operators in a row".into());
            }
            self.advance();
            let right = self.binary(precedence + 1)?;
            left = call(name, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("the expression is nested too deeply".into());
        }
        let parsed = match self.token().kind {
            TokenKind::Op(op) => match unary_operator(op) {
                Some(name) => {
                    self.advance();
                    self.unary().map(|operand| call(name, vec![operand]))
                }
                None => self.postfix(),
            },
            _ => self.postfix(),
        };
        self.depth -= 1;
        parsed
    }

    fn postfix(&mut self) -> Parsed {
        let mut operand = self.operand()?;
        let mut length = 0;
        loop {
            length += 1;
            if length > MAX_DEPTH {
                return Err("too many selections in a row".into());
            }
            if self.accept(".") {
                let TokenKind::Ident(name) = &self.token().kind else {
                    return Err(format!("expected a name, found {}", self.found()));
                };
                let name = name.clone();
                self.advance();
                operand = match operand {
                    Operand::Name(prefix) => Operand::Name(format!("{prefix}.{name}")),
                    Operand::Value(value) => Operand::Method(value, name),
                    Operand::Method(..) => return Err("a value has no fields".into()),
                };
            } else if self.accept("[") {
                let map = operand.into_value()?;
                let key = self.binary(1)?;
                self.expect("]")?;
                operand = Operand::Value(call("INDEX", vec![map, key]));
            } else if self.accept("(") {
                let arguments = self.arguments()?;
                operand = Operand::Value(operand.into_call(arguments));
            } else {
                return operand.into_value();
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Ast>, String> {
        let mut arguments = Vec::new();
        loop {
            if self.accept(")") {
                return Ok(arguments);
            }
            arguments.push(self.binary(1)?);
            if !self.accept(",") {
                self.expect(")")?;
                return Ok(arguments);
            }
        }
    }

    fn operand(&mut self) -> Result<Operand, String> {
        let operand = match &self.token().kind {
            TokenKind::Ident(name) => Operand::Name(name.clone()),
            TokenKind::Int(text) => Operand::Value(Ast::Const(integer(text)?)),
            TokenKind::Float(text) => Operand::Value(Ast::Const(double(text)?)),
            TokenKind::Str(text) => Operand::Value(Ast::Const(string(text))),
            TokenKind::Op("(") => {
                self.advance();
                let inner = self.binary(1)?;
                self.expect(")")?;
                return Ok(Operand::Value(inner));
            }
            _ => return Err(format!("expected an operand, found {}", self.found())),
        };
        self.advance();
        Ok(operand)
    }
}

/// What a postfix operator may follow: a dotted name is not yet known to be an attribute or a function.
enum Operand {
    Name(String),
    Value(Ast),
    Method(Ast, String),
}

impl Operand {
    fn into_value(self) -> Parsed {
        match self {
            Operand::Name(name) => Ok(match name.to_lowercase().as_str() {
                "true" => Ast::Const(Constant::Bool(true)),
                "false" => Ast::Const(Constant::Bool(false)),
                _ => Ast::Attribute(name),
            }),
            Operand::Value(value) => Ok(value),
            Operand::Method(value, name) => Err(format!("{value} has no field {name:?}")),
        }
    }

    fn into_call(self, arguments: Vec<Ast>) -> Ast {
        let (name, target) = match self {
            Operand::Name(path) => match path.rsplit_once('.') {
                Some((target, name)) => {
                    let target = Operand::Name(target.to_owned()).into_value().ok();
                    (name.to_owned(), target)
                }
                None => (path, None),
            },
            Operand::Method(target, name) => (name, Some(target)),
            // Calling the result of a call: no function has such a name.
            Operand::Value(value) => (value.to_string(), None),
        };
        Ast::Call {
            name,
            target: target.map(Box::new),
            arguments,
        }
    }
}

fn call(name: &str, arguments: Vec<Ast>) -> Ast {
    Ast::Call {
        name: name.to_owned(),
        target: None,
        arguments,
    }
}

fn binary_operator(op: &str) -> Option<(usize, &'static str)> {
    Some(match op {
        "||" => (1, "LOR"),
        "&&" => (2, "LAND"),
        "==" => (3, "EQ"),
        "!=" => (3, "NEQ"),
        "<" => (3, "LT"),
        "<=" => (3, "LEQ"),
        ">" => (3, "GT"),
        ">=" => (3, "GEQ"),
        "+" => (4, "ADD"),
        "-" => (4, "SUB"),
        "|" => (4, "OR"),
        "^" => (4, "XOR"),
        "*" => (5, "MUL"),
        "/" => (5, "QUO"),
        "%" => (5, "REM"),
        "<<" => (5, "SHL"),
        ">>" => (5, "SHR"),
        "&" => (5, "AND"),
        "&^" => (5, "AND_NOT"),
        _ => return None,
    })
}

fn unary_operator(op: &str) -> Option<&'static str> {
    Some(match op {
        "+" => "ADD",
        "-" => "SUB",
        "!" => "NOT",
        "^" => "XOR",
        "*" => "MUL",
        "&" => "AND",
        "<-" => "ARROW",
        _ => return None,
    })
}

fn integer(text: &str) -> Result<Constant, String> {
    text.parse()
        .map(Constant::Int64)
        .map_err(|_| format!("{text} is not an {}", ValueType::Int64))
}

fn double(text: &str) -> Result<Constant, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) => Ok(Constant::Double(number, text.to_owned())),
        _ => Err(format!("{text} is not a {}", ValueType::Double)),
    }
}

/// Any string that spells a Go duration is one, wherever it stands.
fn string(text: &str) -> Constant {
    match time_text::parse_duration(text) {
        Some(nanos) => Constant::Duration(nanos, text.to_owned()),
        None => Constant::String(text.to_owned()),
    }
}
