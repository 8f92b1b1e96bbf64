//! The Gateway API: are its definitions new enough, and do policies attach to its gateways in the way that works.

use super::super::{
    Code, Context,
    context::selects,
    message::Messages,
    object::{
        AUTHORIZATION_POLICY, CUSTOM_RESOURCE_DEFINITION, POD, REQUEST_AUTHENTICATION, TELEMETRY,
        WASM_PLUGIN, texts,
    },
};

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";

/// The oldest bundle in which each definition is one that is understood.
const MINIMUM: [(&str, [u64; 3]); 3] = [
    ("grpcroutes.gateway.networking.k8s.io", [1, 1, 0]),
    ("backendtlspolicies.gateway.networking.k8s.io", [1, 4, 0]),
    ("tlsroutes.gateway.networking.k8s.io", [1, 5, 0]),
];

pub(super) fn check_versions(context: &Context, messages: &mut Messages) {
    for definition in context.of(CUSTOM_RESOURCE_DEFINITION) {
        let Some((_, minimum)) = MINIMUM.iter().find(|(name, _)| *name == definition.name) else {
            continue;
        };
        let Some(installed) = definition.annotations.get(BUNDLE_VERSION) else {
            continue;
        };
        if version(installed).is_some_and(|version| version < *minimum) {
            let [major, minor, patch] = minimum;
            let text = format!(
                "{} is of bundle {installed}, older than v{major}.{minor}.{patch}; its objects are not looked at",
                definition.name
            );
            let path = "metadata.annotations";
            messages.add(
                Code::GatewayApiCrdVersionBelowMinimum,
                definition,
                path,
                text,
            );
        }
    }
}

/// `v1.4.1-rc.1` is 1.4.1.
fn version(text: &str) -> Option<[u64; 3]> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let numbers = text.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(str::parse);
    let mut next = || parts.next().unwrap_or(Ok(0)).ok();
    Some([next()?, next()?, next()?])
}

pub(super) fn check_selectors(context: &Context, messages: &mut Messages) {
    for kind in [
        AUTHORIZATION_POLICY,
        REQUEST_AUTHENTICATION,
        TELEMETRY,
        WASM_PLUGIN,
    ] {
        for policy in context.of(kind) {
            let spec = policy.spec();
            let has_target = !spec["targetRef"].is_null() || !spec["targetRefs"].is_null();
            if has_target || spec["selector"].is_null() {
                continue;
            }
            let selector = texts(&spec["selector"]["matchLabels"]);
            let pod = context.of(POD).find(|pod| {
                pod.namespace == policy.namespace
                    && pod.labels.contains_key(GATEWAY_NAME)
                    && selects(&selector, &pod.labels)
            });
            if let Some(gateway) = pod.and_then(|pod| pod.labels.get(GATEWAY_NAME)) {
                let text = format!(
                    "The selector has no effect on the Kubernetes Gateway {gateway}: use targetRefs"
                );
                messages.add(Code::IneffectiveSelector, policy, "spec.selector", text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(version("v1.4.1"), Some([1, 4, 1]));
        assert_eq!(version("1.5.0-rc.1"), Some([1, 5, 0]));
        assert_eq!(version("v1"), Some([1, 0, 0]));
        assert_eq!(version("main"), None);
    }
}
