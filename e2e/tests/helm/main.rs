//! The charts as Helm renders them: every chart alone, every profile, every switch. `$HELM` names the program
//! (`e2e/helm.sh` prints one); `e2e/test.sh charts` runs this.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod biremectl;
mod components;
mod images;
mod keys;
mod restricted;
mod secured;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

const COMPONENTS: &[&str] = &[
    "pilot",
    "citadel",
    "galley",
    "mixer",
    "injector",
    "gateway",
    "cni",
    "prometheus",
    "grafana",
    "tracing",
];
const PROFILES: &[&str] = &[
    "default",
    "demo",
    "minimal",
    "production",
    "remote",
    "sds",
    "demo-auth",
];

/// Folder of the charts, with what they depend on inside.
static CHARTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("bireme-charts-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm");
    // Links point out of the folder: what they name is copied.
    let copied = Command::new("cp")
        .arg("-rL")
        .arg(source)
        .arg(&folder)
        .status();
    assert!(copied.unwrap().success());
    for chart in COMPONENTS.iter().chain(&["bireme"]) {
        let (is_good, output) = helm(&["dependency", "build", &path(&folder, chart)], "");
        assert!(is_good, "{chart}: {output}");
    }
    folder
});

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

/// Runs Helm with `values` as its standard input: whether it was content, and what it said.
fn helm(arguments: &[&str], values: &str) -> (bool, String) {
    let program = std::env::var_os("HELM").expect("$HELM names a Helm; e2e/helm.sh prints one");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A Helm that has no use for values does not read them.
    let _ = child.stdin.take().unwrap().write_all(values.as_bytes());
    let output = child.wait_with_output().unwrap();
    let is_good = output.status.success();
    let text = if is_good {
        output.stdout
    } else {
        output.stderr
    };
    (is_good, String::from_utf8(text).unwrap())
}

fn template(chart: &str, files: &[String], values: &str) -> (bool, String) {
    let chart = path(&CHARTS, chart);
    let mut arguments = vec![
        "template",
        "istio",
        &chart,
        "-n",
        "istio-system",
        "--kube-version",
        "v1.34.0",
    ];
    for file in files {
        arguments.extend(["-f", file]);
    }
    arguments.extend(["-f", "-"]);
    helm(&arguments, values)
}

/// Everything that a chart makes of values.
fn render(chart: &str, files: &[String], values: &str) -> Vec<Value> {
    let (is_good, text) = template(chart, files, values);
    assert!(is_good, "{chart} {files:?} {values}: {text}");
    let documents = proto::yaml::parse_documents(&text).into_iter();
    documents.map(|document| document.unwrap().value).collect()
}

fn profile(name: &str) -> Vec<String> {
    vec![path(&CHARTS, &format!("profiles/{name}.yaml"))]
}

/// `Deployment istio-pilot`.
fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    format!(
        "{} {}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

fn names(objects: &[Value]) -> BTreeSet<String> {
    let all: BTreeSet<String> = objects.iter().map(name).collect();
    assert_eq!(all.len(), objects.len(), "an object is there twice");
    all
}

fn find<'a>(objects: &'a [Value], wanted: &str) -> &'a Value {
    let found = objects.iter().find(|object| name(object) == wanted);
    found.unwrap_or_else(|| panic!("there is no {wanted}"))
}

#[test]
fn every_chart_is_sound_and_renders_alone() {
    for chart in COMPONENTS.iter().chain(&["bireme", "bireme-init"]) {
        let (is_good, output) = helm(&["lint", &path(&CHARTS, chart)], "");
        assert!(is_good, "{chart}: {output}");
        assert!(!names(&render(chart, &[], "")).is_empty(), "{chart}");
    }
}

#[test]
fn every_kind_is_defined() {
    let definitions = names(&render("bireme-init", &[], ""));
    for kind in proto::kind::KINDS {
        let name = format!("CustomResourceDefinition {}.{}", kind.plural, kind.group);
        assert!(definitions.contains(&name), "{name}");
    }
}

#[test]
fn the_readmes_table_of_profiles_is_what_renders() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let mut rows = readme
        .lines()
        .skip_while(|line| !line.starts_with("| switched on |"))
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        });
    let head = rows.next().expect("the README has a table of profiles");
    assert_eq!(head[1..], *PROFILES);
    let rows: Vec<_> = rows.skip(1).collect();
    for (column, profile_name) in PROFILES.iter().enumerate() {
        let objects = names(&render("bireme", &profile(profile_name), ""));
        let rendered: BTreeSet<String> = objects
            .iter()
            .filter_map(|name| name.strip_prefix("Deployment ").map(str::to_owned))
            .collect();
        let promised: BTreeSet<String> = rows
            .iter()
            .filter(|row| row[column + 1] == "✓")
            .map(|row| row[0].trim_matches('`').to_owned())
            .collect();
        assert_eq!(promised, rendered, "profile {profile_name}");
    }
}

