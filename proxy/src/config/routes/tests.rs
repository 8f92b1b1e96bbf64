//! Tests of discovered virtual hosts when their table is configured anew.

use super::*;

#[test]
fn what_was_discovered_stays_as_long_as_it_is_asked_for() {
    let demand = Demand::default();
    demand.set_ads(true);
    let slots = RouteSlots::default();
    let table = |name: &str, timeout: &str| -> RouteConfiguration {
        let source = format!("{{ads: {{}}, initial_fetch_timeout: {timeout}}}");
        proto::yaml::from_str(&format!(
            "{{name: {name}, vhds: {{config_source: {source}}}}}"
        ))
        .unwrap()
    };
    let has_host = |slot: &RouteSlot| {
        let table = slot.load().unwrap();
        slot.hosts.lock().by_name.contains_key("one/a")
            && *slot.has_hosts.borrow()
            && table.discovery.is_some()
    };
    let first = slots.with(table("one", "1s"), &demand).unwrap();
    assert!(!has_host(&first));
    let host = proto::yaml::from_str("{name: one/a, domains: [a]}").unwrap();
    let changes = HostChanges {
        changed: vec![("one/a".into(), "1".into(), host)],
        removed: Vec::new(),
    };
    first.change_hosts(&changes).unwrap();
    first.hosts_answered();
    assert!(has_host(&first));
    // A listener that is changed makes a table of its own, and another timeout is not another source.
    let again = slots.with(table("one", "2s"), &demand).unwrap();
    assert!(has_host(&again));
    let wire = table("one", "3s");
    again
        .store(wire.clone(), &proto::any::pack(&wire), "", &demand)
        .unwrap();
    assert!(has_host(&again));
    assert!(!has_host(&slots.with(table("two", "1s"), &demand).unwrap()));
}
