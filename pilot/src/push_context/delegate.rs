//! Delegation: a route of a root virtual service that stands for the routes of another one.
//!
//! Every delegate route is combined with every match of the root route. Each of its matches must be within one of the root's
//! at least; else the whole route is left out, so that nobody gets by a delegate what the root does not give away.

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

#[allow(deprecated, reason = "mirrorPercent counts, too")]
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
        direct_response,
        timeout,
        retries,
        fault,
        mirror,
        mirror_percent,
        mirror_percentage,
        cors_policy,
        headers
    );
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
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
    let mut merged = Vec::new();
    for child in child {
        let known = merged.len();
        let containing = root.iter().filter(|root| is_within(root, child));
        merged.extend(containing.map(|root| merge_condition(root, child)));
        if merged.len() == known {
            return None;
        }
    }
    Some(merged)
}

fn merge_condition(
    root: &wire::HttpMatchRequest,
    child: &wire::HttpMatchRequest,
) -> wire::HttpMatchRequest {
    let mut merged = child.clone();
    merged.name = join(&root.name, &child.name);
    macro_rules! inherit {
        ($($field:ident, $is_unset:expr;)*) => {
            $( if $is_unset(&merged.$field) { merged.$field.clone_from(&root.$field); } )*
        };
    }
    inherit!(
        uri, Option::is_none;
        scheme, Option::is_none;
        method, Option::is_none;
        authority, Option::is_none;
        port, |port: &u32| *port == 0;
        source_namespace, String::is_empty;
        gateways, Vec::is_empty;
        stat_prefix, String::is_empty;
    );
    merged.headers = unite(&root.headers, &child.headers);
    merged.without_headers = unite(&root.without_headers, &child.without_headers);
    merged.query_params = unite(&root.query_params, &child.query_params);
    merged.source_labels = unite(&root.source_labels, &child.source_labels);
    merged
}

/// What either says; of what both say the child's.
fn unite<T: Clone>(root: &BTreeMap<String, T>, child: &BTreeMap<String, T>) -> BTreeMap<String, T> {
    let mut merged = root.clone();
    merged.extend(
        child
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    merged
}

/// True when whatever `child` asks for besides `root` is narrower than that.
fn is_within(root: &wire::HttpMatchRequest, child: &wire::HttpMatchRequest) -> bool {
    let one = |root: &Option<wire::StringMatch>, child: &Option<wire::StringMatch>| {
        let both = root.as_ref().zip(child.as_ref());
        both.is_none_or(|(root, child)| is_narrower(root, child))
    };
    let each = |root: &BTreeMap<_, _>, child: &BTreeMap<String, wire::StringMatch>| {
        let mut both = child
            .iter()
            .filter_map(|(key, child)| Some((root.get(key)?, child)));
        both.all(|(root, child)| is_narrower(root, child))
    };
    let has_same_labels = child.source_labels.iter().all(|(key, value)| {
        let wanted = root.source_labels.get(key);
        wanted.is_none_or(|wanted| wanted == value)
    });
    one(&root.uri, &child.uri)
        && one(&root.scheme, &child.scheme)
        && one(&root.method, &child.method)
        && one(&root.authority, &child.authority)
        && each(&root.headers, &child.headers)
        && each(&root.without_headers, &child.without_headers)
        && each(&root.query_params, &child.query_params)
        && root.ignore_uri_case == child.ignore_uri_case
        && (root.port == 0 || child.port == 0 || root.port == child.port)
        // QUIRK: a namespace of the root has to be repeated; to say nothing, as with all other fields, is a contradiction.
        && (root.source_namespace.is_empty() || root.source_namespace == child.source_namespace)
        && (root.gateways.is_empty() || child.gateways.iter().all(|name| root.gateways.contains(name)))
        && has_same_labels
}

/// True when all that `child` takes `root` takes too, as far as that can be told: nobody compares expressions.
fn is_narrower(root: &wire::StringMatch, child: &wire::StringMatch) -> bool {
    use MatchType::{Exact, Prefix};
    match (&root.match_type, &child.match_type) {
        (Some(Exact(root)), Some(Exact(child))) => root == child,
        (Some(Prefix(root)), Some(Exact(child) | Prefix(child))) => child.starts_with(root),
        _ => false,
    }
}

fn join(root: &str, child: &str) -> String {
    if root.is_empty() || child.is_empty() {
        format!("{root}{child}")
    } else {
        format!("{root}-{child}")
    }
}
