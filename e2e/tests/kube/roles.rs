//! What the charts' roles allow, beside what components ask for by the API server's own record: nothing that they ask for is
//! refused, and nothing is allowed that they never ask for.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use e2e::echo::{Call as EchoCall, Protocol, Tls, call};
use e2e::mesh::eventually;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::component::{
    CITADEL, Component, GALLEY, INJECTOR, PILOT, debug_folder, log_of, start, start_with,
    write_kubeconfig,
};
use crate::{
    NAMESPACE, SOON, fresh, gateway, ingress, install, machine, virtual_service, virtual_services,
};

/// Where everything is that is done for the components to react to.
const SHOP: &str = "roles";
/// Whose roles are judged, by the label `app` of the role, and the account.
const ACCOUNTS: &[(&str, &str)] = &[
    ("istio-galley", "istio-galley-service-account"),
    ("istio-citadel", "istio-citadel-service-account"),
    ("istio-pilot", "istio-pilot-service-account"),
    (
        "istio-sidecar-injector",
        "istio-sidecar-injector-service-account",
    ),
    ("istio-cni", "istio-cni"),
];
/// Somebody else's program.
const OTHERS: &[&str] = &["prometheus"];
/// Those that never call: their role says to Pilot what they may be given.
const GATEWAYS: &[&str] = &["istio-ingressgateway"];

/// One call, or the right to make it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    component: &'static str,
    verb: String,
    group: String,
    /// With its subresource.
    resource: String,
    /// Of a right: empty if any will do.
    name: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            component,
            verb,
            group,
            resource,
            name,
        } = self;
        write!(f, "{component}: {verb} {resource}.{group} {name}")
    }
}

impl Call {
    /// Whether this right allows that call.
    fn allows(&self, call: &Call) -> bool {
        let is_resource = match self.resource.strip_prefix("*/") {
            // Findings are about any kind; one stands for all of them, in whichever group.
            Some(part) => call.resource.ends_with(&format!("/{part}")),
            None => self.group == call.group && self.resource == call.resource,
        };
        let is_name = self.name.is_empty() || self.name == call.name;
        is_resource && is_name && (self.component, &self.verb) == (call.component, &call.verb)
    }
}

#[tokio::test]
async fn roles_allow_what_components_ask_for_and_nothing_else() {
    let client = fresh().await;
    forget(&client).await;
    // What others asked before, perhaps of an API server that had just begun.
    let before = audit_log().len();
    install(
        "{galley: {enableServiceDiscovery: true, enableAnalysis: true}, istio_cni: {enabled: true}}",
    );
    let mut granted = granted(&client).await;
    are_in_force(&client, &granted).await;
    let running = everything_happens(&client).await;
    settle(before, &granted, &running).await;

    // What was written while validation was on is taken away. The Galley that answers until then may miss rights that go.
    install("{global: {configValidation: false}}");
    drop(running);
    let before = audit_log().len();
    let without = self::granted(&client).await;
    granted = without.difference(&granted).cloned().collect();
    assert!(!granted.is_empty(), "a right of its own");
    are_in_force(&client, &granted).await;
    let galley = start(&client, &GALLEY).await;
    settle(before, &granted, &[galley]).await;
}

/// Takes away what components make, so that they make it anew.
async fn forget(client: &Client) {
    let (params, all) = (DeleteParams::default(), ListParams::default());
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    leases.delete_collection(&params, &all).await.unwrap();
    // Most often there are none.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let _ = secrets.delete("istio-ca-secret", &params).await;
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let _ = config_maps.delete("istio-ca-revocations", &params).await;
}

/// Starts everything, and does whatever a component reacts to by a call.
async fn everything_happens(client: &Client) -> Vec<Component> {
    let registrations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).unwrap());
    // Most often somebody has written it.
    let _ = registrations
        .patch("istio-sidecar-injector", &PatchParams::default(), &patch)
        .await;
    let galley = start(client, &GALLEY).await;
    let injector = start(client, &INJECTOR).await;
    let citadel = start(client, &CITADEL).await;
    let root = accounts_come_and_go(client).await;
    tokens_are_reviewed(client, &citadel, &root).await;
    identities_are_revoked(&citadel);
    a_route_leads_nowhere(client).await;
    ingress::is_told_its_address(client, SHOP).await;
    pods_are_repaired(client).await;
    let served = format!("127.0.0.1:{}", galley.other_ports[0]);
    let edit = |text: &str| text.replace("istio-galley.istio-system.svc:9901", &served);
    // With the certificate that Citadel has put into its Secret.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let own = "istio.istio-pilot-service-account";
    exists(&secrets, own, true).await;
    let pilot = start_with(client, &PILOT, "0", &edit).await;
    let is_ready = eventually("Pilot", SOON, async || pilot.is_ready().await).await;
    assert!(is_ready.is_ok(), "{}", log_of(&pilot));
    gateway::have_their_secrets(client, &pilot, &root).await;
    machine::registers_itself(client, &pilot, &root, SHOP).await;
    vec![galley, injector, citadel, pilot]
}

