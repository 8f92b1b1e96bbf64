//! The Prometheus text form: `envoy_` in front, whatever is not a letter, digit or underscore becomes an underscore.

use super::{Reading, Value, histogram::BOUNDS};
use std::{collections::BTreeMap, fmt::Write as _};

/// Writes `readings` in the text exposition format, one `# TYPE` line a family.
pub(crate) fn write_prometheus(readings: &[Reading]) -> String {
    let mut families: BTreeMap<String, Vec<&Reading>> = BTreeMap::new();
    // What was never recorded would be two dozen lines of zeros for every cluster.
    let is_shown = |reading: &&Reading| !matches!(reading.value, Value::Histogram(None));
    for reading in readings.iter().filter(is_shown) {
        families
            .entry(metric_name(&reading.family))
            .or_default()
            .push(reading);
    }
    let mut text = String::new();
    for (name, readings) in families {
        let kind = match readings[0].value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(_) => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for reading in readings {
            write_reading(&mut text, &name, reading);
        }
    }
    text
}

fn write_reading(text: &mut String, name: &str, reading: &Reading) {
    let labels = labels(reading);
    match &reading.value {
        Value::Counter(value) | Value::Gauge(value) => {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
        Value::Histogram(summary) => {
            let summary = summary.clone().unwrap_or_default();
            let comma = if labels.is_empty() { "" } else { "," };
            let mut cumulative = 0;
            for (bound, count) in BOUNDS.iter().zip(summary.counts) {
                cumulative += count;
                let _ = writeln!(
                    text,
                    "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {cumulative}"
                );
            }
            let count = summary.count();
            let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", summary.sum);
            let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
        }
    }
}

fn labels(reading: &Reading) -> String {
    let mut labels = String::new();
    for (index, (name, value)) in reading.tags.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = write!(labels, "{comma}{}=\"{value}\"", sanitize(name));
    }
    labels
}

fn metric_name(family: &str) -> String {
    // Istio's own metrics (the mixer client's reports) keep their names.
    if family.starts_with("istio_") {
        sanitize(family)
    } else {
        format!("envoy_{}", sanitize(family))
    }
}

fn sanitize(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::stats::Store;
    use std::sync::Arc;

    #[test]
    fn names_and_labels_are_envoys() {
        let store = Arc::new(Store::default());
        let scope = store
            .root()
            .tagged("cluster", "envoy.cluster_name", "outbound|80||a.b");
        let total = scope.counter("upstream_cx_total");
        total.add(3);
        let class = scope.counter("upstream_rq_2xx");
        let text = super::write_prometheus(&store.read(|_, _| true));
        assert!(text.contains("# TYPE envoy_cluster_upstream_cx_total counter\n"));
        assert!(text.contains(
            "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"outbound|80||a.b\"} 3\n"
        ));
        assert!(text.contains("envoy_cluster_upstream_rq_xx{envoy_cluster_name=\"outbound|80||a.b\",envoy_response_code_class=\"2\"} 0\n"));
        drop(class);
    }
}
