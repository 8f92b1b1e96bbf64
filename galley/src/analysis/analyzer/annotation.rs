//! The mesh's annotations: is the key known, does it belong on such an object, can its value be read.

use super::super::{
    Code, Context, Object,
    message::Messages,
    object::{DEPLOYMENT, NAMESPACE, POD, SERVICE},
};

mod known;
mod value;

use known::{KNOWN, Known, Target};

/// Set by the control plane on running pods, not by users.
const SET_BY_THE_MESH: [&str; 3] = [
    "istio.io/rev",
    "ambient.istio.io/redirection",
    "gateway.istio.io/controller-version",
];

pub(super) fn check(context: &Context, messages: &mut Messages) {
    for kind in [NAMESPACE, SERVICE, POD, DEPLOYMENT] {
        for object in context.of(kind) {
            for (key, value) in &object.annotations {
                if is_of_the_mesh(key) && !SET_BY_THE_MESH.contains(&key.as_str()) {
                    check_one(object, key, value, messages);
                }
            }
        }
    }
}

fn is_of_the_mesh(key: &str) -> bool {
    // The one annotation of Kubernetes' own that the mesh reads.
    key == "kubernetes.io/ingress.class"
        || key
            .split_once('/')
            .is_some_and(|(domain, _)| domain.ends_with("istio.io"))
}

fn check_one(object: &Object, key: &str, value: &str, messages: &mut Messages) {
    let path = format!("metadata.annotations.{key}");
    let Some(known) = KNOWN.iter().find(|known| known.key == key) else {
        let text = format!("Unknown annotation: {key}");
        messages.add(Code::UnknownAnnotation, object, &path, text);
        return;
    };
    let has_label = key == "sidecar.istio.io/inject" && object.labels.contains_key(key);
    if known.is_deprecated && !has_label {
        let instead = if key == "sidecar.istio.io/inject" {
            "; use the label of that name"
        } else {
            ""
        };
        let text = format!("Annotation {key} is deprecated{instead}");
        messages.add(Code::DeprecatedAnnotation, object, &path, text);
    }
    if known.targets.contains(&Target::Any) {
        return;
    }
    if !belongs(known, object) {
        let kinds: Vec<String> = known.targets.iter().map(|t| format!("{t:?}")).collect();
        let text = format!(
            "Annotation {key} has an effect on {} only",
            kinds.join(", ")
        );
        messages.add(Code::MisplacedAnnotation, object, &path, text);
        return;
    }
    if let Err(problem) = value::check(key, value) {
        let text = format!("Annotation {key} cannot be read: {problem}");
        messages.add(Code::InvalidAnnotation, object, &path, text);
    }
}

fn belongs(known: &Known, object: &Object) -> bool {
    known
        .targets
        .iter()
        .any(|target| format!("{target:?}") == object.kind)
}
