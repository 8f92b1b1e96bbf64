//! Several registries at once: of two platforms that know a service the first counts, and what users write comes on top.

use std::collections::BTreeMap;
use std::sync::Arc;

use pilot::config::store::ConfigStore;
use pilot::config::{Update, file};
use pilot::model::Mesh;
use pilot::registry::ServiceRegistry;
use pilot::registry::service_entry::Settings;
use proto::type_url::ENDPOINT;

use super::ads::{Client, addresses, assignments, service};
use super::mesh::Pilot;

/// Everything that a platform knows: services with their only endpoint.
fn platform(known: &[(&str, &str)]) -> Update {
    let services = known.iter();
    let text = services.map(|(name, address)| service(name, "default", &[address]));
    let updates = load(&text.collect::<String>()).into_iter();
    let mut found = updates.filter(|update| matches!(update, Update::SyntheticServiceEntries(_)));
    found.next().unwrap()
}

/// The same over the other way.
fn cluster(known: &[(&str, &str)]) -> Update {
    match platform(known) {
        Update::SyntheticServiceEntries(change) => Update::ClusterServices(change),
        other => other,
    }
}

/// What users have written.
fn users(text: &str) -> Update {
    let mut updates = load(text).into_iter();
    updates
        .find(|update| matches!(update, Update::ServiceEntries(_)))
        .unwrap()
}

fn load(text: &str) -> Vec<Update> {
    let loaded = file::load([("test.yaml", text)].into_iter());
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    loaded.updates
}

#[tokio::test]
async fn the_first_platform_that_knows_a_service_counts_and_users_add_to_it() {
    const MORE: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: more, namespace: default}\nspec:\n  \
        hosts: [both.default.svc.cluster.local]\n  resolution: STATIC\n  ports: [{number: 9080, name: http, protocol: HTTP}]\n  \
        endpoints: [{address: 10.3.0.1}]\n";
    let pilot = Pilot::start_empty().await;
    let tell = async |update: Update| pilot.updates.send(update).await.unwrap();
    tell(cluster(&[("both", "10.1.0.1"), ("cluster", "10.1.0.2")])).await;
    tell(platform(&[("both", "10.2.0.1"), ("source", "10.2.0.2")])).await;
    let names = ["both", "cluster", "source"]
        .map(|name| format!("outbound|9080||{name}.default.svc.cluster.local"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = Client::connect(&pilot).await;
    client.ask(ENDPOINT, &names, "", None).await;
    let mut known = vec![String::new(); names.len()];
    let mut until = async |wanted: [&str; 3]| {
        // One comes after the other.
        while known != wanted {
            let response = client.next().await;
            for assignment in assignments(&response) {
                let mut places = names.iter();
                let place = places.position(|name| *name == assignment.cluster_name);
                known[place.unwrap()] = addresses(&assignment).join(" ");
            }
            client.ask(ENDPOINT, &names, &response.nonce, None).await;
        }
    };
    until(["10.1.0.1", "10.1.0.2", "10.2.0.2"]).await;
    tell(users(MORE)).await;
    until(["10.1.0.1 10.3.0.1", "10.1.0.2", "10.2.0.2"]).await;
    // The cluster has it no more: the other one's counts.
    tell(cluster(&[("cluster", "10.1.0.2")])).await;
    until(["10.2.0.1 10.3.0.1", "10.1.0.2", "10.2.0.2"]).await;
    tell(users("")).await;
    until(["10.2.0.1", "10.1.0.2", "10.2.0.2"]).await;
}

#[test]
fn ports_for_udp_are_told_once() {
    let (mut store, mut registry) = (ConfigStore::default(), ServiceRegistry::default());
    let mesh = Mesh::default();
    let settings = Settings {
        trust_domain: &mesh.trust_domain,
        export_to: &mesh.service_export_to,
        cluster: &Arc::default(),
    };
    let mut told = |ports: &str, address: &str| {
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: names, namespace: default}}\nspec:\n  \
             hosts: [names.example.com]\n  resolution: STATIC\n  ports: [{ports}]\n  endpoints: [{{address: {address}}}]\n"
        );
        let (kind, touched) = store.apply(users(&entry)).unwrap();
        registry.refresh(&store, kind, &touched, &settings).udp
    };
    let told_of = |ports: &[u32]| BTreeMap::from([("default/names".to_owned(), ports.to_vec())]);
    let (tcp, udp) = (
        "{number: 53, name: tcp, protocol: TCP}",
        "{number: 54, name: udp, protocol: UDP}",
    );
    assert!(told(tcp, "10.1.0.1").is_empty());
    let both = format!("{tcp}, {udp}");
    assert_eq!(told(&both, "10.1.0.1"), told_of(&[54]));
    assert!(told(&both, "10.1.0.2").is_empty());
    let more = format!("{both}, {{number: 55, name: more, protocol: UDP}}");
    assert_eq!(told(&more, "10.1.0.2"), told_of(&[54, 55]));
}
