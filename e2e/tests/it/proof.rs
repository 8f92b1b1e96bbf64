//! Proof that nobody gets through who should not: one mesh, whose CA is the test's own, and every way in that we know of,
//! each beside one that is allowed.
//!
//! [`matrix`]: server modes × clients × protocols, with our proxy and a real Envoy on either side. [`policies`]: who may ask for
//! what, and forged headers. [`paths`]: one path in many spellings. [`certificates`]: certificates that are not good, and
//! revocation. [`naming`]: a server with somebody else's certificate. [`mounted`]: certificates in files. [`matchers`]: every matcher
//! of a policy. [`levels`]: of mesh, namespace, workload and port. [`keys`]: those of token issuers. [`checks`]: what others decide,
//! and policies that only look on. [`pages`]: what debug pages and files give away. [`reload`]: another plugged-in CA.

mod certificates;
mod checks;
mod keys;
mod levels;
mod matchers;
mod matrix;
mod mounted;
mod naming;
mod pages;
mod paths;
mod policies;
mod reload;

use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use futures::FutureExt as _;
use tempfile::TempDir;

use crate::authority::{Authority, Tokens};
use crate::scene::{self, Scene};

/// Namespaces with a client that has a sidecar.
const CLIENTS: &[&str] = &["auto", "mtls", "plain", "ports", "monitoring", "ops"];
/// Those that are there a second time, with a real Envoy, under this suffix.
const ENVOY_CLIENTS: &[&str] = &["auto", "mtls", "plain", "ports"];
const ENVOY: &str = "-envoy";
/// Servers, and what they take; all but the last are there with a real Envoy, too.
const SERVERS: &[(&str, &str)] = &[
    ("disable", "DISABLE"),
    ("permissive", "PERMISSIVE"),
    ("strict", "STRICT"),
    ("matchers", "PERMISSIVE"),
    ("levels", "UNSET"),
    ("app", "PERMISSIVE"),
];
const SETTINGS: &str = "mixer.policy.enabled=false,mixer.telemetry.enabled=false,\
    gateways.istio-egressgateway.enabled=false,security.selfSigned=false,\
    pilot.env.PILOT_JWT_PUB_KEY_REFRESH_INTERVAL=2s";

/// The mesh and what the test knows of it.
struct Stage {
    scene: Scene,
    authority: Authority,
    /// Issuer whose keys stand in the policy.
    inline: Tokens,
    /// Issuer whose keys are fetched.
    fetched: Tokens,
    /// Issuer whose tokens are good in several clusters, each for its own.
    shared: Tokens,
    /// Where the plugged-in CA's files are.
    plugged_in: TempDir,
    /// What an issuer outside publishes, where pods see it.
    published: TempDir,
}

impl Deref for Stage {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl Stage {
    async fn up(name: &str, envoy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("proof");
        authority.write(folder.path());
        let settings = format!("{SETTINGS},local.cacerts={}", folder.path().display());
        let values = e2e::mesh::project().join("e2e/tests/security/values.yaml");
        let values = values.to_str().unwrap();
        let stage = Self {
            scene: Scene::up(name, &["-f", values, "--set", &settings]).await,
            authority,
            inline: Tokens::new("https://inline.test"),
            fetched: Tokens::new("https://fetched.test"),
            shared: Tokens::new("https://shared.test"),
            plugged_in: folder,
            published: published(),
        };
        stage.apply(&stage.manifests(envoy)).await;
        let (servers, clients) = (SERVERS.len() * 2 - 1, CLIENTS.len() + ENVOY_CLIENTS.len());
        // And one client without a sidecar, the server of keys, the one with another's name, and two with certificates in files.
        stage.are_ready(servers + clients + 5).await;
        stage
    }

