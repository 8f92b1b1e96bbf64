//! One log line: Istio's tab-separated text (`time level scope message key=value…`) or a JSON object.

use serde_json::{Map, Value};
use std::{collections::BTreeSet, fmt};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// Formats events; spans around an event are written with their fields, outermost first.
pub(super) struct Format {
    as_json: bool,
    caller: BTreeSet<String>,
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Map<String, Value>,
}

impl Format {
    pub(super) fn new(as_json: bool, caller: &str) -> Self {
        let caller = caller
            .split(',')
            .map(|scope| scope.trim().to_owned())
            .filter(|scope| !scope.is_empty())
            .collect();
        Self { as_json, caller }
    }

    fn shows_caller(&self, scope: &str) -> bool {
        self.caller.contains(scope) || (scope.contains("::") && self.caller.contains("default"))
    }
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let scope = metadata.target();
        let place = self
            .shows_caller(scope)
            .then(|| metadata.file().zip(metadata.line()))
            .flatten();
        let spans = spans_of::<S, N>(context);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        if self.as_json {
            let mut line = Map::new();
            line.insert("level".into(), level(*metadata.level()).into());
            line.insert("time".into(), time.into());
            line.insert("scope".into(), scope.into());
            if let Some((file, row)) = place {
                line.insert("caller".into(), format!("{file}:{row}").into());
            }
            line.insert("msg".into(), fields.message.into());
            if !spans.is_empty() {
                line.insert("spans".into(), spans.into());
            }
            line.extend(fields.rest);
            return writeln!(writer, "{}", Value::Object(line));
        }
        write!(writer, "{time}\t{}\t{scope}\t", level(*metadata.level()))?;
        if let Some((file, row)) = place {
            write!(writer, "{file}:{row}\t")?;
        }
        // A line is a line: whatever a peer sends cannot forge another.
        write!(writer, "{}", fields.message.replace('\n', "\\n"))?;
        for (key, value) in &fields.rest {
            match value {
                Value::String(text) if text.chars().any(|c| c.is_whitespace() || c == '"') => {
                    write!(writer, " {key}={text:?}")?;
                }
                Value::String(text) => write!(writer, " {key}={text}")?,
                value => write!(writer, " {key}={value}")?,
            }
        }
        for span in spans {
            write!(writer, " {}", span.replace('\n', "\\n"))?;
        }
        writeln!(writer)
    }
}

/// Spans around the event as `name{fields}`; the one every task has says nothing to a reader.
fn spans_of<S, N>(context: &FmtContext<'_, S, N>) -> Vec<String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let Some(scope) = context.event_scope() else {
        return Vec::new();
    };
    scope
        .from_root()
        .filter(|span| span.metadata().target() != "task")
        .map(|span| {
            let extensions = span.extensions();
            match extensions.get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => format!("{}{{{fields}}}", span.name()),
                _ => span.name().to_owned(),
            }
        })
        .collect()
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", value) => self.message = value.to_string(),
            (name, value) => {
                self.rest.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::{io, sync::Arc};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(as_json: bool) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Format::new(as_json, ""));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let _push = tracing::info_span!("push", node = "a").entered();
            tracing::warn!(target: "ads", nonce = 3, detail = "x y", "refused\nby proxy");
        });
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_is_tab_separated_and_cannot_be_broken() {
        let line = written(false);
        assert!(
            line.ends_with(
                "\twarn\tads\trefused\\nby proxy nonce=3 detail=\"x y\" push{node=\"a\"}\n"
            ),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn a_json_line_has_istios_keys() {
        let line: Value = serde_json::from_str(&written(true)).unwrap();
        assert_eq!(line["level"], "warn");
        assert_eq!(line["scope"], "ads");
        assert_eq!(line["msg"], "refused\nby proxy");
        assert_eq!(line["nonce"], 3);
    }
}
