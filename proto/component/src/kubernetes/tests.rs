//! What is asked of an API server that plays by a script.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use http::{Request, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// Answers in turn; `None`: the connection is refused. Afterwards it says nothing any more.
type Script = Arc<Mutex<VecDeque<Option<String>>>>;
/// What was asked for.
type Asked = Arc<Mutex<Vec<String>>>;

fn client(script: impl IntoIterator<Item = Option<String>>) -> (Client, Asked) {
    let (script, asked) = (
        Script::new(Mutex::new(script.into_iter().collect())),
        Asked::default(),
    );
    let seen = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().push(request.uri().to_string());
        let answer = script.lock().pop_front();
        async move {
            match answer {
                Some(Some(text)) => Ok(Response::new(Body::from(text.into_bytes()))),
                Some(None) => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                None => std::future::pending().await,
            }
        }
    });
    (Client::new(service, "shop"), asked)
}

fn object(name: &str, version: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version}})
}

fn page(names: &[&str], version: &str, next: &str) -> String {
    let items: Vec<Value> = names.iter().map(|name| object(name, version)).collect();
    let meta = json!({"resourceVersion": version, "continue": next});
    json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": meta, "items": items})
        .to_string()
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// The first changes, a word each.
async fn told(client: Client, count: usize) -> Vec<String> {
    let word = |change: Change<ConfigMap>| {
        let name = |object: ConfigMap| object.metadata.name.unwrap_or_default();
        match change {
            Change::Listing => "listing".to_owned(),
            Change::Object(object) => name(object),
            Change::Gone(object) => format!("-{}", name(object)),
            Change::Listed => "listed".to_owned(),
            Change::Absent => "absent".to_owned(),
            Change::Failed(_) => "failed".to_owned(),
            Change::Denied(_) => "denied".to_owned(),
        }
    };
    let changes = watch(Api::<ConfigMap>::all(client)).take(count);
    changes.map(word).collect().await
}

/// The value of a parameter, empty if it is not there.
fn parameter<'a>(uri: &'a str, name: &str) -> &'a str {
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .map_or("", |(_, value)| value)
}

#[tokio::test(start_paused = true)]
async fn a_list_comes_in_pages_and_a_watch_goes_on_from_its_bookmark() {
    let first = event("ADDED", &object("c", "11"))
        + &event("DELETED", &object("a", "12"))
        + &event("BOOKMARK", &object("", "20"));
    let (client, asked) = client([
        Some(page(&["a"], "10", "more")),
        Some(page(&["b"], "10", "")),
        // The API server ends the watch, and is away for a while.
        Some(first),
        None,
        Some(event("ADDED", &object("d", "21"))),
    ]);
    let wanted = ["listing", "a", "b", "listed", "c", "-a", "failed", "d"];
    assert_eq!(told(client, wanted.len()).await, wanted);

    let asked = asked.lock();
    let lists: Vec<(&str, &str)> = asked[..2]
        .iter()
        .map(|uri| (parameter(uri, "limit"), parameter(uri, "continue")))
        .collect();
    assert_eq!(lists, [("500", ""), ("500", "more")]);
    // Never a list again.
    let watches: Vec<(&str, &str)> = asked[2..5]
        .iter()
        .map(|uri| {
            assert_eq!(parameter(uri, "allowWatchBookmarks"), "true", "{uri}");
            (parameter(uri, "watch"), parameter(uri, "resourceVersion"))
        })
        .collect();
    assert_eq!(watches, [("true", "10"), ("true", "20"), ("true", "20")]);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_too_old_is_listed_anew_without_a_word() {
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
        "reason": "Expired", "message": "too old resource version"});
    let (client, asked) = client([
        Some(page(&["a"], "10", "")),
        Some(event("ERROR", &gone)),
        Some(page(&["b"], "30", "")),
        Some(event("MODIFIED", &object("b", "31"))),
    ]);
    let wanted = ["listing", "a", "listed", "listing", "b", "listed", "b"];
    assert_eq!(told(client, wanted.len()).await, wanted);
    let asked = asked.lock();
    assert_eq!(parameter(&asked[3], "resourceVersion"), "30");
}