#[test]
fn a_switch_takes_away_its_component_and_nothing_else() {
    let all = names(&render("bireme", &profile("demo"), ""));
    // What goes is told by a part of its name; what comes is named whole.
    for (values, parts) in [
        (
            "pilot: {enabled: false}",
            vec!["istio-pilot", "ConfigMap istio"],
        ),
        ("security: {enabled: false}", vec!["istio-citadel"]),
        (
            "sidecarInjectorWebhook: {enabled: false}",
            vec!["istio-sidecar-injector"],
        ),
        ("mixer: {policy: {enabled: false}}", vec!["istio-policy"]),
        (
            "gateways: {enabled: false}",
            vec!["istio-ingressgateway", "istio-egressgateway"],
        ),
        (
            "gateways: {istio-egressgateway: {enabled: false}}",
            vec!["istio-egressgateway"],
        ),
        ("prometheus: {enabled: false}", vec![" prometheus"]),
        ("grafana: {enabled: false}", vec!["grafana"]),
        (
            "tracing: {enabled: false}",
            vec![
                "istio-tracing",
                "jaeger-",
                "Service zipkin",
                "Service tracing",
            ],
        ),
        (
            "global: {defaultPodDisruptionBudget: {enabled: false}}",
            vec!["PodDisruptionBudget"],
        ),
    ] {
        let left = names(&render("bireme", &profile("demo"), values));
        assert!(left.is_subset(&all), "{values}");
        let gone: Vec<&String> = all.difference(&left).collect();
        assert!(!gone.is_empty(), "{values}: nothing went");
        for name in &gone {
            let is_its_own = parts.iter().any(|part| name.contains(part));
            // Mixer's own configuration has names of its own.
            assert!(is_its_own, "{values} took {name}");
        }
        for part in parts.iter().filter(|part| !part.starts_with("ConfigMap")) {
            let stays = left.iter().find(|name| name.contains(part));
            let is_meant =
                stays.is_none_or(|name| name.starts_with("instance") || name.contains("rule"));
            assert!(
                is_meant || *part == " prometheus",
                "{values} left {stays:?}"
            );
        }
    }
    // Mixer as a whole takes its configuration along.
    let without = render("bireme", &profile("demo"), "mixer: {enabled: false}");
    assert!(
        without
            .iter()
            .all(|object| object["apiVersion"] != "config.istio.io/v1alpha2")
    );
    let more = names(&render(
        "bireme",
        &profile("demo"),
        "global: {networkPolicy: {enabled: true}}",
    ));
    let policies = more
        .difference(&all)
        .all(|name| name.starts_with("NetworkPolicy "));
    assert!(policies && more.len() > all.len());
}

#[test]
fn the_mesh_configuration_speaks_of_what_is_there() {
    let mesh = |values: &str| -> Value {
        let objects = render("bireme", &[], values);
        let text = find(&objects, "ConfigMap istio")["data"]["mesh"]
            .as_str()
            .unwrap()
            .to_owned();
        let read = proto::yaml::from_str::<proto::istio::mesh::v1alpha1::MeshConfig>(&text);
        assert!(read.is_ok(), "{values}: {read:?}\n{text}");
        proto::yaml::parse_documents(&text).remove(0).unwrap().value
    };
    let default = mesh("");
    assert_eq!(
        default["configSources"][0]["address"],
        "istio-galley.istio-system.svc:9901"
    );
    assert_eq!(
        default["mixerCheckServer"],
        "istio-policy.istio-system.svc.cluster.local:9091"
    );
    assert_eq!(default["enableAutoMtls"], true);
    let without = mesh("mixer: {policy: {enabled: false}}\nsecurity: {enabled: false}");
    assert!(
        without
            .get("mixerCheckServer")
            .is_none_or(|server| server == "")
    );
    assert_eq!(without["disablePolicyChecks"], true);
    assert!(without["enableAutoMtls"] != true);
    let strict = mesh(
        "global: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\nmeshConfig: {accessLogFile: /dev/stdout}",
    );
    assert_eq!(strict["outboundTrafficPolicy"]["mode"], "REGISTRY_ONLY");
    assert_eq!(strict["accessLogFile"], "/dev/stdout");
}

/// Helm does not look at the schema of a component that is switched off: the umbrella's own holds all of them.
#[test]
fn the_umbrellas_schema_has_those_of_the_components() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm");
    let read = |chart: &str| -> Value {
        let path = source.join(chart).join("values.schema.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let found = read("bireme");
    let mut wanted = found.clone();
    let chart = fs::read_to_string(source.join("bireme/Chart.yaml")).unwrap();
    let chart = proto::yaml::parse_documents(&chart)
        .remove(0)
        .unwrap()
        .value;
    for dependency in chart["dependencies"].as_array().unwrap() {
        let name = dependency["name"].as_str().unwrap();
        if name == "library" {
            continue;
        }
        let mut schema = read(name);
        schema.as_object_mut().unwrap().remove("$schema");
        wanted["properties"][dependency["alias"].as_str().unwrap_or(name)] = schema;
    }
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(&wanted).unwrap() + "\n";
        fs::write(source.join("bireme/values.schema.json"), text).unwrap();
    }
    assert!(found == wanted, "REFRESH_GOLDEN=1 rewrites it");
}

