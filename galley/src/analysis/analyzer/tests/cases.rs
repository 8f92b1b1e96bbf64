//! A case for each code: `testdata/analysis/*.yaml`, where comments of the form `# IST0101 Error Kind name` (or `# nothing`) tell
//! what analysis finds in the text below them, up to the next such comment. What has to do with namespaces names one; the others
//! are of `default`.

use super::*;
use message::CODES;
use std::{collections::BTreeSet, fs, path::PathBuf};

/// Codes that a text cannot show: the networks come from a file of their own, the other two from a cluster (`tests/it/standing_in.rs`).
const NOT_OF_A_TEXT: [&str; 3] = ["IST0126", "IST0141", "IST0142"];

/// One case: where it is, what it wants, the text.
struct Case {
    place: String,
    want: Vec<String>,
    text: String,
}

fn cases() -> Vec<Case> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/analysis");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().flat_map(cases_of).collect()
}

fn cases_of(file: &PathBuf) -> Vec<Case> {
    let name = file.file_name().unwrap().to_string_lossy();
    let mut cases: Vec<Case> = Vec::new();
    let mut is_head = false;
    for (index, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
        let told = line
            .strip_prefix("# ")
            .filter(|told| told.starts_with("IST") || *told == "nothing");
        if let Some(told) = told {
            if !is_head {
                cases.push(Case {
                    place: format!("{name}:{}", index + 1),
                    want: Vec::new(),
                    text: String::new(),
                });
            }
            let case = cases.last_mut().unwrap();
            case.want
                .extend((told != "nothing").then(|| told.to_owned()));
        } else if let Some(case) = cases.last_mut() {
            case.text += line;
            case.text += "\n";
        }
        is_head = told.is_some();
    }
    cases
}

#[test]
fn each_case_is_told_what_its_comments_say() {
    let mut wrong = Vec::new();
    for case in cases() {
        let mut input = Input::new("default");
        input.add_usual_gateway();
        input.add_text(&case.text, "x.yaml");
        let (context, problems) = input.into_context().unwrap();
        assert!(problems.is_empty(), "{}: {problems:?}", case.place);
        let mut found: Vec<String> = analyze(&context, &all(), &Suppressions::default())
            .iter()
            .map(|message| {
                let (code, level) = (message.code, message.level);
                format!("{code} {level} {} {}", message.kind, message.name)
            })
            .collect();
        found.sort();
        found.dedup();
        let mut want = case.want;
        want.sort();
        if found != want {
            wrong.push(format!("{}: found {found:?}, not {want:?}", case.place));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_case_at_its_level() {
    let told: BTreeSet<String> = cases().into_iter().flat_map(|case| case.want).collect();
    for code in CODES {
        let start = format!("{} {} ", code.id, code.level);
        let is_shown = told.iter().any(|want| want.starts_with(&start));
        assert_eq!(
            is_shown,
            !NOT_OF_A_TEXT.contains(&code.id),
            "{} ({})",
            code.id,
            code.name
        );
    }
}

#[test]
fn networks_name_registries_that_are_known() {
    let told = |secret: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let networks = "networks: {far: {endpoints: [{fromRegistry: elsewhere}]}}";
        fs::write(file.path(), networks).unwrap();
        let mut input = Input::new("default");
        input.read_networks(&file.path().to_owned()).unwrap();
        input.add_text(secret, "x.yaml");
        let (context, _) = input.into_context().unwrap();
        let messages = analyze(&context, &all(), &Suppressions::default());
        let lines = messages.iter().map(|m| format!("{} {}", m.code, m.level));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(told(""), ["IST0126 Error"]);
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: far, labels: {istio/multiCluster: 'true'}}, stringData: {elsewhere: x}}";
    assert_eq!(told(secret), [""; 0]);
}

#[test]
fn every_message_is_suppressed_by_its_code_and_object() {
    for case in cases() {
        let mut input = Input::new("default");
        input.add_usual_gateway();
        input.add_text(&case.text, "x.yaml");
        let (context, _) = input.into_context().unwrap();
        let quiet: Vec<String> = analyze(&context, &all(), &Suppressions::default())
            .iter()
            .map(|message| format!("{}={}", message.code, message.resource))
            .collect();
        let suppressions = Suppressions::parse(&quiet).unwrap();
        let left = analyze(&context, &all(), &suppressions);
        assert!(left.is_empty(), "{}: {left:?}", case.place);
    }
}
