//! `galley validate`, `galley version` and `galley probe`.

use super::*;

fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).unwrap();
}

#[test]
fn a_problem_has_place_object_path_and_hint() {
    let dir = tempfile::tempdir().unwrap();
    let bad = "# a comment\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: reviews\n  namespace: shop\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination:\n        hst: reviews\n";
    write(
        &dir,
        "bad.yaml",
        &format!("{}---\n{bad}", route("good", "good")),
    );
    let output = galley(&["validate", "-f", "bad.yaml"], dir.path());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text.lines().next().unwrap(),
        "bad.yaml:17: error: VirtualService shop/reviews: spec.http[0].route[0].destination.hst: unknown field; did you mean host?"
    );
    assert!(text.ends_with("1 of 2 objects are not valid\n"), "{text}");
}

#[test]
fn json_tells_each_document() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.yaml", &route("a", "a"));
    write(
        &dir,
        "b.yaml",
        "apiVersion: networking.istio.io/v7\nkind: Gateway\nmetadata: {name: g}\n",
    );
    write(
        &dir,
        "c.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
    );
    let output = galley(&["validate", "-f", ".", "-o", "json"], dir.path());
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        (&rows[0]["valid"], &rows[0]["kind"]),
        (&true.into(), &"VirtualService".into())
    );
    assert_eq!(rows[1]["errors"][0]["path"], "apiVersion");
    assert_eq!(rows[1]["errors"][0]["hint"], "write networking.istio.io/v1");
    assert_eq!(rows[2]["valid"], true);
}

/// Accepted with a warning, as its second route is never used.
const DOUBTFUL: &str = "# a comment
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: twice, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
  - route: [{destination: {host: ratings}}]
";

#[test]
fn standard_input_is_read_and_warnings_do_not_refuse() {
    let output = galley_reading(&["validate", "-f", "-"], DOUBTFUL);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let [warning, summary] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}");
    };
    assert_eq!(
        warning,
        "-:9: warning: VirtualService shop/twice: spec.http[1]: the route is never used: http[0] has no match and takes everything; only the last route should have none"
    );
    assert_eq!(summary, "1 objects are valid");

    let json = ["validate", "-f", "-", "-o", "json"];
    let output = galley_reading(&json, DOUBTFUL);
    assert_eq!(output.status.code(), Some(0));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = &rows[0];
    assert_eq!((&row["valid"], &row["file"]), (&true.into(), &"-".into()));
    assert_eq!(row["errors"], serde_json::json!([]));
    let warning = &row["warnings"][0];
    assert_eq!(
        (&warning["path"], &warning["line"]),
        (&"spec.http[1]".into(), &9.into())
    );

    let bad = format!("{DOUBTFUL}---\n{}", route("bad", "-"));
    let output = galley_reading(&json, &bad);
    assert_eq!(output.status.code(), Some(1));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let valid: Vec<&Value> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["valid"])
        .collect();
    assert_eq!(valid, [true, false]);
}

#[test]
fn analysis_reads_standard_input_and_documents_what_it_says() {
    let json = ["analyze", "-f", "-", "-o", "json"];
    let output = galley_reading(&json, &route("a", "nowhere"));
    assert_eq!(output.status.code(), Some(1));
    let messages: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(messages[0]["file"], "-");
    assert_eq!(
        messages[0]["documentation"],
        "The object refers to something that does not exist; correct the name, or create it."
    );
}

#[test]
fn exit_codes_tell_bad_objects_from_bad_use() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.yaml", &route("a", "a"));
    let code = |args: &[&str]| galley(args, dir.path()).status.code();
    assert_eq!(code(&["validate", "-f", "a.yaml"]), Some(0));
    assert_eq!(code(&["validate", "-f", "nowhere.yaml"]), Some(2));
    assert_eq!(code(&["validate"]), Some(2));
    assert_eq!(code(&["validate", "-f", "a.yaml", "-o", "xml"]), Some(2));
    assert_eq!(code(&["version", "--short"]), Some(0));
    assert_eq!(code(&["probe", "--probe-path", "none"]), Some(1));
    write(&dir, "alive", "");
    assert_eq!(code(&["probe", "--probe-path", "alive"]), Some(0));
}

#[test]
fn analysis_reads_a_folder_and_prints_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "a.yaml", &route("a", "nowhere"));
    let run = |args: &[&str]| {
        let output = galley(&[&["analyze", "-f", "."], args].concat(), dir.path());
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = run(&[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Error [IST0101] (VirtualService a"), "{text}");
    let (_, json) = run(&["-o", "json"]);
    let messages: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(messages[0]["code"], "IST0101");
    assert!(messages[0]["line"].as_u64().unwrap() > 1, "{json}");
    let (_, sarif) = run(&["-o", "sarif"]);
    let sarif: serde_json::Value = serde_json::from_str(&sarif).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["ruleId"], "IST0101");
    let (code, text) = run(&["-S", "IST0101=*"]);
    assert_eq!(
        (code, text.as_str()),
        (Some(0), "✔ No validation issues found.\n")
    );
    assert_eq!(run(&["--analyzer", "nonsense"]).0, Some(2));
    assert!(run(&["-L"]).1.contains("gateway.SecretAnalyzer"));
}
