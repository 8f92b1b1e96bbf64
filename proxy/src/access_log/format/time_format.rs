//! Times in access logs: `strftime` conversions plus Envoy's `%3f`, `%6f`, `%9f`, `%f` (fractions of a second),
//! `%s` (seconds since the epoch) and `%E3S` (seconds with a fraction). In UTC, or
//! (`START_TIME_LOCAL`) in the zone of the machine.

use std::fmt::{self, Write as _};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, OffsetDateTime, UtcOffset};
use tz::TimeZone;

use crate::invalid::Invalid;

/// A parsed time format.
#[derive(Debug, Clone)]
pub(crate) struct TimeFormat {
    parts: Vec<Part>,
    is_local: bool,
}

/// Where on earth a time is read.
#[derive(Clone, Copy)]
struct Zone<'a> {
    offset: UtcOffset,
    name: &'a str,
}

/// The zone of the machine: `TZ`, else `/etc/localtime`, else (as with Envoy) UTC.
#[expect(
    clippy::disallowed_methods,
    reason = "the zone is said as to every program of the machine, not as to this one"
)]
static LOCAL: LazyLock<TimeZone> = LazyLock::new(|| {
    let zone = std::env::var("TZ").unwrap_or("localtime".to_owned());
    TimeZone::from_posix_tz(&zone).unwrap_or_else(|_| TimeZone::utc())
});

#[derive(Debug, Clone)]
enum Part {
    Literal(Box<str>),
    /// One `strftime` conversion.
    Field(char),
    /// A fraction with so many digits; the flag puts the seconds and a dot before it.
    Fraction(usize, bool),
}

impl Default for TimeFormat {
    /// `2020-01-02T03:04:05.678Z`
    fn default() -> Self {
        TimeFormat::utc(vec![
            Part::Field('F'),
            Part::Literal("T".into()),
            Part::Field('H'),
            Part::Literal(":".into()),
            Part::Field('M'),
            Part::Literal(":".into()),
            Part::Fraction(3, true),
            Part::Literal("Z".into()),
        ])
    }
}

impl TimeFormat {
    fn utc(parts: Vec<Part>) -> Self {
        TimeFormat {
            parts,
            is_local: false,
        }
    }

    /// The same for local times; an empty one is `2020-01-02T03:04:05.678+0200`.
    pub(crate) fn parse_local(text: &str) -> Result<Self, Invalid> {
        let text = if text.is_empty() {
            "%FT%H:%M:%E3S%z"
        } else {
            text
        };
        let parts = Self::parse(text)?.parts;
        Ok(TimeFormat {
            parts,
            is_local: true,
        })
    }

    /// Parses a format; an empty one is the default.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(TimeFormat::default());
        }
        if text.contains('\n') {
            return Err(Invalid::new("a time format must not contain a new line"));
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            let is_extended = chars.next_if_eq(&'E').is_some();
            let digit = chars
                .next_if(char::is_ascii_digit)
                .and_then(|c| c.to_digit(10));
            let conversion = chars.next();
            let digits = digit.and_then(|digit| usize::try_from(digit).ok());
            let part = match (conversion, digits) {
                (Some('%'), None) => {
                    literal.push('%');
                    continue;
                }
                (Some('f'), digits) => Part::Fraction(digits.unwrap_or(9).clamp(1, 9), false),
                (Some('S'), Some(digits)) if is_extended => {
                    Part::Fraction(digits.clamp(1, 9), true)
                }
                (Some(c), None) if "YmdHMSsFTDRyjaAbBehIpZzuwCn".contains(c) => Part::Field(c),
                (Some('E'), _) | (None, _) => {
                    return Err(Invalid::new("the time format ends in the middle"));
                }
                (Some(c), _) => {
                    return Err(Invalid::new(format!("unknown time conversion '%{c}'")));
                }
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(part);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(TimeFormat::utc(parts))
    }

    /// Appends `time`.
    pub(crate) fn write(&self, time: SystemTime, out: &mut String) {
        let moment = OffsetDateTime::from(time);
        let zone = if self.is_local {
            Zone::local(moment)
        } else {
            Zone::UTC
        };
        let moment = moment.to_offset(zone.offset);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Field(conversion) => write_field(*conversion, moment, time, zone, out),
                Part::Fraction(digits, with_seconds) => {
                    if *with_seconds {
                        let _ = write_two(moment.second(), out);
                        out.push('.');
                    }
                    let mut unit = 100_000_000;
                    for _ in 0..*digits {
                        out.push(digit(moment.nanosecond() / unit));
                        unit /= 10;
                    }
                }
            }
        }
    }
}

