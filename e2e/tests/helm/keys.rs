//! The keys of the 1.4 line's values, one by one: each changes what renders, or is refused with a sentence. The tables are in
//! `keys/`: a key and its value, the object that it changes (one behind `!` is gone), and what is in that object then and was not
//! before. A key alone says what holds anyway.

use std::thread;

use serde_json::{Value, json};

use crate::{find, name, render, template};

/// Everything that a key may speak of is there.
const ON: &str = "gateways.istio-egressgateway.enabled=true gateways.istio-ilbgateway.enabled=true grafana.enabled=true \
    tracing.enabled=true";
/// Keys that can be meant together.
const TABLES: &[&str] = &[
    include_str!("keys/together.txt"),
    include_str!("keys/without.txt"),
    include_str!("keys/remote.txt"),
];
const REFUSED: &str = include_str!("keys/refused.txt");

fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| row.split(" | ").collect()).collect()
}

/// `a.b=VALUE`, VALUE as JSON or else a text, for all of them; what comes first stays.
fn values<'a>(settings: impl Iterator<Item = &'a str>) -> String {
    let mut values = json!({});
    for setting in settings {
        let (path, value) = setting.split_once('=').unwrap();
        let keys = path.split('.');
        let place = keys.fold(&mut values, |place, key| &mut place[key]);
        if place.is_null() {
            *place = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        }
    }
    values.to_string()
}

/// Renders all rows at once, and looks at each.
fn check(base: &[Value], rows: &[Vec<&str>]) {
    let settings = rows.iter().map(|row| row[0]).chain(ON.split(' '));
    let objects = render("bireme", &[], &values(settings));
    for row in rows {
        match row[..] {
            [_] => {}
            [setting, gone] => {
                let gone = gone.strip_prefix('!').unwrap();
                find(base, gone);
                let is_left = objects.iter().any(|object| name(object) == gone);
                assert!(!is_left, "{setting} left {gone}");
            }
            [setting, object, text] => {
                let found = find(&objects, object).to_string();
                assert!(found.contains(text), "{setting}: {found}");
                let before = base.iter().find(|one| name(one) == object);
                let was_there = before.is_some_and(|before| before.to_string().contains(text));
                assert!(!was_there, "{setting} changes nothing");
            }
            _ => panic!("{row:?}"),
        }
    }
}

#[test]
fn every_key_of_the_1_4_line_changes_what_renders() {
    let base = render("bireme", &[], &values(ON.split(' ')));
    for table in TABLES {
        check(&base, &rows(table));
    }
}

#[test]
fn or_is_refused_with_a_sentence() {
    let rows = rows(REFUSED);
    thread::scope(|scope| {
        for rows in rows.chunks(rows.len().div_ceil(2)) {
            scope.spawn(move || {
                for row in rows {
                    let (setting, sentence) = (row[0], row[1]);
                    let (is_good, output) = template("bireme", &[], &values([setting].into_iter()));
                    assert!(!is_good, "{setting} was taken");
                    assert!(output.contains(sentence), "{setting}: {output}");
                }
            });
        }
    });
}
