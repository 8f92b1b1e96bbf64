//! What pods of the charts may do: next to nothing.

use serde_json::{Value, json};

use crate::{PROFILES, name, profile, render};

/// Every container of a pod runs as nobody special and without capabilities; but one writes the node's network configuration.
fn has_few_rights(what: &str, pod: &Value) -> bool {
    let all = ["containers", "initContainers"].map(|of| pod[of].as_array().into_iter().flatten());
    let mut all = all.into_iter().flatten();
    all.all(|container| {
        let own = &container["securityContext"];
        let (user, added) = (&own["runAsUser"], &own["capabilities"]["add"]);
        let is_less = own["readOnlyRootFilesystem"] == true
            && own["allowPrivilegeEscalation"] == false
            && own["capabilities"]["drop"] == json!(["ALL"])
            && own["privileged"] != true;
        let is_nobody = (own["runAsNonRoot"] == true
            || pod["securityContext"]["runAsNonRoot"] == true)
            && *user != 0
            && added.is_null();
        let installs = what == "DaemonSet istio-cni-node" && container["name"] == "install-cni";
        let is_installer = *user == 0 && *added == json!(["DAC_OVERRIDE"]);
        is_less && if installs { is_installer } else { is_nobody }
    })
}

#[test]
fn the_nodes_pods_have_few_rights_too() {
    let objects = render("bireme", &[], "istio_cni: {enabled: true}");
    let sets = objects
        .iter()
        .filter(|object| object["kind"] == "DaemonSet");
    let sets: Vec<&Value> = sets.collect();
    assert!(!sets.is_empty());
    for set in sets {
        let (what, pod) = (name(set), &set["spec"]["template"]["spec"]);
        assert!(has_few_rights(&what, pod), "{what}: {pod}");
    }
}

#[test]
fn pods_are_as_restricted_as_can_be() {
    for profile_name in PROFILES {
        for object in render("bireme", &profile(profile_name), "") {
            if object["kind"] != "Deployment" {
                continue;
            }
            let (what, pod) = (name(&object), &object["spec"]["template"]["spec"]);
            assert!(has_few_rights(&what, pod));
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}");
            let seccomp = &pod["securityContext"]["seccompProfile"]["type"];
            assert_eq!(seccomp, "RuntimeDefault", "{what}");
            for container in pod["containers"].as_array().unwrap() {
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true, "{what}");
                assert_eq!(security["allowPrivilegeEscalation"], false, "{what}");
                assert_eq!(security["capabilities"]["drop"][0], "ALL", "{what}");
                assert!(container["readinessProbe"].is_object(), "{what}");
                assert!(container["resources"].is_object(), "{what}");
            }
            // Every volume that is mounted is there.
            let volumes: Vec<&Value> = pod["volumes"].as_array().into_iter().flatten().collect();
            for mount in pod["containers"][0]["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let is_there = volumes.iter().any(|volume| volume["name"] == mount["name"]);
                assert!(is_there, "{what}: {}", mount["name"]);
            }
        }
    }
}
