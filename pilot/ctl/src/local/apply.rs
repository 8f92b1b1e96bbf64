//! Manifests: read with their lines, checked, sent through admission, stored; and taken away again.

use std::time::Duration;

use anyhow::Context as _;
use proto::yaml::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    admission::{self, Unreachable},
    kinds::{self, ObjectKind},
    network::plan::Plan,
    platform::Platform,
    store::{Change, Key},
    workloads,
};

/// What became of one object of a manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// `virtualservice.networking.istio.io/reviews`.
    pub object: String,
    /// `created`, `configured`, `unchanged`, `deleted`; none when it failed.
    pub action: Option<String>,
    /// Why it failed, or what is worth knowing.
    #[serde(default)]
    pub messages: Vec<String>,
}

/// An object of a manifest, with where it stands.
struct Object {
    value: Value,
    kind: ObjectKind,
    key: Key,
    /// `file:line`.
    place: String,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// The file's name, for messages.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Namespace of objects that name none.
    pub namespace: &'a str,
}

/// Applies every object of a manifest; those that are wrong do not keep the others out.
pub(crate) async fn apply(
    platform: &Platform,
    source: Source<'_>,
    patience: Duration,
) -> Vec<Outcome> {
    let deadline = Instant::now() + patience;
    let mut outcomes = Vec::new();
    for (document, object) in read(source) {
        outcomes.push(match object {
            Ok(object) => {
                let name = object.key.to_string();
                match apply_one(platform, &object, document.as_ref(), deadline).await {
                    Ok((change, messages)) => Outcome {
                        object: name,
                        action: Some(action(change)),
                        messages,
                    },
                    Err(error) => Outcome {
                        object: name,
                        action: None,
                        messages: vec![format!("{error:#}")],
                    },
                }
            }
            Err((object, problem)) => Outcome {
                object,
                action: None,
                messages: vec![problem],
            },
        });
    }
    outcomes
}

fn action(change: Change) -> String {
    match change {
        Change::Created => "created",
        Change::Configured => "configured",
        Change::Unchanged => "unchanged",
    }
    .to_owned()
}

async fn apply_one(
    platform: &Platform,
    object: &Object,
    document: Option<&Document>,
    deadline: Instant,
) -> anyhow::Result<(Change, Vec<String>)> {
    let old = platform.store.get(&object.key);
    let mut messages = Vec::new();
    if object.kind.is_mesh {
        messages = admit(platform, object, old.as_ref(), document, deadline).await?;
    } else {
        check_platform_object(object).with_context(|| object.place.clone())?;
    }
    let namespace = &object.key.namespace;
    if object.kind.is_namespaced {
        let exists = platform
            .store
            .get(&Key::platform("Namespace", "", namespace))
            .is_some();
        anyhow::ensure!(
            exists,
            "{}: namespace {namespace:?} does not exist; create it first",
            object.place
        );
    }
    let change = put(platform, object).await?;
    Ok((change, messages))
}

/// Asks Galley, again and again while it is not there, until `deadline`.
async fn admit(
    platform: &Platform,
    object: &Object,
    old: Option<&Value>,
    document: Option<&Document>,
    deadline: Instant,
) -> anyhow::Result<Vec<String>> {
    let has_galley = platform
        .store
        .get(&Key::platform("Deployment", "istio-system", "istio-galley"))
        .is_some();
    loop {
        match admission::validate(
            platform,
            object.kind,
            &object.key.namespace,
            &object.value,
            old,
        )
        .await
        {
            Ok(mut warnings) => {
                if !has_galley {
                    warnings.push("galley is switched off: stored without a check".into());
                }
                return Ok(warnings);
            }
            Err(error) if error.is::<Unreachable>() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => {
                let message = format!("{error:#}");
                let place =
                    document.and_then(|document| place_of(&message, document, &object.place));
                return Err(error.context(place.unwrap_or_else(|| object.place.clone())));
            }
        }
    }
}

/// `file:line` of the field that a message is about, if it names one.
fn place_of(message: &str, document: &Document, place: &str) -> Option<String> {
    let (file, _) = place.rsplit_once(':')?;
    let words = message
        .split([' ', ',', ';'])
        .map(|word| word.trim_end_matches(':').trim_matches(['"', '`', '\'']));
    let paths = words.filter(|word| word.contains('.') || word.contains('['));
    let lines = paths.flat_map(|path| {
        [
            document.line_of(path),
            document.line_of(&format!("spec.{path}")),
        ]
    });
    lines
        .into_iter()
        .filter(|line| *line > document.line)
        .max()
        .map(|line| format!("{file}:{line}"))
}

