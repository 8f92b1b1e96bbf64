//! A Secret and what is revoked.

use std::convert::Infallible;

use http::{Request, StatusCode};
use kube::client::Body;
use proto_component::{task, tls};
use serde_json::{Value, json};

use super::*;
use crate::ca::SelfSigned;
use crate::kubernetes::testing::{ApiServer, answer};
use crate::pki::{certificates_from_pem, serial_of};
use crate::revocation::Target;
use crate::testing::{leaf_of, open_store};
use crate::trust::Trust;

const DAY: Duration = Duration::from_secs(86400);

/// Of an API server with one namespace, one account, and the Secret that `server` has.
fn client(server: &ApiServer) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let object = match request.uri().path() {
                "/api/v1/namespaces" => json!({"metadata": {"name": "a"}}),
                "/api/v1/serviceaccounts" => json!({"metadata": {"name": "b", "namespace": "a"}}),
                _ => return Ok::<_, Infallible>(server.serve(request).await),
            };
            let query = request.uri().query().unwrap_or_default();
            if query.contains("watch=true") {
                // They stay as they are.
                std::future::pending::<()>().await;
            }
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": [object]});
            Ok(answer(StatusCode::OK, &list))
        }
    });
    Client::new(service, "default")
}

fn text(object: Option<&Value>, name: &str) -> Option<String> {
    let secret: Secret = serde_json::from_value(object?.clone()).unwrap();
    let bytes = secret.data?.get(name)?.0.clone();
    Some(String::from_utf8(bytes).unwrap())
}

#[tokio::test]
async fn it_says_who_is_revoked_and_gets_a_good_certificate_unless_its_owner_is_barred() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(folder.path());
    let now = OffsetDateTime::now_utc();
    let ca = SelfSigned::open(&store, crate::testing::settings(), tls::provider(), now);
    let ca: Arc<dyn CertificateAuthority> = Arc::new(ca.unwrap());
    let (ledger, writer) = Ledger::open(&store, DAY).unwrap();
    task::spawn("ledger", writer.run(Drain::never()));
    let revocations = Revocations::open(&store).unwrap();
    let trust = Trust::new(ca.clone(), revocations.clone()).unwrap();
    let server = ApiServer::default();
    let settings = SecretSettings {
        trust_domain: "cluster.local".to_owned(),
        ttl: DAY,
        grace: DAY / 2,
        dns_names: BTreeMap::new(),
        namespaces: Vec::new(),
        is_default_managed: true,
        own_namespace: "istio-system".to_owned(),
        dual_use: false,
    };
    let metrics = SecretMetrics::new(&prometheus::Registry::new()).unwrap();
    let (client, anchors) = (client(&server), trust.watch());
    let mut secrets = WorkloadSecrets::new(
        client,
        ca.clone(),
        ledger.clone(),
        revocations.clone(),
        anchors,
        settings,
        metrics,
    );
    task::spawn("secrets", async move { secrets.run(&Drain::never()).await });
    let revoke = |target: Target| {
        let revoked = revocations.revoke(&target, &ledger, OffsetDateTime::now_utc());
        trust.refresh().unwrap();
        revoked.unwrap()
    };
    let serial_in = |object: Option<&Value>| {
        let chain = text(object, CHAIN)?;
        serial_of(&certificates_from_pem(&chain).unwrap()[0]).ok()
    };
    let names = |object: Option<&Value>, serial: &str| {
        let lists = text(object, CRLS).unwrap_or_default();
        let (_, pem) = x509_parser::pem::parse_x509_pem(lists.as_bytes()).ok()?;
        let (_, list) = x509_parser::parse_x509_crl(&pem.contents).ok()?;
        let mut all = list.iter_revoked_certificates();
        all.find(|entry| serial == format!("{:x}", entry.user_certificate))
            .map(drop)
    };

    let object = server.until(Option::is_some).await;
    let first = serial_in(object.as_ref()).unwrap();
    assert_eq!(text(object.as_ref(), CRLS).unwrap(), "");

    // Somebody else's: this certificate stays.
    let other = leaf_of(ca.as_ref(), now);
    let identity = "spiffe://cluster.local/ns/c/sa/d".to_owned();
    let issued = Issued {
        serial: other.serial.clone(),
        identity: identity.clone(),
        issued_at: now,
        not_before: now,
        not_after: now + DAY,
        authenticator: "test".to_owned(),
        peer: None,
        key_fingerprint: "00".to_owned(),
    };
    ledger.record(&issued).await.unwrap();
    revoke(Target::Identity(identity));
    let told = server.until(|object| names(object.as_ref(), &other.serial).is_some());
    assert_eq!(serial_in(told.await.as_ref()).unwrap(), first);

    // Its own: there is another at once.
    revoke(Target::Serial(first.clone()));
    let object = server
        .until(|object| serial_in(object.as_ref()).is_some_and(|serial| serial != first))
        .await;
    assert!(names(object.as_ref(), &first).is_some());
    let second = serial_in(object.as_ref()).unwrap();

    // All that it has: there is none any more.
    revoke(Target::Identity(
        "spiffe://cluster.local/ns/a/sa/b".to_owned(),
    ));
    let told = server.until(|object| names(object.as_ref(), &second).is_some());
    assert_eq!(serial_in(told.await.as_ref()).unwrap(), second);
}
