//! `testdata/<case>/input.yaml` injected must give `want.yaml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use injector::annotations::{self, INJECT, STATUS};
use injector::config::{Files, Settings};
use injector::kube_inject::inject_text;
use injector::pod::{PROXY_CONTAINER, inject, workload_of};
use serde_json::{Value, json};

fn check(case: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(case);
    let mut settings = settings(&folder);
    settings.version = "fixed".to_owned();
    let input = fs::read_to_string(folder.join("input.yaml")).unwrap();
    let injected = inject_text(&settings, "input.yaml", &input).unwrap();
    let want = folder.join("want.yaml");
    if std::env::var_os("REFRESH_GOLDEN").is_some() {
        fs::write(&want, &injected).unwrap();
    }
    assert_eq!(
        injected,
        fs::read_to_string(&want).unwrap_or_default(),
        "{case}; REFRESH_GOLDEN=1 rewrites it"
    );
    assert_eq!(
        inject_text(&settings, "want.yaml", &injected).unwrap(),
        injected,
        "{case}: a second run changes nothing"
    );
}

/// The shipped settings, with the case's own values over them, and its ProxyConfigs.
fn settings(folder: &Path) -> Settings {
    let existing = |name| Some(folder.join(name)).filter(|path| path.exists());
    let files = Files {
        inject_values: existing("values.yaml"),
        proxy_configs: existing("proxy-configs"),
        ..Files::default()
    };
    Settings::load(&files).unwrap()
}

#[test]
fn a_deployment_gets_proxy_interception_and_rewritten_probes() {
    check("deployment");
}

#[test]
fn a_pod_template_deep_in_a_cron_job_is_found_and_annotations_count() {
    check("cronjob");
}

#[test]
fn every_wish_counts_and_what_holds_no_pod_keeps_its_text() {
    check("annotations");
}

#[test]
fn resources_say_what_proxies_are_started_with() {
    check("proxy-configs");
}

#[test]
fn where_the_node_intercepts_pods_only_try_whether_it_works() {
    check("cni");
}

#[test]
fn every_annotation_that_there_is_counts() {
    check("everything");
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/everything/input.yaml");
    let input = fs::read_to_string(input).unwrap();
    let pod = proto::yaml::parse_documents(&input)
        .remove(0)
        .unwrap()
        .value;
    let settings = Settings::load(&Files::default()).unwrap();
    // What is added, without what only repeats the annotations.
    let injected = |pod: &Value| {
        let mut pod = inject(&settings, pod, &workload_of(pod, "shop")).unwrap();
        for container in pod["spec"]["initContainers"].as_array_mut().unwrap() {
            if let Some(env) = container.get_mut("env").and_then(Value::as_array_mut) {
                env.retain(|variable| variable["name"] != "ISTIO_METAJSON_ANNOTATIONS");
            }
        }
        pod["spec"].to_string()
    };
    // The agent's own environment goes with the proxy's container, wherever that is.
    let with_everything = injected(&pod);
    for key in annotations::known().filter(|key| *key != STATUS) {
        let mut without = pod.clone();
        let left = without["metadata"]["annotations"].as_object_mut().unwrap();
        assert!(left.remove(key).is_some(), "{key} is not among them");
        // Pilot and the agent read these in the proxy's metadata; injection is what holds without a wish.
        let is_metadata = key.starts_with("policy.") || key.contains("/statsInclusion");
        if key != INJECT {
            let same = injected(&without) == with_everything;
            assert_eq!(same, is_metadata, "{key}");
        }
    }
}

#[test]
fn an_application_that_waits_for_its_proxy_is_started_after_it() {
    let names = |pod: &Value| -> Vec<String> {
        let containers = pod["spec"]["containers"].as_array().unwrap();
        let names = containers
            .iter()
            .map(|container| container["name"].as_str().unwrap());
        names.map(str::to_owned).collect()
    };
    let (pod, _) = injected(&json!({}));
    assert_eq!(names(&pod), ["web", "istio-proxy"]);
    assert!(pod["spec"]["containers"][1].get("lifecycle").is_none());
    let wish = "holdApplicationUntilProxyStarts: true";
    let port = json!({"proxy.istio.io/config": wish, "status.sidecar.istio.io/port": "15099"});
    let (pod, _) = injected(&port);
    assert_eq!(names(&pod), ["istio-proxy", "web"]);
    // The kubelet starts a container once the hook of the one before it has ended.
    let hook = &pod["spec"]["containers"][0]["lifecycle"]["postStart"]["exec"]["command"];
    assert_eq!(*hook, json!(["pilot-agent", "wait", "--statusPort=15099"]));
    // A native sidecar is waited for anyway.
    let native = json!({"proxy.istio.io/config": wish, "sidecar.istio.io/nativeSidecar": "true"});
    let (pod, _) = injected(&native);
    assert_eq!(names(&pod), ["web"]);
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["name"], "istio-proxy");
    assert!(proxy.get("lifecycle").is_none(), "{proxy}");
}

