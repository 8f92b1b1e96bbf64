//! `testdata/<case>/input.yaml` injected must give `want.yaml`.

use std::fs;
use std::path::Path;

use injector::config::{Files, Settings};
use injector::kube_inject::inject_text;

fn check(case: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(case);
    let mut settings = Settings::load(&Files::default()).unwrap();
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
