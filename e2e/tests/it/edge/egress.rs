//! The egress gateway: plain HTTP from a sidecar becomes TLS to a server outside, with certificates by name.

use e2e::echo::{Call, Protocol};

use super::{CONTROL_PLANE, Stage, settle};
use crate::scene::secret;

/// Hosts outside, how they are spoken to, and with what credential.
const HOSTS: &[(&str, &str, &str)] = &[
    ("simple.test", "SIMPLE", "outside-roots"),
    ("wrong.test", "SIMPLE", "other-roots"),
    ("mutual-outside.test", "MUTUAL", "outside-client"),
    ("nobody.test", "SIMPLE", "outside-roots"),
];

/// The gateway's credentials and the routes through it.
pub(super) fn manifests(stage: &Stage) -> String {
    let client = stage.outside.leaf("spiffe://partner/ns/x/sa/egress");
    let roots = stage.outside.root();
    let credentials = [
        ("outside-roots", vec![("ca.crt", roots.as_str())]),
        ("other-roots", vec![("cacert", &stage.a.root())]),
        // In the generic form, with the roots in a Secret of their own.
        (
            "outside-client",
            vec![("cert", client.chain.as_str()), ("key", &client.key)],
        ),
        ("outside-client-cacert", vec![("cacert", &roots)]),
    ]
    .map(|(name, data)| secret(CONTROL_PLANE, name, &data));
    let routes = HOSTS.iter().map(|(host, mode, credential)| {
        include_str!("../../security/egress.yaml")
            .replace("{{host}}", host)
            .replace("{{mode}}", mode)
            .replace("{{credential}}", credential)
    });
    credentials.into_iter().chain(routes).collect()
}

/// Only whoever has what the server asks for, and believes it, gets an answer.
pub(super) async fn holds(stage: &Stage) {
    // Any address will do: the sidecar goes by the host.
    let to = |host: &str| {
        let mut call = Call::new(Protocol::Http1, "198.51.100.7:80");
        host.clone_into(&mut call.host);
        call
    };
    let cases = [
        ("SIMPLE", to("simple.test"), Some(200)),
        ("MUTUAL", to("mutual-outside.test"), Some(200)),
        ("a server that is not believed", to("wrong.test"), Some(503)),
        (
            "no certificate where one is asked for",
            to("nobody.test"),
            Some(503),
        ),
    ];
    settle(stage, "auto", &cases).await;
}
