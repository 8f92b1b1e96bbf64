//! Delegation: a route of a root virtual service that stands for the routes of another one.
//!
//! Every delegate route is combined with every match of the root route; a combination that contradicts itself is left out, and
//! a delegate route of which nothing is left is left out too.

use std::collections::BTreeMap;

use proto::istio::networking::v1alpha3::{self as wire, string_match::MatchType};

use super::virtual_services::VirtualService;

/// The routes of `root` with the delegates' routes in place; `find` knows delegates by namespace and name.
pub(super) fn merge<'a>(
    root: &VirtualService,
    find: impl Fn(&str, &str) -> Option<&'a VirtualService>,
) -> Vec<wire::HttpRoute> {
    let mut routes = Vec::with_capacity(root.http.len());
    for route in &root.http {
        let Some(reference) = &route.delegate else {
            routes.push(route.clone());
            continue;
        };
        let Some(delegate) = find(&reference.namespace, &reference.name) else {
            tracing::debug!(target: "model", name = root.name, namespace = root.namespace, delegate = reference.name, "delegate not found");
            continue;
        };
        if delegate.is_visible_to(&root.namespace) {
            // A delegate may not delegate again.
            let children = delegate
                .http
                .iter()
                .filter(|child| child.delegate.is_none());
            routes.extend(children.filter_map(|child| merge_route(route, child)));
        }
    }
    routes
}

fn merge_route(root: &wire::HttpRoute, child: &wire::HttpRoute) -> Option<wire::HttpRoute> {
    let conditions = merge_conditions(&root.r#match, &child.r#match)?;
    let mut merged = child.clone();
    merged.r#match = conditions;
    merged.name = join(&root.name, &child.name);
    macro_rules! inherit {
        ($($field:ident),*) => { $( if merged.$field.is_none() { merged.$field.clone_from(&root.$field); } )* };
    }
    inherit!(
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirror_percentage,
        cors_policy
    );
    merged.headers = merge_headers(root.headers.as_ref(), child.headers.as_ref());
    Some(merged)
}

fn merge_conditions(
    root: &[wire::HttpMatchRequest],
    child: &[wire::HttpMatchRequest],
) -> Option<Vec<wire::HttpMatchRequest>> {
    if root.is_empty() || child.is_empty() {
        return Some(if root.is_empty() {
            child.to_vec()
        } else {
            root.to_vec()
        });
    }
    let merged: Vec<_> = child
        .iter()
        .flat_map(|child| root.iter().filter_map(|root| merge_condition(root, child)))
        .collect();
    (!merged.is_empty()).then_some(merged)
}

fn merge_condition(
    root: &wire::HttpMatchRequest,
    child: &wire::HttpMatchRequest,
) -> Option<wire::HttpMatchRequest> {
    let mut merged = child.clone();
    merged.name = join(&root.name, &child.name);
    merged.uri = narrower(root.uri.as_ref(), child.uri.as_ref())?;
    merged.scheme = narrower(root.scheme.as_ref(), child.scheme.as_ref())?;
    merged.method = narrower(root.method.as_ref(), child.method.as_ref())?;
    merged.authority = narrower(root.authority.as_ref(), child.authority.as_ref())?;
    merged.headers = unite(&root.headers, &child.headers)?;
    merged.without_headers = unite(&root.without_headers, &child.without_headers)?;
    merged.query_params = unite(&root.query_params, &child.query_params)?;
    if child.port == 0 {
        merged.port = root.port;
    } else if root.port != 0 && root.port != child.port {
        return None;
    }
    for (key, value) in &root.source_labels {
        if merged
            .source_labels
            .insert(key.clone(), value.clone())
            .is_some_and(|own| own != *value)
        {
            return None;
        }
    }
    if child.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    } else if !root.source_namespace.is_empty() && root.source_namespace != child.source_namespace {
        return None;
    }
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    merged.ignore_uri_case |= root.ignore_uri_case;
    Some(merged)
}

fn unite(
    root: &BTreeMap<String, wire::StringMatch>,
    child: &BTreeMap<String, wire::StringMatch>,
) -> Option<BTreeMap<String, wire::StringMatch>> {
    let mut merged = child.clone();
    for (key, condition) in root {
        let united = narrower(Some(condition), child.get(key))?;
        merged.extend(united.map(|united| (key.clone(), united)));
    }
    Some(merged)
}

/// The narrower of two conditions, or `None` when the child's is not within the root's.
#[allow(
    clippy::option_option,
    reason = "outer: contradiction; inner: no condition at all"
)]
fn narrower(
    root: Option<&wire::StringMatch>,
    child: Option<&wire::StringMatch>,
) -> Option<Option<wire::StringMatch>> {
    let (Some(root), Some(child)) = (root, child) else {
        return Some(child.or(root).cloned());
    };
    let is_within = match (&root.match_type, &child.match_type) {
        (None, _) => true,
        (Some(MatchType::Exact(root)), Some(MatchType::Exact(child))) => root == child,
        (
            Some(MatchType::Prefix(root)),
            Some(MatchType::Exact(child) | MatchType::Prefix(child)),
        ) => child.starts_with(root),
        (Some(MatchType::Regex(root)), Some(MatchType::Regex(child))) => root == child,
        _ => false,
    };
    is_within.then(|| Some(child.clone()))
}

fn merge_headers(
    root: Option<&wire::Headers>,
    child: Option<&wire::Headers>,
) -> Option<wire::Headers> {
    let (Some(root), Some(child)) = (root, child) else {
        return child.or(root).cloned();
    };
    Some(wire::Headers {
        request: merge_operations(root.request.as_ref(), child.request.as_ref()),
        response: merge_operations(root.response.as_ref(), child.response.as_ref()),
    })
}

fn merge_operations(
    root: Option<&wire::headers::HeaderOperations>,
    child: Option<&wire::headers::HeaderOperations>,
) -> Option<wire::headers::HeaderOperations> {
    let (Some(root), Some(child)) = (root, child) else {
        return child.or(root).cloned();
    };
    let mut merged = root.clone();
    merged.set.extend(child.set.clone());
    merged.add.extend(child.add.clone());
    merged.remove.extend(
        child
            .remove
            .iter()
            .filter(|name| !root.remove.contains(name))
            .cloned(),
    );
    Some(merged)
}

fn join(root: &str, child: &str) -> String {
    if root.is_empty() || child.is_empty() {
        format!("{root}{child}")
    } else {
        format!("{root}-{child}")
    }
}
