//! Metrics as they are exposed.

use serde_json::json;

use super::*;
use crate::template::DimensionSet;

fn context() -> BuildContext {
    BuildContext::default()
}

fn metric<'a>(name: &'a str, value: Val<'a>, dimensions: &[(&'a str, &'a str)]) -> Values<'a> {
    Values {
        name,
        payload: Payload::Metric {
            value,
            dimensions: DimensionSet::new(
                dimensions
                    .iter()
                    .map(|(name, value)| (*name, Val::String((*value).into())))
                    .collect(),
            ),
        },
    }
}

fn params() -> Json {
    json!({
    "metricsExpirationPolicy": {"metricsExpiryDuration": "10m"},
    "metrics": [
        {"name": "requests_total", "instance_name": "count.instance.ns", "kind": "COUNTER",
         "label_names": ["b", "a"]},
        {"name": "/sec.onds-x", "namespace": "my", "instanceName": "seconds.instance.ns", "kind": "DISTRIBUTION",
         "buckets": {"explicit_buckets": {"bounds": [0.1, 1]}}},
        {"name": "level", "instanceName": "level.instance.ns", "kind": "GAUGE", "description": "How\nhigh."},
    ]})
}

#[tokio::test(start_paused = true)]
async fn metrics_are_counted_exposed_and_expire() {
    let context = context();
    let handler = configure(&params()).unwrap().build(&context).unwrap();
    let (a, b) = (("a", "x"), ("b", "say \"hi\"\n"));
    handler
        .report(&[
            metric("count.instance.ns", Val::Int64(1), &[a, b]),
            metric("count.instance.ns", Val::String("2.5".into()), &[a, b]),
            metric("seconds.instance.ns", Val::Duration(100_000_000), &[]),
            metric("seconds.instance.ns", Val::Double(0.5), &[]),
            metric("seconds.instance.ns", Val::Int64(3), &[]),
            metric("level.instance.ns", Val::Int64(7), &[]),
        ])
        .unwrap();
    assert_eq!(
        context.prometheus.expose(),
        "# HELP istio_level How\\nhigh.\n# TYPE istio_level gauge\nistio_level 7\n\
         # HELP istio_requests_total requests_total\n# TYPE istio_requests_total counter\n\
         istio_requests_total{a=\"x\",b=\"say \\\"hi\\\"\\n\"} 3.5\n\
         # HELP my_sec_ondsx /sec.onds-x\n# TYPE my_sec_ondsx histogram\n\
         my_sec_ondsx_bucket{le=\"0.1\"} 1\nmy_sec_ondsx_bucket{le=\"1\"} 2\nmy_sec_ondsx_bucket{le=\"+Inf\"} 3\n\
         my_sec_ondsx_sum 3.6\nmy_sec_ondsx_count 3\n"
    );
    tokio::time::sleep(Duration::from_secs(599)).await;
    handler
        .report(&[metric("level.instance.ns", Val::Int64(8), &[])])
        .unwrap();
    tokio::time::sleep(Duration::from_secs(400)).await;
    let left = context.prometheus.expose();
    assert!(
        left.contains("istio_level 8") && !left.contains("requests_total"),
        "{left}"
    );
}

#[tokio::test]
async fn what_does_not_fit_is_an_error() {
    let handler = configure(&params()).unwrap().build(&context()).unwrap();
    for bad in [
        metric("count.instance.ns", Val::Int64(1), &[("a", "x")]),
        metric(
            "count.instance.ns",
            Val::Int64(1),
            &[("a", "x"), ("c", "y")],
        ),
        metric("other.instance.ns", Val::Int64(1), &[]),
        metric("level.instance.ns", Val::Bool(true), &[]),
    ] {
        assert!(handler.report(&[bad]).is_err());
    }
}

#[tokio::test]
async fn too_many_label_sets_share_a_series() {
    let context = context();
    let handler = configure(&params()).unwrap().build(&context).unwrap();
    for number in 0..50_010 {
        let text = number.to_string();
        let count = metric(
            "count.instance.ns",
            Val::Int64(1),
            &[("a", &text), ("b", "")],
        );
        handler.report(&[count]).unwrap();
    }
    let shown = context.prometheus.expose();
    let overflow = "istio_requests_total{a=\"__overflow__\",b=\"__overflow__\"} 10\n";
    assert!(shown.contains(overflow));
    let labels = ["", "too many label sets"];
    assert_eq!(context.dropped.with_label_values(&labels).get(), 10);
}

#[tokio::test]
async fn a_changed_description_starts_all_metrics_anew() {
    let context = context();
    let first = configure(&params()).unwrap().build(&context).unwrap();
    let count = || metric("level.instance.ns", Val::Int64(1), &[]);
    first.report(&[count()]).unwrap();
    let same = configure(&params()).unwrap().build(&context).unwrap();
    assert!(context.prometheus.expose().contains("istio_level 1"));
    let mut changed = params();
    changed["metrics"][0]["description"] = json!("new");
    let _changed = configure(&changed).unwrap().build(&context).unwrap();
    assert_eq!(context.prometheus.expose(), "");
    drop((first, same));
}

#[test]
fn bucket_definitions_are_as_documented() {
    let bounds = |buckets: Json| {
        let info: MetricInfo = serde_json::from_value(json!({
            "name": "n", "instanceName": "i", "kind": "DISTRIBUTION", "buckets": buckets}))
        .unwrap();
        info.bounds()
    };
    assert_eq!(
        bounds(json!({"linearBuckets": {"numFiniteBuckets": 3, "width": 2, "offset": 1}})),
        Ok(vec![1.0, 3.0, 5.0, 7.0])
    );
    let exponential =
        json!({"exponential_buckets": {"num_finite_buckets": 8, "scale": 1, "growth_factor": 10}});
    assert_eq!(bounds(exponential).unwrap().last(), Some(&1e8));
    assert!(bounds(json!({"explicitBuckets": {"bounds": [1, 1]}})).is_err());
    assert!(configure(&json!({"metrics": [{"name": "n", "instanceName": "i"}]})).is_err());
    assert!(
        configure(&json!({"metricsExpirationPolicy": {"metricsExpiryDuration": "0s"}})).is_err()
    );
}