    fn manifests(&self, envoy: &str) -> String {
        let with_envoy: Vec<String> = ENVOY_CLIENTS
            .iter()
            .map(|name| format!("{name}{ENVOY}"))
            .collect();
        let mut text = scene::namespace("servers", true) + &scene::namespace("outside", false);
        let namespaces = CLIENTS.iter().map(ToString::to_string);
        for name in namespaces.chain(with_envoy.iter().cloned()) {
            text += &scene::namespace(&name, true);
        }
        let file = self.published.path().join("jwks.json");
        let keys = format!(
            "'--file=/jwks.json={}', '--file=/published.json=@{}'",
            self.fetched.jwks(),
            file.display()
        );
        text += &include_str!("../security/workloads.yaml").replace("{{keys}}", &keys);
        for (name, mode) in SERVERS {
            if *name == "app" {
                text += &scene::server(name, "app", mode, None);
                continue;
            }
            text += &scene::server(name, "default", mode, None);
            text += &scene::server(&format!("{name}{ENVOY}"), "default", mode, Some(envoy));
        }
        for namespace in [CLIENTS, &["outside"]].concat() {
            text += &scene::client(namespace, None);
        }
        for namespace in &with_envoy {
            text += &scene::client(namespace, Some(envoy));
        }
        let rules = include_str!("../security/client-tls.yaml");
        for suffix in ["", ENVOY] {
            text += &rules.replace("{{suffix}}", suffix);
        }
        text += include_str!("../security/policies.yaml");
        text += &checks::manifests();
        text += &naming::manifests(self);
        text += &mounted::manifests(self, envoy);
        let (rsa, _) = Tokens::rsa("https://rsa.test");
        text.replace("{{jwks}}", &self.inline.jwks())
            .replace("{{rsa}}", &rsa.jwks())
            .replace("{{shared}}", &self.shared.jwks())
    }
}

/// A folder that every pod sees.
fn published() -> TempDir {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&folder, readable).unwrap();
    folder
}

/// The Envoy of `$ENVOY`, where every pod's user may run it.
#[expect(
    clippy::disallowed_methods,
    reason = "a test has no command line of its own"
)]
pub(crate) fn envoy(folder: &Path) -> String {
    let from = std::env::var("ENVOY").expect("ENVOY is the path of an Envoy, see e2e/envoy.sh");
    let to = folder.join("envoy");
    if std::fs::hard_link(&from, &to).is_err() {
        std::fs::copy(&from, &to).unwrap();
    }
    for path in [folder, &to] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    to.to_str().unwrap().to_owned()
}

/// What was opened under the CA before is not out of the next one's reach.
async fn reload_and_revocation(stage: &Stage) {
    let before = certificates::opened(stage).await;
    reload::breaks_nothing(stage).await;
    certificates::are_revoked_at_once(stage, before).await;
}

#[tokio::test]
#[ignore = "needs root, iptables and Envoy: set ENVOY to its path"]
async fn nobody_gets_through_who_should_not() {
    // Pods have a /tmp of their own.
    let programs = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut stage = Stage::up("e2e-proof", &envoy(programs.path())).await;
    let mut failed = Vec::new();
    // Each part stands for itself: one that fails does not hide what the others find.
    for (name, part) in [
        ("matrix", matrix::holds(&stage).boxed_local()),
        ("policies", policies::hold(&stage).boxed_local()),
        ("paths", paths::hold(&stage).boxed_local()),
        ("certificates", certificates::hold(&stage).boxed_local()),
        ("naming", naming::holds(&stage).boxed_local()),
        ("mounted", mounted::lives_from_files(&stage).boxed_local()),
        ("matchers", matchers::hold(&stage).boxed_local()),
        ("levels", levels::hold(&stage).boxed_local()),
        ("keys", keys::hold(&stage).boxed_local()),
        ("checks", checks::hold(&stage).boxed_local()),
        ("pages", pages::keep_secrets(&stage).boxed_local()),
        (
            "reload and revocation",
            reload_and_revocation(&stage).boxed_local(),
        ),
    ] {
        if std::panic::AssertUnwindSafe(part)
            .catch_unwind()
            .await
            .is_err()
        {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed, see above: {failed:?}");
    assert_eq!(stage.scene.mesh.end().await, "");
}