/// A namespace, and an account in it that loses its Secret when it goes; the root that Citadel has put there.
async fn accounts_come_and_go(client: &Client) -> String {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP}});
    let apply = PatchParams::apply("test").force();
    let space = Patch::Apply(&space);
    namespaces.patch(SHOP, &apply, &space).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SHOP);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SHOP);
    let account = serde_json::from_value(json!({"metadata": {"name": "seller"}})).unwrap();
    let params = PostParams::default();
    accounts.create(&params, &account).await.unwrap();
    exists(&secrets, "istio.seller", true).await;
    let now = DeleteParams::default();
    accounts.delete("seller", &now).await.unwrap();
    exists(&secrets, "istio.seller", false).await;
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), SHOP);
    exists(&config_maps, "istio-ca-root-cert", true).await;
    let root = config_maps.get("istio-ca-root-cert").await.unwrap();
    root.data.unwrap()["root-cert.pem"].clone()
}

async fn exists<K>(api: &Api<K>, name: &str, wanted: bool)
where
    K: Clone + serde::de::DeserializeOwned + fmt::Debug,
{
    let is_so = eventually(name, SOON, async || {
        let found = api.get_opt(name).await;
        found.is_ok_and(|found| found.is_some() == wanted)
    });
    is_so.await.unwrap();
}

/// Somebody asks Citadel for a certificate, with a token.
async fn tokens_are_reviewed(client: &Client, citadel: &Component, root: &str) {
    let token = crate::gateway::token(client, SHOP, "default").await;
    let address = format!("127.0.0.1:{}", citadel.port);
    let method = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let request = EchoCall::new(Protocol::Grpc, &address)
        .target(method)
        .header("authorization", &format!("Bearer {token}"))
        .tls(Tls {
            server_name: "istio-citadel.istio-system.svc".to_owned(),
            alpn: vec!["h2".to_owned()],
            roots: root.to_owned(),
            ..Tls::default()
        });
    // It knows who asks, and misses the signing request.
    let outcome = call::one(&request).await;
    assert_eq!(outcome.text, "grpc-status 3", "{}", log_of(citadel));
}

/// An operator's commands, which other replicas are told of.
fn identities_are_revoked(citadel: &Component) {
    let identity = format!("--identity=spiffe://cluster.local/ns/{SHOP}/sa/seller");
    let data = format!("--data-dir={}", citadel.folder.join("data").display());
    for command in ["revoke", "restore"] {
        let mut program = Command::new(debug_folder().join("istio_ca"));
        let done = program.args([command, &identity, &data]).output().unwrap();
        assert!(done.status.success(), "{command}: {done:?}");
    }
}

/// Analysis finds it, and says so in its status.
async fn a_route_leads_nowhere(client: &Client) {
    let routes = virtual_services(client);
    let route = virtual_service("nowhere", &json!([{"destination": {"host": "nowhere"}}]));
    // The webhook is registered a moment later, and asks Galley then.
    let created = eventually("the route's admission", SOON, async || {
        let params = PostParams::default();
        routes.create(&params, &route).await.is_ok() || routes.get("nowhere").await.is_ok()
    });
    created.await.unwrap();
    let is_told = eventually("the route's status", SOON, async || {
        let found = routes.get("nowhere").await.unwrap();
        found.data["status"].to_string().contains("IST0101")
    });
    is_told.await.unwrap();
    let now = DeleteParams::default();
    routes.delete("nowhere", &now).await.unwrap();
}

