//! What an SQL statement does to which tables, as far as its first words tell.

use std::collections::BTreeMap;

/// Tables with the operations on them.
pub(super) type Tables = BTreeMap<String, Vec<&'static str>>;

/// The tables of a statement; none when it is not a known one.
pub(super) fn parse(text: &str) -> Option<Tables> {
    let words = words(text);
    let is = |index: usize, word: &str| {
        words
            .get(index)
            .is_some_and(|found: &String| found.eq_ignore_ascii_case(word))
    };
    let mut tables = Tables::new();
    let first = words.first()?.to_ascii_lowercase();
    match first.as_str() {
        "select" => from(&words, 1, "select", &mut tables),
        "delete" => from(&words, 1, "delete", &mut tables),
        "insert" | "replace" => {
            let into = words
                .iter()
                .position(|word| word.eq_ignore_ascii_case("into"))?;
            add(words.get(into + 1), "insert", &mut tables)?;
            from(&words, into + 2, "select", &mut tables);
        }
        "update" => {
            let skipped = ["low_priority", "ignore"];
            let target = words
                .iter()
                .skip(1)
                .find(|word| !skipped.contains(&word.to_ascii_lowercase().as_str()));
            add(target, "update", &mut tables)?;
        }
        "create" | "drop" | "alter" => {
            let operation = match first.as_str() {
                "create" => "create",
                "drop" => "drop",
                _ => "alter",
            };
            let mut index = 1;
            while !is(index, "table")
                && !is(index, "database")
                && !is(index, "view")
                && !is(index, "index")
            {
                index += 1;
                if index >= words.len() {
                    return None;
                }
            }
            let is_table = is(index, "table");
            index += 1;
            if is(index, "if") {
                index += if is(index + 1, "not") { 3 } else { 2 };
            }
            let target = words.get(index)?;
            if is_table {
                add(Some(target), operation, &mut tables)?;
            }
        }
        "show" => {
            from(&words, 1, "show", &mut tables);
        }
        "set" | "use" | "begin" | "start" | "commit" | "rollback" | "truncate" | "describe"
        | "explain" => {}
        _ => return None,
    }
    Some(tables)
}

/// The tables behind FROM and JOIN.
fn from(words: &[String], begin: usize, operation: &'static str, tables: &mut Tables) {
    let mut index = begin;
    while index < words.len() {
        let word = words[index].to_ascii_lowercase();
        index += 1;
        if word != "from" && word != "join" {
            continue;
        }
        loop {
            let _ = add(words.get(index), operation, tables);
            // An alias may stand between a table and the comma.
            let comma =
                (index + 1..=index + 3).find(|at| words.get(*at).is_some_and(|word| word == ","));
            match comma {
                Some(at) if word == "from" => index = at + 1,
                _ => break,
            }
        }
    }
}

fn add(word: Option<&String>, operation: &'static str, tables: &mut Tables) -> Option<()> {
    let word = word.filter(|word| {
        word.chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '.'))
    })?;
    // `database.table` is shown as `table.database`.
    let name = match word.split_once('.') {
        Some((database, table)) => format!("{table}.{database}"),
        None => word.clone(),
    };
    let operations = tables.entry(name).or_default();
    if !operations.contains(&operation) {
        operations.push(operation);
    }
    Some(())
}

/// Words and marks; quotes of names are taken off, texts are kept as one word in quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    let mut flush = |word: &mut String| {
        if !word.is_empty() {
            words.push(std::mem::take(word));
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '`' => word.extend(chars.by_ref().take_while(|c| *c != '`')),
            '\'' | '"' => {
                flush(&mut word);
                let quoted: String = chars.by_ref().take_while(|other| *other != c).collect();
                flush(&mut format!("'{quoted}'"));
            }
            ',' | '(' | ')' | ';' | '=' => {
                flush(&mut word);
                flush(&mut c.to_string());
            }
            c if c.is_whitespace() => flush(&mut word),
            c => word.push(c),
        }
    }
    flush(&mut word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_operations_are_found() {
        for (text, expected) in [
            (
                "SELECT a FROM t1, t2 AS x, db.t3 WHERE a = 'from t9'",
                "t1=select t2=select t3.db=select",
            ),
            (
                "insert into `orders` (a) select a from old",
                "old=select orders=insert",
            ),
            ("INSERT IGNORE INTO t VALUES (1)", "t=insert"),
            ("update t set a = 1", "t=update"),
            ("delete from t where 1", "t=delete"),
            ("CREATE TABLE IF NOT EXISTS t (a INT)", "t=create"),
            ("drop table if exists t", "t=drop"),
            ("alter table t add b int", "t=alter"),
            ("create database d", ""),
            ("show tables", ""),
        ] {
            let tables = parse(text).unwrap_or_else(|| panic!("{text}"));
            let found: Vec<_> = tables
                .iter()
                .map(|(table, operations)| format!("{table}={}", operations.join("+")))
                .collect();
            assert_eq!(found.join(" "), expected, "{text}");
        }
        for text in ["", "hello", "insert t", "create"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
