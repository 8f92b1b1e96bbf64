//! HTTP/2 frame by frame, for what no library would send. Headers are written as literals without a table and without Huffman's
//! code; of those that come only the kind, the stream and a status from the static table are compared.

use crate::{
    case::{FrameStep, Text},
    connection::{Connection, unhex},
};
use serde_json::{Value, json};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const KINDS: &[&str] = &[
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];
const CODES: &[&str] = &[
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];
/// How long nothing may come before nothing more is expected.
const QUIET: std::time::Duration = std::time::Duration::from_millis(1000);
/// Statuses of HPACK's static table, from index 8.
const STATUSES: &[&str] = &["200", "204", "206", "304", "400", "404", "500"];

/// A frame's bytes.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as HPACK literals.
fn literals(fields: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            let text = crate::case::latin(text);
            integer(text.len(), &mut bytes);
            bytes.extend(text);
        }
    }
    bytes
}

/// A length of seven bits and as many more as it takes.
fn integer(mut value: usize, bytes: &mut Vec<u8>) {
    if value < 127 {
        bytes.push(value as u8);
        return;
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
}

/// Plays one step of a conversation.
///
/// # Errors
/// When a wait is too long.
pub async fn play(
    connection: &mut Connection,
    step: &FrameStep,
    log: &mut Vec<Value>,
) -> anyhow::Result<()> {
    match step {
        FrameStep::Preface => {
            connection.send(PREFACE).await;
            connection.send(&frame(4, 0, 0, &[])).await;
        }
        FrameStep::Headers {
            stream,
            fields,
            flags,
        } => {
            connection
                .send(&frame(1, flags.unwrap_or(5), *stream, &literals(fields)))
                .await;
        }
        FrameStep::Frame {
            kind,
            flags,
            stream,
            text,
            hex,
            times,
        } => {
            let mut payload = text.as_ref().map(Text::bytes).unwrap_or_default();
            payload.extend(unhex(hex)?);
            let one = frame(*kind, *flags, *stream, &payload);
            connection.send(&one.repeat(times.unwrap_or(1))).await;
        }
        FrameStep::Read(until) => read(connection, until, log).await?,
        FrameStep::Fate => {
            connection.buffer.clear();
            let is_open = loop {
                let fate = connection.usual_fate(false).await;
                if fate.is_string() {
                    break fate;
                }
            };
            log.push(is_open);
        }
        FrameStep::Pause(time) => {
            tokio::time::sleep(std::time::Duration::from_millis(*time)).await;
        }
        FrameStep::Change(_) => anyhow::bail!("a change is no frame"),
    }
    Ok(())
}

/// Reads frames to the wanted one; only those that tell something are compared (no windows, no settings).
async fn read(
    connection: &mut Connection,
    until: &str,
    log: &mut Vec<Value>,
) -> anyhow::Result<()> {
    loop {
        let Ok(head) = tokio::time::timeout(QUIET, connection.read_count(9)).await else {
            log.push(json!("nothing more"));
            return Ok(());
        };
        let head = head?;
        if head.len() < 9 {
            log.push(json!("closed"));
            return Ok(());
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = connection.read_count(length).await?;
        let name = KINDS.get(usize::from(kind)).copied().unwrap_or("UNKNOWN");
        let told = tell(name, flags, stream, &payload);
        if let Some(told) = &told {
            log.push(json!(told));
        }
        let is_end = matches!(name, "DATA" | "HEADERS") && flags & 1 == 1;
        let is_ack = flags & 1 == 1;
        let is_over = name == "GOAWAY" || (stream == 1 && (is_end || name == "RST_STREAM"));
        let wanted = match until {
            "end_stream" => is_end,
            "settings_ack" => name == "SETTINGS" && is_ack,
            other => name.eq_ignore_ascii_case(other),
        };
        if wanted || is_over {
            return Ok(());
        }
    }
}

fn tell(name: &str, flags: u8, stream: u32, payload: &[u8]) -> Option<String> {
    let code = |at: usize| {
        let bytes = payload.get(at..at + 4)?;
        let code = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        Some(
            CODES
                .get(code)
                .map_or_else(|| code.to_string(), |name| (*name).to_owned()),
        )
    };
    let end = if flags & 1 == 1 { " END_STREAM" } else { "" };
    match name {
        "SETTINGS" | "WINDOW_UPDATE" | "PRIORITY" => None,
        "RST_STREAM" => Some(format!(
            "RST_STREAM {stream} {}",
            code(0).unwrap_or_default()
        )),
        "GOAWAY" => Some(format!("GOAWAY {}", code(4).unwrap_or_default())),
        "HEADERS" => {
            let first = payload.first().copied().unwrap_or_default();
            let index = usize::from(first & 0x7f).wrapping_sub(8);
            let status = if first & 0x80 != 0 {
                STATUSES.get(index).copied().unwrap_or("other")
            } else {
                "other"
            };
            Some(format!("HEADERS {stream} :status {status}{end}"))
        }
        "DATA" => Some(format!("DATA {stream} {} bytes{end}", payload.len())),
        "PING" => Some(format!("PING{}", if flags & 1 == 1 { " ACK" } else { "" })),
        other => Some(format!("{other} {stream}")),
    }
}
