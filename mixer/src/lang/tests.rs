//! The language as a table: what each expression is, and what it looked at.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proto_mesh::attribute::{Value, ValueType};

use super::{compile, compile_as, time_text};
use crate::attributes::{Bag, Tracker, Vocabulary};

fn vocabulary() -> Vocabulary {
    let declared: BTreeMap<String, ValueType> = [
        ("as", ValueType::String),
        ("bs", ValueType::String),
        ("ai", ValueType::Int64),
        ("ab", ValueType::Bool),
        ("ad", ValueType::Double),
        ("am", ValueType::StringMap),
        ("bm", ValueType::StringMap),
        ("adur", ValueType::Duration),
        ("at", ValueType::Timestamp),
        ("aip", ValueType::IpAddress),
        ("adns", ValueType::DnsName),
        ("source.workload.name", ValueType::String),
    ]
    .into_iter()
    .map(|(name, kind)| (name.to_owned(), kind))
    .collect();
    Vocabulary::new(&declared)
}

/// Attributes of a request.
type Input<'a> = &'a [(&'a str, Value)];

/// Value and references, or the error's text.
fn eval(text: &str, input: &[(&str, Value)]) -> Result<(String, String), String> {
    let vocabulary = vocabulary();
    let expression = compile(text, &vocabulary).map_err(|error| format!("compile: {error}"))?;
    let mut bag = Bag::new(&vocabulary);
    for (name, value) in input {
        bag.set(vocabulary.find(name).unwrap().slot, value.as_ref());
    }
    let mut tracker = Tracker::default();
    let value = expression.eval(&bag, &mut tracker);
    let referenced = tracker.to_text(&vocabulary).join(" ");
    match value {
        Ok(value) => Ok((value.to_text().into_owned(), referenced)),
        Err(error) => Err(format!("{error} [{referenced}]")),
    }
}

fn map(entries: &[(&'static str, &str)]) -> Value {
    Value::StringMap(
        entries
            .iter()
            .map(|(key, value)| (Cow::Borrowed(*key), (*value).to_owned()))
            .collect(),
    )
}

#[test]
fn operators_bind_as_in_go() {
    for (text, want) in [
        (r#"as | "a" + "b""#, "ab"),
        (r#"as | "y" == "y""#, "true"),
        (r#""a" == as | "a""#, "true"),
        (r#"false && false || true"#, "true"),
        (r#"true || false && false"#, "true"),
        (r#"1 + 2 == 3"#, "true"),
        ("`raw\\n`", "raw\\n"),
        (r#""\u00e9\x41\101\t" == "éAA	""#, "true"),
        ("'x'", "x"),
        ("TRUE", "true"),
        (r#""1h30m""#, "1h30m0s"),
        (r#""1.5ms""#, "1.5ms"),
        ("1e3", "1000"),
        ("(1) // comment", "1"),
        ("size(`héé`)", "5"),
        ("1\n", "1"),
        ("1 +\n2", "3"),
    ] {
        assert_eq!(
            eval(text, &[]).map(|(value, _)| value),
            Ok(want.into()),
            "{text}"
        );
    }
}

#[test]
fn what_cannot_be_compiled_is_refused() {
    for text in [
        "",
        "a",
        "as =",
        "as = bs",
        "@",
        "as bs",
        "as\n== bs",
        "-1",
        "!ab",
        "as % 5",
        "ai * 2",
        "1 + `a`",
        "am == am",
        "adur == adur",
        "ab < ab",
        "adur < adur",
        "as.b",
        "match(as)",
        "matches(as)",
        "as.match(bs)",
        "as.size()",
        "conditional(1, 2, 3)",
        "f(as)",
        "as[bs]",
        "am[1]",
        "am.foo[`x`]",
        "func",
        "as.type",
        "9223372036854775808",
        "1e999",
        "0x10",
        "'ab'",
        "\"a",
        "`a",
        "\"\\q\"",
        "(as",
        "as)",
        "am[as",
        "match(as, bs, as)",
        "ai | `x`",
        "1.",
        "size(`0s`)",
        "/* ",
        "(as).b",
    ] {
        // "1." is a double in Go; everything else must fail.
        let outcome = eval(text, &[]);
        if text == "1." {
            assert_eq!(outcome.map(|(value, _)| value), Ok("1".into()));
        } else {
            assert!(
                outcome
                    .as_ref()
                    .is_err_and(|error| error.starts_with("compile: ")),
                "{text}: {outcome:?}"
            );
        }
    }
}

#[test]
fn absence_is_an_error_except_before_a_bar() {
    let a = || ("as", Value::from("x"));
    let cases: &[(&str, Input<'_>, &str)] = &[
        ("as", &[], "lookup failed: 'as' [-as]"),
        ("as | bs", &[], "lookup failed: 'bs' [-as -bs]"),
        ("am[`k`]", &[], "lookup failed: 'am' [-am]"),
        (
            "am[as]",
            &[("am", map(&[]))],
            "lookup failed: 'as' [-as am]",
        ),
        ("ip(as) | ip(bs)", &[], "lookup failed: 'as' [-as]"),
        (
            "am[toLower(as)] | `x`",
            &[("am", map(&[]))],
            "lookup failed: 'as' [-as am]",
        ),
        (
            "as",
            &[("as", Value::Int64(1))],
            "error converting value of as to STRING [as]",
        ),
        ("ip(as)", &[a()], "could not convert x to IP_ADDRESS [as]"),
    ];
    for (text, input, want) in cases {
        assert_eq!(eval(text, input), Err((*want).into()), "{text}");
    }
    let cases: &[(&str, Input<'_>, &str, &str)] = &[
        ("as | `d`", &[], "d", "-as"),
        ("as | `d`", &[("as", Value::from(""))], "", "as"),
        ("as | (bs | `d`)", &[a()], "x", "as"),
        ("am[`k`]", &[("am", map(&[]))], "", "-am[k] am"),
        ("am[`k`] | `d`", &[("am", map(&[]))], "d", "-am[k] am"),
        (
            "am[as] | `d`",
            &[("am", map(&[("x", "v")])), a()],
            "v",
            "am am[x] as",
        ),
        (
            "(am | bm)[`k`]",
            &[("bm", map(&[("k", "v")]))],
            "v",
            "-am bm bm[k]",
        ),
        ("am | emptyStringMap()", &[], "map[]", "-am"),
        ("ab | as.startsWith(`x`) | true", &[a()], "true", "-ab as"),
        (
            "conditional(ab, as, bs)",
            &[("ab", Value::Bool(true)), a()],
            "x",
            "ab as",
        ),
        (
            "source.workload.name | `unknown`",
            &[],
            "unknown",
            "-source.workload.name",
        ),
    ];
    for (text, input, value, referenced) in cases {
        let want = ((*value).to_owned(), (*referenced).to_owned());
        assert_eq!(eval(text, input), Ok(want), "{text}");
    }
}

#[test]
fn functions_do_what_they_did() {
    for (text, want) in [
        ("match(`ns1.svc`, `ns1.*`)", "true"),
        ("match(`a*xb`, `*x*`)", "false"),
        ("match(`*xb`, `*x*`)", "true"),
        ("match(`anything`, `*`)", "true"),
        ("match(`a.svc`, `*.svc`)", "true"),
        ("`ab.*d`.matches(`xabcd`)", "true"),
        ("`abc`.endsWith(`bc`)", "true"),
        ("conditionalString(false, `a`, `b`)", "b"),
        ("toLower(`ÀB`)", "àb"),
        ("ip(`::ffff:10.0.0.1`) == ip(`10.0.0.1`)", "true"),
        ("ip(`010.0.0.1`)", "10.0.0.1"),
        (
            "timestamp(`2020-01-02T03:04:05+01:00`)",
            "2020-01-02T02:04:05Z",
        ),
        (
            "timestamp(`2020-01-02T03:04:05Z`) < timestamp(`2020-01-02T03:04:05.1Z`)",
            "true",
        ),
        ("dnsName(`A.b.`) == dnsName(`a.B`)", "true"),
        ("email(`a@B.c`) == email(`\"a\"@b.c`)", "true"),
        ("uri(`http://A:80/`) == uri(`HTTP://a:80/`)", "true"),
    ] {
        assert_eq!(
            eval(text, &[]).map(|(value, _)| value),
            Ok(want.into()),
            "{text}"
        );
    }
    let address = (
        "aip",
        Value::Bytes([vec![0; 10], vec![255, 255, 1, 2, 3, 4]].concat()),
    );
    assert_eq!(eval("aip == ip(`1.2.3.4`)", &[address]).unwrap().0, "true");
    assert!(eval("`(`.matches(as)", &[("as", Value::from("x"))]).is_err());
}

#[test]
fn a_place_may_demand_a_type() {
    let vocabulary = vocabulary();
    assert!(compile_as("ai == 1", ValueType::Bool, &vocabulary).is_ok());
    let error = compile_as("ai", ValueType::Bool, &vocabulary).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expression \"ai\" is of type INT64 where BOOL is expected"
    );
}

#[test]
fn nesting_has_a_limit() {
    for text in [
        format!("{}1{}", "(".repeat(5000), ")".repeat(5000)),
        vec!["as"; 5000].join("|"),
        format!("as{}", "[`x`]".repeat(5000)),
        "!".repeat(5000),
        format!("{}as", "match(".repeat(5000)),
        format!("as{}", ".a()".repeat(5000)),
    ] {
        assert!(compile(&text, &vocabulary()).is_err());
    }
}

#[test]
fn durations_are_written_as_in_go() {
    for text in [
        "0s",
        "1ns",
        "1.5µs",
        "20ms",
        "1.5s",
        "1m0s",
        "1h30m0s",
        "-2h0m0.000000001s",
    ] {
        let nanos = time_text::parse_duration(text).unwrap();
        assert_eq!(time_text::format_duration(nanos), text);
    }
    for text in ["", "1", "s", "1x", "-", "1s1", ".s", "9999999999h"] {
        assert_eq!(time_text::parse_duration(text), None, "{text}");
    }
    assert_eq!(time_text::parse_duration("0"), Some(0));
    assert_eq!(time_text::parse_duration("+.5s"), Some(500_000_000));
}

proptest! {
    #[test]
    fn nothing_panics(text in r#"([a-z]{1,4}|as|am|ai|[0-9.]{1,4}|"[^"]{0,4}"|[-|&=!<>+.()\[\]`'" \n\\]){0,24}"#) {
        let _ = eval(&text, &[("as", Value::from("x")), ("am", map(&[("x", "y")]))]);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in any::<String>()) {
        let _ = eval(&text, &[]);
    }

    #[test]
    fn durations_round_trip(nanos in any::<i64>()) {
        let nanos = nanos.max(-i64::MAX);
        let text = time_text::format_duration(nanos);
        let back = time_text::parse_duration(&text).unwrap();
        // A fraction goes through a double; below a microsecond a day, nobody measures.
        prop_assert!((back - nanos).abs() <= 1, "{text} {back} {nanos}");
    }

    #[test]
    fn names_are_checked_without_panic(text in r"[a-zé0-9.@:/%\[\]<>?#\x22 -]{0,16}") {
        let _ = super::names::check_dns_name(&text);
        let _ = super::names::parse_email(&text);
        let _ = super::names::parse_uri(&text);
        let _ = super::re2::compile(&text);
    }
}