/// Platform objects are read once as what they are, so that a wrong type is told at once.
fn check_platform_object(object: &Object) -> anyhow::Result<()> {
    use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, networking::v1 as networking};
    fn check<T: serde::de::DeserializeOwned>(value: &Value) -> anyhow::Result<()> {
        serde_path_to_error::deserialize::<_, T>(value)
            .map(drop)
            .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))
    }
    let value = &object.value;
    match object.kind.kind {
        "Namespace" => check::<core::Namespace>(value),
        "ServiceAccount" => check::<core::ServiceAccount>(value),
        "ConfigMap" => check::<core::ConfigMap>(value),
        "Secret" => check::<core::Secret>(value),
        "Service" => check::<core::Service>(value),
        "Ingress" => check::<networking::Ingress>(value),
        "Pod" => check::<core::Pod>(value),
        "Deployment" => {
            check::<apps::Deployment>(value)?;
            let selector = &value["spec"]["selector"];
            let labels = &value["spec"]["template"]["metadata"]["labels"];
            anyhow::ensure!(
                super::store::selects(selector, labels),
                "spec.selector does not select the template's labels"
            );
            Ok(())
        }
        _ => Ok(()),
    }
    .with_context(|| format!("{} {}", object.kind.kind, object.key.name))
}

async fn put(platform: &Platform, object: &Object) -> anyhow::Result<Change> {
    let mut value = object.value.clone();
    match object.kind.kind {
        "Namespace" => {
            let change = platform.store.put(&object.key, value);
            add_namespace_objects(platform, &object.key.name);
            return Ok(change);
        }
        "Service" => {
            let spec = &mut value["spec"];
            if spec["type"] != "ExternalName" {
                let stored = platform.store.get(&object.key);
                if spec["clusterIP"].is_null() {
                    spec["clusterIP"] = match stored {
                        // It keeps what it has.
                        Some(stored) => stored["spec"]["clusterIP"].clone(),
                        None => json!(platform.service_address()?.to_string()),
                    };
                }
                add_family(platform.node.plan(), spec)?;
            }
        }
        "Pod" => {
            if platform.store.get(&object.key).is_some() {
                anyhow::bail!("a pod cannot be changed; delete it first");
            }
            workloads::fill_defaults(&mut value);
            let admitted = admission::mutate_pod(platform, &object.key.namespace, &value).await?;
            platform.start_pod(&object.key, admitted, None)?;
            return Ok(Change::Created);
        }
        _ => {}
    }
    Ok(platform.store.put(&object.key, value))
}

/// A service that asks for both families has an IPv6 address besides; one without addresses of its own has IPv6 endpoints.
fn add_family(plan: Plan, spec: &mut Value) -> anyhow::Result<()> {
    let policy = spec["ipFamilyPolicy"].as_str().unwrap_or_default();
    let is_required = policy == "RequireDualStack";
    if !is_required && policy != "PreferDualStack" {
        return Ok(());
    }
    if !plan.has_ipv6() {
        anyhow::ensure!(
            !is_required,
            "spec.ipFamilyPolicy: the pods have no IPv6 addresses (--set local.dualStack=true)"
        );
        return Ok(());
    }
    spec["ipFamilies"] = json!(["IPv4", "IPv6"]);
    let first = spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
    spec["clusterIPs"] = match first {
        Some(first) => json!([first, plan.second(first)]),
        None => json!([spec["clusterIP"]]),
    };
    Ok(())
}

/// What every namespace has: the default service account.
fn add_namespace_objects(platform: &Platform, namespace: &str) {
    let key = Key::platform("ServiceAccount", namespace, "default");
    if platform.store.get(&key).is_none() {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
        platform.store.put(&key, account);
    }
}

/// Deletes every object of a manifest.
pub(crate) fn delete(platform: &Platform, source: Source<'_>) -> Vec<Outcome> {
    let objects = read(source).into_iter().rev();
    objects
        .map(|(_, object)| match object {
            Ok(object) => delete_one(platform, &object.key),
            Err((object, problem)) => Outcome {
                object,
                action: None,
                messages: vec![problem],
            },
        })
        .collect()
}

/// Deletes an object.
pub(crate) fn delete_one(platform: &Platform, key: &Key) -> Outcome {
    let is_gone = match key.kind {
        "Pod" => platform.stop_pod(key, None),
        "Namespace" => delete_namespace(platform, key),
        _ => platform.store.remove(key).is_some(),
    };
    let object = key.to_string();
    if is_gone {
        Outcome {
            object,
            action: Some("deleted".into()),
            messages: Vec::new(),
        }
    } else {
        let place = if key.namespace.is_empty() {
            String::new()
        } else {
            format!(" in namespace {}", key.namespace)
        };
        Outcome {
            object,
            action: None,
            messages: vec![format!("not found{place}")],
        }
    }
}