/// The pod after an injection, and the proxy's environment in it.
fn injected(annotations: &Value) -> (Value, BTreeMap<String, String>) {
    let settings = Settings::load(&Files::default()).unwrap();
    let pod = json!({
        "metadata": {"annotations": annotations},
        "spec": {"containers": [{
            "name": "web", "livenessProbe": {"grpc": {"port": 9000, "service": "shop"}, "timeoutSeconds": 3},
        }]},
    });
    let workload = workload_of(&pod, "shop");
    let once = inject(&settings, &pod, &workload).unwrap();
    let twice = inject(&settings, &once, &workload).unwrap();
    assert_eq!(twice, once, "a second run changes nothing");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lists = ["containers", "initContainers"];
    let mut containers = lists
        .iter()
        .flat_map(|list| once["spec"][list].as_array().unwrap());
    let proxy = containers.find(|container| container["name"] == PROXY_CONTAINER);
    let env = proxy.unwrap()["env"].as_array().unwrap();
    let env = env
        .iter()
        .map(|variable| (text(&variable["name"]), text(&variable["value"])));
    let env = env.collect();
    (once, env)
}

#[test]
fn grpc_probes_go_through_the_agent() {
    let (pod, env) = injected(&json!({}));
    let probe = &pod["spec"]["containers"][0]["livenessProbe"];
    let path = "/app-health/web/livez";
    assert_eq!(
        *probe,
        json!({"timeoutSeconds": 3, "httpGet": {"path": path, "port": 15020}})
    );
    let probers: Value = serde_json::from_str(&env["ISTIO_KUBE_APP_PROBERS"]).unwrap();
    assert_eq!(
        probers[path],
        json!({"grpc": {"port": 9000, "service": "shop"}, "timeoutSeconds": 3})
    );
}

#[test]
fn prometheus_is_led_to_the_agent_where_the_pod_asks_for_it() {
    let asked = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9090"});
    let (pod, env) = injected(&asked);
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], "15020");
    assert_eq!(annotations["prometheus.io/path"], "/stats/prometheus");
    assert_eq!(
        env["ISTIO_PROMETHEUS_ANNOTATIONS"],
        r#"{"scrape":"true","port":"9090"}"#
    );
    for others in [
        json!({}),
        json!({"prometheus.io/scrape": "false", "prometheus.io/port": "9090"}),
        json!({"prometheus.io/scrape": "true", "prometheus.istio.io/merge-metrics": "false"}),
    ] {
        let (pod, env) = injected(&others);
        let annotations = &pod["metadata"]["annotations"];
        assert_eq!(
            annotations["prometheus.io/port"],
            others["prometheus.io/port"]
        );
        assert!(
            !env.contains_key("ISTIO_PROMETHEUS_ANNOTATIONS"),
            "{others}"
        );
    }
}

#[test]
fn the_proxys_own_settings_reach_its_environment_and_that_of_interception() {
    let config = "concurrency: 3\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}\n";
    let (pod, env) = injected(&json!({"proxy.istio.io/config": config}));
    assert_eq!(env["ISTIO_META_DNS_CAPTURE"], "true");
    let init = &pod["spec"]["initContainers"][0]["env"];
    assert_eq!(
        *init,
        json!([{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}])
    );
    let arguments = pod["spec"]["containers"][1]["args"].to_string();
    assert!(arguments.contains(r#""--concurrency","3""#), "{arguments}");
}

#[test]
fn what_the_plugin_is_told_is_told_anew_at_every_injection() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cni");
    let settings = settings(&folder);
    let pod = json!({
        "metadata": {"annotations": {"traffic.sidecar.istio.io/excludeOutboundPorts": "3306"}},
        "spec": {"containers": [{"name": "web"}]},
    });
    let workload = workload_of(&pod, "shop");
    let once = inject(&settings, &pod, &workload).unwrap();
    assert_eq!(inject(&settings, &once, &workload).unwrap(), once);
    let annotations = &once["metadata"]["annotations"];
    assert_eq!(
        annotations["traffic.sidecar.istio.io/includeOutboundIPRanges"],
        "10.0.0.0/8"
    );
    assert_eq!(
        annotations["traffic.sidecar.istio.io/excludeOutboundPorts"],
        "3306"
    );
}

#[test]
fn a_pod_that_asks_for_nonsense_is_named_with_file_and_line() {
    let settings = Settings::load(&Files::default()).unwrap();
    let text = "kind: Service\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    \
                traffic.sidecar.istio.io/includeInboundPorts: http\nspec:\n  containers: []\n";
    let error = inject_text(&settings, "pods.yaml", text)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(
            "pods.yaml:3: Pod p: annotation traffic.sidecar.istio.io/includeInboundPorts"
        ),
        "{error}"
    );
}
