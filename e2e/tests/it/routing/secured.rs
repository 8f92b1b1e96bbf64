//! Plain requests that the clients' proxies send on over TLS, with certificates of mounted files.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::row::{Row, is_by};
use super::rows::of;
use crate::authority::Authority;
use crate::scene;

pub(super) const CONFIGURATION: &str = include_str!("../../routing/secured.yaml");
/// What the servers' certificates say that they are called, besides their identity.
pub(super) const NAMED: [&str; 3] = ["of-roots.servers", "verified.servers", "begun.test"];
/// Secrets, and where a client's proxy has them: files that rules name, and what its system trusts.
const MOUNTS: [(&str, &str); 2] = [("outside", "/etc/outside"), ("system", "/etc/ssl/certs")];

/// Annotations with which a client's proxy has the files.
pub(super) fn annotations() -> [(&'static str, String); 2] {
    let volumes = MOUNTS.map(|(name, _)| (name, json!({"secret": {"secretName": name}})));
    let mounts = MOUNTS.map(|(name, path)| (name, json!({"mountPath": path, "readOnly": true})));
    let text = |of: [(&str, Value); 2]| json!(BTreeMap::from(of)).to_string();
    [
        ("sidecar.istio.io/userVolume", text(volumes)),
        ("sidecar.istio.io/userVolumeMount", text(mounts)),
    ]
}

/// The files of a client's namespace; the servers have theirs from `authority`.
pub(super) fn secrets(authority: &Authority, namespace: &str) -> String {
    let leaf = authority.leaf("spiffe://partner/ns/x/sa/client");
    let roots = authority.root();
    let named = [
        ("tls.crt", leaf.chain.as_str()),
        ("tls.key", &leaf.key),
        ("ca.crt", &roots),
        ("others.crt", &Authority::new("others").root()),
    ];
    let trusted = [("ca-certificates.crt", roots.as_str())];
    scene::secret(namespace, "outside", &named) + &scene::secret(namespace, "system", &trusted)
}

pub(super) fn rows() -> Vec<Row> {
    let served = |name, service, server: &'static str| {
        Row::about(name, vec![of(service)], move |seen| is_by(server, &seen[0]))
    };
    let refused =
        |name, service| Row::about(name, vec![of(service)], |seen| seen[0].status == Some(503));
    let begun = ["begun.test", "misled.test"].map(|host| of("app").host(host));
    vec![
        served("a certificate in files", "of-files", "v1"),
        refused("no certificate where one is asked for", "of-no-files"),
        served("roots in a file", "of-roots", "v1"),
        refused("roots of others", "of-other-roots"),
        refused("a server that is not whom the request is for", "misnamed"),
        served("roots of the system", "verified", "v1"),
        refused("a server that nobody vouches for", "strange"),
        Row::about("requests to a port for TLS", begun.to_vec(), |seen| {
            is_by("v1", &seen[0]) && seen[1].status == Some(503)
        }),
        served("a server that is not verified", "unverified", "mirror"),
    ]
}
