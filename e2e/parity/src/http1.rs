//! HTTP/1 as both ends of a test read it: a head line by line, a body by its framing, nothing corrected.

use crate::{connection::Connection, normal};
use anyhow::Context as _;
use serde_json::{Map, Value, json};

/// A message's head.
#[derive(Clone, Debug)]
pub struct Head {
    /// Request or status line.
    pub line: String,
    /// Fields, in order, as they came.
    pub fields: Vec<(String, String)>,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(usize),
    Chunks,
    Close,
}

impl Head {
    /// A field's first value.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Fields as they are compared: by name, several values of one as a list.
    #[must_use]
    pub fn fields_json(&self) -> Value {
        fields_json(
            self.fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        )
    }

    fn says(&self, name: &str, word: &str) -> bool {
        self.fields
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .any(|(_, value)| value.to_ascii_lowercase().contains(word))
    }
}

/// Fields by name, normalised.
pub fn fields_json<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let mut map: Map<String, Value> = Map::new();
    let mut sorted: Vec<(&str, &str)> = fields.collect();
    sorted.sort_by_key(|(name, _)| *name);
    for (name, value) in sorted {
        let value = json!(normal::field(name, value));
        match map.get_mut(name) {
            None => {
                map.insert(name.to_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(one) => *one = json!([one.clone(), value]),
        }
    }
    Value::Object(map)
}

/// Reads a head; `None` at the end of the connection.
///
/// # Errors
/// When nothing comes in time.
pub async fn head(connection: &mut Connection) -> anyhow::Result<Option<Head>> {
    let Some(bytes) = connection.read_until(b"\r\n\r\n").await? else {
        return Ok(None);
    };
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let fields = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_owned(), value.trim().to_owned())
        })
        .collect();
    Ok(Some(Head { line, fields }))
}

/// Reads a response's head alone.
///
/// # Errors
/// When nothing comes in time.
pub async fn head_of_response(connection: &mut Connection) -> anyhow::Result<Value> {
    Ok(match head(connection).await? {
        Some(head) => json!({"status": head.line, "headers": head.fields_json()}),
        None => ended(connection),
    })
}

/// What is said when the connection ends where a message should be.
fn ended(connection: &mut Connection) -> Value {
    let rest = std::mem::take(&mut connection.buffer);
    if rest.is_empty() {
        json!("closed")
    } else {
        json!({"closed after": normal::bytes(&rest)})
    }
}

/// Reads a response, its interim responses included.
///
/// # Errors
/// When it does not come whole in time.
pub async fn response(connection: &mut Connection, method: &str) -> anyhow::Result<Value> {
    let mut interim = Vec::new();
    loop {
        let Some(head) = head(connection).await? else {
            return Ok(ended(connection));
        };
        let status: u16 = head
            .line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .context("no status in a response")?;
        if (100..200).contains(&status) && status != 101 {
            interim.push(json!({"status": head.line, "headers": head.fields_json()}));
            continue;
        }
        let framing = if method == "HEAD"
            || status == 101
            || status == 204
            || status == 304
            || (method == "CONNECT" && status < 300)
        {
            Framing::None
        } else {
            framing(&head, Framing::Close)
        };
        let mut response = json!({"status": head.line, "headers": head.fields_json()});
        if !interim.is_empty() {
            response["interim"] = Value::Array(interim);
        }
        read_body(connection, framing, &mut response).await?;
        return Ok(response);
    }
}

/// Whether a response says that the connection closes after it.
#[must_use]
pub fn says_close(response: &Value) -> bool {
    let close = |value: &Value| {
        value
            .as_str()
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    };
    close(&response["headers"]["connection"]) || response["framing"] == "close"
}

/// A request's body and trailers, into `record`; `false` when the connection ended within.
///
/// # Errors
/// When it does not come whole in time.
pub async fn request_body(
    connection: &mut Connection,
    head: &Head,
    record: &mut Value,
) -> anyhow::Result<bool> {
    let framing = framing(head, Framing::None);
    read_body(connection, framing, record).await?;
    Ok(record.get("incomplete").is_none())
}

fn framing(head: &Head, otherwise: Framing) -> Framing {
    if head.says("transfer-encoding", "chunked") {
        Framing::Chunks
    } else if let Some(length) = head
        .field("content-length")
        .and_then(|length| length.parse().ok())
    {
        Framing::Length(length)
    } else {
        otherwise
    }
}

async fn read_body(
    connection: &mut Connection,
    framing: Framing,
    message: &mut Value,
) -> anyhow::Result<()> {
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            let body = connection.read_count(length).await?;
            if body.len() < length {
                message["incomplete"] = json!(format!("ended before its {length} bytes"));
            }
            message["body"] = normal::bytes(&body);
        }
        Framing::Close => {
            message["body"] = normal::bytes(&connection.read_all().await?);
            message["framing"] = json!("close");
        }
        Framing::Chunks => {
            let (body, trailers, is_whole) = chunks(connection).await?;
            message["body"] = normal::bytes(&body);
            if !trailers.is_empty() {
                message["trailers"] = fields_json(
                    trailers
                        .iter()
                        .map(|(name, value)| (name.as_str(), value.as_str())),
                );
            }
            if !is_whole {
                message["incomplete"] = json!("ended before its last chunk");
            }
        }
    }
    Ok(())
}

/// Fields after the last chunk.
pub type Trailers = Vec<(String, String)>;

/// A chunked body and its trailers; `false` when the connection ended within.
///
/// # Errors
/// When it does not come in time or a size is none.
pub async fn chunks(connection: &mut Connection) -> anyhow::Result<(Vec<u8>, Trailers, bool)> {
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    loop {
        let Some(line) = line(connection).await? else {
            return Ok((body, trailers, false));
        };
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
            .with_context(|| format!("{line:?} is not a chunk's size"))?;
        if size == 0 {
            break;
        }
        let mut chunk = connection.read_count(size + 2).await?;
        let is_whole = chunk.len() == size + 2;
        chunk.truncate(size);
        body.extend(chunk);
        if !is_whole {
            return Ok((body, trailers, false));
        }
    }
    loop {
        let Some(line) = line(connection).await? else {
            return Ok((body, trailers, false));
        };
        match line.split_once(':') {
            Some((name, value)) => trailers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok((body, trailers, true)),
        }
    }
}

async fn line(connection: &mut Connection) -> anyhow::Result<Option<String>> {
    let line = connection.read_until(b"\r\n").await?;
    Ok(line.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned()))
}