#[test]
fn what_we_do_not_have_is_refused_with_a_sentence() {
    for (values, sentence) in [
        ("pilot: {enabled: false, enabeld: true}", "enabeld"),
        ("grafana: {enabled: false, persit: true}", "persit"),
        ("mixer: {policy: {enabled: false, replicas: 2}}", "replicas"),
        ("mixer: {adapters: {stdio: {asJson: true}}}", "asJson"),
        (
            "gateways: {istio-egressgateway: {enabled: false, typ: ClusterIP}}",
            "typ",
        ),
        ("pilot: {enabeld: true}", "enabeld"),
        ("mixr: {enabled: true}", "mixr"),
        ("pilot: {autoscaleEnabled: 3}", "boolean"),
        (
            "global: {proxy: {imag: x}}",
            "global.proxy.imag is not a value of this chart; below global.proxy there are:",
        ),
        (
            "global: {outboundTrafficPolicy: {mode: SOME}}",
            "it is ALLOW_ANY or REGISTRY_ONLY",
        ),
        (
            "global: {meshExpansion: {enabled: true}}",
            "global.meshExpansion is not supported:",
        ),
        (
            "istio_cni: {enabled: true, repair: {labelPod: true}}",
            "labelPod",
        ),
        (
            "kiali: {enabled: true}",
            "kiali.enabled=true is not supported:",
        ),
        ("galley: {enabled: false}", "set mixer.enabled=false too"),
        (
            "global: {mtls: {enabled: true}}\nsecurity: {enabled: false}",
            "set security.enabled=true",
        ),
        (
            "gateways: {istio-ingressgateway: {type: Ingress}}",
            "LoadBalancer",
        ),
    ] {
        let (is_good, output) = template("bireme", &[], values);
        assert!(!is_good, "{values} was taken");
        assert!(output.contains(sentence), "{values}: {output}");
    }
}

#[test]
fn names_and_ports_are_those_that_users_know() {
    let inner = "gateways: {istio-ilbgateway: {enabled: true}}";
    let objects = render("bireme", &profile("demo"), inner);
    for (service, ports) in [
        (
            "istio-pilot",
            "15010 grpc-xds, 15011 https-xds, 8080 http-legacy-discovery, 15014 http-monitoring",
        ),
        ("istio-citadel", "8060 grpc-citadel, 15014 http-monitoring"),
        (
            "istio-galley",
            "443 https-validation, 15014 http-monitoring, 9901 grpc-mcp",
        ),
        (
            "istio-policy",
            "9091 grpc-mixer, 9093 http-self-metrics, 15014 http-monitoring",
        ),
        (
            "istio-telemetry",
            "9091 grpc-mixer, 9093 http-self-metrics, 15014 http-monitoring, 42422 prometheus",
        ),
        (
            "istio-sidecar-injector",
            "443 https-inject, 15014 http-monitoring",
        ),
        (
            "istio-ingressgateway",
            "15020 status-port, 80 http2, 443 https, 31400 tcp, 15443 tls",
        ),
        ("istio-egressgateway", "80 http2, 443 https, 15443 tls"),
        (
            "istio-ilbgateway",
            "15011 grpc-pilot-mtls, 15010 grpc-pilot, 8060 tcp-citadel-grpc-tls, 5353 tcp-dns",
        ),
        ("prometheus", "9090 http-prometheus"),
        ("grafana", "3000 http"),
        ("zipkin", "9411 http"),
    ] {
        let service = find(&objects, &format!("Service {service}"));
        let there: BTreeMap<String, &Value> = service["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| (port["name"].as_str().unwrap().to_owned(), &port["port"]))
            .collect();
        for port in ports.split(", ") {
            let (number, name) = port.split_once(' ').unwrap();
            let found = there.get(name).map(ToString::to_string);
            assert_eq!(
                found.as_deref(),
                Some(number),
                "{}: {name}",
                self::name(service)
            );
        }
    }
}

#[test]
fn the_injectors_template_is_the_injectors_own() {
    let objects = render("bireme", &[], "global: {proxy: {autoInject: disabled}}");
    let data = &find(&objects, "ConfigMap istio-sidecar-injector")["data"];
    let read = |key: &str| -> Value {
        let text = data[key].as_str().unwrap();
        proto::yaml::parse_documents(text).remove(0).unwrap().value
    };
    let (chart, values) = (read("config"), read("values"));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../injector/default/config.yaml");
    let own = proto::yaml::parse_documents(&fs::read_to_string(own).unwrap()).remove(0);
    assert_eq!(chart["template"], own.unwrap().value["template"]);
    assert_eq!(chart["policy"], "disabled");
    assert_eq!(
        values["global"]["caAddress"],
        "istio-citadel.istio-system.svc:8060"
    );
}
