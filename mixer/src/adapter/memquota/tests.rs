//! Windows, overrides and repeated calls, with time standing still unless told to go.

use serde_json::json;

use super::*;

const NAME: &str = "requestcount.instance.ns";

fn build(json: &Json) -> Arc<dyn Adapter> {
    let context = BuildContext::default();
    configure(json).unwrap().build(&context).unwrap()
}

fn limited(max: i64, duration: &str) -> Arc<dyn Adapter> {
    build(&json!({"quotas": [{
        "name": NAME, "maxAmount": max, "validDuration": duration,
        "overrides": [{"dimensions": {"source": "vip"}, "maxAmount": "100", "validDuration": "1s"}],
    }]}))
}

fn ask(
    adapter: &dyn Adapter,
    source: &'static str,
    amount: i64,
    best_effort: bool,
    id: &str,
) -> QuotaResult {
    let instance = Values {
        name: NAME,
        payload: Payload::Quota {
            dimensions: vec![("source", Val::String(source.into()))],
        },
    };
    let request = QuotaRequest {
        amount,
        best_effort,
        deduplication_id: id,
    };
    adapter.allocate(&instance, &request).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_window_gives_back_what_scrolls_out() {
    let adapter = limited(10, "1s");
    let granted = |amount, best_effort| ask(&*adapter, "a", amount, best_effort, "").granted;
    assert_eq!(granted(8, false), 8);
    assert_eq!(granted(3, false), 0);
    assert_eq!(granted(3, true), 2);
    assert_eq!(granted(0, false), 0);
    assert_eq!(granted(-4, false), -4);
    assert_eq!(granted(5, true), 4);
    tokio::time::advance(Duration::from_millis(900)).await;
    assert_eq!(granted(1, false), 0);
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(granted(10, false), 10);
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(granted(11, true), 10);
}

#[tokio::test(start_paused = true)]
async fn a_long_window_is_as_long_as_it_says() {
    let days = Duration::from_secs(30 * 86_400);
    let adapter = limited(10, "720h");
    let granted = || ask(&*adapter, "a", 10, true, "").granted;
    assert_eq!(granted(), 10);
    tokio::time::advance(days - Duration::from_secs(1)).await;
    assert_eq!(granted(), 0);
    // Its slots are of some minutes.
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(granted(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_fixed_window_gives_all_back_at_its_end() {
    let adapter = build(
        &json!({"quotas": [{"name": NAME, "maxAmount": 10, "validDuration": "10s",
        "rateLimitAlgorithm": "FIXED_WINDOW"}]}),
    );
    let ask = |amount, id| {
        let result = ask(&*adapter, "a", amount, true, id);
        (result.granted, result.valid_duration)
    };
    let left = Duration::from_millis;
    // It begins with the first call, wherever that falls.
    tokio::time::advance(left(12_300)).await;
    assert_eq!(ask(4, "1"), (4, left(10_000)));
    tokio::time::advance(left(9_000)).await;
    // Nothing that is granted outlives it.
    assert_eq!(ask(9, "2"), (6, left(1_000)));
    assert_eq!(ask(1, ""), (0, left(1_000)));
    assert_eq!(ask(-2, ""), (-2, left(1_000)));
    assert_eq!(ask(9, ""), (2, left(1_000)));
    tokio::time::advance(left(900)).await;
    assert_eq!(ask(1, ""), (0, left(100)));
    assert_eq!(ask(9, "2"), (6, left(100)), "as it was told");
    tokio::time::advance(left(100)).await;
    // A rolling one would still lack what was taken a second ago.
    assert_eq!(ask(11, ""), (10, left(10_000)));
    let sliding = json!({"quotas": [{"name": NAME, "rateLimitAlgorithm": "SLIDING"}]});
    assert!(configure(&sliding).is_err());
}

#[tokio::test(start_paused = true)]
async fn dimensions_have_cells_and_overrides() {
    let adapter = limited(1, "5s");
    assert_eq!(ask(&*adapter, "a", 1, false, "").granted, 1);
    assert_eq!(ask(&*adapter, "a", 1, false, "").granted, 0);
    assert_eq!(
        ask(&*adapter, "b", 1, false, "").valid_duration,
        Duration::from_secs(5)
    );
    let vip = ask(&*adapter, "vip", 50, false, "");
    assert_eq!(
        (vip.granted, vip.valid_duration),
        (50, Duration::from_secs(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_is_not_charged_twice() {
    let adapter = limited(10, "10s");
    assert_eq!(ask(&*adapter, "a", 6, false, "1").granted, 6);
    tokio::time::advance(Duration::from_millis(500)).await;
    let again = ask(&*adapter, "a", 6, false, "1");
    assert_eq!(again.granted, 6);
    assert_eq!(again.valid_duration, Duration::from_millis(9500));
    assert_eq!(ask(&*adapter, "a", 6, false, "2").granted, 0);
    // Two intervals later nobody remembers.
    tokio::time::advance(Duration::from_millis(2500)).await;
    assert_eq!(ask(&*adapter, "a", 4, false, "1").granted, 4);
}

#[tokio::test(start_paused = true)]
async fn without_a_duration_a_quota_is_spent_for_good() {
    let adapter = limited(2, "0s");
    assert_eq!(ask(&*adapter, "a", 2, false, "").granted, 2);
    tokio::time::advance(Duration::from_secs(86_400)).await;
    assert_eq!(ask(&*adapter, "a", 1, false, "").granted, 0);
    assert_eq!(ask(&*adapter, "a", -1, false, "").granted, -1);
    assert_eq!(ask(&*adapter, "a", 1, false, "").granted, 1);
}

#[test]
fn an_unknown_quota_is_an_error() {
    let adapter = build(&json!({}));
    let instance = Values {
        name: NAME,
        payload: Payload::Quota {
            dimensions: Vec::new(),
        },
    };
    let request = QuotaRequest {
        amount: 1,
        best_effort: false,
        deduplication_id: "",
    };
    assert!(adapter.allocate(&instance, &request).is_err());
    assert!(configure(&json!({"minDeduplicationDuration": "0s"})).is_err());
}
