//! Tests of asking on demand.

use super::*;

fn source() -> DemandSource {
    DemandSource(Key::of(Kind::OnDemandCluster, Source::Ads))
}

fn demand() -> Demand {
    let demand = Demand::default();
    demand.set_ads(true);
    demand
}

fn names(demand: &Demand) -> Names {
    let (_, mut all) = demand.names().remove(0);
    all.remove(&source().0).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_hears_what_came_of_it() {
    let demand = demand();
    let limit = Duration::from_secs(5);
    let ask = |name| demand.ask(&source(), name).unwrap().answered_within(limit);
    assert_eq!(ask("mute").await, Found::TooLate);
    let (one, two, gone) = (ask("there"), ask("there"), ask("gone"));
    demand.found(Kind::OnDemandCluster, ["there", "unasked"].into_iter());
    demand.gone(Kind::OnDemandCluster, "gone");
    assert_eq!(
        (one.await, two.await, gone.await),
        (Found::Yes, Found::Yes, Found::No)
    );
    // What is late is still there for the next.
    demand.found(Kind::OnDemandCluster, ["mute"].into_iter());
    assert_eq!(ask("mute").await, Found::Yes);
    assert_eq!(names(&demand).sorted(), ["mute", "there"]);
}

#[test]
fn what_was_gone_is_asked_for_once_more() {
    let demand = demand();
    demand.ask(&source(), "one").unwrap();
    demand.ask(&source(), "two").unwrap();
    let before = names(&demand);
    assert_eq!(before.new_since(&Names::default()), ["one", "two"]);
    demand.gone(Kind::OnDemandCluster, "one");
    assert_eq!(before.missing_in(&names(&demand)), ["one"]);
    demand.ask(&source(), "one").unwrap();
    let after = names(&demand);
    // Though its name was on the list all the time for who looks only now.
    assert_ne!(after, before);
    assert_eq!(after.new_since(&before), ["one"]);
    assert_eq!(before.missing_in(&after), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn names_without_an_answer_are_bounded() {
    let demand = demand();
    let ask = |name: &str| demand.ask(&source(), name);
    let waiting: Vec<_> = (0..MAX_UNANSWERED)
        .map(|number| ask(&number.to_string()).unwrap())
        .collect();
    assert!(ask("one more").is_none());
    // A name that is asked for already is no more.
    assert!(ask("0").is_some());
    // One with an answer leaves room for another, and those whom nobody waits for any more do.
    demand.found(Kind::OnDemandCluster, ["0"].into_iter());
    assert!(ask("one more").is_some());
    assert!(
        ask("two more").is_none(),
        "not each request looks at all names"
    );
    tokio::time::advance(LOOK).await;
    assert!(ask("two more").is_some());
    drop(waiting);
    tokio::time::advance(LOOK).await;
    assert!(ask("three more").is_some());
    assert_eq!(names(&demand).sorted(), ["0", "three more"]);
}

#[test]
fn bytes_of_names_are_bounded() {
    let demand = demand();
    assert!(demand.ask(&source(), &"x".repeat(MAX_NAME + 1)).is_none());
    let name = |number: usize| format!("{number:>MAX_NAME$}");
    let waiting: Vec<_> = (0..MAX_UNANSWERED)
        .map_while(|number| demand.ask(&source(), &name(number)))
        .collect();
    assert_eq!(waiting.len(), MAX_BYTES / MAX_NAME);
    demand.gone(Kind::OnDemandCluster, &name(0));
    assert!(demand.ask(&source(), "short").is_some());
}

#[test]
fn names_with_an_answer_are_bounded_too() {
    let demand = demand();
    for number in 0..MAX_NAMES {
        let name = number.to_string();
        demand.ask(&source(), &name).unwrap();
        demand.found(Kind::OnDemandCluster, [name.as_str()].into_iter());
    }
    assert!(demand.ask(&source(), "one more").is_none());
    demand.gone(Kind::OnDemandCluster, "0");
    assert!(demand.ask(&source(), "one more").is_some());
}

#[test]
fn names_go_with_their_table() {
    let demand = demand();
    let source = |table: &str| {
        let wire = proto::yaml::from_str("ads: {}").unwrap();
        DemandSource::virtual_hosts(&wire, table).unwrap()
    };
    let keep = |tables: &[&str]| -> Vec<Vec<String>> {
        let tables = tables
            .iter()
            .map(|table| (source(table).0, Arc::from(*table)));
        let mut wanted: BTreeMap<Key, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (key, table) in tables {
            wanted.entry(key).or_default().insert(table);
        }
        demand.keep_tables(&wanted);
        let (_, names) = demand.names().remove(1);
        names.into_values().map(|names| names.sorted()).collect()
    };
    // Without a name, too, it is wanted.
    assert_eq!(keep(&["one", "two"]), [Vec::<String>::new()]);
    for name in ["one/a", "two/b"] {
        demand.ask(&source("one"), name).unwrap();
    }
    // What was found has a name of its own.
    demand.found_as(&source("one").0, &["one/a".to_owned()], "one/host");
    assert_eq!(keep(&["one", "two"]), [["one/a", "two/b"]]);
    assert_eq!(keep(&["one"]), [["one/a"]]);
    demand.gone_from(&source("one").0, &HashSet::from(["one/host"]));
    assert_eq!(keep(&["one"]), [Vec::<String>::new()]);
    assert!(keep(&[]).is_empty());
}

#[test]
fn only_delta_is_asked() {
    let check = |text: &str| {
        let wire = proto::yaml::from_str(text).unwrap();
        DemandSource::clusters(&wire).and_then(|source| Demand::default().check(&source))
    };
    let grpc = |api: &str| {
        format!(
            "api_config_source: {{api_type: {api}, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}"
        )
    };
    let (delta, other) = (grpc("DELTA_GRPC"), grpc("GRPC"));
    check(&delta).unwrap();
    for text in ["ads: {}", "path_config_source: {path: /a}", &other] {
        let error = check(text).unwrap_err().to_string();
        assert!(error.contains("DELTA_GRPC"), "{error}");
    }
}
