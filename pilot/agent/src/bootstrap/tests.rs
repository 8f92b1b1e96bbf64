//! Golden bootstraps: `testdata/bootstrap/CASE/{input.json,want.json}`; `REFRESH_GOLDEN=1` rewrites what is wanted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::args::{self, Action};
use crate::node::{Node, Surroundings};
use crate::settings::{self, Settings};

/// What a case is made of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    arguments: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    labels: String,
    #[serde(default)]
    addresses: Vec<std::net::IpAddr>,
    #[serde(default)]
    mesh: String,
}

fn built(input: &Input) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["pilot-agent".to_owned(), "proxy".to_owned()];
    arguments.extend(input.arguments.iter().cloned());
    if !input.mesh.is_empty() {
        let path = folder.path().join("mesh.yaml");
        fs::write(&path, &input.mesh).unwrap();
        arguments.extend(["--meshConfig".to_owned(), path.display().to_string()]);
    }
    let (command, unknown) = args::parse(arguments.into_iter().map(OsString::from));
    assert!(unknown.is_empty());
    let Action::Proxy(mut args) = command.action else {
        panic!("not the proxy command");
    };
    // The real environment must not leak in; what clap reads from it is set here.
    let variable = |name: &str| input.environment.get(name).cloned().unwrap_or_default();
    args.features.pod_name = variable("POD_NAME");
    args.features.pod_namespace = variable("POD_NAMESPACE");
    args.features.service_account = variable("SERVICE_ACCOUNT");
    args.mesh.proxy_config = variable("PROXY_CONFIG");
    args.ip = variable("INSTANCE_IP");
    let surroundings = Surroundings {
        variables: input.environment.clone(),
        labels: input.labels.clone(),
        addresses: input.addresses.clone(),
    };
    let node = Node::new(&args, &surroundings).unwrap();
    let mesh = settings::read_mesh(&args.mesh).unwrap();
    let settings = Settings::new(&args, mesh, node).unwrap();
    super::to_json(&super::build(&settings, &settings.sds_socket())).unwrap()
}

#[test]
fn bootstraps_are_as_wanted() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/bootstrap");
    let mut cases = 0;
    for case in fs::read_dir(folder).unwrap() {
        let case = case.unwrap().path();
        let input = fs::read_to_string(case.join("input.json")).unwrap();
        let got = built(&serde_json::from_str(&input).unwrap());
        let want = case.join("want.json");
        if std::env::var_os("REFRESH_GOLDEN").is_some() {
            fs::write(&want, &got).unwrap();
        }
        assert_eq!(
            got,
            fs::read_to_string(&want).unwrap(),
            "{}",
            case.display()
        );
        cases += 1;
    }
    assert!(cases >= 3);
}

#[test]
fn annotations_say_which_statistics_are_kept() {
    let built = |annotations: &str| {
        let input = serde_json::json!({
            "arguments": ["sidecar"],
            "environment": {
                "POD_NAME": "web", "POD_NAMESPACE": "shop", "INSTANCE_IP": "10.0.0.1",
                "ISTIO_METAJSON_ANNOTATIONS": annotations,
            },
            "mesh": "defaultConfig: {proxyStatsMatcher: {inclusionPrefixes: [of.mesh], inclusionRegexps: [of.+mesh]}}",
        });
        let text = built(&serde_json::from_value(input).unwrap());
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["stats_config"].to_string()
    };
    let stats = built(
        r#"{"sidecar.istio.io/statsInclusionPrefixes": "cluster.outbound, tcp",
            "sidecar.istio.io/statsInclusionSuffixes": "upstream_cx_active"}"#,
    );
    for kept in [
        r#"{"prefix":"cluster.outbound"}"#,
        r#"{"prefix":"tcp"}"#,
        r#"{"suffix":"upstream_cx_active"}"#,
        r#""regex":"of.+mesh""#,
    ] {
        assert!(stats.contains(kept), "{kept} is missing in {stats}");
    }
    assert!(!stats.contains("of.mesh"), "{stats}");
    assert!(built("{}").contains(r#"{"prefix":"of.mesh"}"#));
}

#[test]
fn a_proxy_without_a_name_and_broken_settings_are_refused() {
    let (command, _) = args::parse(["pilot-agent", "proxy"].map(OsString::from));
    let Action::Proxy(mut args) = command.action else {
        panic!("not the proxy command");
    };
    args.features.pod_name = String::new();
    let error = Node::new(&args, &Surroundings::default()).unwrap_err();
    assert!(error.to_string().contains("POD_NAME"), "{error}");
    args.id = Some("a.b".to_owned());
    let mut surroundings = Surroundings::default();
    surroundings
        .variables
        .insert("ISTIO_METAJSON_ANNOTATIONS".to_owned(), "{".to_owned());
    let error = Node::new(&args, &surroundings).unwrap_err();
    assert!(
        error.to_string().starts_with("ISTIO_METAJSON_ANNOTATIONS"),
        "{error}"
    );
    args.mesh.proxy_config = "concurency: 2".to_owned();
    let error = settings::read_mesh(&args.mesh).unwrap_err();
    assert!(format!("{error:#}").contains("concurency"), "{error:#}");
}