/// Ended with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod that says that it started too early is labelled, again when somebody takes the label away; and the plugin reads a pod.
async fn pods_are_repaired(client: &Client) {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    let set = serde_json::to_value(sets.get("istio-cni-node").await.unwrap()).unwrap();
    let containers = set["spec"]["template"]["spec"]["containers"].as_array();
    let containers = containers.unwrap();
    let repair = containers.iter().find(|each| each["name"] == "repair-cni");
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = write_kubeconfig(client, "istio-cni", folder.path()).await;
    let program = debug_folder().join("istio-cni");
    let mut command = Command::new(&program);
    command.args(["repair", "--kubeconfig"]).arg(&kubeconfig);
    for variable in repair.unwrap()["env"].as_array().unwrap() {
        // The node's name is the only one that is not there: then it is all nodes.
        let value = variable["value"].as_str().unwrap_or_default();
        command.env(variable["name"].as_str().unwrap(), value);
    }
    let _running = Running(command.stdout(Stdio::null()).spawn().unwrap());

    let pods: Api<Pod> = Api::namespaced(client.clone(), SHOP);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "early", "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {
            "automountServiceAccountToken": false,
            "initContainers": [{"name": "istio-validation", "image": "proxy"}],
            "containers": [{"name": "web", "image": "web"}],
        },
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let failed = json!({"status": {"initContainerStatuses": [{
        "name": "istio-validation", "image": "proxy", "imageID": "", "ready": false, "restartCount": 1,
        "lastState": {"terminated": {"exitCode": 126}},
    }]}});
    let params = PatchParams::default();
    let failed = Patch::Merge(&failed);
    pods.patch_status("early", &params, &failed).await.unwrap();
    let label = "cni.istio.io/uninitialized";
    for _ in 0..2 {
        eventually("the pod's label", SOON, async || {
            let found = pods.get("early").await.unwrap();
            found.labels().contains_key(label)
        })
        .await
        .unwrap();
        let without = json!({"metadata": {"labels": {label: null}}});
        let without = Patch::Merge(&without);
        pods.patch("early", &params, &without).await.unwrap();
    }
    let arguments = format!("K8S_POD_NAMESPACE={SHOP};K8S_POD_NAME=plain");
    let plain = serde_json::from_value(json!({
        "metadata": {"name": "plain"},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "web", "image": "web"}]},
    }));
    let (now, plain): (_, Pod) = (DeleteParams::default().grace_period(0), plain.unwrap());
    pods.create(&PostParams::default(), &plain).await.unwrap();
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "istio-cni", "prevResult": {"cniVersion": "1.0.0", "ips": []},
        "kubernetes": {"kubeconfig": kubeconfig, "exclude_namespaces": []},
    });
    let mut plugin = Command::new(&program)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "plain")
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = plugin.stdin.take().unwrap();
    input.write_all(config.to_string().as_bytes()).unwrap();
    drop(input);
    let done = plugin.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    for name in ["early", "plain"] {
        pods.delete(name, &now).await.unwrap();
    }
}

/// Waits until every right has been used; nothing may have been refused, and no right may be left.
async fn settle(before: usize, granted: &BTreeSet<Call>, running: &[Component]) {
    let unused = || {
        let (made, _) = audited(before);
        let is_unused = |right: &&Call| !made.iter().any(|call| right.allows(call));
        let unused: Vec<String> = granted
            .iter()
            .filter(is_unused)
            .map(ToString::to_string)
            .collect();
        unused
    };
    let settled = eventually("every right is used", SOON, async || unused().is_empty());
    let settled = settled.await;
    let (_, refused) = audited(before);
    let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
    assert!(refused.is_empty(), "refused: {}", refused.join("\n"));
    let logs: Vec<String> = running.iter().map(log_of).collect();
    assert!(
        settled.is_ok(),
        "never used:\n{}\n{}",
        unused().join("\n"),
        logs.join("\n")
    );
}

/// What the roles of the charts allow.
async fn granted(client: &Client) -> BTreeSet<Call> {
    let all = ListParams::default();
    let cluster: Api<ClusterRole> = Api::all(client.clone());
    let ours = ListParams::default().labels("release=istio");
    let cluster = cluster.list(&ours).await.unwrap().items.into_iter();
    let roles: Api<Role> = Api::all(client.clone());
    let roles = roles.list(&ours).await.unwrap().items.into_iter();
    let cluster = cluster.map(|role| (role.labels()["app"].clone(), role.rules));
    let roles = roles.map(|role| (role.labels()["app"].clone(), role.rules));
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definitions = definitions.list(&all).await.unwrap().items;
    let mut granted = BTreeSet::new();
    for (owner, rules) in cluster.chain(roles) {
        if OTHERS.contains(&owner.as_str()) {
            continue;
        }
        if GATEWAYS.contains(&owner.as_str()) {
            let rules = serde_json::to_value(rules).unwrap();
            let mark = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]);
            assert_eq!(rules, mark, "{owner}");
            continue;
        }
        let component = ACCOUNTS.iter().find(|(name, _)| *name == owner);
        let (component, _) = component.unwrap_or_else(|| panic!("nobody judges {owner}'s role"));
        for rule in rules.unwrap_or_default() {
            granted.extend(rights(component, &rule, &definitions));
        }
    }
    granted
}