fn delete_namespace(platform: &Platform, key: &Key) -> bool {
    for (inside, _) in platform
        .store
        .select(|candidate| candidate.namespace == key.name)
    {
        match inside.kind {
            "Pod" => drop(platform.stop_pod(&inside, None)),
            _ => drop(platform.store.remove(&inside)),
        }
    }
    platform.store.remove(key).is_some()
}

type Read = Result<Object, (String, String)>;

fn read(source: Source<'_>) -> Vec<(Option<Document>, Read)> {
    let mut objects = Vec::new();
    for document in proto::yaml::parse_documents(source.text) {
        let document = match document {
            Ok(document) => document,
            Err(error) => {
                let problem = format!("{}:{}: {}", source.name, error.line, error.problem);
                objects.push((None, Err((source.name.to_owned(), problem))));
                continue;
            }
        };
        let place = format!("{}:{}", source.name, document.line);
        if document.value["kind"] == "List" {
            for item in document.value["items"]
                .as_array()
                .cloned()
                .unwrap_or_default()
            {
                objects.push((None, object(item, &place, source.namespace)));
            }
        } else {
            let object = object(document.value.clone(), &place, source.namespace);
            objects.push((Some(document), object));
        }
    }
    objects
}

fn object(mut value: Value, place: &str, default_namespace: &str) -> Read {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind_name) = (text(&value["apiVersion"]), text(&value["kind"]));
    let name = text(&value["metadata"]["name"]);
    let shown = format!("{}/{name}", kind_name.to_ascii_lowercase());
    let Some(kind) = kinds::by_api_version_kind(&api_version, &kind_name) else {
        let hint = kinds::by_user_name(&kind_name).map_or_else(
            || "this platform has no such kind".to_owned(),
            |kind| format!("apiVersion {} would be right", kind.api_version()),
        );
        return Err((
            shown,
            format!("{place}: apiVersion {api_version:?}, kind {kind_name:?}: {hint}"),
        ));
    };
    if name.is_empty() {
        return Err((
            shown,
            format!("{place}: {kind_name}: metadata.name is missing"),
        ));
    }
    let namespace = match value["metadata"]["namespace"].as_str() {
        Some(namespace) => namespace.to_owned(),
        None => default_namespace.to_owned(),
    };
    if kind.is_namespaced {
        value["metadata"]["namespace"] = json!(namespace);
    }
    let key = Key::new(kind, &namespace, &name);
    Ok(Object {
        value,
        kind,
        key,
        place: place.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_with_place_and_namespace() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\napiVersion: v2\nkind: Service\nmetadata: {name: b}\n---\n[\n";
        let read = read(Source {
            name: "x.yaml",
            text,
            namespace: "shop",
        });
        let first = read[0].1.as_ref().ok().unwrap();
        assert_eq!(
            (first.key.namespace.as_str(), first.place.as_str()),
            ("shop", "x.yaml:1")
        );
        let (_, problem) = read[1].1.as_ref().err().unwrap();
        assert!(
            problem.contains("x.yaml:5") && problem.contains("apiVersion v1 would be right"),
            "{problem}"
        );
        assert!(read[2].1.is_err());
    }

    #[test]
    fn a_service_has_both_families_where_it_asks_and_pods_have_them() {
        let has_both = |has_ipv6: bool, mut spec: Value| {
            let added = add_family(Plan::Isolated { has_ipv6 }, &mut spec);
            added.map(|()| spec["clusterIPs"].clone()).ok()
        };
        let service = |policy: &str| json!({"clusterIP": "10.96.0.21", "ipFamilyPolicy": policy});
        let both = json!(["10.96.0.21", "fd42::a60:15"]);
        assert_eq!(
            has_both(true, service("PreferDualStack")),
            Some(both.clone())
        );
        assert_eq!(has_both(true, service("RequireDualStack")), Some(both));
        assert_eq!(has_both(true, service("SingleStack")), Some(Value::Null));
        let headless = json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"});
        assert_eq!(has_both(true, headless), Some(json!(["None"])));
        assert_eq!(
            has_both(false, service("PreferDualStack")),
            Some(Value::Null)
        );
        assert_eq!(has_both(false, service("RequireDualStack")), None);
    }

    #[test]
    fn a_message_leads_to_the_line_of_its_field() {
        let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  http:\n  - route:\n    - destination:\n        weights: 1\n";
        let document = proto::yaml::parse_documents(text).remove(0).unwrap();
        let place = place_of(
            "VirtualService a: http[0].route[0].destination.weights: unknown field",
            &document,
            "x:1",
        );
        assert_eq!(place.as_deref(), Some("x:8"));
    }
}
