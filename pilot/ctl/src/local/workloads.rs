//! Deployments: as many pods as they want, of the template as it is now; old ones go when new ones are ready.

use std::time::Duration;

use anyhow::Context as _;
use proto_component::{backoff::Backoff, task};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    admission,
    platform::{Owner, Platform},
    store::{Key, Store, now},
};

/// One pass over all deployments.
pub(crate) fn reconcile(platform: &Platform) {
    let deployments = platform.store.list("apps", "Deployment");
    for (key, deployment) in &deployments {
        reconcile_one(platform, key, deployment);
    }
    let orphans: Vec<Key> = {
        let pods = platform.pods.lock();
        let is_orphan = |owner: &Owner| deployments.iter().all(|(key, _)| *key != owner.deployment);
        let orphaned = pods
            .iter()
            .filter(|(_, pod)| pod.owner.as_ref().is_some_and(is_orphan));
        orphaned
            .filter(|(_, pod)| pod.context.stop.borrow().is_none())
            .map(|(key, _)| key.clone())
            .collect()
    };
    for key in orphans {
        platform.stop_pod(&key, None);
    }
}

/// A pod of a deployment, as far as counting goes.
struct Member {
    key: Key,
    is_current: bool,
    is_ready: bool,
    is_made: bool,
}

fn reconcile_one(platform: &Platform, key: &Key, deployment: &Value) {
    let wanted = deployment["spec"]["replicas"]
        .as_u64()
        .map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let hash = template_hash(&deployment["spec"]["template"]);
    let members = members(platform, key, &hash);
    let current: Vec<&Member> = members.iter().filter(|member| member.is_current).collect();
    for _ in current.len()..wanted {
        make_pod(platform, key, deployment, &hash);
    }
    if current.len() > wanted {
        let mut surplus: Vec<&&Member> = current.iter().filter(|member| member.is_made).collect();
        surplus.sort_by_key(|member| member.is_ready);
        for member in surplus.into_iter().take(current.len() - wanted) {
            platform.stop_pod(&member.key, None);
        }
    }
    let ready = current.iter().filter(|member| member.is_ready).count();
    if ready >= wanted {
        for old in members
            .iter()
            .filter(|member| !member.is_current && member.is_made)
        {
            platform.stop_pod(&old.key, None);
        }
    }
    let status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": members.len(),
        "updatedReplicas": current.len(),
        "readyReplicas": members.iter().filter(|member| member.is_ready).count(),
        "availableReplicas": members.iter().filter(|member| member.is_ready).count(),
    });
    platform.store.set_status(key, status);
}

fn members(platform: &Platform, key: &Key, hash: &str) -> Vec<Member> {
    let mut members = Vec::new();
    for (pod_key, pod) in platform.pods.lock().iter() {
        let Some(owner) = pod.owner.as_ref().filter(|owner| owner.deployment == *key) else {
            continue;
        };
        if pod.context.stop.borrow().is_some() {
            continue;
        }
        members.push(Member {
            key: pod_key.clone(),
            is_current: owner.hash == hash,
            is_ready: pod.context.status.lock().is_ready(),
            is_made: true,
        });
    }
    let making = platform.making.lock();
    for (pod_key, owner) in making.iter().filter(|(_, owner)| owner.deployment == *key) {
        members.push(Member {
            key: pod_key.clone(),
            is_current: owner.hash == hash,
            is_ready: false,
            is_made: false,
        });
    }
    members
}

fn template_hash(template: &Value) -> String {
    let digest = Sha256::digest(template.to_string());
    digest
        .iter()
        .take(5)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Makes one pod of the deployment: through admission, as often as it takes, while the deployment still wants it.
fn make_pod(platform: &Platform, deployment_key: &Key, deployment: &Value, hash: &str) {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let suffix: String = (0..5)
        .map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]))
        .collect();
    let replica_set = format!("{}-{hash}", deployment_key.name);
    let name = format!("{replica_set}-{suffix}");
    let key = Key::platform("Pod", &deployment_key.namespace, &name);
    let owner = Owner {
        deployment: deployment_key.clone(),
        hash: hash.to_owned(),
    };
    platform.making.lock().insert(key.clone(), owner.clone());
    let mut pod = from_template(&deployment["spec"]["template"], &key, hash);
    pod["metadata"]["generateName"] = json!(format!("{replica_set}-"));
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "controller": true,
        "blockOwnerDeletion": true, "uid": deployment["metadata"]["uid"],
    }]);
    let platform = platform.clone();
    task::spawn("make-pod", async move {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        while is_wanted(&platform.store, &owner) {
            match admit(&platform, &key, &pod, &owner).await {
                Ok(()) => break,
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(pod = key.name, error = reason, "a pod was not admitted");
                    note_failure(&platform.store, &owner.deployment, &reason);
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
        platform.making.lock().remove(&key);
        platform.store.touch();
    });
}

async fn admit(platform: &Platform, key: &Key, pod: &Value, owner: &Owner) -> anyhow::Result<()> {
    let admitted = admission::mutate_pod(platform, &key.namespace, pod).await?;
    if is_wanted(&platform.store, owner) {
        platform.start_pod(key, admitted, Some(owner.clone()))?;
        note_failure(&platform.store, &owner.deployment, "");
    }
    Ok(())
}

fn is_wanted(store: &Store, owner: &Owner) -> bool {
    let deployment = store.get(&owner.deployment);
    deployment
        .is_some_and(|deployment| template_hash(&deployment["spec"]["template"]) == owner.hash)
}

/// Shows in the deployment why it has no pods; an empty reason takes that back.
fn note_failure(store: &Store, deployment: &Key, reason: &str) {
    let Some(object) = store.get(deployment) else {
        return;
    };
    let mut status = object["status"].clone();
    if reason.is_empty() {
        if let Some(status) = status.as_object_mut() {
            status.remove("conditions");
        }
    } else {
        status["conditions"] =
            json!([{"type": "ReplicaFailure", "status": "True", "message": reason}]);
    }
    store.set_status(deployment, status);
}

/// A pod of a template.
fn from_template(template: &Value, key: &Key, hash: &str) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    pod["metadata"]["name"] = json!(key.name);
    pod["metadata"]["namespace"] = json!(key.namespace);
    if !pod["metadata"]["labels"].is_object() {
        pod["metadata"]["labels"] = json!({});
    }
    pod["metadata"]["labels"]["pod-template-hash"] = json!(hash);
    fill_defaults(&mut pod);
    pod
}

/// What the API server fills in.
pub(crate) fn fill_defaults(pod: &mut Value) {
    let spec = &mut pod["spec"];
    if spec["serviceAccountName"].is_null() {
        spec["serviceAccountName"] = json!("default");
    }
    if spec["nodeName"].is_null() {
        spec["nodeName"] = json!("local");
    }
    if spec["containers"].is_null() {
        spec["containers"] = json!([]);
    }
}

/// Starts a deployment's pods anew, one generation after the other.
pub(crate) fn restart(platform: &Platform, key: &Key) -> anyhow::Result<()> {
    let is_there = platform.store.update(key, |deployment| {
        let annotations = &mut deployment["spec"]["template"]["metadata"]["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations["kubectl.kubernetes.io/restartedAt"] =
            json!(format!("{} {:x}", now(), rand::random::<u16>()));
    });
    is_there
        .then_some(())
        .with_context(|| format!("there is no {key} in namespace {}", key.namespace))
}