/// The API server learns of new roles a moment after it has taken them.
async fn are_in_force(client: &Client, granted: &BTreeSet<Call>) {
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    for right in granted {
        let account = ACCOUNTS.iter().find(|(name, _)| *name == right.component);
        let (_, account) = account.unwrap();
        let resource = right.resource.split_once('/');
        let (resource, part) = resource.unwrap_or((&right.resource, ""));
        let review: SubjectAccessReview = serde_json::from_value(json!({
            "metadata": {},
            "spec": {
                "user": format!("system:serviceaccount:{NAMESPACE}:{account}"),
                "resourceAttributes": {
                    "namespace": NAMESPACE, "verb": right.verb, "group": right.group,
                    "resource": resource, "subresource": part, "name": right.name,
                },
            },
        }))
        .unwrap();
        let is_allowed = eventually("a right is in force", SOON, async || {
            let answer = reviews.create(&PostParams::default(), &review).await;
            answer.is_ok_and(|answer| answer.status.is_some_and(|status| status.allowed))
        });
        assert!(is_allowed.await.is_ok(), "{right}");
    }
}

/// Each right of a rule by itself; a wildcard stands for every kind of the group.
fn rights(
    component: &'static str,
    rule: &PolicyRule,
    definitions: &[CustomResourceDefinition],
) -> Vec<Call> {
    let mut rights = Vec::new();
    let any = vec![String::new()];
    for group in rule.api_groups.iter().flatten() {
        let of_group = definitions.iter().filter(|each| each.spec.group == *group);
        let every: Vec<String> = of_group
            .map(|each| each.spec.names.plural.clone())
            .collect();
        let resources = rule.resources.iter().flatten();
        let resources = resources.flat_map(|resource| match resource.as_str() {
            "*" => every.clone(),
            named => vec![named.to_owned()],
        });
        for resource in resources {
            for name in rule.resource_names.as_ref().unwrap_or(&any) {
                rights.extend(rule.verbs.iter().map(|verb| Call {
                    component,
                    verb: verb.clone(),
                    group: group.clone(),
                    resource: resource.clone(),
                    name: name.clone(),
                }));
            }
        }
    }
    rights
}

fn audit_log() -> String {
    let log = std::env::var_os("AUDIT_LOG").expect("$AUDIT_LOG; e2e/kube/run sets it");
    fs::read_to_string(log).unwrap()
}

/// What components asked the API server for after that much of the log, and what of it they may not.
fn audited(before: usize) -> (BTreeSet<Call>, BTreeSet<Call>) {
    let text = audit_log();
    let text = text.get(before..).unwrap_or_default();
    let (mut made, mut refused) = (BTreeSet::new(), BTreeSet::new());
    // The last line may still be being written.
    for event in text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let account = user.rsplit(':').next().unwrap_or_default();
        let Some((component, _)) = ACCOUNTS.iter().find(|(_, name)| *name == account) else {
            continue;
        };
        let object = &event["objectRef"];
        let part = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        if object.is_null() {
            // What the API server serves at all, which everybody may ask.
            continue;
        }
        let resource = match part("subresource") {
            of if of.is_empty() => part("resource"),
            of => format!("{}/{of}", part("resource")),
        };
        let call = Call {
            component,
            verb: event["verb"].as_str().unwrap_or_default().to_owned(),
            group: part("apiGroup"),
            resource,
            name: part("name"),
        };
        match event["responseStatus"]["code"].as_u64() {
            Some(403) => refused.insert(call),
            // Applying what is not there yet takes the right to create it, too.
            Some(201) if call.verb == "patch" => {
                made.insert(Call {
                    verb: "create".to_owned(),
                    ..call.clone()
                });
                made.insert(call)
            }
            _ => made.insert(call),
        };
    }
    (made, refused)
}
