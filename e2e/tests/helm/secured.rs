//! `global.controlPlaneSecurityEnabled`: who listens where, and with what.

use serde_json::Value;

use crate::{find, profile, render};

#[test]
fn a_secured_control_plane_has_no_open_channel_left() {
    let secured = "global: {controlPlaneSecurityEnabled: true, disablePolicyChecks: false}";
    let objects = render("bireme", &profile("demo"), secured);
    let container = |deployment: &str| {
        let found = find(&objects, &format!("Deployment {deployment}"));
        found["spec"]["template"]["spec"].clone()
    };
    for (deployment, arguments, account) in [
        (
            "istio-pilot",
            vec!["--grpcAddr=127.0.0.1:15010"],
            "istio-pilot-service-account",
        ),
        (
            "istio-galley",
            vec![
                "--insecure=false",
                "--tlsCertFile=/etc/istio-certs/cert-chain.pem",
            ],
            "istio-galley-service-account",
        ),
        (
            "istio-policy",
            vec![
                "--address=tcp://127.0.0.1:9091",
                "--securePort=15004",
                "--configStoreURL=mcps://istio-galley.istio-system.svc:9901",
            ],
            "istio-policy-service-account",
        ),
        (
            "istio-telemetry",
            vec!["--address=tcp://127.0.0.1:9091", "--securePort=15004"],
            "istio-telemetry-service-account",
        ),
        (
            "istio-ingressgateway",
            vec!["istio-pilot.istio-system.svc:15011", "MUTUAL_TLS"],
            "",
        ),
    ] {
        let pod = container(deployment);
        for argument in arguments {
            let mut given = pod["containers"][0]["args"].as_array().unwrap().iter();
            assert!(
                given.any(|given| given == argument),
                "{deployment}: {argument}"
            );
        }
        // They wait for what Citadel writes.
        let mut volumes = pod["volumes"].as_array().unwrap().iter();
        let certificates = volumes.find(|volume| volume["name"] == "istio-certs");
        if account.is_empty() {
            continue;
        }
        let secret = &certificates.unwrap()["secret"];
        assert_eq!(
            secret["secretName"],
            format!("istio.{account}"),
            "{deployment}"
        );
        assert_ne!(secret["optional"], true, "{deployment}");
    }
    clients_go_by_mutual_tls(&objects);
}

/// The mesh's settings and rules name the secured ports, and Galley whom it lets read.
fn clients_go_by_mutual_tls(objects: &[Value]) {
    let mesh = find(objects, "ConfigMap istio")["data"]["mesh"].as_str();
    let mesh = proto::yaml::parse_documents(mesh.unwrap())
        .remove(0)
        .unwrap();
    let mesh = mesh.value;
    assert_eq!(
        mesh["configSources"][0]["tlsSettings"]["mode"],
        "ISTIO_MUTUAL"
    );
    assert_eq!(
        mesh["mixerCheckServer"],
        "istio-policy.istio-system.svc.cluster.local:15004"
    );
    for role in ["policy", "telemetry"] {
        let rule = find(objects, &format!("DestinationRule istio-{role}"));
        let port = &rule["spec"]["trafficPolicy"]["portLevelSettings"][0];
        assert_eq!(port["tls"]["mode"], "ISTIO_MUTUAL");
    }
    let access = &find(objects, "ConfigMap istio-galley-configuration")["data"];
    let access = access["accesslist.yaml"].as_str().unwrap();
    for account in ["pilot", "policy", "telemetry"] {
        let identity =
            format!("spiffe://cluster.local/ns/istio-system/sa/istio-{account}-service-account");
        assert!(access.contains(&identity), "{access}");
    }
}
