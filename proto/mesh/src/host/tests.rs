//! Tables and properties of host names.

use proptest::prelude::*;

use super::*;

#[test]
fn short_names_belong_to_a_namespace() {
    for (host, want) in [
        ("reviews", "reviews.bookinfo.svc.cluster.local"),
        ("reviews.other", "reviews.other"),
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("", ""),
    ] {
        assert_eq!(resolve(host, "bookinfo", "cluster.local"), want);
    }
}

#[test]
fn a_service_is_found_in_its_full_name() {
    assert_eq!(
        service_of("a.b.svc.cluster.local", "cluster.local"),
        Some(("a", "b"))
    );
    for host in [
        "a.b.svc.other",
        "a.svc.cluster.local",
        "a.b.c.svc.cluster.local",
        "example.com",
        ".b.svc.cluster.local",
    ] {
        assert_eq!(service_of(host, "cluster.local"), None, "{host}");
    }
}

#[test]
fn wildcards_match_what_they_cover() {
    for (a, b, matching, subset) in [
        ("foo.com", "foo.com", true, true),
        ("foo.com", "bar.com", false, false),
        ("foo.com", "*", true, true),
        ("foo.com", "*.com", true, true),
        ("*.com", "foo.com", true, false),
        ("*.foo.com", "*.com", true, true),
        ("*.com", "*.foo.com", true, false),
        ("*.foo.com", "*.bar.com", false, false),
        ("*", "*", true, true),
        ("*", "*.com", true, false),
    ] {
        assert_eq!(matches(a, b), matching, "{a} {b}");
        assert_eq!(is_subset(a, b), subset, "{a} {b}");
    }
}

#[test]
fn the_most_specific_host_wins() {
    let patterns = ["*", "*.com", "*.foo.com", "a.foo.com"];
    for (host, want) in [
        ("a.foo.com", Some("a.foo.com")),
        ("b.foo.com", Some("*.foo.com")),
        ("bar.com", Some("*.com")),
        ("x.org", Some("*")),
        ("*.foo.com", Some("*.foo.com")),
    ] {
        assert_eq!(most_specific(host, patterns), want, "{host}");
    }
    assert_eq!(most_specific("x.org", ["y.org"]), None);
}

#[test]
fn a_namespaced_host_names_where_it_may_come_from() {
    assert!(NamespacedHost::parse("a.com").allows_namespace("x", "y"));
    assert!(NamespacedHost::parse("./a.com").allows_namespace("y", "y"));
    assert!(!NamespacedHost::parse("./a.com").allows_namespace("x", "y"));
    assert!(NamespacedHost::parse("x/a.com").allows_namespace("x", "y"));
    assert!(!NamespacedHost::parse("~/*").allows_namespace("x", "x"));
}

#[test]
fn hosts_are_dns_names_perhaps_with_a_wildcard() {
    for host in [
        "a", "a.b", "a.b.", "*", "*.a", "*-a.b", "*a.b", "A1.b-c", "123", "1.a",
    ] {
        assert_eq!(check(host), Ok(()), "{host}");
    }
    for host in [
        "",
        "a..b",
        "a.*",
        "foo*.bar",
        "a_b.c",
        "-",
        "ns/a",
        "1.1.1.1",
        "a.1",
        &"a".repeat(64),
    ] {
        assert!(check(host).is_err(), "{host}");
    }
    assert!(check_name("a.b.").is_ok() && check_name("*.a").is_err() && check_name("1").is_err());
    assert!(check_whole_wildcard("*.a").is_ok() && check_whole_wildcard("*").is_ok());
    assert!(check_whole_wildcard("*a.b").is_err());
}

fn any_host() -> impl Strategy<Value = String> {
    "(\\*|\\*\\.[ab]{1,2}(\\.[ab]{1,2}){0,2}|[ab]{1,2}(\\.[ab]{1,2}){0,3})"
}

proptest! {
    #[test]
    fn nothing_panics(host in ".*", other in ".*") {
        let _ = resolve(&host, &other, "cluster.local");
        let _ = matches(&host, &other);
        let _ = is_subset(&host, &other);
        let _ = service_of(&host, &other);
        let _ = NamespacedHost::parse(&host);
        let _ = check(&host);
        let _ = check_name(&host);
    }

    #[test]
    fn matching_goes_both_ways(a in any_host(), b in any_host()) {
        prop_assert_eq!(matches(&a, &b), matches(&b, &a));
    }

    #[test]
    fn a_subset_matches_and_is_no_less_specific(a in any_host(), b in any_host()) {
        if is_subset(&a, &b) {
            prop_assert!(matches(&a, &b));
            prop_assert!(compare_specificity(&a, &b) != Ordering::Greater);
        }
    }

    #[test]
    fn specificity_is_an_order(a in any_host(), b in any_host()) {
        prop_assert_eq!(compare_specificity(&a, &b), compare_specificity(&b, &a).reverse());
        prop_assert_eq!(compare_specificity(&a, &b) == Ordering::Equal, a == b);
    }
}
