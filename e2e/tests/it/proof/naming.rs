//! A server with a good certificate of the mesh, but somebody else's: clients look whose it is before they say a word.

use e2e::echo::{Call, Protocol};
use e2e::mesh::eventually;

use super::{ENVOY, Stage};
use crate::SETTLED;
use crate::scene;

/// Whose certificate the server has.
const OWNER: &str = "spiffe://cluster.local/ns/outside/sa/owner";
/// Names that lead to it, where, and whom callers expect there.
const NAMES: [(&str, &str, &str); 2] = [
    ("owner.test", "240.240.8.1", OWNER),
    (
        "claimed.test",
        "240.240.8.2",
        "spiffe://cluster.local/ns/servers/sa/app",
    ),
];

/// The server, which is outside the mesh.
pub(super) fn manifests(stage: &Stage) -> String {
    let leaf = stage.authority.leaf(OWNER);
    let files = [
        ("tls.crt", leaf.chain.as_str()),
        ("tls.key", &leaf.key),
        ("ca.crt", &stage.authority.root()),
    ];
    scene::secret("outside", "tls", &files) + include_str!("../../security/tls.yaml")
}

/// Under its owner's name it is spoken to, under another's it is not: by our proxy and by a real Envoy.
pub(super) async fn holds(stage: &Stage) {
    let pod = stage.pod_ip("outside", "tls").await;
    let entry = include_str!("../../security/naming.yaml").replace("{{pod}}", &pod);
    let entries = NAMES.map(|(host, address, identity)| {
        let entry = entry.replace("{{host}}", host);
        entry
            .replace("{{address}}", address)
            .replace("{{identity}}", identity)
    });
    stage.apply(&entries.concat()).await;
    let calls = NAMES.map(|(host, address, _)| Call {
        host: host.to_owned(),
        ..Call::new(Protocol::Http1, &format!("{address}:80"))
    });
    for client in ["auto".to_owned(), format!("auto{ENVOY}")] {
        let mut outcomes = Vec::new();
        let settled = eventually("the owner is spoken to", SETTLED, async || {
            outcomes = stage.call(&client, &calls).await;
            outcomes[0].is_served() && outcomes[1].status == Some(503)
        });
        let settled = settled.await;
        assert!(settled.is_ok(), "{client}: {outcomes:?}");
    }
}
