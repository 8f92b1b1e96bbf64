//! What single components' charts render.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{find, names, profile, render};

#[test]
fn with_the_cni_plugin_the_nodes_intercept_and_pods_only_try() {
    let without = names(&render("bireme", &[], ""));
    let values_of = |objects: &[Value]| {
        let data = &find(objects, "ConfigMap istio-sidecar-injector")["data"];
        let text = data["values"].as_str().unwrap();
        let values = proto::yaml::parse_documents(text).remove(0).unwrap().value;
        values["istio_cni"].clone()
    };
    let verbs_of = |objects: &[Value]| {
        find(objects, "ClusterRole istio-cni-istio-system")["rules"][0]["verbs"].clone()
    };
    for (values, containers, verbs) in [
        (
            "istio_cni: {enabled: true}",
            vec!["install-cni", "repair-cni"],
            json!(["get", "list", "watch", "patch"]),
        ),
        (
            "istio_cni: {enabled: true, repair: {enabled: false}}",
            vec!["install-cni"],
            json!(["get"]),
        ),
    ] {
        let objects = render("bireme", &[], values);
        let more: BTreeSet<String> = names(&objects).difference(&without).cloned().collect();
        let kinds = "ClusterRole ClusterRoleBinding ConfigMap DaemonSet ServiceAccount";
        let found: Vec<&str> = more
            .iter()
            .filter_map(|name| name.split(' ').next())
            .collect();
        assert_eq!(found.join(" "), kinds, "{values}");
        let pod = &find(&objects, "DaemonSet istio-cni-node")["spec"]["template"]["spec"];
        let names: Vec<&str> = pod["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, containers, "{values}");
        assert_eq!(pod["hostNetwork"], true);
        assert_eq!(verbs_of(&objects), verbs);
        let told = values_of(&objects);
        let has_repair = containers.len() == 2;
        assert_eq!(
            (&told["enabled"], &told["repair"]["enabled"]),
            (&json!(true), &json!(has_repair))
        );
    }
    // The plugin's chart may be a release of its own; the injector's is then told.
    let alone = render("injector", &[], "istio_cni: {enabled: true}");
    assert_eq!(values_of(&alone)["enabled"], true);
    let told = render(
        "bireme",
        &[],
        "sidecarInjectorWebhook: {istio_cni: {enabled: true}}",
    );
    assert_eq!(values_of(&told)["enabled"], true);
}

#[test]
fn gateways_and_nobody_else_may_be_given_the_secrets_of_their_namespace() {
    let values = "gateways: {istio-ingressgateway: {namespace: edge}}";
    let objects = render("bireme", &profile("demo"), values);
    for (gateway, namespace) in [
        ("istio-ingressgateway", "edge"),
        ("istio-egressgateway", "istio-system"),
    ] {
        let role = find(&objects, &format!("Role {gateway}-sds"));
        let binding = find(&objects, &format!("RoleBinding {gateway}-sds"));
        let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]);
        assert_eq!(role["rules"], rules);
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        for object in [role, binding] {
            assert_eq!(object["metadata"]["namespace"], namespace, "{gateway}");
        }
        let deployment = find(&objects, &format!("Deployment {gateway}"));
        let account = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
        let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}]);
        assert_eq!(binding["subjects"], subjects);
    }
    // Pilot may ask about them.
    let rules = &find(&objects, "ClusterRole istio-pilot-istio-system")["rules"];
    let asks = json!({"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]});
    assert!(rules.as_array().unwrap().contains(&asks), "{rules}");
}

#[test]
fn a_secured_control_plane_has_mixer_behind_mutual_tls() {
    let secured = "global: {controlPlaneSecurityEnabled: true}";
    let objects = render("bireme", &profile("demo"), secured);
    let mesh = find(&objects, "ConfigMap istio")["data"]["mesh"].as_str();
    let mesh = proto::yaml::parse_documents(mesh.unwrap())
        .remove(0)
        .unwrap();
    for (half, server) in [
        ("policy", "mixerCheckServer"),
        ("telemetry", "mixerReportServer"),
    ] {
        let name = format!("istio-{half}");
        let host = format!("{name}.istio-system.svc.cluster.local");
        assert_eq!(mesh.value[server], format!("{host}:15004"));
        let service = find(&objects, &format!("Service {name}"));
        let ports = service["spec"]["ports"].as_array().unwrap();
        assert!(ports.iter().any(|port| port["port"] == 15004), "{name}");
        let pod = &find(&objects, &format!("Deployment {name}"))["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let arguments = container["args"].as_array().unwrap();
        assert!(
            arguments
                .iter()
                .any(|argument| argument == "--securePort=15004")
        );
        assert_eq!(container["volumeMounts"][0]["mountPath"], "/etc/certs");
        let secret = &pod["volumes"][0]["secret"]["secretName"];
        assert_eq!(*secret, format!("istio.{name}-service-account"));
        let rule = &find(&objects, &format!("DestinationRule {name}"))["spec"];
        assert_eq!(rule["host"], host);
        let port = &rule["trafficPolicy"]["portLevelSettings"][0];
        assert_eq!(port["port"]["number"], 15004);
        assert_eq!(port["tls"]["mode"], "ISTIO_MUTUAL");
    }
}

#[test]
fn mixers_adapters_come_with_their_switches() {
    let handlers = |objects: &[Value]| -> BTreeSet<String> {
        let names = names(objects).into_iter();
        names
            .filter_map(|name| Some(name.strip_prefix("handler ")?.to_owned()))
            .collect()
    };
    let both = "kubernetesenv: {enabled: false}, prometheus: {enabled: false}";
    for (values, wanted) in [
        (String::new(), vec!["kubernetesenv", "prometheus"]),
        (format!("mixer: {{adapters: {{{both}}}}}"), vec![]),
        // Nobody reports.
        (
            "mixer: {telemetry: {enabled: false}, adapters: {stdio: {enabled: true}}}".to_owned(),
            vec!["kubernetesenv"],
        ),
    ] {
        let objects = render("bireme", &[], &values);
        let wanted = wanted.into_iter().map(str::to_owned).collect();
        assert_eq!(handlers(&objects), wanted, "{values}");
        // Attributes are there for whoever writes rules.
        find(&objects, "attributemanifest istioproxy");
    }
    let values = "mixer: {adapters: {stdio: {outputAsJson: false}, prometheus: {metricsExpiryDuration: 1h}}}";
    let objects = render("bireme", &profile("demo"), values);
    let params = |name: &str| &find(&objects, &format!("handler {name}"))["spec"]["params"];
    assert_eq!(params("stdio"), &json!({"outputAsJson": false}));
    let expiry = &params("prometheus")["metricsExpirationPolicy"];
    assert_eq!(expiry["metricsExpiryDuration"], "1h");
}

#[test]
fn grafana_has_a_dashboard_for_each_component() {
    let objects = render("grafana", &[], "");
    let pod = &find(&objects, "Deployment grafana")["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "dashboards");
    let sources = volume.unwrap()["projected"]["sources"].as_array().unwrap();
    for part in [
        "istio-mesh",
        "istio-service",
        "istio-workload",
        "mixer",
        "pilot",
        "galley",
        "citadel",
        "sidecar-injector",
    ] {
        let name = format!("istio-grafana-configuration-dashboards-{part}-dashboard");
        assert!(
            sources
                .iter()
                .any(|source| source["configMap"]["name"] == name),
            "{name} is not mounted"
        );
        let data = &find(&objects, &format!("ConfigMap {name}"))["data"];
        let text = data[format!("{part}-dashboard.json")].as_str().unwrap();
        let dashboard: Value = serde_json::from_str(text).unwrap();
        assert!(
            !dashboard["panels"].as_array().unwrap().is_empty(),
            "{part}"
        );
    }
}

#[test]
fn gateways_are_probed_where_their_agent_listens() {
    let objects = render("bireme", &profile("demo"), "");
    for name in ["istio-ingressgateway", "istio-egressgateway"] {
        let gateway = find(&objects, &format!("Deployment {name}"));
        let container = &gateway["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["readinessProbe"]["httpGet"]["port"], 15020);
        // Nobody answers at the components' port of health, and the agent ends with its proxy.
        assert!(container.get("livenessProbe").is_none(), "{container}");
    }
    let pilot = find(&objects, "Deployment istio-pilot");
    let container = &pilot["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["livenessProbe"]["httpGet"]["port"], 15014);
}

#[test]
fn galley_may_read_the_role_with_which_its_registration_goes() {
    let objects = render("bireme", &[], "");
    let role = find(&objects, "ClusterRole istio-galley-istio-system");
    let rules = role["rules"].as_array().unwrap();
    let is_own = |rule: &&Value| rule["resources"][0] == "clusterroles";
    let rule = rules.iter().find(is_own).unwrap();
    assert_eq!(rule["resourceNames"][0], "istio-galley-istio-system");
    assert_eq!(rule["verbs"], json!(["get"]));
}

#[test]
fn in_production_replicas_are_apart_and_reached_by_their_ports_only() {
    let objects = render("bireme", &profile("production"), "");
    let is_deployment = |object: &&Value| object["kind"] == "Deployment";
    let deployments: Vec<&Value> = objects.iter().filter(is_deployment).collect();
    assert_eq!(deployments.len(), 7);
    for deployment in deployments {
        let name = deployment["metadata"]["name"].as_str().unwrap();
        let own = &deployment["spec"]["selector"]["matchLabels"];
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(
            pod["priorityClassName"], "system-cluster-critical",
            "{name}"
        );
        let spread = &pod["topologySpreadConstraints"][0];
        assert_eq!(
            spread["topologyKey"], "topology.kubernetes.io/zone",
            "{name}"
        );
        assert_eq!(spread["labelSelector"]["matchLabels"], *own, "{name}");
        let apart = &pod["affinity"]["podAntiAffinity"];
        let apart = &apart["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
        assert_eq!(apart["topologyKey"], "kubernetes.io/hostname", "{name}");
        assert_eq!(apart["labelSelector"]["matchLabels"], *own, "{name}");
        let budget = find(&objects, &format!("PodDisruptionBudget {name}"));
        assert_eq!(budget["spec"]["selector"]["matchLabels"], *own, "{name}");
        // Everybody may reach what the Service names, and nobody anything else.
        let policy = &find(&objects, &format!("NetworkPolicy {name}"))["spec"];
        assert_eq!(policy["podSelector"]["matchLabels"], *own, "{name}");
        assert_eq!(policy["policyTypes"], json!(["Ingress"]), "{name}");
        let ports = |list: &Value, keys: [&str; 2]| -> BTreeSet<u64> {
            let ports = list.as_array().unwrap().iter();
            let number = |port: &Value| port[keys[0]].as_u64().or_else(|| port[keys[1]].as_u64());
            ports.map(|port| number(port).unwrap()).collect()
        };
        assert_eq!(policy["ingress"].as_array().unwrap().len(), 1, "{name}");
        let let_in = ports(&policy["ingress"][0]["ports"], ["port", "port"]);
        let service = find(&objects, &format!("Service {name}"));
        let named = ports(&service["spec"]["ports"], ["targetPort", "port"]);
        assert_eq!(let_in, named, "{name}");
        assert!(!named.contains(&15000), "{name}");
    }
}

#[test]
fn citadel_signs_with_a_root_of_its_own_or_with_the_secret_cacerts() {
    for (values, secret) in [
        ("", None),
        ("security: {selfSigned: false}", Some("cacerts")),
    ] {
        let objects = render("bireme", &[], values);
        let pod = &find(&objects, "Deployment istio-citadel")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let arguments: Vec<&str> = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let is_own = format!("--self-signed-ca={}", secret.is_none());
        assert!(arguments.contains(&is_own.as_str()), "{arguments:?}");
        for (flag, file) in [
            ("signing-cert", "ca-cert.pem"),
            ("signing-key", "ca-key.pem"),
            ("root-cert", "root-cert.pem"),
            ("cert-chain", "cert-chain.pem"),
        ] {
            let argument = format!("--{flag}=/etc/cacerts/{file}");
            let is_there = arguments.contains(&argument.as_str());
            assert_eq!(is_there, secret.is_some(), "{arguments:?}");
        }
        let named = |list: &Value| {
            let mut items = list.as_array().unwrap().iter();
            items.find(|item| item["name"] == "cacerts").cloned()
        };
        let mount = named(&container["volumeMounts"]).map(|mount| mount["mountPath"].clone());
        assert_eq!(mount, secret.map(|_| json!("/etc/cacerts")));
        let volume = named(&pod["volumes"]).map(|volume| volume["secret"]["secretName"].clone());
        assert_eq!(volume, secret.map(|secret| json!(secret)));
    }
}
