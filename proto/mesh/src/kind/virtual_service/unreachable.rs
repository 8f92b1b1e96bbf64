//! Warnings about routes and conditions that can never be reached because an earlier one takes their traffic.

use std::collections::HashMap;

use proto::istio::networking::v1alpha3::string_match::MatchType;
use proto::istio::networking::v1alpha3::{
    HttpMatchRequest, HttpRoute, StringMatch, VirtualService,
};

use crate::finding::{Report, Topic};

/// Warns of them.
pub(super) fn check(spec: &VirtualService, report: &mut Report) {
    // A name does not make a condition another one.
    let http: Vec<Vec<_>> = spec
        .http
        .iter()
        .map(|route| {
            let unnamed = |request: &HttpMatchRequest| HttpMatchRequest {
                name: String::new(),
                ..request.clone()
            };
            route.r#match.iter().map(unnamed).collect()
        })
        .collect();
    check_repeated(
        "http",
        &http.iter().map(Vec::as_slice).collect::<Vec<_>>(),
        report,
    );
    check_repeated(
        "tls",
        &spec
            .tls
            .iter()
            .map(|route| route.r#match.as_slice())
            .collect::<Vec<_>>(),
        report,
    );
    check_repeated(
        "tcp",
        &spec
            .tcp
            .iter()
            .map(|route| route.r#match.as_slice())
            .collect::<Vec<_>>(),
        report,
    );
    check_covered(&spec.http, report);
}

/// Warns of conditions that an earlier route has too, and of routes after one that takes everything.
fn check_repeated<M: PartialEq>(field: &str, routes: &[&[M]], report: &mut Report) {
    let mut earlier: Vec<(usize, &M)> = Vec::new();
    let mut catch_all = None;
    for (index, conditions) in routes.iter().enumerate() {
        let path = format!("{field}[{index}]");
        if conditions.is_empty() {
            if let Some(first) = catch_all {
                report.warning_about(
                    Topic::UnreachableRoute,
                    &path,
                    format!("the route is never used: {field}[{first}] has no match and takes everything; only the last route should have none"),
                );
            }
            catch_all = Some(index);
            continue;
        }
        let mut repeated = 0;
        for (number, condition) in conditions.iter().enumerate() {
            if let Some((first, _)) = earlier.iter().find(|(_, other)| *other == condition) {
                repeated += 1;
                report.warning_about(
                    Topic::UnusedMatch,
                    &format!("{path}.match[{number}]"),
                    format!("the match is never used: {field}[{first}] has the same"),
                );
            } else {
                earlier.push((index, condition));
            }
        }
        if repeated == conditions.len() {
            report.warning_about(
                Topic::UnreachableRoute,
                &path,
                "the route is never used: earlier routes have all its matches",
            );
        }
    }
}

/// What of a condition decides whether it covers another: a prefix of the path, and the rest as texts to compare.
struct Covering<'a> {
    route: usize,
    number: usize,
    prefix: &'a str,
    port: u32,
    method: String,
    authority: String,
    maps: [HashMap<&'a str, String>; 3],
}

impl<'a> Covering<'a> {
    fn new(route: usize, number: usize, request: &'a HttpMatchRequest) -> Option<Self> {
        let Some(MatchType::Prefix(prefix)) = request.uri.as_ref()?.match_type.as_ref() else {
            return None;
        };
        if prefix.is_empty() {
            return None;
        }
        let method = request.method.as_ref().map(text).unwrap_or_default();
        Some(Self {
            route,
            number,
            prefix,
            port: request.port,
            // QUIRK: no method counts as GET.
            method: if method.is_empty() {
                "exact:GET".into()
            } else {
                method
            },
            authority: request.authority.as_ref().map(text).unwrap_or_default(),
            maps: [
                &request.headers,
                &request.query_params,
                &request.without_headers,
            ]
            .map(|map| {
                map.iter()
                    .map(|(key, value)| (key.as_str(), text(value)))
                    .collect()
            }),
        })
    }

    fn covers(&self, later: &Self) -> bool {
        let fits = |own: &String, other: &String| own.starts_with(other.as_str());
        later.prefix.starts_with(self.prefix)
            && later.prefix != self.prefix
            && later.port == self.port
            && fits(&self.method, &later.method)
            && fits(&self.authority, &later.authority)
            && self.maps.iter().zip(&later.maps).all(|(own, other)| {
                own.len() == other.len()
                    && own
                        .iter()
                        .all(|(key, value)| other.get(key).is_some_and(|other| fits(value, other)))
            })
    }
}

/// Expressions are not compared: they count as no condition.
fn text(condition: &StringMatch) -> String {
    match &condition.match_type {
        Some(MatchType::Exact(value)) if !value.is_empty() => format!("exact:{value}"),
        Some(MatchType::Prefix(value)) if !value.is_empty() => format!("prefix:{value}"),
        _ => String::new(),
    }
}

/// Warns of path prefixes that an earlier, shorter prefix covers.
fn check_covered(routes: &[HttpRoute], report: &mut Report) {
    let conditions: Vec<_> = routes
        .iter()
        .enumerate()
        .flat_map(|(route, http)| {
            let requests = http.r#match.iter().enumerate();
            requests.filter_map(move |(number, request)| Covering::new(route, number, request))
        })
        .collect();
    for (index, later) in conditions.iter().enumerate() {
        if let Some(earlier) = conditions[..index]
            .iter()
            .find(|earlier| earlier.covers(later))
        {
            report.warning_about(
                Topic::UnusedMatch,
                &format!("http[{}].match[{}].uri", later.route, later.number),
                format!(
                    "the match of prefix {:?} is never used: http[{}].match[{}] with prefix {:?} takes its requests",
                    later.prefix, earlier.route, earlier.number, earlier.prefix
                ),
            );
        }
    }
}