impl Zone<'_> {
    const UTC: Zone<'static> = Zone {
        offset: UtcOffset::UTC,
        name: "UTC",
    };

    fn local(moment: OffsetDateTime) -> Zone<'static> {
        Zone::of(&LOCAL, moment).unwrap_or(Zone::UTC)
    }

    fn of(zone: &TimeZone, moment: OffsetDateTime) -> Option<Zone<'_>> {
        let found = zone.find_local_time_type(moment.unix_timestamp()).ok()?;
        Some(Zone {
            offset: UtcOffset::from_whole_seconds(found.ut_offset()).ok()?,
            // A zone that is nowhere has no name of its own.
            name: match found.time_zone_designation() {
                "" => "UTC",
                name => name,
            },
        })
    }

    /// `+0530`
    fn write_offset(self, out: &mut String) -> fmt::Result {
        let minutes = self.offset.whole_minutes();
        out.write_char(if minutes < 0 { '-' } else { '+' })?;
        let minutes = minutes.unsigned_abs();
        write!(out, "{:02}{:02}", minutes / 60, minutes % 60)
    }
}

/// The last digit of a number.
fn digit(number: u32) -> char {
    char::from_digit(number % 10, 10).unwrap_or('0')
}

/// The formatter would take ten times as long, and every line of a log has a time.
fn write_two(number: u8, out: &mut String) -> fmt::Result {
    out.write_char(digit(u32::from(number) / 10))?;
    out.write_char(digit(u32::from(number)))
}

fn write_date(date: Date, out: &mut String) -> fmt::Result {
    write!(out, "{}-", date.year())?;
    write_two(u8::from(date.month()), out)?;
    out.write_char('-')?;
    write_two(date.day(), out)
}

fn write_field(
    conversion: char,
    moment: OffsetDateTime,
    time: SystemTime,
    zone: Zone<'_>,
    out: &mut String,
) {
    let date: Date = moment.date();
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second) = moment.to_hms();
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let weekday = date.weekday();
    // Writing to a string cannot fail.
    let _ = match conversion {
        'Y' => write!(out, "{year}"),
        'C' => write!(out, "{:02}", year / 100),
        'y' => write!(out, "{:02}", year % 100),
        'e' => write!(out, "{day:2}"),
        'm' => write_two(month, out),
        'd' => write_two(day, out),
        'H' => write_two(hour, out),
        'M' => write_two(minute, out),
        'S' => write_two(second, out),
        'F' => write_date(date, out),
        'I' => write!(out, "{twelve:02}"),
        'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
        's' => write!(
            out,
            "{}",
            time.duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs()
        ),
        'D' => write!(out, "{month:02}/{day:02}/{:02}", year % 100),
        'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
        'R' => write!(out, "{hour:02}:{minute:02}"),
        'j' => write!(out, "{:03}", date.ordinal()),
        'a' => write!(out, "{:.3}", weekday.to_string()),
        'A' => write!(out, "{weekday}"),
        'b' | 'h' => write!(out, "{:.3}", date.month().to_string()),
        'B' => write!(out, "{}", date.month()),
        'u' => write!(out, "{}", weekday.number_from_monday()),
        'w' => write!(out, "{}", weekday.number_days_from_sunday()),
        'Z' => write!(out, "{}", zone.name),
        'z' => zone.write_offset(out),
        _ => writeln!(out),
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn places_have_their_own_time() {
        let zone = TimeZone::from_posix_tz("IST-5:30").unwrap();
        let moment = OffsetDateTime::from_unix_timestamp(1_522_796_769).unwrap();
        let zone = Zone::of(&zone, moment).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(1_522_796_769);
        let mut out = String::new();
        for conversion in "FTZzs".chars() {
            write_field(
                conversion,
                moment.to_offset(zone.offset),
                time,
                zone,
                &mut out,
            );
            out.push(' ');
        }
        assert_eq!(out, "2018-04-04 04:36:09 IST +0530 1522796769 ");
        let mut out = String::new();
        let west = UtcOffset::from_hms(-3, -30, 0).unwrap();
        Zone {
            offset: west,
            name: "NST",
        }
        .write_offset(&mut out)
        .unwrap();
        assert_eq!(out, "-0330");
    }

    #[test]
    fn conversions() {
        let time = UNIX_EPOCH + Duration::from_nanos(1_522_796_769_123_456_789);
        let text = |format: &str| {
            let mut out = String::new();
            TimeFormat::parse(format).unwrap().write(time, &mut out);
            out
        };
        assert_eq!(text(""), "2018-04-03T23:06:09.123Z");
        assert_eq!(text("%Y/%m/%dT%H:%M:%S%z"), "2018/04/03T23:06:09+0000");
        assert_eq!(
            text("%s.%3f %6f %9f %f"),
            "1522796769.123 123456 123456789 123456789"
        );
        assert_eq!(text("%E3S|%a %b %e %p %I %%"), "09.123|Tue Apr  3 PM 11 %");
        assert!(TimeFormat::parse("%Q").is_err());
        assert!(TimeFormat::parse("%").is_err());
    }
}
