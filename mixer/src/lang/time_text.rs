//! Durations and times as Go writes them: `1h30m0s`, `1.5ms`; RFC 3339 with an optional fraction.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Nanoseconds of a Go duration (`"300ms"`, `"-1.5h"`, `"2h45m"`, `"0"`).
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let whole_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(whole_digits);
        let mut fraction = "";
        rest = after;
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            (fraction, rest) = after.split_at(digits);
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_length = rest
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (unit, after) = rest.split_at(unit_length);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        rest = after;
        let whole: i64 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total.checked_add(whole.checked_mul(*unit)?)?;
        total = total.checked_add(fraction_of(fraction, *unit))?;
    }
    Some(if negative { -total } else { total })
}

/// `0.<digits>` of a unit, cut to whole nanoseconds.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a fraction of a unit is below 3.6e12, exact in a double to the nanosecond"
)]
fn fraction_of(digits: &str, unit: i64) -> i64 {
    let digits = &digits[..digits.len().min(18)];
    let Ok(value) = digits.parse::<i64>() else {
        return 0;
    };
    let scale = 10f64.powi(i32::try_from(digits.len()).unwrap_or(18));
    (value as f64 * (unit as f64 / scale)) as i64
}

/// Go's text of a duration.
pub(crate) fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    if nanos < 1_000 {
        return format!("{sign}{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{sign}{}µs", decimal(nanos, 1_000));
    }
    if nanos < 1_000_000_000 {
        return format!("{sign}{}ms", decimal(nanos, 1_000_000));
    }
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let seconds = decimal(seconds % 60 * 1_000_000_000 + rest, 1_000_000_000);
    if hours > 0 {
        format!("{sign}{hours}h{minutes}m{seconds}s")
    } else if minutes > 0 {
        format!("{sign}{minutes}m{seconds}s")
    } else {
        format!("{sign}{seconds}s")
    }
}

/// `value / unit` with as many decimals as it takes.
fn decimal(value: u64, unit: u64) -> String {
    let (whole, mut rest) = (value / unit, value % unit);
    let mut text = whole.to_string();
    if rest > 0 {
        text.push('.');
        let mut scale = unit / 10;
        while rest > 0 && scale > 0 {
            text.push(char::from(b'0' + u8::try_from(rest / scale).unwrap_or(0)));
            rest %= scale;
            scale /= 10;
        }
    }
    text
}

/// Nanoseconds of a wire duration, saturating.
pub(crate) fn duration_nanos(duration: prost_types::Duration) -> i64 {
    duration
        .seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(duration.nanos))
}

/// A wire duration of nanoseconds.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a remainder below a second fits"
)]
pub(crate) fn wire_duration(nanos: i64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: nanos / 1_000_000_000,
        nanos: (nanos % 1_000_000_000) as i32,
    }
}

/// The instant that an RFC 3339 text names.
pub(crate) fn parse_timestamp(text: &str) -> Option<prost_types::Timestamp> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(prost_types::Timestamp {
        seconds: time.unix_timestamp(),
        nanos: i32::try_from(time.nanosecond()).ok()?,
    })
}

/// RFC 3339 in UTC, with a fraction only where there is one; empty for a time no calendar has.
pub(crate) fn format_timestamp(time: prost_types::Timestamp) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}
